"""How far a mean over images might be off: percentile intervals of the bootstrap, by patient where these are known."""

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
    numbers: dict[Hashable, int] = {}
    members = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    counts = np.bincount(members)
    sums = np.stack([np.bincount(members, column) for column in values.T], axis=1)
    drawn = draws(seed, "bootstrap", 0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), SAMPLES)
    means = (drawn @ sums) / (drawn @ counts)[:, None]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high
