"""downstream/score.py on folders made by hand: exact scores, reports, and one sentence for each mistake."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from downstream.cases import SHOWN, Showcase, extremes
from downstream.score import main
from downstream.scoring import score_nuclei
from downstream.tasks.classify import class_scores
from downstream.tasks.instances import Instances, InstancesSettings
from downstream.tasks.segment import Segment, SegmentSettings
from downstream.truths import Truth
from histo.datasets import named_set
from histo.errors import InputError
from histo.instance_networks import InstanceNetwork
from histo.masks import write_instances
from histo.metrics import EMPTY_TILES, aji_plus, compare, overlap
from histo.metrics.regions import ABSENT_CLASSES
from histo.phantom import PhantomTissue
from histo.randomness import draws
from histo.tiles import open_tiles
from histo.tiles.tables import write_folder
from tests.published_specimens import consep


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantom tiles of 64², the last two of another split; the first one without a nucleus."""
    tiles = PhantomTissue(1, size=64, count=6)
    folder = tmp_path_factory.mktemp("labels") / "tiles"
    empty = np.zeros((64, 64), np.int32)
    write_folder(
        (
            replace(
                tiles[k],
                split="test" if k < 4 else "train",
                patient=f"p{k // 2}",
                label=("benign", "malignant")[k // 2 % 2],
                instances=empty if k == 0 else tiles[k].instances,
            )
            for k in range(6)
        ),
        folder,
    )
    return folder


def shifted(instances: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.roll(instances, 2, 1)


def both(nuclear: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Probabilities of glass and nuclei, float32 [2, H, W]."""
    return np.stack([~nuclear, nuclear]).astype(np.float32)


@pytest.fixture
def predicted(labels: Path, tmp_path: Path) -> Path:
    """The labels of the split test, moved by two pixels."""
    folder = tmp_path / "predictions"
    (folder / "labels" / "images").mkdir(parents=True)
    for k, tile in enumerate(open_tiles(labels, split="test")):
        assert tile.instances is not None
        write_instances(folder / "labels" / "images" / f"{k}.png", shifted(tile.instances))
    return folder


def scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def test_nuclei_are_scored_as_histo_metrics_says(
    labels: Path, predicted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(predicted), str(labels), "--task", "instances", "--split", "test"])
    found = scores(predicted)
    pairs = [(tile.instances, shifted(tile.instances)) for tile in open_tiles(labels, split="test")]
    each = [compare(*pair) for pair in pairs]
    for name in ("aji", "pq", "dq", "sq", "dice"):
        values = [getattr(one, name) for one in each]
        assert found["scores"][name] == pytest.approx(np.mean(values))
        assert found["scores"][f"{name}_tiles_with_nuclei"] == pytest.approx(np.mean(values[1:]))
        assert found["cases"]["images/2"][name] == pytest.approx(values[2])
    assert found["scores"]["aji_plus"] == pytest.approx(np.mean([aji_plus(overlap(*pair)) for pair in pairs]))
    matched = sum(one.matched_nuclei for one in each)
    total = sum(one.true_nuclei + one.predicted_nuclei for one in each)
    iou = sum(one.sq * one.matched_nuclei for one in each)
    assert found["scores"]["pq_pooled"] == pytest.approx(2 * iou / total)
    assert matched > 0
    by_tissue = [np.mean([each[1].pq]), np.mean([each[2].pq, each[3].pq])]  # the empty tile is left out, as published
    assert found["scores"]["bpq"] == pytest.approx(np.mean(by_tissue))
    assert found["scores"]["detection_f1"] > found["scores"]["dq"] - 0.1
    low, high = found["intervals"]["aji"]
    assert low <= found["scores"]["aji"] <= high
    assert found["empty_tiles"] == EMPTY_TILES
    assert EMPTY_TILES in capsys.readouterr().out
    report = (predicted / "report.html").read_text()
    assert report.count("<img") == 4
    assert "Tiles without nuclei" in report


@pytest.mark.parametrize("kind", ["instances", "segment", "classify"])
def test_names_and_values_are_those_of_the_training(
    kind: str, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """metrics.json of a run and scores.json of the same predictions."""
    tiles = open_tiles(labels, split="test")
    if kind == "classify":
        right = torch.tensor([0.9, 0.2, 0.6, 0.7])
        numbers = torch.tensor([0, 0, 1, 1])
        found = torch.stack([right, 1 - right], 1)
        found[2:] = found[2:].flip(1)
        trained = class_scores(found, numbers, ["benign", "malignant"], tiles.entries).scores
        write_predictions(tmp_path, [[f"images/{k}.png", "?", *one] for k, one in enumerate(found.tolist())])
        more = []
    else:
        for k, tile in enumerate(tiles):
            assert tile.instances is not None
            (tmp_path / "images").mkdir(exist_ok=True)
            write_instances(tmp_path / "images" / f"{k}.png", shifted(tile.instances))
        monkeypatch.setattr(Instances, "find", lambda task, network, tile: (shifted(tile.instances), None))
        monkeypatch.setattr(Segment, "find", lambda task, network, tile: both(shifted(tile.instances) > 0))
        task: Instances | Segment = object.__new__(Instances if kind == "instances" else Segment)
        task.settings = InstancesSettings() if kind == "instances" else SegmentSettings(["glass", "nuclei"])
        trained = task.evaluate(object.__new__(InstanceNetwork), tiles).scores
        more = ["--classes", "[glass,nuclei]"] if kind == "segment" else []
    main([str(tmp_path), str(labels), "--task", kind, "--split", "test", *more])
    scored = scores(tmp_path)["scores"]
    assert {name: scored.get(name) for name in trained} == pytest.approx(trained)
    assert all("_".join(name.split()) == name and "," not in name for name in scored)


def test_types_of_nuclei(tmp_path: Path) -> None:
    """Two nuclei found exactly, one of them of the other type; types of another map are refused."""
    instances = np.zeros((32, 32), np.int32)
    instances[2:10, 2:10], instances[16:24, 16:24] = 1, 2
    tile = replace(
        PhantomTissue(1, size=32)[0],
        instances=instances,
        classes=np.array([0, 1, 2], np.uint8),
        label="breast",
        mpp=0.5,
    )
    truth = Truth("a/b", lambda: instances, label="breast", mpp=0.5, tile=lambda: tile)
    file, types = tmp_path / "labels" / "a" / "b.png", tmp_path / "types" / "a" / "b.csv"
    for path in (file, types):
        path.parent.mkdir(parents=True)
    write_instances(file, instances)
    types.write_text("id,type\n1,tumour\n2,tumour\n")
    scores = score_nuclei([truth], {"a/b": file}, ["tumour", "stroma"]).scores
    assert scores["pq"] == scores["bpq"] == 1
    assert scores["mpq"] == pytest.approx(np.mean([2 / 3, 0]))  # one of two found as tumour is one; no stroma is found
    types.write_text("id,type\n1,tumour\n3,tumour\n")
    with pytest.raises(InputError, match="its map has no nucleus 3"):
        score_nuclei([truth], {"a/b": file}, ["tumour", "stroma"])


def test_types_must_be_those_that_the_labels_publish(tmp_path: Path) -> None:
    """Numbers of another list mean other types; the nuclei themselves can be scored all the same."""
    consep(tmp_path / "consep")
    place, folder = f"consep:{tmp_path / 'consep'}", tmp_path / "found"
    own = [name.replace(" ", "_") for name in named_set(place).facts.nuclei]
    for entry in open_tiles(place).entries:
        file = (folder / "labels" / entry.key).with_suffix(".png")
        table = (folder / "types" / entry.key).with_suffix(".csv")
        for path in (file, table):
            path.parent.mkdir(parents=True)
        write_instances(file, entry.read().instances)
        table.write_text(f"id,type\n1,{own[3]}\n2,{own[1]}\n")
    note = {"finished": True, "kind": "instances", "types": own}
    (folder / "predict.json").write_text(json.dumps(note))
    main([str(folder), place])
    assert scores(folder)["scores"]["mpq"] == 1
    (folder / "predict.json").write_text(json.dumps({**note, "types": own[::-1]}))
    words = (
        rf"has the types \[endothelial, .*\], but consep numbers its own as \[misc.*score {folder}/labels with --task"
    )
    with pytest.raises(InputError, match=words):
        main([str(folder), place])
    main([str(folder / "labels"), place, "--task", "instances"])
    assert scores(folder / "labels")["scores"]["pq"] == 1
    assert "mpq" not in scores(folder / "labels")["scores"]


def test_a_perfect_prediction_is_perfect(labels: Path, tmp_path: Path) -> None:
    """A plain folder of label maps against itself; µm/px unknown."""
    main([str(labels / "labels"), str(labels / "labels"), "--task", "instances", "--out", str(tmp_path / "out")])
    found = scores(tmp_path / "out")
    for name in ("aji", "aji_plus", "pq", "dice", "bpq", "pq_pooled"):
        assert found["scores"][name] == 1
    assert found["scores"]["detection_f1"] is None
    assert "no known µm/px" in found["notes"][0]
    arguments = [str(labels / "labels"), str(labels / "labels"), "--task", "instances", "--metric", "aji,pq"]
    main([*arguments, "--mpp", "0.5", "--out", str(tmp_path / "two")])
    wanted = ["aji", "aji_plus", "aji_tiles_with_nuclei", "pq", "pq_tiles_with_nuclei", "pq_pooled"]
    assert list(scores(tmp_path / "two")["scores"]) == wanted


def test_regions_by_class(tmp_path: Path) -> None:
    """Three classes and an ignored value, against counts by hand."""
    for name in ("labels", "found"):
        (tmp_path / name).mkdir()
    truth = np.array([[0, 0, 1, 1], [2, 2, 9, 9]])
    guess = np.array([[0, 1, 1, 1], [2, 0, 1, 0]])
    write_instances(tmp_path / "labels" / "a.png", truth)
    write_instances(tmp_path / "found" / "a.png", guess)
    arguments = [str(tmp_path / "found"), str(tmp_path / "labels"), "--task", "segment"]
    main([*arguments, "--classes", "[stroma,gland,lumen]", "--ignore", "9"])
    found = scores(tmp_path / "found")
    assert found["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert found["scores"]["dice_gland"] == pytest.approx(4 / 5)
    assert found["scores"]["iou_lumen"] == pytest.approx(1 / 2)
    assert found["scores"]["dice"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["scores"]["accuracy"] == pytest.approx(4 / 6)
    assert "true ↓ found →" in (tmp_path / "found" / "report.html").read_text()
    with pytest.raises(InputError, match="The label of a has the value 9, expected 0 to 2"):
        main([*arguments, "--classes", "[stroma,gland,lumen]"])
    with pytest.raises(InputError, match="classes of the maps are not known"):
        main(arguments)


def test_a_class_that_is_nowhere_has_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the gland is found: IoU of it alone, not the mean with 1 for a lumen that no tile has."""
    for name in ("labels", "found"):
        (tmp_path / name).mkdir()
    write_instances(tmp_path / "labels" / "a.png", np.array([[0, 0, 1, 1]]))
    write_instances(tmp_path / "found" / "a.png", np.array([[0, 0, 0, 1]]))
    arguments = [str(tmp_path / "found"), str(tmp_path / "labels"), "--task", "segment"]
    main([*arguments, "--classes", "[stroma,gland,lumen]"])
    found = scores(tmp_path / "found")
    assert found["scores"]["iou"] == found["scores"]["iou_gland"] == pytest.approx(1 / 2)
    assert found["scores"]["dice"] == pytest.approx((2 / 3 + 1) / 2)  # of a tile it counts, as the policy says
    assert not {"dice_lumen", "iou_lumen"} & found["scores"].keys()
    assert "Neither labels nor predictions have lumen" in found["notes"][0]
    assert found["absent_classes"] == ABSENT_CLASSES
    assert ABSENT_CLASSES in capsys.readouterr().out
    assert "Absent classes" in (tmp_path / "found" / "report.html").read_text()
    for name in ("labels", "found"):
        write_instances(tmp_path / name / "a.png", np.zeros((1, 4), np.int32))
    main([*arguments, "--classes", "[stroma,gland,lumen]"])
    assert scores(tmp_path / "found")["scores"]["iou"] is None


def write_predictions(
    folder: Path, rows: list[list[object]], classes: tuple[str, ...] = ("benign", "malignant")
) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["tile", "label", *(f"p_{name}" for name in classes)], *rows])


def test_classes_by_image_and_by_patient(labels: Path, tmp_path: Path) -> None:
    """p0 is benign with 0.9 and 0.2, p1 malignant with 0.6 and 0.7: one image of four is wrong, and no patient."""
    folder = tmp_path / "out"
    truth = [0.9, 0.2, 0.6, 0.7]  # probability of the true class
    rows = [[f"images/{k}.png", "?", *((p, 1 - p) if k < 2 else (1 - p, p))] for k, p in enumerate(truth)]
    write_predictions(folder, rows)
    main([str(folder), str(labels), "--split", "test"])
    found = scores(folder)
    assert found["scores"]["accuracy"] == pytest.approx(0.75)
    assert found["scores"]["balanced_accuracy"] == pytest.approx(0.75)
    assert found["scores"]["accuracy_by_patient"] == 1
    assert found["scores"]["patient_rate"] == pytest.approx(0.75)
    assert found["scores"]["auroc"] == pytest.approx(0.5)
    assert found["confusion"] == [[1, 1], [0, 2]]
    assert found["intervals"]["accuracy"] == [pytest.approx(0.5), pytest.approx(1)]
    assert (folder / "report.html").read_text().count("<img") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "lacks 1 of the 4 tiles of .*, first images/3"),
        ("extra", "has 1 predictions of no tile of .*, first images/stray"),
        ("size", "is 32 x 64 pixels .* but 64 x 64 was expected"),
        ("task", "has no predict.json that says what its maps are"),
        ("metric", "There is no score 'jaccard'; expected some of aji;"),
        ("split", "No tile of .* is of the split 'val'"),
        ("note", "is unfinished; its command goes on with it: python downstream/predict.py"),
        ("other", "--task is instances, but .* holds predictions of task segment"),
        ("nowhere", "is no folder; expected the predictions"),
    ],
)
def test_mistakes_with_maps(labels: Path, predicted: Path, change: str, words: str) -> None:
    maps = predicted / "labels" / "images"
    arguments = [str(predicted), str(labels), "--task", "instances", "--split", "test"]
    if change == "missing":
        (maps / "3.png").unlink()
    elif change == "extra":
        write_instances(maps / "stray.png", np.zeros((64, 64), np.int32))
    elif change == "size":
        write_instances(maps / "2.png", np.zeros((32, 64), np.int32))
    elif change == "task":
        arguments = [str(predicted), str(labels)]
    elif change == "metric":
        arguments += ["--metric", "jaccard"]
    elif change == "split":
        arguments[-1] = "val"
    elif change in ("note", "other"):
        note = {"finished": change == "other", "kind": "regions", "command": "python downstream/predict.py RUN"}
        (predicted / "predict.json").write_text(json.dumps(note))
    else:
        arguments[0] += "-elsewhere"
    with pytest.raises(InputError, match=words):
        main(arguments)


def test_predictions_of_other_splits_are_passed_over(labels: Path, predicted: Path) -> None:
    write_instances(predicted / "labels" / "images" / "5.png", np.zeros((64, 64), np.int32))
    main([str(predicted), str(labels), "--task", "instances", "--split", "test"])
    assert len(scores(predicted)["cases"]) == 4


@pytest.mark.parametrize(
    ("rows", "classes", "words"),
    [
        ([["images/0.png", "a", 1, 0]], ("a", "b"), "lacks 3 of the 4 tiles"),
        ([[f"images/{k}.png", "a", 1, 0] for k in range(4)], ("a", "b"), "has the label 'benign', which is none of"),
        ([[f"images/{k}.png", "a", 1] for k in range(4)], ("a", "b"), "Line 2 of .* is no new tile with 2 numbers"),
        ([[f"images/{k}.png", "a", 1, 1] for k in range(4)], ("benign", "malignant"), "add up to 2, expected 1"),
        ([["images/0.png", "a", 1]], ("a",), "has the columns tile, label, p_a, expected"),
    ],
)
def test_mistakes_with_classes(
    labels: Path, tmp_path: Path, rows: list[list[object]], classes: tuple[str, ...], words: str
) -> None:
    write_predictions(tmp_path / "out", rows, classes)
    with pytest.raises(InputError, match=words):
        main([str(tmp_path / "out"), str(labels), "--split", "test"])


def test_the_worst_and_the_best_are_no_tile_twice() -> None:
    values = {"a": 0.5, "b": 0.1, "c": 0.9}
    assert extremes(values, 4) == [("worst", "b"), ("worst", "a"), ("best", "c")]
    assert extremes(values, 1) == [("worst", "b"), ("best", "c")]


@pytest.mark.parametrize("count", [1, 5, 8, 9, 60])
def test_pictures_drawn_on_the_way_are_those_of_the_worst_and_the_best(count: int) -> None:
    """In any order and with ties, what is shown at the end was wanted, and no more than that is kept."""
    values = {f"t{k}": float(value) for k, value in enumerate(draws(3, "showcase", count).integers(0, 6, count))}
    showcase = Showcase()
    for key, value in values.items():
        if showcase.takes(key, value):
            showcase.pictures[key] = np.zeros((1, 1, 3), np.uint8)
    assert {key for _, key in extremes(values, SHOWN)} <= showcase.pictures.keys()
    assert len(showcase.pictures) <= 2 * SHOWN
