"""SMSE end to end: several magnifications, one never learned from, and mistakes in one sentence."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import downstream
from downstream.labelled import TEST, TRAIN, VALIDATION, DataSettings, open_labelled
from downstream.learner import Learner
from downstream.magnifications import Magnifications, views
from downstream.predict import main as predict
from downstream.recipe import CropSettings, EncoderSettings, Recipe, TrainSettings
from downstream.score import main as score
from downstream.similarity import nearest_prototype, punishment, reinforced_focal, root_weights
from downstream.start import open_start
from downstream.stream import LabelledCrops
from downstream.task import Tensors
from downstream.tasks.smse import Smse, SmseSettings
from downstream.train import main
from histo.errors import InputError
from histo.phantom import PhantomTissue
from histo.running import checkpoints
from histo.tiles import open_tiles
from histo.tiles.tables import write_folder
from tests.launching import assert_same_weights
from tests.published_specimens import SPECIMENS

COLOURS = {"pink": (40, 0, -40), "violet": (-40, 0, 40), "green": (-40, 40, -40)}


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 tiles of 128² at 0.5 µm/px in three colours, of fifteen patients, the last five to score."""
    folder = tmp_path_factory.mktemp("smse") / "tiles"
    tiles = PhantomTissue(0, size=128, count=30)
    names = list(COLOURS)
    write_folder(
        (
            replace(
                tiles[k],
                image=np.clip(tiles[k].image + np.array(COLOURS[names[k % 3]])[:, None, None], 0, 255).astype(np.uint8),
                instances=None,
                types=None,
                label=names[k % 3],
                patient=f"p{k // 2}",
                split="train" if k < 20 else "test",
            )
            for k in range(30)
        ),
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def arguments(coloured: Path) -> list[str]:
    """A training small enough for seconds: 20 steps of 3 classes at 2 µm/px, two crops each, and a third µm/px."""
    settings = {
        "task": "smse",
        "data.tiles": coloured,
        "data.workers": 0,
        "smse.mpp": "[0.5,1,2]",
        "smse.held_out": "[2]",
        "crop.size": 32,
        "crop.stain": 0,
        "encoder.architecture": "test_resnet",
        "train.precision": "fp32",
        "train.images": 240,
        "train.learning_rate": 0.003,
        "train.batch_size": 12,
        "train.log_every": 24,
        "train.save_every": 24,
        "train.look_every": 240,
    }
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    main([*arguments, "--run.dir", str(run)])
    return run


def recipe_of(tiles: Path, smse: SmseSettings, batch: int = 12, side: int = 32) -> Recipe:
    return Recipe(
        task="smse",
        data=DataSettings(tiles=str(tiles), workers=0),
        crop=CropSettings(size=side, smallest=1, stain=0),
        encoder=EncoderSettings(architecture="test_resnet"),
        smse=smse,
        train=TrainSettings(batch_size=batch),
    )


def task_of(tiles: Path, smse: SmseSettings, batch: int = 12, side: int = 32) -> Smse:
    recipe = recipe_of(tiles, smse, batch, side)
    labelled = open_labelled(recipe.data, "label", 0)
    torch.manual_seed(0)
    return Smse(recipe, open_start(recipe, 0), labelled, 0)


def test_scores_are_of_each_magnification_and_all(finished: Path) -> None:
    """Colours are learned at two µm/px and known at the third."""
    metrics = json.loads((finished / "metrics.json").read_text())
    scores = {name: row["mean"] for name, row in metrics["scores"].items()}
    for read in ("", "knn_", "prototype_"):
        for name in ("accuracy", "patient_rate"):
            each = [scores[f"{read}{name}_at_{where}"] for where in ("0.5", "1", "2_held_out")]
            assert scores[f"{read}{name}"] == pytest.approx(np.mean(each))
    assert scores["accuracy"] > 0.8
    assert scores["knn_accuracy_at_2_held_out"] > 0.8
    assert scores["auroc_at_0.5"] > 0.9
    assert metrics["facts"]["loss"].startswith("RFL (ours), θ 0.5, γ 2; pairs by RFL (ours)")
    assert metrics["facts"]["µm/px"] == "0.5, 1 learned from, 2 only scored, tiles resampled"
    assert "10 of 10 at 2 µm/px" in metrics["facts"]["scored"]
    assert "RFL (ours)" in (finished / "report.html").read_text()
    assert sum(map(sum, json.loads((finished / "seed0" / "metrics.json").read_text())["confusion"])) == 30
    low, high = metrics["scores"]["accuracy_at_2_held_out"]["interval"]
    assert low <= scores["accuracy_at_2_held_out"] <= high


def test_balanced_accuracy_is_the_mean_of_its_cases(coloured: Path) -> None:
    """Also where a tile can be shown nowhere, others at some µm/px, and classes have different numbers."""
    task = task_of(coloured, SmseSettings(mpp=[0.5, 1], embedding=16))
    tiles = task.labelled.part("test")
    rows = [(row, place) for row in range(1, len(tiles)) for place in range(2) if row % 3 or place]
    numbers = task.labelled.numbers[task.labelled.parts["test"]]
    truth = torch.tensor([int(numbers[row]) for row, _ in rows])
    found = torch.from_numpy(np.random.default_rng(0).random((len(rows), len(task.labelled.classes)))).softmax(1)
    said = task._scores(found, {"": found.argmax(1)}, truth, rows, tiles, list(range(len(tiles))))
    cases = [case["balanced_accuracy"] for case in said.cases.values() if case]
    assert len(cases) == len(tiles) - 1
    assert 0 < said.scores["balanced_accuracy"] < 1
    assert np.mean(cases) == pytest.approx(said.scores["balanced_accuracy"])


def test_the_export_says_what_was_scored(finished: Path, coloured: Path) -> None:
    task = downstream.load(finished)
    assert task.card["magnifications"] == [0.5, 1.0]
    assert task.card["loss"] == "RFL (ours), θ 0.5, γ 2"
    known = Magnifications((0.5, 1.0, 2.0), (0, 1), True)
    tiles = open_tiles(coloured, split="test")
    cases = json.loads((finished / "seed0" / "metrics.json").read_text())["cases"]
    for tile, case in zip(tiles, cases.values(), strict=True):
        found = [task.predict(known.shown(tile, place).image) for place in range(3)]
        assert tile.label is not None
        number = task.card["classes"].index(tile.label)
        likely = [one.probabilities[number] for one in found if one.probabilities is not None]
        assert case["p_true"] == pytest.approx(np.mean(likely), abs=1e-4)
        assert case["accuracy"] == pytest.approx(np.mean([one.label == tile.label for one in found]))
    coarser = task.predict(tile.image.repeat(2, 1).repeat(2, 2), mpp=0.25).probabilities
    assert coarser == pytest.approx(task.predict(tile.image).probabilities, abs=0.05)
    with pytest.raises(InputError, match="The image has 2 µm/px, coarser than the 1 asked for"):
        task.predict(tile.image, mpp=2)
    with pytest.raises(InputError, match="The image is 31 x 40 px, expected 32 px or more a side"):
        task.predict(np.zeros((31, 40, 3), np.uint8))


def test_tiles_are_predicted_and_scored(finished: Path, coloured: Path, tmp_path: Path) -> None:
    """By the commands for classes; tiles of 0.5 µm/px are read at that."""
    predict([str(finished), "--data.tiles", str(coloured), "--out", str(tmp_path / "found")])
    score([str(tmp_path / "found"), str(coloured), "--out", str(tmp_path / "scores")])
    (file,) = (tmp_path / "scores").glob("*.json")
    accuracy = json.loads(file.read_text())["scores"]["accuracy"]
    task, tiles = downstream.load(finished), open_tiles(coloured)
    wanted = np.mean([task.predict(tile.image).label == tile.label for tile in tiles])
    assert (accuracy["mean"] if isinstance(accuracy, dict) else accuracy) == pytest.approx(wanted)


def test_a_broken_off_run_resumes_bit_for_bit(
    arguments: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = tmp_path / "run", Learner.step

    def failing(learner: Learner, batch: Tensors) -> Tensors:
        if learner.images == 84:
            raise OSError("the machine goes down")
        return step(learner, batch)

    monkeypatch.setattr(Learner, "step", failing)
    with pytest.raises(OSError, match="goes down"):
        main([*arguments, "--run.dir", str(run)])
    monkeypatch.setattr(Learner, "step", step)
    assert checkpoints.complete(run / "seed0" / "checkpoints")[-1].name == "000000000072"
    main([*arguments, "--data.workers", "1", "--run.dir", str(run)])
    assert_same_weights(run / "seed0", finished / "seed0", 240)
    mine, other = (json.loads((where / "metrics.json").read_text())["by_seed"] for where in (run, finished))
    assert mine == other


def test_batches_are_of_the_magnifications_learned_from(coloured: Path) -> None:
    task = task_of(coloured, SmseSettings(mpp=[0.5, 1, 2], held_out=[1]), batch=12)
    recipe = recipe_of(coloured, task.settings)
    tiles = task.labelled.part(TRAIN)
    crops = LabelledCrops(tiles, task, recipe.crop, 0)
    batch = [crops[k] for k in range(12)]
    kinds = [(int(item["number"]), int(item["scale"])) for item in batch]
    assert sorted(kinds[:6]) == sorted(kinds[6:]) == [(n, s) for n in range(3) for s in range(2)]
    assert {task.tile(tiles, k).mpp for k in range(12)} == {0.5, 2.0}
    assert {task.tile(tiles, k).image.shape[1] for k in range(12)} == {128, 32}
    again = LabelledCrops(tiles, task, recipe.crop, 0)
    assert all(torch.equal(again[k]["image"], batch[k]["image"]) for k in (7, 3))


def test_a_network_is_chosen_without_what_is_held_out(coloured: Path) -> None:
    recipe = recipe_of(coloured, SmseSettings(mpp=[0.5, 1, 2], held_out=[1]))
    recipe.data.validation_share = 0.4
    labelled = open_labelled(recipe.data, "label", 0)
    task = Smse(recipe, open_start(recipe, 0), labelled, 0)
    with torch.no_grad():
        validated = task.evaluate(task.network.eval(), labelled.part(VALIDATION)).scores
        scored = task.evaluate(task.network.eval(), labelled.part(TEST)).scores
    assert {"accuracy_at_0.5", "accuracy_at_2"} < validated.keys()
    assert not [name for name in validated if "held_out" in name or "knn" in name]
    assert {"accuracy_at_1_held_out", "knn_accuracy_at_1_held_out", "prototype_patient_rate"} < scored.keys()


def test_settings_switch_terms_off(coloured: Path) -> None:
    """What is off is no term; the formula is that of the setting, in classes and in pairs."""
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    items = {
        "number": torch.arange(12) % 3,
        "scale": torch.arange(12) // 6,
        "patient": torch.arange(12),
        "index": torch.arange(12),
    }

    def terms(**settings: object) -> dict[str, torch.Tensor]:
        task = task_of(coloured, SmseSettings(**settings))  # type: ignore[arg-type]
        task.network.eval()
        task.weights = torch.tensor([1.0, 1.0, 1.0])
        with torch.no_grad():
            logits = task.network(images)
            found = task.losses(images, items)
        true = logits.softmax(1).gather(1, items["number"][:, None])[:, 0]
        return {**found, "true": true}

    plain = terms(focal="cross_entropy", pair="none", triplet=0.0)
    assert plain.keys() == {"class", "true"}
    assert float(plain["class"]) == pytest.approx(float(-plain["true"].log().mean()), rel=1e-5)
    focal = terms(focal="focal", pair="none", triplet=0.0)
    assert float(focal["class"]) == pytest.approx(float((-((1 - focal["true"]) ** 2) * focal["true"].log()).mean()))
    ours = terms()
    assert ours.keys() == {"class", "pair", "triplet", "true"}
    assert float(ours["class"]) == pytest.approx(4 * float(focal["class"]), rel=1e-5)
    assert float(ours["pair"]) == pytest.approx(4 * float(terms(focal="focal")["pair"]), rel=1e-5)
    assert float(terms(triplet=0.25)["triplet"]) == pytest.approx(float(ours["triplet"]) / 2, rel=1e-5)
    assert float(terms(pair="contrastive")["pair"]) != pytest.approx(float(ours["pair"]))


def test_punishments_and_weights() -> None:
    p = torch.tensor([0.2, 0.9])
    for kind, wanted in (
        ("rfl", reinforced_focal(p)),
        ("focal", -((1 - p) ** 2) * p.log()),
        ("cross_entropy", -p.log()),
    ):
        name, punished = punishment(kind, 0.5, 2.0)  # type: ignore[arg-type]
        assert torch.allclose(punished(p), wanted)
        assert ("(ours)" in name) is (kind == "rfl")
    weights = root_weights(torch.tensor([100, 25]))
    assert weights.tolist() == pytest.approx([2 / 3, 4 / 3])


def test_prototypes_are_class_means() -> None:
    train = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]), dim=1)
    found = nearest_prototype(train, torch.tensor([0, 0, 1, 1]), torch.tensor([[0.9, 0.5], [0.5, 0.9]]), 2)
    assert found.tolist() == [0, 1]


def test_a_tile_is_resampled_to_coarser_scales_alone(coloured: Path) -> None:
    """Area means at half the scale, pixels untouched at its own, and nothing finer than it is."""
    tiles = open_tiles(coloured)
    known = Magnifications.of(tiles, [0.25, 0.48, 0.5, 1, 4, 8], [])
    assert known.allowed(tiles, 16)[0].tolist() == [False, True, True, True, True, False]
    assert known.allowed(tiles, 17)[0].tolist() == [False, True, True, True, False, False]
    tile = tiles[0]
    assert np.array_equal(known.shown(tile, 2).image, tile.image)
    half = known.shown(tile, 3)
    assert (half.mpp, half.image.shape) == (1.0, (3, 64, 64))
    blocks = tile.image.reshape(3, 64, 2, 64, 2).mean((2, 4))
    assert np.abs(half.image - blocks).mean() < 6  # the kernel is a triangle, not a box
    assert abs(half.image.mean() - tile.image.mean()) < 0.5


def test_views_cover_an_image() -> None:
    image = np.arange(3 * 50 * 100, dtype=np.int64).reshape(3, 50, 100).astype(np.uint8)
    cut = views(image, 30)
    assert cut.shape == (3, 3, 30, 30)
    assert np.array_equal(cut[0], image[:, 10:40, :30])
    assert np.array_equal(cut[1], image[:, 10:40, 35:65])
    assert np.array_equal(cut[2], image[:, 10:40, 70:])
    assert len(views(image, 10)) == 9


def test_the_published_layout_at_its_own_magnifications(tmp_path: Path) -> None:
    """BreakHis as its authors give it: the magnification is that of the file name."""
    root = tmp_path / "breakhis"
    root.mkdir()
    SPECIMENS["breakhis"](root)
    tiles = open_tiles(f"breakhis:{root}")
    known = Magnifications.of(tiles, None, [0.1])
    assert (known.values, known.learned, known.name(0)) == ((0.1, 0.49), (1,), "0.1_held_out")
    allowed = known.allowed(tiles, 16)
    own = [entry.mpp for entry in tiles.entries]
    assert [known.values[int(place)] for place in allowed.argmax(1)] == own
    assert (allowed.sum(1) == 1).all()


@pytest.mark.skipif("NUCLEATE_BREAKHIS" not in os.environ, reason="NUCLEATE_BREAKHIS does not name the full set")
def test_the_protocol_fits_the_full_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Benign against malignant at all four magnifications, three learned, five folds without a common patient."""
    groups = '["malignant=DC,LC,MC,PC","benign=A,F,PT,TA"]'
    named = ["--data.tiles", f"breakhis:{os.environ['NUCLEATE_BREAKHIS']}", "--data.group", groups, "--data.folds", "5"]
    preset = str(Path(__file__).parents[1] / "configs" / "downstream" / "smse.yaml")
    main(["--config", preset, *named, "--smse.held_out", "0.1", "--run.dir", str(tmp_path / "run"), "--dry_run"])
    assert "5 training(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--smse.held_out", "[3]"], r"smse.held_out names 3 µm/px, but tiles are shown at 0.5, 1, 2"),
        (["--smse.held_out", "[0.5,1,2]"], "smse.held_out names all of 0.5, 1, 2"),
        (["--train.batch_size", "16"], "train.batch_size is 16, expected a multiple of 6, .* give 18"),
        (["--smse.classes", "4"], "smse.classes is 4, but the tiles have the classes green, pink, violet"),
        (["--smse.mpp", "[0.25,1,2]"], "The class green has no tile in the train part .* 0.25 µm/px in 32 px"),
        (["--crop.size", "64"], "The class green has no tile in the test part .* 2 µm/px in 64 px"),
        (["--smse.mpp", "[1,1]"], r"smse.mpp is \[1.0, 1.0\], expected different µm/px"),
        (["--crop.mpp", "1"], "crop.mpp is 1, but task smse has several"),
        (["--smse.theta", "1"], "smse.theta is 1.0, expected a probability"),
        (["--data.group", '["all=pink,violet,green"]'], "The tiles have the class all alone"),
    ],
)
def test_refusals(arguments: list[str], tmp_path: Path, extra: list[str], words: str) -> None:
    """A dry run refuses the same."""
    with pytest.raises(InputError, match=words):
        main([*arguments, "--run.dir", str(tmp_path / "run"), *extra, "--dry_run"])
    with pytest.raises(InputError, match=words):
        main([*arguments, "--run.dir", str(tmp_path / "run"), *extra])


def test_unknown_scales_are_refused(coloured: Path, tmp_path: Path) -> None:
    tiles = open_tiles(coloured)
    write_folder((replace(tiles[k], mpp=None) for k in range(30)), tmp_path / "tiles")
    with pytest.raises(InputError, match=r"30 of 30 tiles have no known µm/px, .*; give --data.mpp"):
        task_of(tmp_path / "tiles", SmseSettings())
