"""Whether two methods differ on the same cases: sign flips by patient, and Holm's correction for many such tests."""

from collections.abc import Hashable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from histo.randomness import draws

EXACT = 12  # clusters; of so many all sign patterns are tried
FLIPS = 9_999  # random sign patterns of more


def sign_flip_test(differences: NDArray[np.floating], groups: Sequence[Hashable], seed: int = 0) -> float:
    """Two-sided p of a mean paired difference (Fisher's randomisation test of paired data), by patient.

    If two methods did alike, the sign of a patient's differences would be as likely the other way round. So the signs
    of whole patients are flipped, and p is the share of patterns whose mean is at least as far from 0 as the one found:
    of all patterns up to `EXACT` patients, otherwise of `FLIPS` random ones and the one found. It is never below
    2 / 2^patients.

    Args:
        differences: float [N], of each case.
        groups: the patient of each case, or something of its own where it is unknown.
        seed: of the random patterns.
    """
    numbers: dict[Hashable, int] = {}
    members = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    sums = np.bincount(members, differences)
    if len(sums) <= EXACT:
        signs = np.array(list(product((1, -1), repeat=len(sums))))
    else:
        drawn = draws(seed, "sign flips", 0).integers(0, 2, (FLIPS, len(sums)))
        signs = np.concatenate([np.ones((1, len(sums)), int), 1 - 2 * drawn])
    far = np.abs(signs @ sums)
    return float((far >= abs(sums.sum()) - 1e-12 * np.abs(sums).sum()).mean())


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's step-down (Scandinavian Journal of Statistics 6, 1979)."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda k: values[k])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected
