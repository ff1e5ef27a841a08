"""Learning from labels end to end: it learns, it resumes bit for bit, seeds add up, and mistakes are one sentence."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import downstream
from downstream.labelled import DataSettings, open_labelled
from downstream.recipe import CropSettings, EncoderSettings, Recipe
from downstream.start import open_start
from downstream.stream import LabelledCrops
from downstream.task import Task
from downstream.tasks import instances
from downstream.tasks.segment import Segment, SegmentSettings
from downstream.train import main
from histo import encoders, instance_networks
from histo.errors import InputError
from histo.instance_networks import Flipped, InstanceNetwork, InstanceSettings, find_nuclei
from histo.metrics.regions import ABSENT_CLASSES, IGNORED
from histo.phantom import PhantomTissue
from histo.running import checkpoints
from histo.segmenters import segment
from histo.tiles import Tile, open_tiles
from histo.tiles.tables import write_folder
from tests.launching import DOWNSTREAM, assert_same_weights, start, wait_for


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 phantom tiles of 96² of twelve patients, the last eight to score."""
    tiles = PhantomTissue(0, size=96, count=24)
    folder = tmp_path_factory.mktemp("downstream") / "tiles"
    write_folder(
        (replace(tiles[k], split="train" if k < 16 else "test", patient=f"p{k // 2}") for k in range(24)), folder
    )
    return folder


@pytest.fixture(scope="module")
def arguments(tissue: Path) -> list[str]:
    """A training small enough for seconds: 40 steps of 4 crops."""
    settings = {
        "data.tiles": tissue,
        "crop.size": 64,
        "encoder.architecture": "test_resnet",
        "instances.flips": "false",
        "train.images": 160,
        "train.batch_size": 4,
        "train.log_every": 16,
        "train.save_every": 32,
        "train.look_every": 160,
    }
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one thread, as the processes that are stopped and resumed: sums of several differ in their last bits."""
    run = tmp_path_factory.mktemp("finished") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main([*arguments, "--data.workers", "0", "--run.dir", str(run), "--seeds", "[0,1]"])
    torch.set_num_threads(threads)
    return run


def test_the_run_folder_holds_what_users_load(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    of_seed = [json.loads((finished / f"seed{seed}" / "metrics.json").read_text())["scores"]["dice"] for seed in (0, 1)]
    assert metrics["scores"]["dice"]["mean"] == pytest.approx(np.mean(of_seed))
    assert metrics["scores"]["dice"]["sd"] == pytest.approx(np.std(of_seed, ddof=1))
    assert metrics["facts"]["test"] == "8 tiles · 4 patients"
    report = (finished / "report.html").read_text()
    assert "http://" not in report
    network, card = instance_networks.load(finished / "seed0" / "export" / "instances.safetensors")
    assert (card["tile_size"], card["mpp"], card["images_seen"]) == (64, 0.5, 160)
    found = segment(network, PhantomTissue(9, size=100)[0].image, card["tile_size"])
    assert found.shape == (100, 100)


def test_no_tile_is_predicted_for_its_picture(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eight that are scored are predicted once each, and all of them are shown."""
    calls = []

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return find_nuclei(*args, **more)

    monkeypatch.setattr(instances, "find_nuclei", counted)
    run = tmp_path / "run"
    main([*arguments, "--data.workers", "0", "--train.images", "8", "--run.dir", str(run)])
    assert len(calls) == 8
    assert len(list((run / "seed0" / "cases").iterdir())) == 8


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_resumes_bit_for_bit(
    arguments: list[str], finished: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = start([*arguments, "--seeds", "[0,1]"], run, script=DOWNSTREAM)
    wait_for(run / "seed0" / "checkpoints" / "000000000064", process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    if number != signal.SIGKILL:
        assert process.returncode == 0, errors
        assert f"Stopped by {number.name}" in output
    assert not (run / "seed0" / "metrics.json").exists(), "the run was over before it was stopped"
    process = start([*arguments, "--seeds", "[0,1]"], run, script=DOWNSTREAM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    for seed in (0, 1):
        assert_same_weights(run / f"seed{seed}", finished / f"seed{seed}", 160)
    assert (
        json.loads((run / "metrics.json").read_text())["by_seed"]
        == json.loads((finished / "metrics.json").read_text())["by_seed"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("head", ["flows", "distance"])
def test_it_learns(tissue: Path, tmp_path: Path, head: str) -> None:
    """A small U-Net on sixteen tiles finds most nuclei of other patients."""
    settings = ["--data.tiles", str(tissue), "--crop.size", "64", "--encoder.architecture", "test_resnet"]
    settings += ["--train.images", "1600", "--instances.head", head, "--data.workers", "0", "--train.precision", "fp32"]
    main([*settings, "--run.dir", str(tmp_path / "run")])
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    assert scores["dice"]["mean"] > 0.6  # distance 0.67, flows more than 0.7
    assert scores["aji"]["mean"] > 0.35


def test_regions_are_learned_and_predicted(tissue: Path, tmp_path: Path) -> None:
    """Nuclear pixels of other patients after 400 crops, and the same network from Python."""
    settings = ["--task", "segment", "--data.tiles", str(tissue), "--crop.size", "64", "--data.workers", "0"]
    settings += ["--encoder.architecture", "test_resnet", "--train.images", "400", "--run.dir", str(tmp_path / "run")]
    main(settings)
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    assert scores["dice"]["mean"] > 0.6
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["facts"]["absent classes"] == ABSENT_CLASSES
    assert "Absent classes" in (tmp_path / "run" / "report.html").read_text()
    task = downstream.load(tmp_path / "run")
    tile = PhantomTissue(9, size=100)[0]
    found = task.predict(tile.image)
    assert found.regions is not None
    assert found.probabilities is not None
    assert found.probabilities.shape == (2, 100, 100)
    assert np.allclose(found.probabilities.sum(0), 1, atol=1e-3)
    assert tile.instances is not None
    nuclei = tile.instances > 0
    assert 2 * (nuclei & (found.regions == 1)).sum() / (nuclei.sum() + (found.regions == 1).sum()) > 0.6


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pink tiles and violet ones, each of a patient of its own."""
    folder = tmp_path_factory.mktemp("coloured") / "tiles"
    tiles = PhantomTissue(0, size=64, count=24)
    shift = np.array([[[40]], [[0]], [[-40]]])
    write_folder(
        (
            replace(
                tiles[k],
                image=np.clip(tiles[k].image.astype(int) + shift * (1 - 2 * (k % 2)), 0, 255).astype(np.uint8),
                label=("pink", "violet")[k % 2],
                patient=f"p{k}",
            )
            for k in range(24)
        ),
        folder,
    )
    return folder


def test_classes_are_learned_and_predicted(coloured: Path, tmp_path: Path) -> None:
    """Pink tiles against violet ones: a whole encoder is fine-tuned, its lower layers slower."""
    settings = ["--task", "classify", "--data.tiles", str(coloured), "--data.folds", "2", "--crop.size", "64"]
    settings += ["--encoder.architecture", "test_resnet", "--train.images", "400", "--train.layer_decay", "0.8"]
    settings += ["--classify.loss", "focal", "--classify.weights", "inverse", "--data.workers", "0"]
    main([*settings, "--crop.stain", "0", "--run.dir", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["folds"] == 2
    assert metrics["scores"]["balanced_accuracy"]["mean"] > 0.9
    with pytest.raises(InputError, match="networks of several trainings"):
        downstream.load(tmp_path / "run")
    found = downstream.load(tmp_path / "run" / "seed0-fold1").predict(open_tiles(coloured)[0].image)
    assert found.label == "pink"
    assert found.probabilities is not None
    assert found.probabilities[0] > 0.5


@pytest.mark.parametrize("task", ["linear", "knn"])
def test_frozen_features_are_made_once_and_read(coloured: Path, tmp_path: Path, task: str) -> None:
    settings = ["--task", task, "--data.tiles", str(coloured), "--data.folds", "2", "--crop.size", "64"]
    settings += ["--encoder.architecture", "test_resnet", "--linear.steps", "300", "--linear.learning_rate", "0.01"]
    main([*settings, "--features", str(tmp_path / "features"), "--run.dir", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["scores"]["balanced_accuracy"]["mean"] > 0.9
    assert ("auroc" in metrics["scores"]) is (task == "linear")
    (features,) = (tmp_path / "features").glob("*.safetensors")
    written = features.stat().st_mtime_ns
    main([*settings, "--features", str(tmp_path / "features"), "--run.dir", str(tmp_path / "again")])
    assert features.stat().st_mtime_ns == written
    if task == "linear":
        found = downstream.load(tmp_path / "run" / "seed0-fold1").predict(open_tiles(coloured)[0].image)
        assert found.label == "pink"
        return
    for folder in ("run", "run/seed0-fold1"):
        with pytest.raises(InputError, match=r"is a run of task knn, .* exports no network; train with --task linear"):
            downstream.load(tmp_path / folder)


def test_all_labelled_tiles_vote(coloured: Path, tmp_path: Path) -> None:
    """Neighbours have nothing to stop by, so that a share for validation sets nothing aside."""
    settings = ["--task", "knn", "--data.tiles", str(coloured), "--data.folds", "2", "--crop.size", "64"]
    settings += ["--encoder.architecture", "test_resnet", "--features", str(tmp_path / "features"), "--knn.k", "3"]
    found = []
    for share in ("0", "0.5"):
        run = tmp_path / share
        main([*settings, "--data.validation_share", share, "--run.dir", str(run)])
        found.append(json.loads((run / "seed0-fold1" / "metrics.json").read_text()))
    assert found[0]["cases"] == found[1]["cases"]
    assert [one["labels"] for one in found] == [12, 12]
    assert found[1]["facts"]["train"] == "12 tiles · 12 patients"
    with pytest.raises(InputError, match=r"data\.validation is 'val', but task knn has nothing to choose by it"):
        main([*settings, "--data.folds", "0", "--data.validation", "val", "--run.dir", str(tmp_path / "run")])


def test_flips_of_a_mirrored_tile_are_the_mirrored_flips() -> None:
    """The mean over four mirrorings commutes with a mirroring, flows with their signs."""
    torch.manual_seed(0)
    network = InstanceNetwork(InstanceSettings("test_resnet")).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        plain, mirrored = Flipped(network)(image).dense, Flipped(network)(image.flip(3)).dense
        bare = network(image.flip(3)).dense
    assert plain is not None
    assert mirrored is not None
    assert bare is not None
    signs = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(mirrored.flip(3) * signs, plain, rtol=1e-4, atol=1e-5)
    assert (bare.flip(3) * signs - plain).abs().max() > 1e-3


def test_a_frozen_encoder_stays_as_it_is(arguments: list[str], tmp_path: Path) -> None:
    """Weights and running statistics; what stands on it learns."""
    run = tmp_path / "run"
    main([*arguments, "--data.workers", "0", "--encoder.frozen", "true", "--train.images", "32", "--run.dir", str(run)])
    state = checkpoints.load(checkpoints.complete(run / "seed0" / "checkpoints")[-1]).tensors["network"]
    fresh = encoders.start("none", "own", "test_resnet", seed=0).encoder.state_dict()
    prefix = "dense.network.encoder.model."
    mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    assert len(mine) > 10
    for name, value in mine.items():
        assert torch.equal(value, fresh[name]), name
    torch.manual_seed(0)
    untrained = InstanceNetwork(InstanceSettings("test_resnet")).state_dict()
    moved = [name for name in state if not name.startswith(prefix) and not torch.equal(state[name], untrained[name])]
    assert moved


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--data.label_images", "17"], "label_images is 17, expected at most 16"),
        (["--data.holdout", "val"], "No tile is of the split 'val'"),
        (["--encoder.source", "nowhere.safetensors"], "There is no nowhere.safetensors"),
        (["--seeds", "[0,0]"], r"seeds is \[0, 0\], expected different"),
        (["--crop.size", "50"], "crop.size is 50, expected a multiple of 32"),
        (["--instances.decoder", "pyramid"], "pyramid"),
        (["--task", "classify", "--crop.mpp", "1"], "judges whole tiles resized to crop.size pixels; leave"),
        (
            ["--task", "classify", "--encoder.architecture", "vit_tiny_patch16_224"],
            "cannot take tiles of 64 px .*; change --crop.size",
        ),
        (
            ["--task", "linear", "--encoder.architecture", "vit_tiny_patch16_224", "--dry_run"],
            "cannot take tiles of 64 px .*; change --crop.size",
        ),
        (["--run.resume", "other/checkpoints/000000032"], r"run\.resume is .*continues its own newest checkpoint"),
    ],
)
def test_refusals(arguments: list[str], tmp_path: Path, extra: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        main([*arguments, "--data.workers", "0", "--run.dir", str(tmp_path / "run"), *extra])


def test_images_are_read_in_windows_of_the_training(finished: Path) -> None:
    """No larger, which costs nuclei, and a quarter of each is its neighbour's."""
    task = downstream.load(finished / "seed0")
    assert isinstance(task.network, InstanceNetwork)
    sizes = []
    task.network.dense.register_forward_pre_hook(lambda _, inputs: sizes.extend(tuple(x.shape) for x in inputs[0]))
    task.predict(PhantomTissue(2, size=192)[0].image[:, :150])
    assert sizes == [(3, 64, 64)] * 3 * 4  # from 0, 48 and 96 down; from 0, 48, 96 and 144 across


def test_dropout_draws_alike_after_a_resume(arguments: list[str], tmp_path: Path) -> None:
    """A decoder with dropout, taken up at half its length, is the one that was not stopped."""
    wanted = [*arguments, "--instances.decoder", "fpn", "--data.workers", "0", "--train.images", "64"]
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    main([*wanted, "--run.dir", str(whole)])
    shutil.copytree(whole, halved)
    (halved / "seed0" / "metrics.json").unlink()
    shutil.rmtree(max((halved / "seed0" / "checkpoints").iterdir()))
    main([*wanted, "--run.dir", str(halved)])
    files = [run / "seed0" / "export" / "instances.safetensors" for run in (whole, halved)]
    first, second = (instance_networks.load(file)[0].state_dict() for file in files)
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=0, atol=0)


def test_the_last_network_is_looked_at(arguments: list[str], tmp_path: Path) -> None:
    """A validation part counts however seldom it is looked at."""
    settings = [*arguments, "--data.validation_share", "0.3", "--data.workers", "0", "--train.look_every", "9999"]
    main([*settings, "--train.images", "32", "--run.dir", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run" / "seed0" / "metrics.json").read_text())
    assert "that of 32 crops, the best by aji" in result["facts"]["network"]


def test_a_finished_run_is_not_another_ones(arguments: list[str], finished: Path) -> None:
    settings = [*arguments, "--data.workers", "0", "--run.dir", str(finished), "--seeds", "[0,1]"]
    with pytest.raises(InputError, match=r"train\.learning_rate"):
        main([*settings, "--train.learning_rate", "1e-4"])


def test_a_batch_without_labels_moves_nothing(tissue: Path) -> None:
    """Its loss is 0; a weighted one is the weighted mean over what is labelled."""
    recipe = Recipe("segment", DataSettings(str(tissue)), encoder=EncoderSettings(architecture="test_resnet"))
    recipe.segment = SegmentSettings(dice=0, weights=[1.0, 3.0])
    task = Segment(recipe, open_start(recipe, 0), open_labelled(recipe.data, "mask", 0), 0)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    numbers = torch.full((2, 64, 64), IGNORED)
    assert float(task.losses(images, {"numbers": numbers})["cross_entropy"]) == 0
    numbers[0, :32], numbers[0, 32:] = 0, 1
    logits = task.network(images / 127.5 - 1)
    expected = F.cross_entropy(logits, numbers, torch.tensor([1.0, 3.0]), ignore_index=IGNORED)
    torch.testing.assert_close(task.losses(images, {"numbers": numbers})["cross_entropy"], expected)


def test_a_new_run_is_not_laid_over_an_old_one(arguments: list[str], finished: Path) -> None:
    """A finished run is looked up again, unless a new one was asked for."""
    settings = [*arguments, "--data.workers", "0", "--run.dir", str(finished), "--seeds", "[0,1]"]
    main(settings)
    with pytest.raises(InputError, match=r"already holds a run; use --run\.resume auto"):
        main([*settings, "--run.resume", "never"])


def test_a_dry_run_trains_nothing(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*arguments, "--run.dir", str(tmp_path / "run"), "--dry_run"])
    assert "16 of 16 training tiles, 1 training(s)" in capsys.readouterr().out
    assert not checkpoints.complete(tmp_path / "run" / "seed0" / "checkpoints")


def test_further_tiles_have_their_share_of_the_crops(tissue: Path, tmp_path: Path) -> None:
    """Of every four crops three are cut from the second set, whatever the index they begin at."""
    extra = tmp_path / "extra"
    write_folder((replace(tile, source="extra") for tile in PhantomTissue(5, size=96, count=3)), extra)
    seen = []

    class Sources:
        """A task that notes where crops come from."""

        def prepared(self, tile: Tile) -> Tile:
            seen.append(tile.source)
            return tile

        def item(self, tile: Tile, index: int) -> dict[str, torch.Tensor]:
            return {}

    crops = LabelledCrops(
        open_tiles(tissue), cast("Task", Sources()), CropSettings(64), 0, extra=open_tiles(extra), extra_share=0.75
    )
    for index in range(8, 48):
        crops[index]
    assert seen.count("extra") == 30


def test_labels_are_not_learned_from_if_further_tiles_have_all_crops(
    arguments: list[str], tissue: Path, tmp_path: Path
) -> None:
    extra = tmp_path / "extra"
    write_folder(
        (replace(tile, patient=f"other{k}") for k, tile in enumerate(PhantomTissue(5, size=96, count=3))), extra
    )
    main(
        [
            *arguments,
            "--data.extra",
            str(extra),
            "--data.extra_share",
            "1",
            "--data.workers",
            "0",
            "--run.dir",
            str(tmp_path / "run"),
        ]
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["facts"]["labels used"] == "0 of 16 training tiles"
    assert metrics["labels"] == 0
    assert "100% of the crops" in metrics["facts"]["extra"]


def test_patients_of_further_tiles_must_not_be_scored(arguments: list[str], tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    write_folder((replace(tile, patient="p11") for tile in PhantomTissue(5, size=96, count=3)), extra)
    with pytest.raises(InputError, match=r"1 patients of data\.extra .* are scored, first p11 in test"):
        main([*arguments, "--data.extra", str(extra), "--run.dir", str(tmp_path / "run")])
    settings = [*arguments, "--data.extra", str(extra), "--data.extra_split", "val"]
    with pytest.raises(InputError, match=r"No tile of data\.extra is of the split 'val'; they have train"):
        main([*settings, "--run.dir", str(tmp_path / "run")])


def test_the_network_that_is_best_on_the_validation_part_is_scored_and_survives_a_stop(
    arguments: list[str], tmp_path: Path
) -> None:
    """Looks at 80 and 160 crops; a resumed run knows of the first one."""
    settings = [*arguments, "--data.validation_share", "0.3", "--data.workers", "0", "--train.look_every", "80"]
    main([*settings, "--run.dir", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run" / "seed0" / "metrics.json").read_text())
    assert "the best by aji of the validation part" in result["facts"]["network"]
    folder = tmp_path / "run" / "seed0" / "checkpoints"
    kept = checkpoints.load(max(folder.iterdir()))
    card = instance_networks.load(tmp_path / "run" / "seed0" / "export" / "instances.safetensors")
    for name, weight in card[0].state_dict().items():
        torch.testing.assert_close(weight, kept.tensors["best"][name], rtol=0, atol=0)
    assert kept.facts["best_images"] in (80, 160)


def test_tiles_are_read_at_another_magnification_and_scored_at_their_own(arguments: list[str], tmp_path: Path) -> None:
    settings = [*arguments, "--crop.mpp", "1", "--data.workers", "0", "--run.dir", str(tmp_path / "run")]
    main(settings)
    network, card = instance_networks.load(tmp_path / "run" / "seed0" / "export" / "instances.safetensors")
    assert card["mpp"] == 1
    tile = PhantomTissue(9, size=100)[0]
    task = downstream.load(tmp_path / "run")
    found = task.predict(tile.image, mpp=0.5).instances
    assert found is not None
    np.testing.assert_array_equal(found, segment(network, tile.image, 64, step=2))
    with pytest.raises(InputError, match=r"The image has 2 µm/px, coarser than the 1 asked for"):
        task.predict(tile.image, mpp=2)
    with pytest.raises(InputError, match=r"coarser than the 0\.25 asked for"):
        main([*arguments, "--crop.mpp", "0.25", "--data.workers", "0", "--run.dir", str(tmp_path / "other")])
