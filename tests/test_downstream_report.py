"""The page of a downstream run, its pictures of single tiles, and warnings where an encoder does not fit the data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from downstream.cases import MATCHED, MISSED, WRONG, nuclei_picture, regions_picture
from downstream.labelled import DataSettings, open_labelled
from downstream.recipe import CropSettings, Recipe
from downstream.results import Result, summarise
from downstream.start import disagreements, open_start
from downstream.tasks.smse import SmseSettings
from downstream.train import main
from histo import encoders
from histo.encoders import architecture, write_encoder
from histo.errors import InputError
from histo.label_efficiency import compare_runs, read_run
from histo.metrics import EMPTY_TILES
from histo.metrics.regions import IGNORED, dice_of, iou_of, pixel_table
from histo.phantom import PhantomTissue
from histo.running.report import Report
from histo.running.runs import RunFolder
from histo.running.tracking import read_log
from histo.tiles import open_tiles
from histo.tiles.tables import write_folder


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen phantom tiles of 64² at 0.5 µm/px of two classes, a third of them brighter; half are to score."""
    phantom = PhantomTissue(0, size=64, count=16)
    folder = tmp_path_factory.mktemp("report") / "tiles"
    write_folder(
        (
            replace(
                phantom[k],
                image=(phantom[k].image // (1 + (k % 3 > 0))).astype(np.uint8),
                label="dark" if k % 3 else "bright",
                split="train" if k < 8 else "test",
                patient=f"p{k}",
            )
            for k in range(16)
        ),
        folder,
    )
    return folder


def encoder_file(folder: Path, **card: object) -> Path:
    start = encoders.start("none", "own", "test_resnet", seed=0)
    known = {"mean": [0.5] * 3, "std": [0.5] * 3, "mpp": 0.5, "tile_size": 64, "in_channels": 3}
    data = [{"source": "slides of mine", "title": None, "licence": "CC BY 4.0", "noncommercial": False}]
    path = folder / "encoder.safetensors"
    write_encoder(path, start.encoder, {**architecture("test_resnet", "own", "e").card, **known, "data": data, **card})
    return path


def trained(tiles: Path, encoder: Path, run: Path, *more: str) -> dict:
    arguments = ["--task", "linear", "--data.tiles", str(tiles), "--crop.size", "64", "--linear.steps", "50"]
    main([*arguments, "--encoder.source", str(encoder), "--run.dir", str(run), *more])
    return json.loads((run / "seed0" / "metrics.json").read_text())


def test_the_page_tells_tiles_confusions_and_the_encoder(tiles: Path, tmp_path: Path) -> None:
    result = trained(tiles, encoder_file(tmp_path), tmp_path / "run")
    assert result["labels"] == 8
    assert (result["encoder"]["mpp"], result["encoder"]["frozen"]) == (0.5, True)
    assert len(result["encoder"]["sha256"]) == 64
    assert np.sum(result["confusion"]) == 8
    assert result["warnings"] == []
    scores = result["scores"]
    contributions = [case["balanced_accuracy"] for case in result["cases"].values()]
    assert np.mean(contributions) == pytest.approx(scores["balanced_accuracy"])
    kinds = [one["kind"] for one in result["pictures"]]
    assert kinds == ["worst"] * 4 + ["best"] * 4
    order = [one["score"] for one in result["pictures"]]
    assert max(order[:4]) <= min(order[4:])
    for one in result["pictures"]:
        assert Image.open(tmp_path / "run" / "seed0" / one["file"]).size == (128, 96)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<img") == 2
    assert "true ↓ found →" in page
    assert "CC BY 4.0" in page
    assert result["encoder"]["sha256"] in page
    whole = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (whole["chosen"], whole["labels"]) == ("balanced_accuracy", 8)
    assert result["truths"] == [tile.label for tile in open_tiles(tiles) if tile.split == "test"]
    low, high = whole["scores"]["balanced_accuracy"]["interval"]
    assert 0 <= low <= scores["balanced_accuracy"] <= high <= 1


def test_the_course_of_a_linear_layer_is_drawn(tiles: Path, tmp_path: Path) -> None:
    """Every look at the validation part, by tiles seen, in TensorBoard and on the page."""
    run = tmp_path / "run"
    more = ["--data.validation_share", "0.5", "--linear.look_every", "10", "--linear.patience", "1"]
    result = trained(tiles, encoder_file(tmp_path), run, *more)
    looks = [record["images"] for record in read_log(run / "seed0") if "validation/accuracy" in record]
    assert looks == [step * 4 for step in range(10, 51, 10)]
    (last,) = (record for record in read_log(run / "seed0") if "test/balanced_accuracy" in record)
    assert last["test/balanced_accuracy"] == pytest.approx(result["scores"]["balanced_accuracy"])
    assert any((run / "seed0" / "tensorboard").iterdir())
    assert "Validation part" in (run / "report.html").read_text()


def test_the_linear_layer_goes_by_loss_and_weights(tiles: Path, tmp_path: Path) -> None:
    encoder = encoder_file(tmp_path)
    more = {"plain": (), "focal": ("--classify.loss", "focal"), "weighed": ("--classify.weights", "inverse")}
    found = {
        name: [case["p_true"] for case in trained(tiles, encoder, tmp_path / name, *some)["cases"].values()]
        for name, some in more.items()
    }
    assert len({tuple(values) for values in found.values()}) == 3
    with pytest.raises(InputError, match=r"classify\.weights inverse, which task knn does not go by; leave them out"):
        trained(tiles, encoder, tmp_path / "knn", "--task", "knn", *more["weighed"])


@pytest.mark.parametrize(
    ("card", "more", "words"),
    [
        ({"mpp": 0.25}, (), "learned at 0.25 µm/px, but sees these tiles at 0.5 µm/px;"),
        ({}, ("--crop.size", "32"), "learned at 0.5 µm/px, but sees these tiles at 1 µm/px (resized from 64 to 32 px)"),
        ({"mean": None}, (), "does not say the mean of its input, so 0.5 is used"),
        ({"mean": [123.0] * 3, "std": [58.0] * 3}, (), "Scaled by mean 123, 123, 123 and std 58, 58, 58"),
    ],
)
def test_an_encoder_that_does_not_fit_is_told_with_numbers(
    tiles: Path, tmp_path: Path, card: dict, more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = trained(tiles, encoder_file(tmp_path, **card), tmp_path / "run", *more)
    assert [words in sentence for sentence in result["warnings"]] == [True]
    assert words in capsys.readouterr().err
    assert words.partition(",")[0] in (tmp_path / "run" / "report.html").read_text()


def test_the_scale_of_crops_is_what_an_encoder_must_know(tiles: Path, tmp_path: Path) -> None:
    """Crops read at the encoder's µm/px fit it, whatever the tiles have; those at several are told as a range."""
    recipe = Recipe(data=DataSettings(tiles=str(tiles)), crop=CropSettings(size=64, mpp=1.0))
    recipe.encoder.source = str(encoder_file(tmp_path, mpp=1.0))
    labelled = open_labelled(recipe.data, "mask", 0)
    assert disagreements(recipe, labelled, open_start(recipe, 0)) == []
    several = replace(recipe, task="smse", crop=CropSettings(size=64), smse=SmseSettings(mpp=[0.5, 2.0]))
    (sentence,) = disagreements(several, labelled, open_start(several, 0))
    assert "learned at 1 µm/px, but sees these tiles at 0.5 to 2 µm/px;" in sentence


def test_the_page_of_nuclei(tiles: Path, tmp_path: Path) -> None:
    """A training of a few steps: pictures of tile, label, prediction and difference, and the policy of empty tiles."""
    arguments = ["--data.tiles", str(tiles), "--crop.size", "64", "--encoder.architecture", "test_resnet"]
    arguments += ["--train.images", "16", "--data.workers", "0", "--instances.flips", "false"]
    main([*arguments, "--run.dir", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run" / "seed0" / "metrics.json").read_text())
    assert result["encoder"]["initial weights"] == "random weights, seed 0"
    assert result["warnings"] == []
    for one in result["pictures"]:
        assert one["name"] == "aji"
        assert Image.open(tmp_path / "run" / "seed0" / one["file"]).size == (4 * 68 - 4, 64 + 16)
    page = (tmp_path / "run" / "report.html").read_text()
    assert EMPTY_TILES[:60] in page
    assert "in green, missed ones in blue" in page


def test_a_score_that_one_seed_lacks_is_a_dash_there(tmp_path: Path) -> None:
    """Such as the F1 of a type that neither the labels of a fold nor its predictions have."""
    both: list[dict[str, float]] = [{"aji": 0.5, "f1_dead": 0.1}, {"aji": 0.7}]
    cases = {"t": {"aji": 0.6}}
    results = [Result(seed, 0, own, cases, ["p"], {}, 1, "file") for seed, own in enumerate(both)]
    for seed in (0, 1):
        (tmp_path / f"seed{seed}").mkdir()
    summarise(Recipe(seeds=[0, 1]), RunFolder(tmp_path), results)
    page = (tmp_path / "report.html").read_text()
    assert "0.600" in page
    assert page.count("f1_dead") == 1, "over all seeds there is none"
    assert "–</td>" in page


def test_the_difference_of_nuclei() -> None:
    """One found, one missed, one too many."""
    truth, found = np.zeros((32, 32), np.int32), np.zeros((32, 32), np.int32)
    truth[2:8, 2:8], found[2:8, 2:9] = 1, 1
    truth[12:18, 2:8] = 2
    found[22:28, 20:26] = 7
    picture = nuclei_picture(np.full((3, 32, 32), 200, np.uint8), truth, found)
    differ = picture[16:, -32:]
    assert tuple(differ[2, 5]) == MATCHED
    assert tuple(differ[12, 5]) == MISSED
    assert tuple(differ[22, 22]) == WRONG
    assert tuple(differ[30, 5]) == (228, 228, 228)


def test_the_difference_of_regions_passes_over_what_is_ignored() -> None:
    truth, found = np.zeros((32, 32), np.int64), np.zeros((32, 32), np.int64)
    truth[:, :8], found[:, 4:8], truth[:4] = 1, 1, IGNORED
    differ = regions_picture(np.full((3, 32, 32), 200, np.uint8), truth, found)[16:, -32:]
    assert tuple(differ[10, 1]) == WRONG
    assert tuple(differ[1, 1]) != WRONG
    assert tuple(differ[10, 20]) != WRONG


def test_dice_and_iou_of_a_table() -> None:
    """Against sets of pixels, with ignored ones left out and a class in neither."""
    generator = np.random.default_rng(0)
    truth, found = generator.integers(0, 3, (2, 40, 40))
    truth[:5] = IGNORED
    table = pixel_table(truth, found, 4)
    for k in range(3):
        a, b = (truth == k), (found == k) & (truth != IGNORED)
        assert dice_of(table)[k] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert iou_of(table)[k] == pytest.approx((a & b).sum() / (a | b).sum())
    assert dice_of(table)[3] == 1


def test_a_matrix_needs_a_square() -> None:
    with pytest.raises(ValueError, match="2 names need as many"):
        Report("t").matrix(["a", "b"], [[1, 2]])


def test_patients_in_two_parts_are_said_wherever_a_result_is(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the last line, in the card, in metrics.json and by compare."""
    further = tmp_path / "further"
    kept = [replace(tile, split="train") for tile in open_tiles(tiles) if tile.split == "train"]
    judged = next(tile.patient for tile in open_tiles(tiles) if tile.split == "test")
    write_folder((replace(tile, patient=judged, mpp=0.25) for tile in kept), further)
    runs = [tmp_path / "one", tmp_path / "two"]
    for seed, run in enumerate(runs):
        more = ["--data.tiles", str(tiles), "--data.extra", str(further), "--data.extra_share", "1"]
        more += ["--data.common_patients", "--task", "classify", "--crop.size", "64", "--train.images", "8"]
        more += ["--data.workers", "0", "--encoder.architecture", "test_resnet", "--seeds", str(seed)]
        main([*more, "--run.dir", str(run)])
    said = "1 patients are in two parts, so that scores are too high"
    assert f"Warning: {said}." in capsys.readouterr().out
    card = json.loads((runs[0] / "seed0" / "export" / "classifier.json").read_text())
    assert card["warning"] == said
    assert card["mpp"] == 0.25, "what was learned from, not what was scored"
    assert [one["source"] for one in card["data"]] == ["tiles", "further"]
    assert json.loads((runs[0] / "metrics.json").read_text())["facts"]["warning"] == said
    notes = compare_runs([read_run(run) for run in runs]).notes
    assert sum(said in note for note in notes) == 2


def test_facts_of_several_folds_are_those_of_all(tiles: Path, tmp_path: Path) -> None:
    more = ["--task", "linear", "--crop.size", "64", "--linear.steps", "50", "--data.folds", "2"]
    source = str(encoder_file(tmp_path))
    main([*more, "--data.tiles", str(tiles), "--encoder.source", source, "--run.dir", str(tmp_path / "run")])
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())["facts"]
    assert facts["divided"].count("fold 1 of 2") == facts["divided"].count("fold 2 of 2") == 1
    assert facts["task"] == "linear"
