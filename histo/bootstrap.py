"""How far a score of images might be off: percentile intervals of the bootstrap, by patient where these are known."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from histo.randomness import draws

SAMPLES = 2000
CONFIDENCE = 0.95


def mean_interval(
    values: NDArray[np.floating], groups: Sequence[Hashable], seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval of the mean of each column, from means of groups drawn with replacement (Efron and Tibshirani 1993).

    Images of one patient are alike, so whole patients are drawn; a drawn one brings all of its images, and the mean is
    over the images so drawn.

    Args:
        values: float [N, M], M scores of N images.
        groups: the patient of each image, or something of its own where it is unknown.
        seed: of the draws; the same seed, values and groups give the same interval.

    Returns:
        Lower and upper ends, float64 [M] each, of the central 95 %; both are the mean where there is one group.
    """
    members, drawn = _drawn(groups, seed)
    sums = np.stack([np.bincount(members, column) for column in values.T], axis=1)
    means = (drawn @ sums) / (drawn @ np.bincount(members))[:, None]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def balanced_interval(
    values: NDArray[np.floating], classes: Sequence[Hashable], groups: Sequence[Hashable], seed: int = 0
) -> tuple[float, float]:
    """The interval of the mean over classes of each class's own mean, as balanced accuracy is of right answers.

    Groups are drawn as by `mean_interval`. How many images a class has differs from draw to draw, so the score is
    computed anew from what was drawn, over the classes that are in it.

    Args:
        values: float [N], of N images.
        classes: the true class of each image.
        groups, seed: as in `mean_interval`.

    Returns:
        Lower and upper end of the central 95 %, which lie within the range of the values.
    """
    members, drawn = _drawn(groups, seed)
    numbers: dict[Hashable, int] = {}
    kinds = np.array([numbers.setdefault(name, len(numbers)) for name in classes])
    sums, counts = np.zeros((2, drawn.shape[1], len(numbers)))
    np.add.at(sums, (members, kinds), values)
    np.add.at(counts, (members, kinds), 1)
    present = drawn @ counts
    means = np.divide(drawn @ sums, present, out=np.zeros_like(present), where=present > 0)
    scores = means.sum(1) / (present > 0).sum(1)
    low, high = np.quantile(scores, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _drawn(groups: Sequence[Hashable], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of each image's group, int64 [N], and how often each sample draws each group, [SAMPLES, G]."""
    numbers: dict[Hashable, int] = {}
    members = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    count = len(numbers)
    return members, draws(seed, "bootstrap", 0).multinomial(count, np.full(count, 1 / count), SAMPLES)
