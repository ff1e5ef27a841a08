"""downstream/predict.py: what it writes of tiles, an image and slides, how it goes on, and what it refuses."""

import csv
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from slide_specimens import tissue_on_glass, write_slide
from torch.nn import functional as F

import downstream
from downstream.bag_networks import BagNetwork, write_bag_network
from downstream.bags import BagClassifier, BagSettings
from downstream.inference import Prediction, TrainedTask
from downstream.pieces import NOWHERE, Slides, of_core
from downstream.predict import main
from downstream.tasks.classify import Classifier, write_classifier
from downstream.tasks.segment import KIND as REGIONS
from downstream.tasks.segment import Regions
from histo import encoders
from histo.dense import DenseNetwork
from histo.encoders import architecture, write_card
from histo.errors import InputError
from histo.instance_networks import InstanceNetwork, InstanceSettings, write_network
from histo.maskrcnn import Detections
from histo.masks import read_instances
from histo.metrics import compare
from histo.phantom import PhantomTissue
from histo.probes import feature_width
from histo.segmenters import Reading
from histo.slides.tables import SlideRow
from histo.tiles import open_tiles
from histo.tiles.tables import write_folder
from tests.launching import ALONE, ENVIRONMENT, PAIR, ROOT


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve phantom tiles of 96² at 0.5 µm/px, four of them to score."""
    tiles = PhantomTissue(0, size=96, count=12)
    folder = tmp_path_factory.mktemp("predict") / "tiles"
    write_folder((replace(tiles[k], split="train" if k < 8 else "test", patient=f"p{k}") for k in range(12)), folder)
    return folder


def darkness(image: torch.Tensor) -> torch.Tensor:
    """Logits of dark pixels, float [N, 1, H, W], which phantom nuclei are."""
    return 20 * (0.15 - F.avg_pool2d(image[:, :1], 3, stride=1, padding=1))


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A network that finds what is dark, instead of what weights would tell."""

    def forward(network: InstanceNetwork, image: torch.Tensor) -> Reading:
        logits = darkness(image)
        return Reading(None, torch.cat([F.avg_pool2d(logits.sigmoid(), 9, 1, 4), logits], 1), "distance")

    folder = tmp_path_factory.mktemp("finder") / "export"
    folder.mkdir()
    network = InstanceNetwork(InstanceSettings("test_resnet", head="distance"))
    write_network(folder / "instances.safetensors", network, {"mpp": 0.5, "tile_size": 64, "flips": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InstanceNetwork, "forward", forward)
        yield folder.parent


@pytest.fixture(scope="module")
def divider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Likewise for regions."""
    folder = tmp_path_factory.mktemp("divider") / "export"
    folder.mkdir()
    wanted = architecture("test_resnet", "own", "encoder")
    network = Regions(DenseNetwork(wanted, "unet", 2), (0.5,) * 3, (0.5,) * 3)
    own = {"kind": REGIONS, "classes": ["background", "nuclei"], "decoder": "unet", "mean": [0.5] * 3, "std": [0.5] * 3}
    card = {**wanted.card, **own, "mpp": 0.5, "tile_size": 64}
    write_card(folder / "regions.safetensors", network.state_dict(), card)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Regions, "forward", lambda network, image: F.pad(darkness(image), (0, 0, 0, 0, 1, 0)))
        yield folder.parent


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with random weights, of tiles of 96 px at 0.5 µm/px."""
    start = encoders.start("none", "own", "test_resnet", seed=0)
    torch.manual_seed(0)
    width = feature_width(start.encoder, start.architecture, 64, "crop.size")
    network = Classifier(start.encoder, width, 2, (0.5,) * 3, (0.5,) * 3)
    folder = tmp_path_factory.mktemp("classifier")
    card = {"mpp": 0.5, "tile_pixels": [96, 96]}
    return write_classifier(network, start.architecture, ["benign", "malignant"], 64, card, folder)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of bags with random weights, likewise."""
    start = encoders.start("none", "own", "test_resnet", seed=0)
    torch.manual_seed(0)
    width = feature_width(start.encoder, start.architecture, 64, "crop.size")
    head = BagClassifier(width, 2, BagSettings(), torch.zeros(width), torch.ones(width))
    network = BagNetwork(start.encoder, head, (0.5,) * 3, (0.5,) * 3, bf16=False)
    folder = tmp_path_factory.mktemp("judge")
    return write_bag_network(network, start.architecture, ["benign", "malignant"], 64, {"mpp": 0.5}, folder)


def test_nuclei_of_tiles_are_those_of_predict(finder: Path, tissue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main([str(finder), "--data.tiles", str(tissue), "--data.split", "test", "--out", str(out)])
    task, tiles = downstream.load(finder), open_tiles(tissue, split="test")
    for tile in tiles:
        found = read_instances(out / "labels" / Path(tile.key).with_suffix(".png"))
        assert found.max() > 0
        np.testing.assert_array_equal(found, task.predict(tile.image).instances)
    assert len(list(out.rglob("labels/**/*.png"))) == 4
    note = json.loads((out / "predict.json").read_text())
    assert note["finished"]
    assert (note["made"], note["kind"], note["network"]["mpp"]) == (4, "instances", 0.5)
    assert Image.open(out / "preview.png").size[0] > 800


def test_nuclei_have_probabilities(finder: Path) -> None:
    """The mean of the sigmoid of the logits over the pixels of each; the image is one window."""
    image = PhantomTissue(9, size=64)[0].image
    found = downstream.load(finder).predict(image)
    assert found.instances is not None
    assert found.nucleus_probabilities is not None
    assert found.type_probabilities is None
    maps = darkness(torch.from_numpy(image)[None] / 127.5 - 1).sigmoid()[0, 0].numpy()
    for number in range(1, found.instances.max() + 1):
        expected = maps[found.instances == number].mean()
        assert found.nucleus_probabilities[number] == pytest.approx(expected, abs=1e-4)
    assert len(found.nucleus_probabilities) == found.instances.max() + 1 > 3


def test_probabilities_of_head_maskrcnn_are_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.tensor([[2.0, 2.0, 12.0, 12.0], [30.0, 30.0, 45.0, 45.0], [50.0, 5.0, 60.0, 15.0]])
    seen = Detections(boxes, torch.tensor([0.6, 0.9, 0.4]), torch.ones(3, 28, 28))
    forward = lambda network, image: Reading(None, None, "maskrcnn", detections=[seen] * len(image))  # noqa: E731
    network = InstanceNetwork(InstanceSettings("test_resnet", head="maskrcnn", pyramid_width=32))
    write_network(tmp_path / "instances.safetensors", network, {"tile_size": 64})
    monkeypatch.setattr(InstanceNetwork, "forward", forward)
    found = downstream.load(tmp_path / "instances.safetensors").predict(np.zeros((64, 64, 3), np.uint8))
    assert found.instances is not None
    assert found.nucleus_probabilities == pytest.approx([0, 0.9, 0.6])  # what is below 0.5 is not drawn
    assert (found.instances[35, 35], found.instances[5, 5], found.instances.max()) == (1, 2, 2)


def test_a_stopped_call_goes_on(finder: Path, tissue: Path, tmp_path: Path) -> None:
    arguments = [str(finder), "--data.tiles", str(tissue), "--out", str(tmp_path / "out")]
    arguments += ["--data.split", "test"]
    main(arguments)
    files = sorted((tmp_path / "out" / "labels").rglob("*.png"))
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    files[2].unlink()
    main(arguments)
    for file, (content, touched) in before.items():
        assert file.read_bytes() == content
        assert (file.stat().st_mtime_ns == touched) is (file != files[2])
    with pytest.raises(InputError, match=r"--data.split is 'train', but .* was begun with 'test'"):
        main([*arguments[:-1], "train"])


def test_types_are_told_beside_the_map(
    finder: Path, tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nuclei on the left are of the second type."""

    def predict(task: TrainedTask, image: np.ndarray, mpp: float | None = None) -> Prediction:
        instances = np.zeros(image.shape[1:], np.int32)
        instances[2:9, 2:9], instances[20:29, 60:69] = 1, 2
        return Prediction(instances=instances, types=np.array([0, 2, 1], np.uint8))

    monkeypatch.setattr(TrainedTask, "predict", predict)
    monkeypatch.setattr(TrainedTask, "types", ["tumour", "stroma"])
    main([str(finder), "--data.tiles", str(tissue), "--data.split", "test", "--out", str(tmp_path / "out")])
    lines = next((tmp_path / "out" / "types").rglob("*.csv")).read_text().split()
    assert lines == ["id,type", "1,stroma", "2,tumour"]
    assert json.loads((tmp_path / "out" / "predict.json").read_text())["types"] == ["tumour", "stroma"]


def test_regions_with_probabilities(divider: Path, tissue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main([str(divider), "--data.tiles", str(tissue), "--probabilities", "--out", str(out)])
    values = read_instances(out / "labels" / "images" / "3.png")
    maps = np.load(out / "probabilities" / "images" / "3.npy")
    assert set(np.unique(values)) == {0, 1}
    assert maps.shape == (2, 96, 96)
    np.testing.assert_allclose(maps.astype(float).sum(0), 1, atol=2e-3)
    assert ((maps[1] > maps[0]) == (values == 1)).mean() > 0.999  # float16 has ties


def test_classes_of_tiles(classifier: Path, tissue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main([str(classifier), "--data.tiles", str(tissue), "--out", str(out)])
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    task, tiles = downstream.load(classifier), open_tiles(tissue)
    assert [row["tile"] for row in rows] == [entry.key for entry in tiles.entries]
    for row, tile in zip(rows, tiles, strict=True):
        found = task.predict(tile.image)
        assert row["label"] == found.label
        assert found.probabilities is not None
        assert float(row["p_malignant"]) == pytest.approx(found.probabilities[1], rel=1e-4)


def test_an_image_of_another_scale(finder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice as fine: resized to the training's µm/px, and the map comes back in the image's own pixels."""
    tile = PhantomTissue(9, size=96)[0]
    picture = Image.fromarray(tile.image.transpose(1, 2, 0))
    picture.resize((192, 192), Image.Resampling.BICUBIC).save(tmp_path / "fine.png")
    arguments = [str(finder), "--image", str(tmp_path / "fine.png"), "--out", str(tmp_path / "out")]
    main([*arguments, "--data.mpp", "0.25"])
    assert "1 tile of 0.25 µm/px: read at the 0.5 of the training" in capsys.readouterr().err
    fine = read_instances(tmp_path / "out" / "labels" / "fine.png")
    assert fine.shape == (192, 192)
    plain = downstream.load(finder).predict(tile.image).instances
    assert plain is not None
    assert compare(plain.repeat(2, 0).repeat(2, 1), fine).dice > 0.9
    unscaled = downstream.load(finder).predict(np.asarray(Image.open(tmp_path / "fine.png"))).instances
    assert unscaled is not None
    assert not np.array_equal(unscaled, fine)
    with pytest.raises(InputError, match=r"has 1 µm/px, coarser than the 0.5"):
        main([*arguments, "--data.mpp", "1", "--overwrite"])


@pytest.mark.parametrize(
    ("mpp", "words"),
    [
        (None, "unknown µm/px: taken to be of 0.5"),
        (0.505, "read as they are"),
        (0.25, "shown whole, as 64 px, to a network that learned at 0.5"),
    ],
)
def test_scales_are_told(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mpp: float | None, words: str
) -> None:
    write_folder([replace(PhantomTissue(9, size=96)[0], mpp=mpp)], tmp_path / "tiles")
    main([str(classifier), "--data.tiles", str(tmp_path / "tiles"), "--out", str(tmp_path / "out")])
    assert words in capsys.readouterr().err


def test_a_classifier_tells_that_tiles_are_wider(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder([PhantomTissue(9, size=192)[0]], tmp_path / "tiles")
    main([str(classifier), "--data.tiles", str(tmp_path / "tiles"), "--out", str(tmp_path / "out")])
    assert "96 µm wide, those of the training 48" in capsys.readouterr().err


def area_of(geometry: dict) -> float:
    """Of outlines less that of holes, which run the other way round."""
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    doubled = 0.0
    for ring in (np.array(ring, float) for polygon in polygons for ring in polygon):
        doubled += float((ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]).sum())
    return abs(doubled) / 2


def test_types_of_a_slides_nuclei_are_their_classes(
    finder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of more than 80 px are made the first type, which shows that types stay with their outlines."""
    plain = TrainedTask.predict

    def predict(task: TrainedTask, image: np.ndarray, mpp: float | None = None) -> Prediction:
        found = plain(task, image, mpp)
        assert found.instances is not None
        wide = np.bincount(found.instances.ravel()) > 80
        return replace(found, types=np.where(wide, 1, 2).astype(np.uint8))

    monkeypatch.setattr(TrainedTask, "predict", predict)
    monkeypatch.setattr(TrainedTask, "types", ["large", "small"])
    row = SlideRow(write_slide(tmp_path / "slide.tif", tissue_on_glass(1, 1, side=320)), "slide.tif")
    Slides(downstream.load(finder), [row], None).make(0, tmp_path / "out")
    features = json.loads((tmp_path / "out" / "polygons" / "slide.geojson").read_text())["features"]
    classes: dict[str, set[tuple[int, ...]]] = {}
    for feature in features:
        area = area_of(feature["geometry"])
        named = feature["properties"]["classification"]
        assert named["name"] == ("large" if area > 80 else "small")
        classes.setdefault(named["name"], set()).add(tuple(named["color"]))
    assert list(map(len, classes.values())) == [1, 1]
    assert classes["large"] != classes["small"]


def test_nuclei_of_a_slide_are_those_of_the_whole(finder: Path, tmp_path: Path) -> None:
    """Pieces with margins give the nuclei of the slide read at once, none cut or doubled."""
    picture = tissue_on_glass(1, 1, side=320)
    row = SlideRow(write_slide(tmp_path / "slide.tif", picture), "slide.tif")
    task = downstream.load(finder)
    product = Slides(task, [row], None, core=192)
    assert (product.core, product.margin, product.overlap) == (192, 144, 16)
    product.make(0, tmp_path / "out")
    at_once = task.predict(picture)
    whole, probabilities = at_once.instances, at_once.nucleus_probabilities
    assert whole is not None
    assert probabilities is not None
    found = read_instances(tmp_path / "out" / "polygons" / "slide.geojson", picture.shape[:2])
    scores = compare(whole, found)
    assert scores.true_nuclei == scores.predicted_nuclei > 5
    assert scores.aji > 0.99
    features = json.loads((tmp_path / "out" / "polygons" / "slide.geojson").read_text())["features"]
    measured = [feature["properties"]["measurements"]["probability"] for feature in features]
    assert sorted(measured) == pytest.approx(sorted(probabilities[1:].tolist()), abs=0.01)
    assert Image.open(tmp_path / "out" / "overviews" / "slide.jpg").size[0] > 10


def test_regions_of_a_slide_and_a_call_that_goes_on(divider: Path, tmp_path: Path) -> None:
    picture = tissue_on_glass(1, 1, side=320)
    write_slide(tmp_path / "slide.tif", picture)
    out = tmp_path / "out"
    main([str(divider), "--slide", str(tmp_path / "slide.tif"), "--out", str(out)])
    with tifffile.TiffFile(out / "regions" / "slide.tif") as file:
        values = file.pages.first.asarray()
    assert values.shape == picture.shape[:2]
    whole = downstream.load(divider).predict(picture).regions
    assert whole is not None
    looked = values != NOWHERE
    assert looked.mean() > 0.2
    assert (values == whole)[looked].mean() > 0.999
    (out / "overviews" / "slide.jpg").unlink()
    main([str(divider), "--slide", str(tmp_path / "slide.tif"), "--out", str(out)])
    assert (out / "overviews" / "slide.jpg").is_file()
    assert not (out / "pieces").exists()


@pytest.mark.slow
def test_two_processes_predict_what_one_does(
    divider: Path, classifier: Path, judge: Path, tissue: Path, tmp_path: Path
) -> None:
    """With random weights: what matters is that the shares of tiles and of slides make the same whole."""
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in (1, 2):
        write_slide(slides / f"{number}.tif", tissue_on_glass(number, 1, side=320))
    tiles = ["--data.tiles", str(tissue)]
    of_slides = ["--slide", str(slides)]
    for run, named in ((divider, tiles), (classifier, tiles), (divider, of_slides), (judge, of_slides)):
        written = []
        for launcher in (ALONE, PAIR):
            out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
            command = [*launcher, str(ROOT / "downstream" / "predict.py"), str(run), *named, "--out", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=ENVIRONMENT)
            assert done.returncode == 0, done.stderr
            files = (file for file in out.rglob("*") if file.is_file() and file.name != "predict.json")
            written.append({file.relative_to(out): file.read_bytes() for file in files})
        assert written[0] == written[1]
        assert len(written[0]) >= 2


def test_a_nucleus_is_the_core_s_that_holds_its_first_pixel() -> None:
    instances = np.zeros((8, 8), np.int32)
    instances[1:4, 1:3] = 1  # begins above the core
    instances[3:7, 3:7] = 2
    instances[2:5, 7] = 3  # begins to its right
    found = of_core(instances, (slice(2, 6), slice(2, 6)))
    np.testing.assert_array_equal(found, np.where(instances == 2, 2, 0))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([], "Nothing to look at was given"),
        (["--data.tiles", "tiles", "--image", "a.png"], "--data.tiles and --image was given, expected one"),
        (["--image", "nothing.png"], "nothing.png is no file"),
        (["--image", "a.png", "--data.split", "test"], "does not go with --image"),
        (["--slide", "a.tif"], "classifies tiles, which --slide does not cut"),
        (["--data.mpp", "0"], "data.mpp is 0"),
    ],
)
def test_refusals(
    classifier: Path, tmp_path: Path, extra: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("a.png")
    write_slide(Path("a.tif"), np.zeros((64, 64, 3), np.uint8), levels=1)
    with pytest.raises(InputError, match=words):
        main([str(classifier), *extra, "--out", "out"])


def test_results_do_not_land_among_the_inputs(classifier: Path, tissue: Path) -> None:
    with pytest.raises(InputError, match="lie in one another"):
        main([str(classifier), "--data.tiles", str(tissue), "--out", str(tissue / "out")])
