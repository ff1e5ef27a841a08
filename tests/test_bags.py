"""Bags: attention finds the tiles that matter, poolings are what they say, and hostile bags are refused."""

import pytest
import torch
from torch import Tensor

from downstream.bags import BagClassifier, BagSettings, Pooling, fit
from histo.errors import InputError


def bags(seed: int, count: int, planted: int = 2) -> tuple[list[Tensor], list[int], list[Tensor]]:
    """Bags of 30 tiles of normal features; in every other bag a few tiles stand out in one direction."""
    generator = torch.Generator().manual_seed(seed)
    found, numbers, where = [], [], []
    for place in range(count):
        bag = torch.randn(30, 16, generator=generator)
        tumour = torch.zeros(30, dtype=torch.bool)
        if place % 2:
            tumour[torch.randperm(30, generator=generator)[:planted]] = True
            bag[tumour, 0] += 5
        found.append(bag)
        numbers.append(place % 2)
        where.append(tumour)
    return found, numbers, where


def accuracy(network: BagClassifier, some: list[Tensor], numbers: list[int]) -> float:
    right = [int(network(bag)[0].argmax()) == number for bag, number in zip(some, numbers, strict=True)]
    return sum(right) / len(right)


def test_attention_finds_the_planted_tiles() -> None:
    train, test = bags(0, 60), bags(1, 40)
    settings = BagSettings(epochs=30, learning_rate=3e-3, width=16)
    network = fit(train[0], train[1], 2, settings, 0)
    assert accuracy(network, test[0], test[1]) > 0.9
    on_tumour = [
        float(network(bag)[1][where].sum()) for bag, where in zip(test[0], test[2], strict=True) if where.any()
    ]
    assert sum(on_tumour) / len(on_tumour) > 0.5  # two of thirty tiles are 0.07 of an even attention
    mean = fit(train[0], train[1], 2, BagSettings("mean", epochs=30, learning_rate=3e-3), 0)
    assert accuracy(mean, test[0], test[1]) < accuracy(network, test[0], test[1])


@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "top"])
def test_a_bag_has_no_order_and_its_weights_sum_to_one(pooling: Pooling) -> None:
    torch.manual_seed(0)
    network = BagClassifier(4, 3, BagSettings(pooling, top=2), torch.zeros(4), torch.ones(4)).eval()
    bag, order = torch.randn(7, 4), torch.randperm(7)
    (logits, weights), (again, turned) = network(bag), network(bag[order])
    torch.testing.assert_close(logits, again)
    torch.testing.assert_close(weights[order], turned)
    assert float(weights.sum()) == pytest.approx(1)
    each = network.head(bag)
    wanted = {"mean": each.mean(0), "max": each.max(0).values, "top": each.topk(2, 0).values.mean(0)}
    if pooling != "attention":
        torch.testing.assert_close(logits, wanted[pooling])


def test_a_seed_repeats_itself() -> None:
    some, numbers, _ = bags(0, 8)
    settings = BagSettings(epochs=2, tiles=10)
    one, again, other = (fit(some, numbers, 2, settings, seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_refusals() -> None:
    with pytest.raises(InputError, match="1 of 2 bags have no tile"):
        fit([torch.zeros(0, 3), torch.zeros(2, 3)], [0, 1], 2, BagSettings(), 0)
    with pytest.raises(InputError, match=r"mil.dropout is 1"):
        BagSettings(dropout=1.0)
