"""Scores of nucleus instance maps: AJI, PQ with its factors DQ and SQ, and foreground Dice.

Every score comes from one contingency table, `Overlap`.

- Dice = 2 |A ∩ B| / (|A| + |B|) of the two foregrounds.
- AJI (Kumar et al., IEEE TMI 2017): each true nucleus takes the predicted one of highest IoU (on a tie the one of lower
  id; a prediction may serve several true nuclei). AJI is the sum of these intersections over the sum of these unions,
  to which all true nuclei without any overlap and all predictions that nobody took add their areas.
- PQ = DQ · SQ (Kirillov et al., CVPR 2019): pairs of IoU > 0.5 are matches, at most one per nucleus. DQ is the F1 score
  of detection, SQ the mean IoU of the matches (0 without any).

Empty maps: two maps without nuclei agree, every score is 1; where one of them alone has none, every score is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.masks import as_instances, renumber

_MATCH_IOU = 0.5
_DENSE_CELLS_PER_PIXEL = 4  # a larger table would outweigh the maps and be mostly empty


@dataclass(frozen=True)
class Overlap:
    """Contingency table of two instance maps; nuclei are numbered from 0 in the order of their ids.

    Attributes:
        truth_areas: int64 [T], pixels of each true nucleus.
        prediction_areas: int64 [P], pixels of each predicted nucleus.
        truth_index: int64 [K], true nucleus of each pair that shares a pixel, ascending.
        prediction_index: int64 [K], predicted nucleus of the pair, ascending within one true nucleus.
        intersections: int64 [K], shared pixels of the pair, 1 or more.
    """

    truth_areas: NDArray[np.int64]
    prediction_areas: NDArray[np.int64]
    truth_index: NDArray[np.int64]
    prediction_index: NDArray[np.int64]
    intersections: NDArray[np.int64]

    @property
    def unions(self) -> NDArray[np.int64]:
        """int64 [K], pixels in either nucleus of each pair."""
        areas = self.truth_areas[self.truth_index] + self.prediction_areas[self.prediction_index]
        return areas - self.intersections

    @property
    def ious(self) -> NDArray[np.float64]:
        """float64 [K] in (0, 1], intersection over union of each pair."""
        return self.intersections / self.unions


@dataclass(frozen=True)
class InstanceScores:
    """Scores of one pair of maps, each in [0, 1], and what they count."""

    aji: float
    pq: float
    dq: float
    sq: float
    dice: float
    true_nuclei: int
    predicted_nuclei: int
    matched_nuclei: int


def overlap(truth: NDArray[Any], prediction: NDArray[Any]) -> Overlap:
    """The contingency table of two instance maps.

    Args:
        truth: integer [H, W], 0 = background; ids need not be contiguous.
        prediction: integer [H, W], likewise.

    Raises:
        InputError: different shapes, or either is not an instance map (float, negative ids, not two-dimensional).
    """
    truth, prediction = as_instances(truth, "The true map"), as_instances(prediction, "The predicted map")
    if truth.shape != prediction.shape:
        raise InputError(
            f"The true map has shape {truth.shape} and the predicted one {prediction.shape}, but scores need the same "
            "pixels; compare maps of one tile at one resolution."
        )
    if not _fits_dense_table(truth, prediction):
        truth, prediction = renumber(truth), renumber(prediction)
    columns = int(prediction.max()) + 1
    if _fits_dense_table(truth, prediction):
        table = np.bincount((truth * np.int32(columns) + prediction).ravel())
        cells = np.flatnonzero(table)
        counts = table[cells]
    else:
        cells, counts = np.unique(truth.astype(np.int64) * columns + prediction, return_counts=True)
    truth_ids, prediction_ids = np.divmod(cells, columns)
    truth_areas, truth_index = _areas(truth_ids, counts)
    prediction_areas, prediction_index = _areas(prediction_ids, counts)
    both = (truth_ids > 0) & (prediction_ids > 0)
    return Overlap(truth_areas, prediction_areas, truth_index[both], prediction_index[both], counts[both])


def compare(truth: NDArray[Any], prediction: NDArray[Any]) -> InstanceScores:
    """AJI, PQ, DQ, SQ and foreground Dice of a predicted instance map.

    Args:
        truth: integer [H, W], 0 = background; ids need not be contiguous.
        prediction: integer [H, W], likewise.

    Raises:
        InputError: different shapes, or either is not an instance map (float, negative ids, not two-dimensional).
    """
    table = overlap(truth, prediction)
    true_nuclei, predicted_nuclei = len(table.truth_areas), len(table.prediction_areas)
    if true_nuclei == 0 or predicted_nuclei == 0:
        score = float(true_nuclei == predicted_nuclei)
        return InstanceScores(score, score, score, score, score, true_nuclei, predicted_nuclei, 0)
    matches = table.ious[table.ious > _MATCH_IOU]
    dq = 2 * len(matches) / (true_nuclei + predicted_nuclei)
    sq = float(matches.mean()) if len(matches) else 0.0
    foreground = int(table.truth_areas.sum() + table.prediction_areas.sum())
    return InstanceScores(
        aji=_aji(table),
        pq=dq * sq,
        dq=dq,
        sq=sq,
        dice=2 * int(table.intersections.sum()) / foreground,
        true_nuclei=true_nuclei,
        predicted_nuclei=predicted_nuclei,
        matched_nuclei=len(matches),
    )


def mean_scores(scores: Sequence[InstanceScores]) -> dict[str, float]:
    """Mean over images of each score: `aji`, `pq`, `dq`, `sq`, `dice`.

    Raises:
        InputError: no images.
    """
    if not scores:
        raise InputError("There are no images to average over; score at least one image.")
    return {
        name: float(np.mean([getattr(image, name) for image in scores])) for name in ("aji", "pq", "dq", "sq", "dice")
    }


def _fits_dense_table(truth: NDArray[np.int32], prediction: NDArray[np.int32]) -> bool:
    cells = (int(truth.max()) + 1) * (int(prediction.max()) + 1)
    return cells <= min(_DENSE_CELLS_PER_PIXEL * truth.size, np.iinfo(np.int32).max)


def _areas(ids: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Area of each nucleus in the order of ids, and the nucleus of each entry (-1 for background)."""
    nuclei, index = np.unique(ids, return_inverse=True)
    areas = np.bincount(index, counts).astype(np.int64)
    background = int(nuclei[0] == 0)
    return areas[background:], index - background


def _aji(table: Overlap) -> float:
    by_truth_then_iou = np.lexsort((table.prediction_index, -table.ious, table.truth_index))
    found, first = np.unique(table.truth_index[by_truth_then_iou], return_index=True)
    best = by_truth_then_iou[first]
    missed = np.delete(table.truth_areas, found)
    untaken = np.delete(table.prediction_areas, table.prediction_index[best])
    union = table.unions[best].sum() + missed.sum() + untaken.sum()
    return float(table.intersections[best].sum() / union)
