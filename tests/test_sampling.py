"""The order of tiles: every one once an epoch, exact shares of sources, any index at once."""

from collections import Counter

import pytest

from histo.errors import InputError
from histo.sampling import Order


@pytest.mark.parametrize("sizes", [[7], [5, 2], [1, 1, 5]])
def test_every_tile_once_an_epoch(sizes: list[int]) -> None:
    order = Order(3, "tissue", sizes)
    epochs = [[order(epoch * 7 + k) for k in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "each epoch has an order of its own"


def test_pure_in_seed_stream_and_index() -> None:
    forward = [Order(3, "tissue", [4, 9], [1, 2])(k) for k in range(60)]
    backward = [Order(3, "tissue", [4, 9], [1, 2])(k) for k in reversed(range(60))]
    assert forward == backward[::-1]
    assert forward != [Order(4, "tissue", [4, 9], [1, 2])(k) for k in range(60)]
    assert forward != [Order(3, "masks", [4, 9], [1, 2])(k) for k in range(60)]


@pytest.mark.parametrize(("weights", "shares"), [([1, 1], (30, 30)), ([1, 2], (20, 40)), ([0.25, 0.75], (15, 45))])
def test_sources_in_exact_shares(weights: list[float], shares: tuple[int, int]) -> None:
    order = Order(0, "tissue", [5, 11], weights)
    shown = [order(k) for k in range(60)]
    first = [position for position in shown if position < 5]
    second = [position - 5 for position in shown if position >= 5]
    assert (len(first), len(second)) == shares
    for seen, size in ((first, 5), (second, 11)):
        for epoch in range(len(seen) // size):  # each source goes through epochs of its own
            assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_odd_weights_are_kept_to_a_thousandth() -> None:
    order = Order(0, "tissue", [1, 1, 1], [3.14159, 1, 1])
    shown = Counter(order(k) for k in range(1000))
    assert [shown[k] for k in range(3)] == [611, 195, 194]


def test_far_indices_cost_no_more() -> None:
    assert 0 <= Order(0, "tissue", [10, 10], [1, 3])(10**15) < 20


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, 1e-6]])
def test_weights_that_do_not_fit(weights: list[float]) -> None:
    with pytest.raises(InputError, match="weights"):
        Order(0, "tissue", [5, 5], weights)
