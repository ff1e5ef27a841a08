"""Probes on features: each against a slow version of itself or a closed form."""

import math

import numpy as np
import pytest
import torch

from histo.errors import InputError
from histo.probes import (
    alignment,
    choose_penalty,
    effective_rank,
    fit_chosen,
    fit_linear,
    folds,
    knn,
    spread,
    uniformity,
)
from histo.probes.linear import PENALTIES, PENALTY
from histo.randomness import draws


def numbers(*shape: int, stream: str = "features") -> torch.Tensor:
    return torch.from_numpy(draws(0, stream, 0).normal(size=shape)).float()


def classes_of(count: int, classes: int, stream: str = "classes") -> torch.Tensor:
    return torch.from_numpy(draws(0, stream, 0).integers(0, classes, count))


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_knn_is_the_vote_of_neighbours(k: int) -> None:
    train, test, labels = numbers(60, 8), numbers(40, 8, stream="test"), classes_of(60, 3)
    expected = []
    for row in test.double():
        similarity = [float(row @ other / row.norm() / other.norm()) for other in train.double()]
        nearest = sorted(range(60), key=lambda n: -similarity[n])[:k]
        votes = [0.0] * 3
        for n in nearest:
            votes[labels[n]] += math.exp(similarity[n] / 0.07)
        expected.append(votes.index(max(votes)))
    assert knn(train, labels, test, 3, k).tolist() == expected
    assert knn(7 * train, labels, test, 3, k).tolist() == expected
    assert len(set(expected)) == 3


def test_folds_share_no_patient_and_hold_every_class() -> None:
    generator = draws(0, "patients", 0)
    patients = [f"p{k // 6}" for k in range(240)]
    of_patient = generator.choice(["rare", "common"], 40, p=[0.25, 0.75])
    labels = [str(of_patient[k // 6]) for k in range(240)]
    fold = folds(patients, labels, 5, seed=3)
    assert fold.shape == (240,)
    for patient in set(patients):
        assert len({int(each) for each, other in zip(fold, patients, strict=True) if other == patient}) == 1
    for name in ("rare", "common"):
        held = np.bincount(fold[np.array(labels) == name], minlength=5)
        assert held.min() > 0
        assert held.max() - held.min() <= 6  # one patient
    assert (folds(patients, labels, 5, seed=3) == fold).all()
    assert (folds(patients, labels, 5, seed=4) != fold).any()


def test_large_patients_are_evened_out() -> None:
    sizes = [30, 12, 10, 8, 7, 5, 4, 2]
    patients = [k for k, size in enumerate(sizes) for _ in range(size)]
    held = np.bincount(folds(patients, ["a"] * len(patients), 2, seed=0))
    assert sorted(held) == [39, 39]


def test_unknown_patients_are_each_their_own() -> None:
    fold = folds([None] * 20, ["a", "b"] * 10, 5, seed=0)
    assert np.bincount(fold).tolist() == [4] * 5


def test_too_few_patients_are_told() -> None:
    with pytest.raises(InputError, match=r"class b has 2 patients, but 3 folds.*take fewer"):
        folds(["p", "q", "r", "s", "t"], ["a", "a", "a", "b", "b"], 3, seed=0)
    with pytest.raises(InputError, match="expected 2 or more"):
        folds(["p"], ["a"], 1, seed=0)


def objective(x: torch.Tensor, labels: torch.Tensor, penalty: float, weight: torch.Tensor, bias: torch.Tensor):
    """The stated objective of the linear probe, in standardised features."""
    return torch.nn.functional.cross_entropy(x @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()


@pytest.mark.parametrize(("count", "width", "classes"), [(300, 12, 3), (40, 90, 2), (2000, 5, 4)])
@pytest.mark.parametrize("penalty", [1.0, 0.001])
def test_the_linear_probe_is_at_its_optimum(count: int, width: int, classes: int, penalty: float) -> None:
    labels = classes_of(count, classes)
    scales = torch.logspace(2, -2, width)
    features = (numbers(count, width) + 0.5 * labels[:, None]) * scales + 30 * scales
    layer = fit_linear(features, labels, classes, penalty)
    x = features.double()
    mean, deviation = x.mean(0), x.std(0, correction=0)
    weight = (layer.weight.double() * deviation).requires_grad_()
    bias = (layer.bias.double() + layer.weight.double() @ mean).requires_grad_()
    x = (x - mean) / deviation
    loss = objective(x, labels, penalty, weight, bias)
    gradients = torch.autograd.grad(loss, (weight, bias))
    assert max(float(each.abs().max()) for each in gradients) < 2e-4
    # Newton's method from the optimum found, in double precision, hardly moves
    flat = torch.cat([weight, bias[:, None]], dim=1).detach().flatten()

    def of_flat(layer: torch.Tensor) -> torch.Tensor:
        both = layer.view(classes, width + 1)
        return objective(x, labels, penalty, both[:, :width], both[:, width])

    hessian = torch.autograd.functional.hessian(of_flat, flat)
    step = torch.linalg.pinv(hessian) @ torch.autograd.functional.jacobian(of_flat, flat)
    moved = (flat - step).view(classes, width + 1)
    logits = x @ moved[:, :width].T + moved[:, width]
    assert (logits.softmax(1) - layer(features).double().softmax(1)).abs().max() < 5e-3
    assert layer.passes < 250


def test_the_linear_probe_is_deterministic_and_ignores_constants() -> None:
    features, labels = numbers(80, 6), classes_of(80, 2)
    with_constant = torch.cat([features, torch.full((80, 1), 3.0)], dim=1)
    one, again, wider = (fit_linear(each, labels, 2) for each in (features, features, with_constant))
    assert torch.equal(one.weight, again.weight)
    assert wider.weight[:, 6].abs().max() == 0
    assert torch.allclose(one(features), wider(with_constant), atol=1e-3)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        fit_linear(torch.full((4, 2), torch.nan), torch.tensor([0, 1, 0, 1]), 2)


def test_the_penalty_is_chosen_by_patients_held_out() -> None:
    patients = [k // 4 for k in range(120)]
    labels = torch.tensor([k // 4 % 2 for k in range(120)])
    noise = numbers(120, 60)
    assert choose_penalty(noise, labels, 2, patients, seed=0) == PENALTIES[0]
    telling = noise.clone()
    telling[:, 0] += 20 * labels
    assert choose_penalty(telling, labels, 2, patients, seed=0) != PENALTIES[0]
    # what marks a patient but no class tempts a choice by tiles alone to trust the features
    marks = torch.eye(30)[torch.tensor(patients)] + 0.01 * noise[:, :30]
    assert choose_penalty(marks, labels, 2, patients, seed=0) == PENALTIES[0]
    assert choose_penalty(marks, labels, 2, [None] * 120, seed=0) == PENALTIES[-1]


def test_without_patients_to_hold_out_the_penalty_is_fixed() -> None:
    features, labels = numbers(20, 3), torch.tensor([0, 1] * 10)
    assert choose_penalty(features, labels, 2, [k % 2 for k in range(20)], seed=0) is None
    assert fit_chosen(features, labels, 2, [k % 2 for k in range(20)], seed=0).penalty == PENALTY


def test_alignment_is_the_squared_distance_of_views() -> None:
    one, other = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[5.0, 0], [3, 0]])
    assert alignment(one, other) == pytest.approx((0 + 2) / 2)
    assert alignment(one, -one) == pytest.approx(4)


def test_uniformity_is_that_of_pairs() -> None:
    embeddings = numbers(30, 4)
    unit = embeddings.double() / embeddings.double().norm(dim=1, keepdim=True)
    terms = [math.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i in range(30) for j in range(i)]
    assert uniformity(embeddings) == pytest.approx(math.log(sum(terms) / len(terms)))
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)
    assert uniformity(torch.tensor([[1.0, 0], [-2.0, 0]])) == pytest.approx(-8)
    with pytest.raises(InputError, match="1 tiles were embedded"):
        uniformity(torch.ones(1, 3))


def test_spread_tells_collapse() -> None:
    width = 64
    assert spread(numbers(4000, width)) == pytest.approx(1 / math.sqrt(width), rel=0.02)
    assert spread(torch.ones(10, width) * torch.arange(1, 11)[:, None]) == pytest.approx(0, abs=1e-7)
    assert spread(torch.tensor([[3.0, 0], [-1.0, 0]])) == pytest.approx(0.5)  # 1 and 0


def test_effective_rank_of_known_singular_values() -> None:
    left, _ = torch.linalg.qr(numbers(20, 4))
    right, _ = torch.linalg.qr(numbers(6, 4, stream="right"))

    def of(*values: float) -> float:
        return effective_rank(left @ torch.diag(torch.tensor(values, dtype=torch.float32)) @ right.T)

    assert of(1, 1, 1, 1) == pytest.approx(4, rel=1e-3)
    assert of(5, 0, 0, 0) == pytest.approx(1, rel=1e-3)
    assert of(3, 1, 0, 0) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel=1e-3)
    assert effective_rank(torch.zeros(4, 3)) == 1
