"""Scores of a predicted number, such as tumour cellularity as in BreastPathQ."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError


def l1(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Mean absolute difference, in the unit of the numbers.

    Args:
        prediction: numbers [N].
        truth: numbers [N].

    Raises:
        InputError: none, different shapes, or numbers that are not finite.
    """
    prediction, truth = _numbers(prediction, truth)
    return float(np.abs(prediction - truth).mean())


def prediction_probability(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """How often the prediction orders two images as the truth does: P_K, by which BreastPathQ ranked.

    Of the pairs of images whose truth differs, C are ordered alike, D the other way, and T have one prediction:
    P_K = (C + T / 2) / (C + D + T) (Smith et al., Statistics in Medicine 15, 1996; Petrick et al., Journal of Medical
    Imaging 8, 2021). 1 is the order of the truth, 0.5 that of chance. BreastPathQ had two pathologists and took the
    mean of P_K with each.

    Args:
        prediction: numbers [N].
        truth: numbers [N].

    Raises:
        InputError: no pair of images with different truth, different shapes, or numbers that are not finite.
    """
    from scipy.stats import kendalltau

    prediction, truth = _numbers(prediction, truth)
    pairs, same_prediction, same_truth = (_pairs(counts) for counts in ([len(truth)], _ties(prediction), _ties(truth)))
    if same_truth == pairs:
        raise InputError(
            f"All {len(truth)} true numbers are {truth[0]}, but P_K orders images whose truth differs; give others, or "
            "report the mean absolute difference alone."
        )
    if same_prediction == pairs:
        return 0.5
    tau = kendalltau(prediction, truth).statistic  # (C - D) / √((pairs - same_prediction) (pairs - same_truth))
    return float(1 + tau * np.sqrt((pairs - same_prediction) / (pairs - same_truth))) / 2


def _pairs(counts: Any) -> int:
    return sum(n * (n - 1) // 2 for n in map(int, counts))


def _ties(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.unique(numbers, return_counts=True)[1]


def _numbers(prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if prediction.ndim != 1 or prediction.shape != truth.shape or not len(truth):
        raise InputError(
            f"There are predictions of shape {prediction.shape} and true numbers of shape {truth.shape}, expected one "
            "of each for every image, and at least one image."
        )
    for numbers, name in ((prediction, "predicted"), (truth, "true")):
        if numbers.dtype.kind not in "buif" or not np.isfinite(numbers).all():
            raise InputError(f"A {name} number is not finite, expected finite numbers; leave its image out.")
    return prediction.astype(np.float64), truth.astype(np.float64)
