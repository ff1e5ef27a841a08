"""Scores of nucleus instance maps: AJI, AJI+, PQ with its factors DQ and SQ, and foreground Dice.

Every score comes from one contingency table, `Overlap`.

- Dice = 2 |A ∩ B| / (|A| + |B|) of the two foregrounds.
- AJI (Kumar et al., IEEE TMI 2017): each true nucleus takes the predicted one of highest IoU (on a tie the one of lower
  id; a prediction may serve several true nuclei). AJI is the sum of these intersections over the sum of these unions,
  to which all true nuclei without any overlap and all predictions that nobody took add their areas.
- AJI+ is AJI with pairs that are one to one: of all such assignments of overlapping nuclei the one whose IoUs add up to
  most. All nuclei without a partner add their areas to the unions. It comes with the evaluation that the authors of
  HoVer-Net publish beside it (Graham et al., Medical Image Analysis 2019), not from that paper's text.
- PQ = DQ · SQ (Kirillov et al., CVPR 2019): pairs of IoU > 0.5 are matches, at most one per nucleus. DQ is the F1 score
  of detection, SQ the mean IoU of the matches (0 without any).

Empty maps: two maps without nuclei agree, every score is 1; where one of them alone has none, every score is 0. What
follows for means over images says `EMPTY_TILES`, which reports print beside their figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.masks import as_instances, renumber
from histo.metrics.pairing import best_pairs

MATCH_IOU = 0.5
EMPTY_TILES = (
    "Tiles without nuclei. AJI, AJI+, PQ, DQ, SQ and Dice of one tile: 1 where neither labels nor prediction have a "
    "nucleus, 0 where one of them alone has some; means are given over all tiles and over those with a true nucleus. "
    "bPQ and mPQ of PanNuke, as published: a tile, or a type in a tile, without a true nucleus is left out, whatever "
    "was predicted there; with false positives counted, it is left out only where nothing was predicted either, and "
    "scores 0 otherwise. Pooled PQ, mPQ+ and F1 add counts of all tiles first, so a tile without true nuclei adds its "
    "false positives; a type that neither labels nor predictions of the whole set have is left out of means."
)
_DENSE_CELLS_PER_PIXEL = 4  # a larger table would outweigh the maps and be mostly empty


@dataclass(frozen=True)
class Overlap:
    """Contingency table of two instance maps; nuclei are numbered from 0 in the order of their ids.

    Attributes:
        truth_ids: int64 [T], ids of the true nuclei, ascending.
        prediction_ids: int64 [P], ids of the predicted nuclei, ascending.
        truth_areas: int64 [T], pixels of each true nucleus.
        prediction_areas: int64 [P], pixels of each predicted nucleus.
        truth_index: int64 [K], true nucleus of each pair that shares a pixel, ascending.
        prediction_index: int64 [K], predicted nucleus of the pair, ascending within one true nucleus.
        intersections: int64 [K], shared pixels of the pair, 1 or more.
    """

    truth_ids: NDArray[np.int64]
    prediction_ids: NDArray[np.int64]
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
    names = None
    if not _fits_dense_table(truth, prediction):
        names = [np.unique(instances[instances > 0]).astype(np.int64) for instances in (truth, prediction)]
        truth, prediction = renumber(truth), renumber(prediction)
    columns = int(prediction.max()) + 1
    if _fits_dense_table(truth, prediction):
        table = np.bincount((truth * np.int32(columns) + prediction).ravel())
        cells = np.flatnonzero(table)
        counts = table[cells]
    else:
        cells, counts = np.unique(truth.astype(np.int64) * columns + prediction, return_counts=True)
    truth_of_cell, prediction_of_cell = np.divmod(cells, columns)
    truth_ids, truth_areas, truth_index = _nuclei(truth_of_cell, counts)
    prediction_ids, prediction_areas, prediction_index = _nuclei(prediction_of_cell, counts)
    if names is not None:
        truth_ids, prediction_ids = names
    both = (truth_of_cell > 0) & (prediction_of_cell > 0)
    pairs = truth_index[both], prediction_index[both], counts[both]
    return Overlap(truth_ids, prediction_ids, truth_areas, prediction_areas, *pairs)


def compare(truth: NDArray[Any], prediction: NDArray[Any]) -> InstanceScores:
    """AJI, PQ, DQ, SQ and foreground Dice of a predicted instance map.

    Args:
        truth: integer [H, W], 0 = background; ids need not be contiguous.
        prediction: integer [H, W], likewise.

    Raises:
        InputError: different shapes, or either is not an instance map (float, negative ids, not two-dimensional).
    """
    return scores_of(overlap(truth, prediction))


def scores_of(table: Overlap) -> InstanceScores:
    """AJI, PQ, DQ, SQ and foreground Dice from the contingency table of two maps."""
    true_nuclei, predicted_nuclei = len(table.truth_areas), len(table.prediction_areas)
    if true_nuclei == 0 or predicted_nuclei == 0:
        score = float(true_nuclei == predicted_nuclei)
        return InstanceScores(score, score, score, score, score, true_nuclei, predicted_nuclei, 0)
    matches = table.ious[table.ious > MATCH_IOU]
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


def aji_plus(table: Overlap) -> float:
    """AJI+ from the contingency table of two maps, in [0, 1]; 1 without any nucleus, 0 where one map alone has none.

    Where several assignments have the same total IoU, which of them counts depends on the order of ids.
    """
    if len(table.truth_areas) == 0 or len(table.prediction_areas) == 0:
        return float(len(table.truth_areas) == len(table.prediction_areas))
    return _jaccard(table, best_pairs(table.truth_index, table.prediction_index, table.ious))


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


def mean_scores_by_empties(scores: Sequence[InstanceScores]) -> dict[str, dict[str, float] | None]:
    """The means of `mean_scores` over all images, and over those with a true nucleus (see `EMPTY_TILES`).

    Returns:
        all_tiles, and tiles_with_nuclei, which is None where no image has a true nucleus.

    Raises:
        InputError: no images.
    """
    filled = [image for image in scores if image.true_nuclei]
    return {"all_tiles": mean_scores(scores), "tiles_with_nuclei": mean_scores(filled) if filled else None}


def _fits_dense_table(truth: NDArray[np.int32], prediction: NDArray[np.int32]) -> bool:
    cells = (int(truth.max()) + 1) * (int(prediction.max()) + 1)
    return cells <= min(_DENSE_CELLS_PER_PIXEL * truth.size, np.iinfo(np.int32).max)


def _nuclei(ids: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Ids of the nuclei, their areas in the order of ids, and the nucleus of each entry (-1 for background)."""
    nuclei, index = np.unique(ids, return_inverse=True)
    areas = np.bincount(index, counts).astype(np.int64)
    background = int(nuclei[0] == 0)
    return nuclei[background:], areas[background:], index - background


def _aji(table: Overlap) -> float:
    by_truth_then_iou = np.lexsort((table.prediction_index, -table.ious, table.truth_index))
    _, first = np.unique(table.truth_index[by_truth_then_iou], return_index=True)
    best = by_truth_then_iou[first]
    return _jaccard(table, best)


def _jaccard(table: Overlap, pairs: NDArray[np.int64]) -> float:
    """Intersections over unions, summed over pairs of the table; nuclei of no pair add their areas to the unions."""
    missed = np.delete(table.truth_areas, table.truth_index[pairs])
    untaken = np.delete(table.prediction_areas, table.prediction_index[pairs])
    union = table.unions[pairs].sum() + missed.sum() + untaken.sum()
    return float(table.intersections[pairs].sum() / union)
