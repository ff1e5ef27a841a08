"""Finders of nuclei: the real Cellpose-SAM on weights whose answer is known, instance files, the watershed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cellpose_weights import cones
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from histo import segmenters
from histo.errors import InputError
from histo.finders import WatershedFinder, open_finder
from histo.finders.cellpose_sam import CellposeFinder, CellposeSettings, weights_file
from histo.finders.network import NetworkFinder, NetworkSettings
from histo.flows import FLOW_SCALE, flows_of, instances_from
from histo.images import read_image
from histo.metrics import compare
from histo.phantom import PhantomTissue
from histo.watershed import segment

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finder(cellpose_weights: Path) -> CellposeFinder:
    settings = CellposeSettings(model=str(cellpose_weights), nucleus=5, batch_size=3)
    opened = open_finder("cellpose", settings, NetworkSettings(), CPU)
    assert isinstance(opened, CellposeFinder)
    return opened


@pytest.mark.slow
def test_cellpose_finds_the_nuclei_its_weights_describe(finder: CellposeFinder) -> None:
    """Through the library's own loading, rescaling, windows, network, dynamics and filters."""
    image, truth, _ = cones(128, 40, 10)
    assert finder.diameter(0.25) == 20
    (found,) = finder([image], [0.25])
    assert found.dtype == np.int32
    assert compare(truth, found).pq >= 0.98
    facts = finder.facts
    assert len(facts["weights_sha256"]) == 64
    assert "CC BY-NC" in facts["licence"]


@pytest.mark.slow
def test_a_batch_gives_each_tile_what_it_gets_alone(finder: CellposeFinder) -> None:
    """Tiles of two sizes, one of a single colour and one pale: nothing of one tile may reach another."""
    image, truth, _ = cones(128, 40, 10)
    whole = finder._model.net.encoder.blocks
    finder._model.net.encoder.blocks = whole[:0]  # they pass on what they get; without them it takes a second
    try:
        pale = (255 - (255 - image.astype(int)) // 3).astype(np.uint8)
        tiles = [image, np.full_like(image, 200), pale, np.ascontiguousarray(image[:, :100, :120])]
        together = finder(tiles, [0.25] * 4)
        alone = [finder([tile], [0.25])[0] for tile in tiles]
    finally:
        finder._model.net.encoder.blocks = whole
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [found.shape for found in together] == [(128, 128)] * 3 + [(100, 120)]
    assert not together[1].any()
    assert compare(truth, together[2]).pq > 0.9


def test_the_diameter_follows_from_the_mpp() -> None:
    class Bare(CellposeFinder):
        def __init__(self, settings: CellposeSettings) -> None:
            self.settings = settings

    assert Bare(CellposeSettings(nucleus=6)).diameter(0.25) == 24
    assert Bare(CellposeSettings(nucleus=6)).diameter(0.5) == 12
    assert Bare(CellposeSettings(diameter=17)).diameter(None) == 17
    with pytest.raises(InputError, match=r"no known µm/px.*give --data\.mpp, or cellpose\.diameter"):
        Bare(CellposeSettings()).diameter(None)
    with pytest.raises(InputError, match="A tile of 20 x 4 pixels"):
        Bare(CellposeSettings())([np.zeros((3, 20, 4), np.uint8)], [0.25])


def test_weights_that_are_not_there_are_one_sentence_and_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cellpose import models

    def reach_out(name: str) -> None:
        raise AssertionError(f"{name} would be fetched")

    monkeypatch.setattr(models, "MODEL_DIR", tmp_path)
    monkeypatch.setattr(models, "cache_model_path", reach_out)
    with pytest.raises(InputError, match=r"are not at .*/cpsam_v2; put https://\S+/cpsam_v2 there.*cellpose\.download"):
        weights_file(CellposeSettings())
    with pytest.raises(InputError, match=r"'nowhere/net' are not at nowhere/net; put the file there, name another"):
        weights_file(CellposeSettings(model="nowhere/net", download=True))
    (tmp_path / "cpsam_v2").write_bytes(b"x")
    assert weights_file(CellposeSettings()) == tmp_path / "cpsam_v2"


def test_a_failed_download_says_what_to_do_and_leaves_certificates_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    from cellpose import models

    def fail(name: str) -> None:
        ssl._create_default_https_context = ssl._create_unverified_context  # as the library does
        raise OSError("no network")

    before = ssl._create_default_https_context
    monkeypatch.setattr(models, "MODEL_DIR", tmp_path)
    monkeypatch.setattr(models, "cache_model_path", fail)
    with pytest.raises(InputError, match=r"could not be fetched \(no network\); put it from https"):
        weights_file(CellposeSettings(download=True))
    assert ssl._create_default_https_context is before


class Evil:
    """What a pickle may do when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("evil"),)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["empty", "text", "other network", "code"])
def test_files_that_hold_no_cellpose_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights"
    if kind == "empty":
        file.touch()
    elif kind == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1")
    else:
        torch.save({"conv.weight": torch.zeros(1)} if kind == "other network" else {"W2": Evil()}, file)
    with pytest.raises(InputError, match=r"cannot be read as weights|holds no weights of a Cellpose 4 network"):
        CellposeFinder(CellposeSettings(model=str(file)), CPU)
    assert not (tmp_path / "evil").exists()


@pytest.mark.slow
def test_weights_with_a_gap_are_refused(cellpose_weights: Path, tmp_path: Path) -> None:
    """The library would fill it with random ones and say nothing."""
    state = torch.load(cellpose_weights, weights_only=True, mmap=True)
    del state["encoder.neck.2.weight"]
    torch.save(state, tmp_path / "gap")
    with pytest.raises(InputError, match=r"lacks 1 of the weights of Cellpose-SAM, encoder\.neck\.2\.weight among"):
        CellposeFinder(CellposeSettings(model=str(tmp_path / "gap")), CPU)


def whole_nuclei(index: int) -> NDArray[np.int32]:
    """A phantom map without slivers at the border, which both dynamics leave out by their size."""
    instances = PhantomTissue(5, size=192, mpp=0.25)[index].instances
    assert instances is not None
    return np.where(np.bincount(instances.ravel())[instances] < 30, 0, instances).astype(np.int32)


@pytest.mark.parametrize("index", range(3))
def test_true_flows_become_their_nuclei_by_both_dynamics(index: int) -> None:
    """Cellpose's dynamics on Cellpose's flows, and ours on ours and on theirs."""
    from cellpose.dynamics import compute_masks, labels_to_flows

    truth = whole_nuclei(index)
    theirs = labels_to_flows([truth], device=CPU)[0][2:4]
    logits = np.where(truth > 0, 4, -4).astype(np.float32)
    assert compare(truth, compute_masks(theirs * FLOW_SCALE, logits, device=CPU)).pq >= 0.98
    assert compare(truth, instances_from(theirs, logits)).pq >= 0.98
    assert compare(truth, instances_from(flows_of(truth), logits)).pq >= 0.98


def test_an_instance_file_or_its_run_finds_what_its_segmenter_finds(toy_run: Path, tile_folder: Path) -> None:
    image = read_image(tile_folder / "images" / "3.png")
    segmenter, card = segmenters.load(toy_run / "export" / "segmenter.safetensors")
    expected = segmenters.segment(segmenter, image, card["tile_size"])
    for path in (toy_run, toy_run / "export", toy_run / "export" / "segmenter.safetensors"):
        finder = NetworkFinder(NetworkSettings(str(path)), CPU)
        np.testing.assert_array_equal(finder([image], [0.5])[0], expected)
    assert finder.facts["mpp"] == 0.5
    with pytest.raises(InputError, match=r"has 0\.25 µm/px, but the network of flows\.model learned at 0\.5"):
        finder([image], [0.25])


def test_other_weights_are_other_facts(toy_run: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_run / "export", tmp_path / "export")
    file = tmp_path / "export" / "segmenter.safetensors"
    before = NetworkFinder(NetworkSettings(str(tmp_path)), CPU).facts
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    assert NetworkFinder(NetworkSettings(str(tmp_path)), CPU).facts != before


def test_flows_need_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"flows\.model is not given"):
        NetworkFinder(NetworkSettings(), CPU)
    with pytest.raises(InputError, match=r"has no export/segmenter\.safetensors"):
        NetworkFinder(NetworkSettings(str(tmp_path)), CPU)


def test_the_watershed_is_that_of_histo(tile_folder: Path) -> None:
    images = [read_image(tile_folder / "images" / f"{k}.png") for k in (0, 1)]
    for found, image in zip(WatershedFinder()(images, [0.5, 0.5]), images, strict=True):
        np.testing.assert_array_equal(found, segment(image, 0.5))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"nucleus": 0.0}, "cellpose.nucleus is 0.0, expected 1 to 1000"),
        ({"diameter": -3.0}, "cellpose.diameter is -3.0"),
        ({"flow_threshold": -1.0}, "cellpose.flow_threshold is -1.0"),
        ({"cellprob_threshold": 1e9}, "cellpose.cellprob_threshold is 1000000000.0"),
        ({"batch_size": 0}, "cellpose.batch_size is 0"),
    ],
)
def test_settings_out_of_range(changed: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        CellposeSettings(**changed)  # type: ignore[arg-type]
