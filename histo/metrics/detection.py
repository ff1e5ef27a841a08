"""F1 of detection and of its types from centroids, as HoVer-Net has them (Graham et al., Medical Image Analysis 2019).

A true and a predicted nucleus may be a pair if their centroids are at most a radius apart. Pairs are one to one: as
many as possible, and of such choices the one of the smallest sum of distances. (The authors' evaluation assigns all
centroids first, those far apart included, and then drops pairs beyond the radius; it may so find fewer pairs.)

- F_d = 2 TP / (2 TP + FP + FN) of pairs, predictions without a partner and true nuclei without one.
- F_c of type t = 2 TP / (2 TP + 2 FP + 2 FN + FP_d + FN_d), where TP, FP and FN count pairs by whether their prediction
  and their true nucleus are of type t, and FP_d and FN_d are the predictions and true nuclei of type t without a
  partner. (The paper's formula also adds pairs of which neither is of type t to TP; the authors' evaluation, from which
  published figures are, leaves them out, and with them a type that is never told could have an F_c near 1.)

True nuclei of unknown type (0) and their partners count in F_d alone; a predicted one of type 0 is of no type.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from histo.errors import InputError
from histo.masks import as_instances, renumber
from histo.metrics.pairing import best_pairs
from histo.metrics.types import types_of

RADIUS_MICRONS = 3.0  # 12 px at 40x (0.25 µm/px)


@dataclass(frozen=True, eq=False)
class DetectionCounts:
    """What F1 of detection is made of. Counts of images add up (`+`).

    Attributes:
        paired: int64 [T+1, T+1], pairs by type of the true and of the predicted nucleus; 0 is unknown or no type.
        missed: int64 [T+1], true nuclei without a partner by type.
        false: int64 [T+1], predicted nuclei without a partner by type.
    """

    paired: NDArray[np.int64]
    missed: NDArray[np.int64]
    false: NDArray[np.int64]

    @classmethod
    def none(cls, types: int) -> "DetectionCounts":
        """Counts of no image, to start a sum with."""
        zeros = np.zeros(types + 1, dtype=np.int64)
        return cls(np.zeros((types + 1, types + 1), dtype=np.int64), zeros, zeros)

    def __add__(self, other: "DetectionCounts") -> "DetectionCounts":
        """Counts of both.

        Raises:
            InputError: other types.
        """
        if len(self.missed) != len(other.missed):
            raise InputError(
                f"Counts of {len(self.missed) - 1} types and of {len(other.missed) - 1} do not add up; score all "
                "images with one list of types."
            )
        return DetectionCounts(self.paired + other.paired, self.missed + other.missed, self.false + other.false)

    @property
    def f1(self) -> float | None:
        """F_d in [0, 1]; None without true or predicted nuclei."""
        found = 2 * int(self.paired.sum())
        whole = found + int(self.missed.sum() + self.false.sum())
        return found / whole if whole else None

    @property
    def f1_by_type(self) -> NDArray[np.float64]:
        """float64 [T], F_c of types from 1; NaN for one that no true and no predicted nucleus has."""
        typed = self.paired[1:]
        true, found, right = typed.sum(axis=1), typed.sum(axis=0)[1:], typed[:, 1:].diagonal()
        alone = self.missed[1:] + self.false[1:]
        whole = 2 * (true + found - right) + alone
        return np.divide(2 * right, whole, out=np.full(len(true), np.nan), where=true + found + alone > 0)


def detection_counts(
    truth: NDArray[Any],
    prediction: NDArray[Any],
    radius: float,
    truth_types: NDArray[Any] | None = None,
    prediction_types: NDArray[Any] | None = None,
    types: int = 0,
) -> DetectionCounts:
    """The counts of one image.

    Args:
        truth: integer [H, W], 0 = background; ids need not be contiguous.
        prediction: integer [H, W], likewise.
        radius: pixels, `RADIUS_MICRONS` / (µm/px) for figures like those published.
        truth_types: integer [K+1], type of each true nucleus by its id, as `Tile.classes`: from 1, 0 unknown.
        prediction_types: integer [L+1], likewise; 0 is no type.
        types: how many there are; 0 for nuclei without types.

    Raises:
        InputError: different shapes, no instance map, a radius not above 0, or types of another shape or out of range.
    """
    if not 0 < radius < np.inf:
        raise InputError(f"The radius is {radius} px, expected one above 0; divide {RADIUS_MICRONS} µm by the µm/px.")
    truth, prediction = as_instances(truth, "The true map"), as_instances(prediction, "The predicted map")
    if truth.shape != prediction.shape:
        raise InputError(
            f"The true map has shape {truth.shape} and the predicted one {prediction.shape}, but scores need the same "
            "pixels; compare maps of one tile at one resolution."
        )
    (true_ids, true_points), (ids, points) = centroids(truth), centroids(prediction)
    true, found = types_of(true_ids, truth_types, types, "true"), types_of(ids, prediction_types, types, "predicted")
    a, b = near_pairs(true_points, points, radius)
    pairs = np.bincount(true[a] * (types + 1) + found[b], minlength=(types + 1) ** 2)
    return DetectionCounts(
        paired=pairs.reshape(types + 1, types + 1),
        missed=np.bincount(np.delete(true, a), minlength=types + 1),
        false=np.bincount(np.delete(found, b), minlength=types + 1),
    )


def centroids(instances: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids of the nuclei, int64 [N] ascending, and the mean row and column of their pixels, float64 [N, 2]."""
    numbers = renumber(instances)
    height, width = numbers.shape
    sums = (
        np.bincount(numbers.ravel(), weights)[1:]
        for weights in (None, np.repeat(np.arange(height, dtype=float), width), np.tile(np.arange(width), height))
    )
    areas, rows, columns = sums
    ids = np.zeros(len(areas) + 1, dtype=np.int64)
    ids[numbers] = instances
    return ids[1:], np.stack([rows, columns], axis=1) / areas[:, None]


def near_pairs(
    truth: NDArray[np.float64], prediction: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One-to-one pairs of points at most a radius apart: as many as possible, of the smallest sum of distances.

    Args:
        truth: float64 [N, 2].
        prediction: float64 [M, 2].
        radius: in the same unit, above 0.

    Returns:
        Which point of `truth`, and which of `prediction`, int64 [P] each.
    """
    if not (len(truth) and len(prediction)):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    near = cKDTree(truth).sparse_distance_matrix(cKDTree(prediction), radius, output_type="ndarray")
    one_more_pair = radius * (len(near) + 1)  # outweighs the distances of all pairs together
    kept = best_pairs(near["i"], near["j"], one_more_pair - near["v"])
    return near["i"][kept].astype(np.int64), near["j"][kept].astype(np.int64)
