"""A run that starts from another's networks, and the second stage of UNITPathSSL."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from histo.errors import InputError
from histo.running import checkpoints
from histo.running.checkpoints import Checkpoint
from tests.methods import arguments, opened
from translate.engine import Translator
from translate.train import main


def state(run: Path, images: int) -> Checkpoint:
    return checkpoints.load(run / "checkpoints" / f"{images:012d}")


@pytest.fixture(scope="module")
def first_stage(tile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("first-stage") / "run"
    settings = ("--data.tissue", str(tile_folder), "--train.images", "8", "--train.panel_every", "1000")
    main([*arguments("unitpath", *settings), "--run.dir", str(run)])
    return run


def same(network: nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    mine = network.state_dict()
    return all(torch.equal(mine[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("stage", ["1", "2"])
def test_networks_of_another_run(first_stage: Path, stage: str) -> None:
    """All of them, or in the second stage those that draw and judge tissue; what is not taken starts as ever."""
    translator = opened("unitpath", "--run.init", str(first_stage), "--run.stage", stage, "--seed", "5")
    fresh = {name: {k: v.clone() for k, v in network.state_dict().items()} for name, network in networks(translator)}
    first = state(first_stage, 8)
    translator.start_from(first)
    kept = {"generator", "generator_average", "tissue_discriminator"}
    assert kept < fresh.keys()
    for name, network in networks(translator):
        taken = stage == "1" or name in kept
        assert same(network, first.tensors[name]) is taken, name
        assert same(network, fresh[name]) is not taken, name
    assert translator.images == 0
    assert not translator.optimizers["translators"].state
    rate = {"1": 4e-4, "2": 1e-4}[stage]
    assert translator.rates == {"translators": rate, "judges": rate}


def networks(translator: Translator) -> list[tuple[str, nn.Module]]:
    averages = [(f"{name}_average", average) for name, average in translator.averages.items()]
    return [*translator.networks.items(), *averages]


def test_a_second_stage_trains(
    first_stage: Path, tile_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """From a checkpoint, at rates too low to move any weight, so that what was taken shows at the end."""
    init = first_stage / "checkpoints" / "000000000008"
    run = tmp_path / "run"
    settings = ("--data.tissue", str(tile_folder), "--train.images", "4", "--train.save_every", "4")
    rates = ("--train.learning_rate", "1e-30", "--train.judge_learning_rate", "1e-30")
    stage = ("--run.stage", "2", "--run.init", str(init), "--seed", "5")
    main([*arguments("unitpath", *settings, *rates, *stage), "--run.dir", str(run)])
    assert f"starting from {init}, stage 2" in capsys.readouterr().out
    mine, first = state(run, 4).tensors, state(first_stage, 8).tensors
    unchanged = {
        name for name in mine if name in first and all(torch.equal(mine[name][k], first[name][k]) for k in first[name])
    }
    assert unchanged == {"generator", "tissue_discriminator"}


@pytest.mark.parametrize(
    ("method", "more", "sentence"),
    [
        ("unitpath", ["--run.stage", "2"], "run.stage is 2 without --run.init"),
        ("unitpath", ["--run.init", "{tmp}/nowhere"], "nowhere is no folder; expected a run folder, or one of its"),
        ("unitpath", ["--run.init", "{tmp}"], "is no checkpoint"),
        ("unitpath", ["--run.init", "{tmp}/begun"], "begun has no checkpoint yet"),
        ("unitpath", ["--run.init", "{first}", "--segmenter.pyramid_width", "64"], "segmenter is of another architect"),
        ("unitpath", ["--run.init", "{first}", "--generator.style_width", "8"], "generator is of another architecture"),
        ("cyclegan", ["--run.init", "{first}"], "generator is of another architecture"),
        ("cyclegan", ["--run.init", "{first}", "--run.stage", "2"], "run.stage is 2, but cyclegan has one stage only"),
        ("cut", ["--run.init", "{first}", "--run.stage", "2"], "run.stage is 2, but cut has one stage only"),
        ("cyclegan", ["--train.accumulation", "3"], "train.batch_size is 4, expected a multiple of train.accumulation"),
        ("cut", ["--generator.kind", "unet"], "cut compares features up to the fifth block of a resnet"),
        ("cut", ["--loss.patches", "1"], "loss.patches is 1, expected 2 or more"),
        ("cyclegan", ["--loss.identity", "-1"], "loss.identity is -1.0, expected a finite number of 0 or more"),
        ("cyclegan", ["--method", "cyclgan"], "There is no method 'cyclgan' of translation; did you mean cyclegan?"),
    ],
)
def test_mistakes_get_one_sentence(
    method: str, more: list[str], sentence: str, first_stage: Path, tile_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    named = [part.format(tmp=tmp_path, first=first_stage) for part in more]
    with pytest.raises(InputError) as caught:
        main([*arguments(method, "--data.tissue", str(tile_folder), *named), "--run.dir", str(tmp_path / "run")])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
