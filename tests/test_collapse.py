"""A judge that is always right and a generator that always draws the same are named, once, and nothing sound is."""

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from histo.phantom import PhantomTissue
from histo.running import checkpoints
from histo.running.alarms import Alarm
from histo.running.tracking import read_log
from translate import train
from translate.agreement import Probe, to_unit
from translate.collapse import SATURATED, diversity, rule_of
from translate.losses.adversarial import least_squares, logistic
from translate.train import main

JUDGES = ("loss/tissue_judge", "loss/mask_judge", "loss/target_judge", "loss/judge")


def warned(series: list[float], name: str = JUDGES[0], watch: Alarm | None = None) -> list[int]:
    """The readings at which a series gives a warning."""
    watch = watch or Alarm(rule_of)
    return [k for k, value in enumerate(series) if watch({name: value, "loss/r1": 0.0, "ada/p": 0.0})]


@pytest.mark.parametrize("name", JUDGES)
def test_a_saturated_judge_is_named_once_until_it_recovers(name: str) -> None:
    low, high = 0.001, 0.7
    assert warned([high] * 3 + [low] * 20, name) == [7]
    assert warned([low] * 4 + [high] + [low] * 4 + [high], name) == [], "never five in a row"
    assert warned([low] * 9 + [high] + [low] * 9, name) == [4, 14]


def test_the_sentence_has_value_threshold_and_remedy() -> None:
    watch = Alarm(rule_of)
    (sentence,) = [sentence for _ in range(6) for sentence in watch({"loss/tissue_judge": 0.0012})]
    assert sentence.startswith("loss/tissue_judge 0.0012 is below 0.003 for 5 readings in a row: ")
    assert "ada" in sentence
    assert "loss.r1" in sentence


def test_what_the_threshold_means() -> None:
    """The closed forms of the module's text."""
    t = torch.tensor([6.5])
    assert logistic(t, -t).item() == pytest.approx(2 * log(1 + np.exp(-6.5)), rel=1e-5)
    assert logistic(t, -t).item() < SATURATED.least + 1e-4 < logistic(t - 0.2, 0.2 - t).item() + 1e-4
    e = torch.tensor([0.0547])
    assert least_squares(1 - e, e).item() == pytest.approx(SATURATED.least, rel=0.01)
    wrong = logistic(torch.tensor([0.0]), torch.tensor([-100.0])).item()
    assert wrong == pytest.approx(log(2))
    assert SATURATED.least / wrong == pytest.approx(0.0043, abs=1e-4)
    assert least_squares(torch.tensor([0.5]), torch.tensor([0.0])).item() == 1 / 8
    even = torch.zeros(4)
    assert logistic(even, even).item() > 100 * SATURATED.least, "a judge that knows nothing is no saturated one"


def test_a_resumed_run_warns_when_an_undisturbed_one_would() -> None:
    series = [0.5, *[0.001] * 7, 0.5, *[0.002] * 8]
    whole = warned(series)
    assert whole == [5, 13]
    for cut in range(len(series)):
        past = [{"images": k, "time": 1.0, "note": "x", JUDGES[0]: value} for k, value in enumerate(series[:cut])]
        later = [k + cut for k in warned(series[cut:], watch=Alarm(rule_of, past))]
        assert later == [k for k in whole if k >= cut]


class Draws:
    """A method whose averaged generator is a function of (source, stream)."""

    def __init__(self, draw: Any) -> None:
        self.accelerator = Accelerator(mixed_precision="bf16")
        self.draw = draw

    def to_target(self, source: Tensor, stream: str, indices: list[int]) -> Tensor | None:
        return self.draw(source, int(stream[-1]) if stream[-1].isdigit() else 0)

    def to_source(self, target: Tensor) -> Tensor | None:
        return None


@pytest.fixture(scope="module")
def tiles() -> Tensor:
    tissue = PhantomTissue(3, size=64, count=48)
    return to_unit(np.stack([tissue[k].image for k in range(48)]))


def probe(tiles: Tensor) -> Probe:
    return Probe(tiles[:16] * 0, None, tiles[16:32], [], None)


def warnings(tiles: Tensor, draw: Any) -> tuple[dict[str, float], list[str]]:
    values = diversity(probe(tiles), Draws(draw))  # type: ignore[arg-type]
    return values, Alarm(rule_of)(values)


def test_sound_tissue_raises_no_alarm(tiles: Tensor) -> None:
    values, alarms = warnings(tiles, lambda source, style: tiles[(3 * torch.arange(len(source)) + 7 * style) % 48])
    assert alarms == []
    assert 0.7 < values["diversity/sources"] < 1.4
    assert 0.7 < values["diversity/styles"] < 1.4
    values, alarms = warnings(tiles, lambda source, style: tiles[32:][: len(source)])
    assert alarms == []
    assert set(values) == {"diversity/sources"}, "no styles"


def test_a_generator_that_always_draws_the_same_is_named(tiles: Tensor) -> None:
    noise = torch.randn(4, *tiles.shape[1:], generator=torch.Generator().manual_seed(0))
    values, alarms = warnings(
        tiles, lambda source, style: (tiles[:1] + 1e-4 * noise[style]).expand(len(source), -1, -1, -1)
    )
    assert values["diversity/sources"] == 0
    assert len(alarms) == 2
    assert alarms[0].startswith("diversity/sources 0.0000 is below 0.1: different sources are drawn almost alike")
    assert alarms[1].startswith("diversity/styles 0.000")
    assert "mode collapse" in alarms[1]


def test_ignored_styles_are_named(tiles: Tensor) -> None:
    noise = torch.randn(4, 1, *tiles.shape[1:], generator=torch.Generator().manual_seed(0))
    _, alarms = warnings(tiles, lambda source, style: tiles[32:][: len(source)] + 1e-4 * noise[style])
    assert len(alarms) == 1
    assert alarms[0].startswith("diversity/styles")


def test_a_segmenter_that_reads_empty_masks_everywhere_is_named(tiles: Tensor) -> None:
    fixed = Probe(tiles[:16], None, tiles[16:32], [], None)
    reading = Draws(lambda *_: None)
    reading.to_source = lambda target: target.flip(3)  # type: ignore[method-assign]
    sound = diversity(fixed, reading)  # type: ignore[arg-type]
    assert 0.7 < sound["diversity/targets"] < 1.4
    assert Alarm(rule_of)(sound) == []
    reading.to_source = lambda target: -torch.ones_like(target)  # type: ignore[method-assign]
    (sentence,) = Alarm(rule_of)(diversity(fixed, reading))  # type: ignore[arg-type]
    assert sentence.startswith("diversity/targets 0.0000 is below 0.1: different targets are translated back")


def test_nothing_to_compare(tiles: Tensor) -> None:
    def same(source: Tensor, style: int) -> Tensor:
        return source

    assert warnings(tiles, lambda *_: None) == ({}, [])
    one = Probe(tiles[:1], None, tiles[16:32], [], None)
    alike = Probe(tiles[:4], None, tiles[16:17].expand(4, -1, -1, -1), [], None)
    for each in (one, alike):
        assert diversity(each, Draws(same)) == {}  # type: ignore[arg-type]


def test_training_names_both(toy_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(train, "diversity", lambda *_: {"diversity/sources": 0.01})
    means = train.mean_losses
    monkeypatch.setattr(train, "mean_losses", lambda *given: means(*given) | {"loss/tissue_judge": 0.001})
    main(
        [*toy_arguments, "--data.workers", "0", "--train.log_every", "8", "--run.dir", str(run), "--train.images", "64"]
    )
    found = [(record["images"], record["warning"].split()[0]) for record in read_log(run) if "warning" in record]
    assert found == [(40, "loss/tissue_judge"), (64, "diversity/sources")]
    assert checkpoints.complete(run / "checkpoints")
    main(
        [*toy_arguments, "--data.workers", "0", "--train.log_every", "8", "--run.dir", str(run), "--train.images", "72"]
    )
    assert sum("warning" in record for record in read_log(run)) == 2, "named before the run was resumed"
