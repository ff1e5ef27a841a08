"""The probability of augmentation follows the discriminator's signs; both networks and R1 meet augmented tissue."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from histo.errors import InputError
from histo.running.checkpoints import Checkpoint
from tests.five_steps import recipe
from translate.ada import AdaptiveAugmentation, AdaSettings
from translate.augmentation import augment, draw
from translate.engine import Batch
from translate.methods.unitpath import Method


def logits(positive: int, negative: int) -> Tensor:
    return torch.cat([torch.full((positive,), 0.1), torch.full((negative,), -9.0)])


def steered(ada: AdaptiveAugmentation, positive: int, negative: int, steps: int) -> float:
    for _ in range(steps):
        ada.observe(logits(positive, negative))
    return ada.p


def test_the_probability_follows_the_signs_every_fourth_step() -> None:
    ada = AdaptiveAugmentation(AdaSettings(speed=320), 0)
    assert ada.scalars() == {"ada/p": 0.0}
    assert steered(ada, 8, 0, 3) == 0
    assert steered(ada, 8, 0, 1) == pytest.approx(32 / 320)
    assert ada.scalars() == {"ada/p": ada.p, "ada/r": 1.0}
    assert steered(ada, 8, 0, 36) == pytest.approx(1.0)
    assert steered(ada, 8, 0, 40) == 1.0, "it would wind up"
    assert steered(ada, 6, 2, 4) == pytest.approx(0.9), "r 0.5 is below 0.6"
    assert steered(ada, 7, 1, 4) == pytest.approx(1.0), "r 0.75 is above 0.6"
    assert steered(ada, 2, 6, 80) == 0.0
    assert ada.r == pytest.approx(-0.5)
    exact = AdaptiveAugmentation(AdaSettings(probability=0.3, target=0.5), 0)
    assert steered(exact, 6, 2, 4) == 0.3, "at the target it stays"


def test_a_fixed_probability_stays_and_none_does_nothing() -> None:
    fixed = AdaptiveAugmentation(AdaSettings("fixed", probability=0.4), 0)
    assert steered(fixed, 8, 0, 8) == 0.4
    assert fixed.scalars() == {"ada/p": 0.4, "ada/r": 1.0}
    none = AdaptiveAugmentation(AdaSettings("none", probability=0.4), 0)
    x = torch.zeros(1, 3, 16, 16)
    assert none.augmented(x, "real tissue", [0]) is x
    none.observe(torch.tensor([torch.nan]))
    assert none.scalars() == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_named_before_anything_changes(value: float) -> None:
    ada = AdaptiveAugmentation(AdaSettings(probability=0.3), 0)
    steered(ada, 4, 0, 3)
    before = ada.facts()
    with pytest.raises(InputError, match="ADA's r, the mean sign of the tissue discriminator's logits"):
        ada.observe(torch.tensor([1.0, value]))
    assert ada.facts() == before


def test_its_state_survives_between_two_changes() -> None:
    settings = AdaSettings(probability=0.3, speed=77)
    whole, first, second = (AdaptiveAugmentation(settings, 0) for _ in range(3))
    for ada in (whole, first):
        steered(ada, 5, 2, 6)
    second.restore(json.loads(json.dumps(first.facts())))
    for ada in (whole, second):
        steered(ada, 7, 0, 2)
    assert second.facts() == whole.facts()
    assert second.p != first.p
    fixed = AdaptiveAugmentation(AdaSettings("fixed", probability=0.9), 0)
    fixed.restore(first.facts())
    assert fixed.p == 0.9


@pytest.mark.parametrize(
    "change", [{"p": 1.5}, {"p": float("nan")}, {"signs": "1"}, {"steps": 4}, {"images": -1}, {"r": 2}, {"q": 0}]
)
def test_a_damaged_state_is_refused(change: dict[str, object]) -> None:
    ada = AdaptiveAugmentation(AdaSettings(), 0)
    with pytest.raises(InputError, match="state of ADA"):
        ada.restore({**ada.facts(), **change})
    with pytest.raises(InputError, match="state of ADA is None"):
        ada.restore(None)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"probability": 1.2}, "ada.probability is 1.2"),
        ({"kind": "fixed"}, "ada.probability is 0 while ada.kind is fixed"),
        ({"target": 1.0}, "ada.target is 1.0"),
        ({"speed": 0}, "ada.speed is 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        replace(AdaSettings(), **settings)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    tissue, mask = (torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    return Batch(mask, tissue, [8, 9, 10, 11], (mask[:, 0] > 0).int())


def test_both_networks_and_r1_meet_augmented_tissue(batch: Batch) -> None:
    wanted = recipe()
    wanted.ada = AdaSettings("fixed", probability=0.7)
    translator = Method(wanted, Accelerator(mixed_precision="no"))
    seen: list[Tensor] = []
    shown: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    translator.networks["tissue_discriminator"].register_forward_pre_hook(look)
    translator.networks["generator"].register_forward_hook(lambda module, inputs, output: shown.append(output))
    translator.step(batch)

    def expected(tissue: Tensor, stream: str) -> Tensor:
        return augment(tissue, draw(wanted.seed, f"ada of {stream}", batch.indices, 0.7, 64))

    from_g, real, generated, penalised = seen
    assert from_g.requires_grad
    assert torch.equal(from_g, expected(shown[0], "G's tissue"))
    assert torch.equal(real, expected(batch.target, "real tissue"))
    assert torch.equal(generated, expected(shown[0], "generated tissue"))
    assert torch.equal(penalised, real)
    assert penalised.is_leaf
    assert not torch.equal(from_g, generated)
    fake = shown[0].detach().requires_grad_(True)
    expected(fake, "G's tissue").square().sum().backward()
    assert fake.grad is not None
    assert (fake.grad.abs().amax((1, 2, 3)) > 0).all()


def test_a_translator_resumes_bit_for_bit_between_two_changes(batch: Batch) -> None:
    wanted = recipe()
    translator, other = (Method(wanted, Accelerator(mixed_precision="no")) for _ in range(2))
    translator.step(batch)
    assert translator.ada.steps == 1
    stored = translator.checkpoint({})
    tensors = {group: {name: t.clone() for name, t in each.items()} for group, each in stored.tensors.items()}
    other.restore(Checkpoint(tensors, json.loads(json.dumps(stored.facts))))
    for _ in range(4):
        terms, others = translator.step(batch), other.step(batch)
        assert all(torch.equal(terms[name], others[name]) for name in terms)
    assert other.ada.facts() == translator.ada.facts()
    assert other.ada.p != wanted.ada.probability


def test_a_translator_names_ada_when_its_discriminator_breaks(batch: Batch) -> None:
    translator = Method(recipe(), Accelerator(mixed_precision="no"))
    judge = translator.networks["tissue_discriminator"]
    inputs = []

    def broken(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs.append(given)
        return output + torch.inf if len(inputs) == 2 else output  # the real ones; the loss stays finite

    judge.register_forward_hook(broken)
    before = [p.clone() for p in judge.parameters()]
    with pytest.raises(InputError, match="ADA's r"):
        translator.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, judge.parameters(), strict=True))
