"""Types of nuclei: learned beside the instances, told for every nucleus, and scored."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from skimage.measure import label
from torch import Tensor, nn

import downstream
from downstream.losses import type_loss
from downstream.tasks.instances import Instances, InstancesSettings
from downstream.train import main
from downstream.type_names import published_types, refuse_other_types
from histo.errors import InputError
from histo.instance_networks import Flipped, InstanceNetwork, InstanceSettings
from histo.phantom import PhantomTissue
from histo.randomness import draws
from histo.segmenters import Reading, segment_typed
from tests.published_specimens import pannuke

NAMES = ["neoplastic", "inflammatory", "connective", "dead", "epithelial"]


class Drawn(nn.Module):
    """A reader that sees what is painted: red is nuclear with flows to the middle, green says which type."""

    head = "flows"

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor) -> Reading:
        flow = torch.zeros(len(image), 2, *image.shape[2:])
        dense = torch.cat([flow, 5 * image[:, :1]], 1)
        green = image[:, 1]
        return Reading(None, dense, "flows", types=torch.stack([-green, green], 1))


def test_each_nucleus_has_the_type_of_most_of_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two squares, one of type 2 in most of its pixels, over several windows and bands."""
    image = np.zeros((3, 96, 160), np.uint8)
    image[0, 10:30, 10:30] = image[0, 50:70, 100:120] = 255
    image[1, 50:70, 100:114] = 255  # 70 % of the second one
    image[1, 10:14, 10:30] = 255  # 20 % of the first one

    import histo.segmenters

    monkeypatch.setattr(
        histo.segmenters, "instances_from", lambda flow, logits, **_: label(logits > 0).astype(np.int32)
    )
    found = segment_typed(Drawn(), image, 32)
    instances, types = found.instances, found.types
    assert types is not None
    assert instances.max() == 2
    assert types.tolist() == [0, 1, 2]
    assert instances[20, 20] == 1


def test_probabilities_are_means_over_the_pixels_of_nuclei(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a loop over nuclei and pixels, of an image of several windows and pieces."""
    image = draws(0, "picture", 0).integers(0, 256, (3, 600, 70)).astype(np.uint8)
    image[0] //= 4
    for row, column in ((5, 5), (40, 30), (500, 10), (550, 50)):  # the third lies across a piece's end
        image[0, row : row + 20, column : column + 15] |= 128

    import histo.segmenters

    monkeypatch.setattr(
        histo.segmenters, "instances_from", lambda flow, logits, **_: label(logits > 0).astype(np.int32)
    )
    found = segment_typed(Drawn(), image, 32)
    np.testing.assert_array_equal(found.instances, label(image[0] >= 128))
    assert found.probabilities is not None
    assert found.type_probabilities is not None
    assert found.probabilities.dtype == found.type_probabilities.dtype == np.float32
    assert (found.probabilities.shape, found.type_probabilities.shape) == ((5,), (5, 2))
    levels = image / 127.5 - 1
    for number in range(1, 5):
        pixels = np.argwhere(found.instances == number)
        nuclear = [expit(5 * levels[0, row, column]) for row, column in pixels]
        second = [expit(2 * levels[1, row, column]) for row, column in pixels]  # the softmax over -green and green
        assert found.probabilities[number] == pytest.approx(np.mean(nuclear), abs=1e-5)
        assert found.type_probabilities[number] == pytest.approx([1 - np.mean(second), np.mean(second)], abs=1e-5)
    np.testing.assert_allclose(found.type_probabilities[1:].sum(1), 1, atol=1e-5)


def test_the_loss_looks_at_nuclei_of_known_type_alone() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, 0, 0] = 2.0
    types = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert type_loss(logits, types) == 0
    types[0, 0, 0] = 2
    expected = -torch.log_softmax(torch.tensor([0.0, 2.0, 0.0]), 0)[1]
    torch.testing.assert_close(type_loss(logits, types), expected)
    types[0, 3, 3] = 1
    expected = (expected + np.log(3)) / 2
    torch.testing.assert_close(type_loss(logits, types), expected.float())


def test_flips_leave_types_where_they_are() -> None:
    torch.manual_seed(0)
    network = InstanceNetwork(InstanceSettings("test_resnet", types=2)).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        plain, mirrored = (Flipped(network)(tile).types for tile in (image, image.flip(3)))
    assert plain is not None
    assert mirrored is not None
    torch.testing.assert_close(mirrored.flip(3), plain, rtol=0, atol=1e-5)


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    """PanNuke's layout with a nucleus of each type to learn from; those scored have the first and the last alone."""
    folder = tmp_path / "pannuke"
    pannuke(folder)
    path = folder / "Fold 1" / "masks" / "fold1" / "masks.npy"
    masks = np.load(path)
    for kind in range(len(NAMES)):
        masks[1, 4 * kind : 4 * kind + 3, :3, kind] = 1
    np.save(path, masks)
    return folder


def training(place: str, names: list[str], run: Path) -> list[str]:
    settings = ["--data.tiles", place, "--instances.types", json.dumps(names), "--data.workers", "0"]
    settings += ["--encoder.architecture", "test_resnet", "--crop.size", "64", "--data.holdout", "val"]
    return [*settings, "--train.images", "16", "--train.batch_size", "4", "--run.dir", str(run)]


def test_types_are_learned_and_scored_end_to_end(typed: Path, tmp_path: Path) -> None:
    """The run has its scores, and a notebook the type of each nucleus."""
    main(training(f"pannuke:{typed}", NAMES, tmp_path / "run"))
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    assert {"aji", "bpq", "mpq"} <= scores.keys()
    found = downstream.load(tmp_path / "run").predict(PhantomTissue(0, size=100)[0].image)
    assert found.instances is not None
    assert found.types is not None
    assert found.type_probabilities is not None
    assert len(found.types) == found.instances.max() + 1
    assert found.type_probabilities.shape == (len(found.types), len(NAMES))


@pytest.mark.parametrize("names", [["inflammatory", "neoplastic", *NAMES[2:]], NAMES[:4], ["tumour", *NAMES[1:]]])
def test_types_are_named_as_their_set_numbers_them(names: list[str], typed: Path, tmp_path: Path) -> None:
    """Another order, one too few, another name: the sentence shows both lists and the setting that is right."""
    with pytest.raises(InputError) as refused:
        main([*training(f"pannuke:{typed}", names, tmp_path / "run"), "--dry_run"])
    right = "[neoplastic, inflammatory, connective, dead, epithelial]"
    assert str(refused.value) == (
        f"instances.types is [{', '.join(names)}], expected the types as pannuke numbers them; give "
        f"--instances.types '{right}'."
    )
    main([*training(f"pannuke:{typed}", NAMES, tmp_path / "run"), "--instances.types", right, "--dry_run"])


def test_case_spaces_and_underscores_make_no_other_type(tmp_path: Path) -> None:
    names = ["Miscellaneous", "inflammatory", "healthy_epithelial", "Dysplastic_or malignant epithelial"]
    refuse_other_types([*names, "fibroblast", "MUSCLE", "endothelial"], f"consep:{tmp_path / 'c'}")
    refuse_other_types(["whatever"], str(tmp_path / "tiles"), f"glas:{tmp_path / 'g'}")  # which tell no types


def test_sets_that_number_types_differently_do_not_go_together(tmp_path: Path) -> None:
    places = [f"{name}:{tmp_path / name}" for name in ("pannuke", "lizard")]
    words = r"pannuke numbers types of nuclei as \[neoplastic, .*, but lizard as \[neutrophil, .*\], so one list"
    with pytest.raises(InputError, match=words):
        refuse_other_types(NAMES, places, None)
    with pytest.raises(InputError, match=words):
        refuse_other_types(NAMES, places[0], places[1])


def test_a_copy_with_a_table_of_its_own_publishes_no_types(tmp_path: Path) -> None:
    (tmp_path / "tiles.csv").touch()
    assert not published_types([f"pannuke:{tmp_path}"])


def test_a_type_that_is_never_shown_is_refused(typed: Path, tmp_path: Path) -> None:
    """What is scored may lack types, what is learned from may not."""
    settings = training(f"pannuke:{typed}", NAMES, tmp_path / "run")
    main([*settings, "--dry_run"])
    with pytest.raises(InputError, match="The type inflammatory has no nucleus in the train part, expected some of"):
        main([*settings, "--data.split", "val", "--data.holdout", "train", "--dry_run"])


def test_a_type_beyond_the_names_is_refused() -> None:
    task = object.__new__(Instances)
    task.settings = InstancesSettings(types=["tumour"])
    tile = replace(PhantomTissue(0, size=96)[0], classes=np.array([0, 1, 2], np.uint8))
    with pytest.raises(InputError, match=r"type 2, but instances\.types names 1: tumour"):
        task.prepared(tile)


def test_tiles_without_types_are_refused(tmp_path: Path) -> None:
    from histo.tiles.tables import write_folder

    tiles = PhantomTissue(0, size=96, count=4)
    write_folder(
        (replace(tile, split=("train", "test")[k % 2], patient=f"p{k}") for k, tile in enumerate(tiles)), tmp_path / "t"
    )
    settings = [
        "--data.tiles",
        str(tmp_path / "t"),
        "--instances.types",
        '["a"]',
        "--crop.size",
        "64",
        "--data.workers",
        "0",
    ]
    with pytest.raises(InputError, match="has no types of nuclei"):
        main([*settings, "--encoder.architecture", "test_resnet", "--run.dir", str(tmp_path / "run")])


def test_types_need_a_head_that_tells_them() -> None:
    with pytest.raises(InputError, match="not told by head maskrcnn"):
        InstanceSettings("test_resnet", head="maskrcnn", types=2)
