"""Losses of pretraining against slow loops and closed forms."""

from math import exp, log, sqrt

import pytest
import torch
from torch import Tensor

from pretrain.losses.barlow import barlow
from pretrain.losses.margin import margin_loss
from pretrain.losses.nt_xent import nt_xent


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(count: int = 5, width: int = 7) -> tuple[Tensor, Tensor]:
    first = noise(count, width)
    return first, 0.7 * first + noise(count, width, seed=1)


def test_nt_xent_is_the_sum_over_all_views() -> None:
    first, second = pair()
    tau = 0.3
    z = [row / row.norm() for row in (*first, *second)]
    total = 0.0
    for i in range(10):
        others = [exp(float(z[i] @ z[k]) / tau) for k in range(10) if k != i]
        total -= log(exp(float(z[i] @ z[(i + 5) % 10]) / tau) / sum(others))
    assert nt_xent(first, second, tau).item() == pytest.approx(total / 10, rel=1e-5)


def test_nt_xent_of_orthogonal_tiles_and_of_collapse() -> None:
    """Partners alike and all others at right angles: log(1 + 2 (N - 1) e^(-1/τ)); all alike: log(2 N - 1)."""
    apart = torch.eye(6)
    assert nt_xent(apart, 3 * apart, 0.5).item() == pytest.approx(log(1 + 10 * exp(-2)), rel=1e-5)
    alike = torch.ones(6, 4)
    assert nt_xent(alike, alike, 0.1).item() == pytest.approx(log(11), rel=1e-5)


def test_barlow_is_the_papers_sum() -> None:
    first, second = pair(8, 4)
    columns = [[(z[:, k] - z[:, k].mean()) / z[:, k].std(correction=0) for k in range(4)] for z in (first, second)]
    on = off = 0.0
    for i in range(4):
        for j in range(4):
            correlation = float((columns[0][i] * columns[1][j]).mean())
            on += (1 - correlation) ** 2 * (i == j)
            off += correlation**2 * (i != j)
    invariance, redundancy = barlow(first, second, 0.02)
    assert invariance.item() == pytest.approx(on / 4, rel=1e-3)
    assert redundancy.item() == pytest.approx(0.02 * off / 4, rel=1e-3)


def test_barlow_is_nothing_for_independent_numbers_that_agree() -> None:
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    for term in barlow(signs, 5 * signs + 2, 1.0):
        assert term.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("margin", [0.5, 1.2, 2.0])
def test_the_margin_loss_is_the_sum_over_pairs(margin: float) -> None:
    first, second = pair()
    u, v = ([row / row.norm() for row in z] for z in (first, second))
    pull = sum(float((u[i] - v[i]).square().sum()) for i in range(5)) / 5
    push = sum(max(0.0, margin - float((u[i] - v[k]).norm())) ** 2 for i in range(5) for k in range(5) if k != i) / 20
    found = [term.item() for term in margin_loss(first, second, margin)]
    assert found == pytest.approx([pull, push], rel=1e-4, abs=1e-6)


def test_the_margin_loss_in_closed_form() -> None:
    apart = torch.eye(4)
    assert [term.item() for term in margin_loss(apart, 2 * apart, sqrt(2))] == pytest.approx([0, 0], abs=1e-6)
    assert margin_loss(apart, apart, 2.0)[1].item() == pytest.approx((2 - sqrt(2)) ** 2, rel=1e-5)


@pytest.mark.parametrize("loss", [lambda u, v: nt_xent(u, v, 0.1), lambda u, v: sum(margin_loss(u, v, 1.0))])
def test_tiles_that_are_all_alike_have_a_finite_gradient(loss) -> None:  # type: ignore[no-untyped-def]
    alike = torch.ones(4, 3, requires_grad=True)
    loss(alike, alike).backward()
    assert alike.grad is not None
    assert alike.grad.isfinite().all()
