"""Each loss against figures worked out by hand, R1 against finite differences."""

from math import exp, inf, log, nan

import pytest
import torch
from torch import Tensor, nn

from histo.errors import InputError
from histo.guidance import semantic
from histo.running.updates import NonFiniteLoss, weighted_sum
from translate.losses.adversarial import (
    least_squares,
    least_squares_generator,
    logistic,
    non_saturating,
    r1_penalty,
)
from translate.losses.cycle import cycle
from translate.methods.unitpath import LossSettings


def minus_log_sigmoid(x: float) -> float:
    return log(1 + exp(-x))


def test_non_saturating() -> None:
    logits = torch.tensor([0.0, 2.0, -3.0])
    expected = sum(minus_log_sigmoid(x) for x in (0, 2, -3)) / 3
    assert non_saturating(logits).item() == pytest.approx(expected, rel=1e-6)


def test_logistic() -> None:
    real, fake = torch.tensor([1.0, -0.5]), torch.tensor([2.0, 0.0, -1.0])
    expected = (minus_log_sigmoid(1) + minus_log_sigmoid(-0.5)) / 2
    expected += sum(minus_log_sigmoid(-x) for x in (2, 0, -1)) / 3
    assert logistic(real, fake).item() == pytest.approx(expected, rel=1e-6)


def test_logistic_losses_do_not_overflow() -> None:
    far = torch.tensor([-500.0])
    assert non_saturating(far).item() == pytest.approx(500)
    assert logistic(far, -far).item() == pytest.approx(1000)


def test_least_squares() -> None:
    real, fake = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.0, -1.0, 2.0]])
    assert least_squares(real, fake).item() == pytest.approx(0.5 * (0.25 / 2 + 5 / 3))
    assert least_squares_generator(fake).item() == pytest.approx((1 + 4 + 1) / 3)
    assert least_squares(torch.ones(3), torch.zeros(3)).item() == 0
    assert least_squares_generator(torch.ones(3)).item() == 0


def test_cycle() -> None:
    one = torch.zeros(2, 3, 2, 2)
    two = torch.zeros(2, 3, 2, 2)
    two[0, 0, 0] = torch.tensor([0.5, -1.0])
    assert cycle(one, two).item() == pytest.approx(1.5 / 24)
    assert cycle(one.bfloat16(), two).dtype == torch.float32


def test_semantic_guidance() -> None:
    logits = torch.tensor([[[[2.0, -1.0]]]])
    foreground = torch.tensor([[[[True, False]]]])
    expected = (minus_log_sigmoid(2) + minus_log_sigmoid(1)) / 2
    assert semantic(logits, foreground).item() == pytest.approx(expected, rel=1e-6)
    assert semantic(logits, ~foreground).item() == pytest.approx(
        (minus_log_sigmoid(-2) + minus_log_sigmoid(-1)) / 2, rel=1e-6
    )


class Quadratic(nn.Module):
    """D(y) = a Σ y² has the gradient 2 a y."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(3.0))

    def forward(self, y: Tensor) -> Tensor:
        return self.a * y.square().sum((1, 2, 3))


def test_r1_in_closed_form() -> None:
    judge = Quadratic()
    y = torch.rand(2, 3, 4, 4)
    penalty = r1_penalty(judge, y)
    norms = 4 * 9 * y.square().sum((1, 2, 3))
    assert penalty.item() == pytest.approx(0.5 * norms.mean().item(), rel=1e-5)
    penalty.backward()
    assert judge.a.grad is not None
    assert judge.a.grad.item() == pytest.approx(2 * penalty.item() / 3, rel=1e-5)
    assert y.grad is None
    assert not y.requires_grad


def test_r1_against_finite_differences() -> None:
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    y = torch.rand(2, 3, 4, 4)
    total, step = 0.0, 1e-2
    with torch.no_grad():
        for image in y:
            for place in range(image.numel()):
                nudge = torch.zeros(image.numel())
                nudge[place] = step
                nudge = nudge.view_as(image)
                slope = (judge((image + nudge)[None]) - judge((image - nudge)[None])) / (2 * step)
                total += float(slope) ** 2
    assert r1_penalty(judge, y).item() == pytest.approx(0.5 * total / 2, rel=5e-3)


def test_r1_is_computed_in_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    y = torch.rand(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = r1_penalty(judge, y)
    assert inside.item() == r1_penalty(judge, y).item()


def test_weighted_sum() -> None:
    terms = {"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(3.0)}
    total = weighted_sum(terms, {"a": 0.5, "b": 2.0, "unused": 9.0})
    assert total.item() == 7
    total.backward()
    assert terms["a"].grad == 0.5


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_weighted_sum_names_the_term_that_is_not_finite(value: float, weight: float) -> None:
    terms = {"good": torch.tensor(1.0), "bad": torch.tensor(value), "later": torch.tensor(1.0)}
    with pytest.raises(NonFiniteLoss, match=rf"the loss term bad became {value}"):
        weighted_sum(terms, {"good": 1.0, "bad": weight, "later": 1.0})


def test_weighted_sum_that_overflows_names_the_total() -> None:
    terms = {"a": torch.tensor(3e38), "b": torch.tensor(3e38)}
    with pytest.raises(NonFiniteLoss, match="total"):
        weighted_sum(terms, {"a": 1.0, "b": 1.0})


@pytest.mark.parametrize("wrong", [{"r1": -1.0}, {"cycle_mask": inf}, {"guidance": nan}, {"r1_every": 0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"loss.{name} is"):
        LossSettings(**wrong)  # type: ignore[arg-type]
