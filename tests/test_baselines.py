"""What a step computes: terms and gradients against slow formulas, rates, and parts of a batch."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from histo.errors import InputError
from histo.randomness import draws
from histo.running import checkpoints
from tests.methods import FASTCUT, arguments, opened, recipe_of
from translate.domains import open_domains
from translate.engine import Batch, Translator
from translate.methods import cut, cyclegan
from translate.networks.projections import draw_places
from translate.networks.resnet import CUT_LAYERS
from translate.stream import UnpairedCrops


@pytest.fixture(scope="module")
def batch_of(tile_folder: Path) -> Callable[..., Batch]:
    """Batches of given image indices, of masks with their flows, and tissue."""
    data = ("--data.tissue", str(tile_folder), "--data.masks", str(tile_folder / "labels"))
    settings = recipe_of(arguments("cyclegan", *data)).data
    crops = UnpairedCrops(open_domains(settings, 0, None, progress=False), settings, 0, flows=True)
    return lambda *indices: Batch.of(default_collate([crops[k] for k in indices]), torch.device("cpu"))


def gradients(translator: Translator) -> dict[str, Tensor]:
    return {
        f"{name}.{k}": p.grad.clone()
        for name, network in translator.networks.items()
        for k, p in network.named_parameters()
        if p.grad is not None
    }


def assert_gradients(translator: Translator, losses: dict[str, Tensor], networks: dict[str, nn.Module]) -> None:
    """Those of the step are those of a loss for each optimiser, by copies of the networks from before it."""
    found = gradients(translator)
    for optimizer, names in (("translators", translator.TRANSLATORS), ("judges", translator.JUDGES)):
        weights = {f"{name}.{k}": p for name in names for k, p in networks[name].named_parameters()}
        expected = torch.autograd.grad(losses[optimizer], list(weights.values()), retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in expected)
        assert_close({name: found[name] for name in weights}, dict(zip(weights, expected, strict=True)))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within 1e-3 of each tensor's norm, and 1e-5 of all gradients' of the network: a bias that a norm takes away again
    has rounding errors for a gradient."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        network = [g for k, g in expected.items() if k.partition(".")[0] == name.partition(".")[0]]
        whole = torch.stack([g.norm() for g in network]).norm()
        error = (found[name] - gradient).norm()
        assert error <= 1e-3 * gradient.norm() + 1e-5 * whole, name


# CycleGAN


class Pair(cyclegan.Method):
    """CycleGAN of single convolutions."""

    def build(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {
            name: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()) for name in self.TRANSLATORS
        }
        return networks | {name: nn.Conv2d(3, 1, 4, 2) for name in self.JUDGES}


def test_a_step_of_cyclegan_against_its_equations(
    batch_of: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cyclegan, "Method", Pair)
    weights = {
        "target_adversarial": 2.0,
        "source_adversarial": 3.0,
        "cycle_source": 5.0,
        "cycle_target": 7.0,
        "identity": 11.0,
    }
    flags = [part for name, weight in weights.items() for part in (f"--loss.{name}", str(weight))]
    translator = opened("cyclegan", *flags, "--train.learning_rate", "1e-3")
    old = {name: deepcopy(network) for name, network in translator.networks.items()}
    batch = batch_of(0, 1, 2, 3)
    found = translator.step(batch)

    g, f, judge_target, judge_source = old.values()
    x, y = batch.source, batch.target
    expected = {
        "target_adversarial": ((judge_target(g(x)) - 1) ** 2).mean(),
        "source_adversarial": ((judge_source(f(y)) - 1) ** 2).mean(),
        "cycle_source": (f(g(x)) - x).abs().mean(),
        "cycle_target": (g(f(y)) - y).abs().mean(),
        "identity": (g(y) - y).abs().mean() + (f(x) - x).abs().mean(),
        "target_judge": ((judge_target(y) - 1) ** 2).mean() / 2 + (judge_target(g(x).detach()) ** 2).mean() / 2,
        "source_judge": ((judge_source(x) - 1) ** 2).mean() / 2 + (judge_source(f(y).detach()) ** 2).mean() / 2,
    }
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term.detach(), rtol=1e-5, atol=1e-6)
    losses = {
        "translators": sum((weight * expected[name] for name, weight in weights.items()), torch.zeros(())),
        "judges": expected["target_judge"] + expected["source_judge"],
    }
    assert_gradients(translator, losses, old)

    # Adam's first step is a rate against the sign; the average then is half way
    for k, p in translator.networks["generator"].named_parameters():
        before, after = old["generator"].get_parameter(k), p
        torch.testing.assert_close(after, before - 1e-3 * p.grad.sign(), rtol=0, atol=2e-5)
        torch.testing.assert_close(translator.averages["generator"].get_parameter(k), (before + after) / 2)


# CUT


def contrast(
    method: cut.Method, networks: dict[str, nn.Module], images: Tensor, keys_of: Tensor, index: int, stream: str
) -> Tensor:
    """PatchNCE of one image by loops over layers and places (Park et al. 2020, equations 2 and 3)."""
    generator, heads = networks["generator"], networks["projections"].heads
    shown, given = generator.features(images, CUT_LAYERS), generator.features(keys_of, CUT_LAYERS)
    if method.loss.flip:
        shown = [layer.flip(3) for layer in shown]
    places = draw_places(
        [tuple(layer.shape[2:]) for layer in shown], method.loss.patches, draws(method.seed, stream, index)
    )
    losses = []
    for head, query, key, where in zip(heads, shown, given, places, strict=True):

        def vector(layer: Tensor, place: int, head: nn.Module = head) -> Tensor:
            v = head(layer[0, :, place // layer.shape[3], place % layer.shape[3]])
            return v / v.norm()

        known = torch.stack([vector(key, place).detach() for place in where.tolist()])
        for k, place in enumerate(where.tolist()):
            logits = known @ vector(query, place) / 0.07
            losses.append((torch.logsumexp(logits, 0) - logits[k]) / len(where) / len(CUT_LAYERS))
    return torch.stack(losses).sum()


@pytest.mark.parametrize("flags", [(), FASTCUT])
def test_a_step_of_cut_against_its_equations(flags: tuple[str, ...], batch_of: Callable[..., Batch]) -> None:
    """In FastCUT the second step, in which images are mirrored on their way through G."""
    translator = opened("cut", "--loss.patches", "4", "--train.batch_size", "2", *flags)
    assert isinstance(translator, cut.Method)
    mirrored = translator.loss.flip
    if mirrored:
        translator.images = 2
    old = {name: deepcopy(network) for name, network in translator.networks.items()}
    batch = batch_of(4, 9)
    found = translator.step(batch)

    g, judge = old["generator"], old["discriminator"]
    x, y = batch.source, batch.target
    fake = g(x.flip(3) if mirrored else x)

    def nce(images: Tensor, keys_of: Tensor, stream: str) -> Tensor:
        each = [
            contrast(translator, old, images[k : k + 1], keys_of[k : k + 1], index, stream)
            for k, index in enumerate(batch.indices)
        ]
        return torch.stack(each).mean()

    expected = {"adversarial": ((judge(fake) - 1) ** 2).mean(), "nce": nce(fake, x, "patches")}
    if not mirrored:
        expected["nce_identity"] = nce(g(y), y, "patches of identity")
    judged = ((judge(y) - 1) ** 2).mean() / 2 + (judge(fake.detach()) ** 2).mean() / 2
    assert found.keys() == expected.keys() | {"judge"}
    for name, term in (expected | {"judge": judged}).items():
        torch.testing.assert_close(found[name], term.detach(), rtol=1e-4, atol=1e-5)
    loss = sum((getattr(translator.loss, name) * term for name, term in expected.items()), torch.zeros(()))
    assert_gradients(translator, {"translators": loss, "judges": judged}, old)


# Parts of a batch, and values computed twice

FORMS = {
    "cyclegan": ("cyclegan", ()),
    "cut": ("cut", ()),
    "flows": ("unitpath", ("--segmenter.head", "flows")),
    "maskrcnn": ("unitpath", ("--segmenter.head", "maskrcnn")),
}


def one_step(form: str, batch: Batch, *more: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    method, settings = FORMS[form]
    translator = opened(method, *settings, *more)
    terms = translator.step(batch)
    return terms, gradients(translator)


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_batch_and_recomputed_values_change_no_gradient(form: str, batch_of: Callable[..., Batch]) -> None:
    """The parts' order of addition is another, hence the tolerance; recomputed values are the same to the bit."""
    batch = batch_of(8, 9, 10, 11)
    terms, exact = one_step(form, batch)
    assert len(exact) > 20
    in_parts = one_step(form, batch, "--train.accumulation", "2")
    recomputed = one_step(form, batch, "--train.checkpointing", "true")
    for name, term in terms.items():
        torch.testing.assert_close(in_parts[0][name], term, rtol=1e-4, atol=1e-5)
        assert torch.equal(recomputed[0][name], term)
    assert recomputed[1].keys() == exact.keys()
    assert all(torch.equal(recomputed[1][name], gradient) for name, gradient in exact.items())
    assert_close(in_parts[1], exact)


def test_what_parts_do_not_divide(batch_of: Callable[..., Batch]) -> None:
    with pytest.raises(InputError, match=r"train\.accumulation is 3, expected a divisor of the 4 tiles"):
        batch_of(0, 1, 2, 3).split(3)
    parts = batch_of(0, 1, 2, 3).split(2)
    assert [part.indices for part in parts] == [[0, 1], [2, 3]]
    assert all(part.instances is not None and part.instances.shape == (2, 64, 64) for part in parts)


# Rates


def test_rates_fall_along_a_line(batch_of: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    """1 until 40 % of the images, then to 0 at the end: the factor of a step is that of the images before it."""
    monkeypatch.setattr(cyclegan, "Method", Pair)
    rates = ("--train.learning_rate", "1e-3", "--train.judge_learning_rate", "2e-3")
    settings = ("--train.images", "40", "--train.decay_from", "0.4", "--train.save_every", "40", *rates)
    translator = opened("cyclegan", *settings)
    batch = batch_of(0, 1, 2, 3)
    seen = []
    for step in range(10):
        if step == 6:  # another life
            state = translator.checkpoint({})
            translator = opened("cyclegan", *settings)
            translator.restore(checkpoints.Checkpoint(deepcopy(state.tensors), state.facts))
        translator.step(batch)
        seen.append([optimizer.param_groups[0]["lr"] for optimizer in translator.optimizers.values()])
    factors = [1, 1, 1, 1, 1, 20 / 24, 16 / 24, 12 / 24, 8 / 24, 4 / 24]
    np.testing.assert_allclose(seen, np.outer(factors, [1e-3, 2e-3]))
    assert [opened(*preset).rates["translators"] for preset in (("cut",), ("unitpath",))] == [2e-4, 4e-4]
