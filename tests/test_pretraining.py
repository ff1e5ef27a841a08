"""Pretraining end to end: it runs, it resumes bit for bit however it was stopped, and it says what is wrong."""

import json
import signal
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils.data import default_collate

from histo.encoders import load
from histo.errors import InputError
from histo.running import checkpoints
from histo.running.tracking import read_log
from pretrain.export import _without_folders
from pretrain.learner import Learner
from pretrain.objective import Batch
from pretrain.objectives import simclr
from pretrain.pool import DataSettings, PooledCrops, open_pool
from pretrain.recipe import EncoderSettings, Recipe, TrainSettings
from pretrain.start import open_backbone
from pretrain.train import main
from tests.launching import PRETRAIN, assert_same_weights, final_state, start, wait_for


@pytest.fixture(scope="session")
def arguments(tile_folder: Path) -> list[str]:
    """A pretraining small enough for seconds: 40 steps of 4 tiles, a ResNet of 0.4 M weights with batch norm."""
    settings = {
        "data.tissue": tile_folder,
        "data.tile_size": 48,
        "data.view_size": 32,
        "encoder.architecture": "test_resnet",
        "probe.every": 80,
        "probe.stains": 2,
        "train.images": 160,
        "train.batch_size": 4,
        "train.log_every": 16,
        "train.save_every": 32,
        "train.panel_every": 80,
    }
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pretraining") / "run"
    process = start([*arguments, "--data.workers", "0"], run, script=PRETRAIN)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Done: 160 images" in output
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("instant", "number"),
    [
        ("checkpoints/.writing-000000000064", signal.SIGKILL),  # in the middle of saving
        ("checkpoints/000000000032", signal.SIGTERM),
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(
    arguments: list[str], finished: Path, tmp_path: Path, instant: str, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = start([*arguments, "--data.workers", "1"], run, script=PRETRAIN)
    wait_for(run / instant, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    if number != signal.SIGKILL:
        assert process.returncode == 0, errors
        assert f"Stopped by {number.name}" in output
    stopped_at = checkpoints.complete(run / "checkpoints")
    assert not stopped_at or not stopped_at[-1].name.endswith("160"), "the run was over before it was stopped"

    process = start([*arguments, "--data.workers", "1"], run, script=PRETRAIN)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert final_state(run, 160).keys() == {"encoder", "simclr_projector", "optimizer"}
    assert_same_weights(run, finished, 160)
    images = [record["images"] for record in read_log(run) if "loss/simclr/contrast" in record]
    assert images == list(range(16, 161, 16)), "each image count stands in the log once"


def test_the_run_folder_holds_what_users_load(finished: Path) -> None:
    model, card = load(finished / "export" / "encoder.safetensors")
    assert (card["objectives"], card["images_seen"], card["mpp"]) == (["simclr"], 160, pytest.approx(0.75))
    assert card["mpp_of_views"] == [pytest.approx(0.75 * 0.2**0.5, abs=1e-4), 0.75]
    assert card["mean"] == card["std"] == [0.5] * 3
    assert card["probe"].keys() >= {"stain_cosine", "effective_rank"}
    trained = load_file(finished / "checkpoints" / "000000000160" / "encoder.safetensors")
    assert all(torch.equal(trained[name], value) for name, value in model.state_dict().items())
    bare = timm.create_model("test_resnet", num_classes=0)
    bare.load_state_dict(load_file(finished / "export" / "encoder.safetensors"))

    report = (finished / "report.html").read_text()
    assert "data:image/" in report
    assert "http://" not in report
    names = {path.name.rpartition("-")[0] for path in (finished / "panels").glob("*.png")}
    assert names == {"simclr_views", "simclr_similarity", "stain_sensitivity"}
    scalars = {name for record in read_log(finished) for name in record}
    assert {"embedding/simclr_spread", "rate", "probe/spread_share", "speed/wait_share"} <= scalars
    assert [r["images"] for r in read_log(finished) if "probe/stain_cosine" in r] == [0, 80, 160]


def test_a_card_does_not_tell_where_data_are_kept() -> None:
    said = ["pretrain/train.py", "[/disk/one/a, /disk/b]", "/disk/runs/c", "--seed=1", "tnbc:/disk/one/d", "e/f"]
    assert [_without_folders(one) for one in said] == ["pretrain/train.py", "[a, b]", "c", "--seed=1", "tnbc:d", "e/f"]


def test_several_objectives_teach_one_encoder(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--objective", "[simclr, barlow]", "--barlow.width", "32", "--train.images", "32", "--probe.every", "0"]
    main([*arguments, *more, "--data.workers", "0", "--run.dir", str(run)])
    scalars = {name for record in read_log(run) for name in record}
    assert {"loss/simclr/contrast", "loss/barlow/invariance", "loss/barlow/redundancy"} <= scalars
    assert json.loads((run / "export" / "encoder.json").read_text())["objectives"] == ["simclr", "barlow"]


def test_a_compiled_encoder_learns_the_same(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By AOT autograd without Inductor, which takes minutes on a CPU."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend="aot_eager"))
    more = ["--train.images", "16", "--train.log_every", "8", "--probe.every", "0", "--train.precision", "fp32"]
    losses = []
    for name in ("false", "true"):
        run = tmp_path / name
        main([*arguments, *more, "--data.workers", "0", "--train.compile", name, "--run.dir", str(run)])
        losses.append([r["loss/simclr/contrast"] for r in read_log(run) if "loss/simclr/contrast" in r])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(losses[0]) == 2


def test_dry_run_writes_nothing(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main([*arguments, "--run.dir", str(tmp_path / "run"), "--dry_run"])
    printed = capsys.readouterr().out
    assert "view_size: 32" in printed
    assert "starts from random weights" in printed
    assert not (tmp_path / "run").exists()


def test_a_non_finite_loss_stops_with_its_name(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def broken(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
        steps.append(1)
        return (first * second).mean() * (float("nan") if len(steps) > 9 else 1.0)

    monkeypatch.setattr(simclr, "nt_xent", broken)
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"term contrast became nan at step 9 \(36 images\).*000000000032"):
        main([*arguments, "--probe.every", "0", "--data.workers", "0", "--run.dir", str(run)])
    assert [path.name for path in checkpoints.complete(run / "checkpoints")] == ["000000000032"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--data.tissue", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--objective", "simclear"], "There is no objective 'simclear' of pretraining; did you mean simclr?"),
        (["--objective", "[simclr, simclr]"], "names simclr twice"),
        (["--train.batch_size", "64"], "There are 8 tiles of --data.split 'train' and train.batch_size is 64"),
        (["--train.accumulation", "3"], "expected a multiple of train.accumulation (3)"),
        (["--data.view_size", "30"], "data.view_size is 30, expected a multiple of 32"),
        (["--encoder.architecture", "resnet5"], "timm has no model named 'resnet5'"),
        (["--encoder.source", "/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--translator", "/nowhere"], "/nowhere"),
        (["--simclr.temperature", "0"], "simclr.temperature is 0.0, expected a finite number above 0"),
        (["--train.learning_rate", "1000"], "train.learning_rate is 1000"),
        (["--encoder.architecture", "vit_tiny_patch16_224"], "timm:vit_tiny_patch16_224 cannot take tiles of 32 px"),
        (["--encoder.architecture", "convnext_tiny", "--encoder.norm", "group"], "'convnext_tiny' cannot be"),
        (["--encoder.architecture", "smp:resnet18"], "smp:resnet18 is an encoder of smp, expected one of timm"),
        (["--encoder.architecture", "dla46_c", "--train.checkpointing", "true"], "--train.checkpointing"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], tmp_path: Path, wrong: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        main([*arguments, *wrong, "--run.dir", str(tmp_path / "run"), "--data.workers", "0"])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints" / "000000000032").exists()


def learner_of(tile_folder: Path, **changed: object) -> Learner:
    recipe = Recipe(
        data=DataSettings(tissue=str(tile_folder), tile_size=48, view_size=32, workers=0),
        encoder=EncoderSettings("test_resnet"),
        train=TrainSettings(batch_size=4, images=16, precision="fp32", optimizer="lars"),
    )
    for name, value in changed.items():
        group, _, own = name.partition("_")
        setattr(getattr(recipe, group), own, value)
    return Learner(recipe, open_pool(recipe.data, recipe.seed, 4), Accelerator(mixed_precision="no"))


@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_lars_adapts_weights_whatever_their_decay(decay: float, tile_folder: Path) -> None:
    """However large a gradient is, weights move by a share of their norm; biases and norms by the gradient."""
    moved = {}
    for size in (1.0, 10.0):
        learner = learner_of(tile_folder, train_weight_decay=decay)
        named = dict(learner.encoder.model.named_parameters())
        before = {name: value.detach().clone() for name, value in named.items()}
        for value in named.values():
            value.grad = torch.full_like(value, size)
        learner.optimizer.step()
        moved[size] = {name: float((value - before[name]).norm()) for name, value in named.items()}
    assert moved[10.0]["conv1.0.weight"] == pytest.approx(moved[1.0]["conv1.0.weight"], rel=1e-3)
    assert moved[10.0]["bn1.weight"] == pytest.approx(10 * moved[1.0]["bn1.weight"], rel=1e-3)


def test_checkpointing_leaves_statistics_of_batch_norm_as_they_would_be(tile_folder: Path) -> None:
    states = []
    for checkpointing in (False, True):
        learner = learner_of(tile_folder, train_checkpointing=checkpointing)
        crops = PooledCrops(learner.pool, learner.recipe.data, 0)
        learner.step(Batch.of(default_collate([crops[index] for index in range(4)]), torch.device("cpu")))
        states.append(learner.encoder.model.state_dict())
    assert states[1].keys() == states[0].keys()
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-6) for name in states[0])


def test_the_width_of_features_is_what_the_encoder_gives() -> None:
    """These widen their features after pooling, which timm's `num_features` does not tell."""
    recipe = Recipe(encoder=EncoderSettings("mobilenetv3_small_050"), data=DataSettings(view_size=32))
    encoder = open_backbone(recipe).encoder
    assert encoder.model.num_features != encoder.width
    assert encoder.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, encoder.width)


def test_a_source_without_tiles_to_learn_from_is_named(
    arguments: list[str], tile_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    table = other_folder / "tiles.csv"
    before = table.read_text()
    table.write_text(before.replace(",train", ",test"))
    try:
        with pytest.raises(InputError, match=f"The source {other_folder.name} of --data.tissue has no tile of"):
            main([*arguments, "--data.tissue", f"[{tile_folder}, {other_folder}]", "--run.dir", str(tmp_path / "run")])
    finally:
        table.write_text(before)
