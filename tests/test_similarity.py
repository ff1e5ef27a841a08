"""SMSE's losses against closed forms and slow references, and its batches."""

import numpy as np
import pytest
import torch

from downstream.similarity import (
    ClassOrder,
    contrastive_loss,
    draw_triplets,
    pair_loss,
    reinforced_focal,
    triplet_loss,
)
from histo.errors import InputError


def test_the_reinforced_focal_loss_at_known_points() -> None:
    p = torch.tensor([0.5, 1.0, 0.9, 0.1], dtype=torch.float64)
    found = reinforced_focal(p)
    assert found[0] == pytest.approx(np.log(2))  # cross-entropy at θ
    assert found[1] == 0
    assert found[2] == pytest.approx(0.04 * -np.log(0.9))  # less than cross-entropy where right
    assert found[3] == pytest.approx(3.24 * -np.log(0.1))  # and more where wrong
    assert torch.allclose(reinforced_focal(p, gamma=0), -p.log())
    assert torch.allclose(reinforced_focal(p, theta=0), -((1 - p) ** 2) * p.log())
    assert reinforced_focal(torch.tensor(0.0)).isfinite()


def test_pairs_against_two_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity, numbers = torch.randn(7, 7, generator=generator), torch.tensor([0, 0, 1, 1, 1, 2, 0])
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for i in range(7):
        for j in range(7):
            if i != j:
                same = bool(numbers[i] == numbers[j])
                p = float(torch.sigmoid(similarity[i, j] if same else -similarity[i, j]))
                kinds[same].append(-((2 * (1 - p)) ** 2) * np.log(p))
    wanted = (np.mean(kinds[True]) + np.mean(kinds[False])) / 2
    assert float(pair_loss(similarity, numbers)) == pytest.approx(wanted, rel=1e-5)
    assert float(pair_loss(similarity, torch.zeros(7, dtype=torch.int64))) == 0


def test_contrastive_pairs_against_two_loops() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    numbers = torch.tensor([0, 1, 0, 1, 2, 2])
    near, far = [], []
    for i in range(6):
        for j in range(6):
            distance = float((embeddings[i] - embeddings[j]).norm())
            if i != j and numbers[i] == numbers[j]:
                near.append(distance**2)
            elif i != j:
                far.append(max(0.0, 1 - distance) ** 2)
    wanted = (np.mean(near) + np.mean(far)) / 2
    assert float(contrastive_loss(embeddings, numbers)) == pytest.approx(wanted, rel=1e-4)


def test_triplets_one_by_one() -> None:
    embeddings = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    triplets = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    each = [
        max(0.0, float((embeddings[a] - embeddings[p]).norm() ** 2 - (embeddings[a] - embeddings[n]).norm() ** 2) + 0.2)
        for a, p, n in triplets.tolist()
    ]
    assert 0 < sum(value > 0 for value in each) < 3
    assert float(triplet_loss(embeddings, triplets)) == pytest.approx(float(np.mean(each)), rel=1e-5)
    assert float(triplet_loss(embeddings, triplets[:0])) == 0


def test_triplets_are_of_the_right_classes_and_magnifications() -> None:
    numbers, scales = np.repeat([0, 1], 12), np.tile(np.repeat([0, 1, 2], 4), 2)
    patients = [f"p{k % 4}" for k in range(24)]
    found = draw_triplets(numbers, scales, patients, 0, 0)
    assert len(found) == 24 * 3
    anchor, positive, negative = found.T
    assert (numbers[anchor] == numbers[positive]).all()
    assert (numbers[anchor] != numbers[negative]).all()
    assert (anchor != positive).all()
    assert (scales[anchor] == scales[negative]).all()
    assert sorted(scales[positive]) == sorted(np.tile([0, 1, 2], 24))
    strangers = np.mean([patients[a] != patients[p] for a, p in zip(anchor, positive, strict=True)])
    assert 0.7 < strangers < 1  # one half, and three quarters of the other half
    assert np.array_equal(found, draw_triplets(numbers, scales, patients, 0, 0))
    assert not np.array_equal(found, draw_triplets(numbers, scales, patients, 0, 1))


def test_batches_hold_classes_magnifications_and_images() -> None:
    numbers = np.repeat(np.arange(5), 20)
    order = ClassOrder(numbers, np.ones((100, 3), bool), 2, 3, 4, 0)
    assert order.batch == 24
    seen = []
    for batch in range(10):
        shown = [order(batch * 24 + k) for k in range(24)]
        labels, scales = numbers[[tile for tile, _ in shown]], [scale for _, scale in shown]
        assert len(set(labels)) == 2
        for label in set(labels):
            for scale in range(3):
                tiles = [t for (t, s), own in zip(shown, labels, strict=True) if s == scale and own == label]
                assert len(set(tiles)) == 4
        assert sorted(scales) == sorted([0, 1, 2] * 8)
        seen += list(set(labels))
    assert set(seen) == set(range(5))
    assert [order(k) for k in range(240)] == [order(k) for k in range(240)]


def test_refusals() -> None:
    numbers, scales = np.array([0, 0, 1]), np.ones((3, 2), bool)
    with pytest.raises(InputError, match=r"smse.classes is 3 .* the tiles have 2 classes"):
        ClassOrder(numbers, scales, 3, 2, 1, 0)
    scales[2, 1] = False
    with pytest.raises(InputError, match="Class number 1 has no tile at magnification number 1"):
        ClassOrder(numbers, scales, 2, 2, 1, 0)
    small = ClassOrder(numbers, np.ones((3, 2), bool), 2, 2, 3, 0)
    assert {small(k)[0] for k in range(12)} == {0, 1, 2}  # tiles come again where there are too few
