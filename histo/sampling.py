"""Which tile an image index falls on: a pure function of (seed, index), the clock being images over all processes.

Ranks and loader workers only share out the indices. So every tile is shown exactly once an epoch whatever their
number, and a run resumes in the middle of an epoch without reading what it has already seen.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.randomness import draws

BLOCK = 1000  # draws at most until every source has had its share: weights are kept to a thousandth


class Order:
    """The order in which tiles of one or several sources are shown, without end.

    Args:
        seed: the run's seed.
        stream: name of the order, e.g. "tissue"; orders of different names are independent.
        sizes: tiles of each source, 1 or more; positions count through the sources one after the other.
        weights: share of each source in what is shown, in any unit; the sources then take turns in blocks that hold
            each its exact share, and every source goes through its own epochs. None: one epoch over all tiles.

    Raises:
        InputError: not one positive weight for each source, or one below a thousandth of all.
    """

    def __init__(self, seed: int, stream: str, sizes: Sequence[int], weights: Sequence[float] | None = None) -> None:
        if weights is None:
            sizes, weights = [sum(sizes)], [1.0]
        self.seed, self.stream, self.sizes = seed, stream, list(sizes)
        self.starts = np.cumsum([0, *self.sizes[:-1]]).tolist()
        self.turns = _turns(weights, len(self.sizes))
        # Of each source its last epoch alone: of ten million tiles an epoch's order takes 40 MB in every worker.
        self._epochs: dict[int, tuple[int, NDArray[np.signedinteger]]] = {}

    def __call__(self, index: int) -> int:
        """The position shown at a global image index, 0 or more."""
        source, shown = self._turn(index) if len(self.sizes) > 1 else (0, index)
        epoch, place = divmod(shown, self.sizes[source])
        return self.starts[source] + int(self._epoch(source, epoch)[place])

    def _turn(self, index: int) -> tuple[int, int]:
        """Whose turn it is, and how often that source has been shown before."""
        block, place = divmod(index, sum(self.turns))
        pattern = _pattern(self.seed, self.stream, block, self.turns)
        source = int(pattern[place])
        return source, block * self.turns[source] + int(np.count_nonzero(pattern[:place] == source))

    def _epoch(self, source: int, epoch: int) -> NDArray[np.signedinteger]:
        """The order of a source's tiles in one of its epochs."""
        last, order = self._epochs.get(source, (None, None))
        if order is None or last != epoch:
            order = draws(self.seed, f"{self.stream} {source}", epoch).permutation(self.sizes[source])
            order = order.astype(np.int32 if self.sizes[source] < 2**31 else np.int64)
            self._epochs[source] = epoch, order
        return order


@lru_cache(maxsize=64)
def _pattern(seed: int, stream: str, block: int, turns: tuple[int, ...]) -> NDArray[np.int64]:
    """The sources of one block in a random order."""
    return draws(seed, f"{stream} turns", block).permutation(np.repeat(np.arange(len(turns)), turns))


def _turns(weights: Sequence[float], sources: int) -> tuple[int, ...]:
    """How often each source comes in a block: its share, by largest remainder."""
    if len(weights) != sources or not all(0 < weight < float("inf") for weight in weights):
        raise InputError(
            f"the weights {list(weights)} do not fit {sources} sources of tiles; give one number above 0 for each."
        )
    shares = np.array(weights) / sum(weights)
    # The shortest block that holds all shares exactly, such as 3 for weights of 1 and 2; else they are rounded.
    length = next(
        (n for n in range(1, BLOCK) if np.allclose(n * shares, np.rint(n * shares), rtol=0, atol=1e-9)), BLOCK
    )
    turns = np.floor(length * shares + 1e-9).astype(int)
    largest_remainders = np.argsort(turns - length * shares, kind="stable")[: length - turns.sum()]
    turns[largest_remainders] += 1
    if turns.min() == 0:
        raise InputError(f"the weights {list(weights)} give a source less than 1/{BLOCK}; leave it out, or raise it.")
    return tuple(turns.tolist())
