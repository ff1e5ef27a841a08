"""Panoptic quality of typed nuclei: bPQ and mPQ as PanNuke has them, and mPQ+ as CoNIC has it.

PQ of a type (Kirillov et al., CVPR 2019) looks at its true and its predicted nuclei alone: pairs of IoU > 0.5 are its
TP, at most one per nucleus, and PQ = Σ IoU / (TP + FP / 2 + FN / 2) = 2 Σ IoU / (true + predicted nuclei). A nucleus
has one type, so the pairs of a type are those of the one contingency table whose nuclei both have it. In binary PQ all
nuclei are of one type.

- PanNuke (Gamper et al., arXiv 2003.10778): PQ of every image by itself. bPQ is the mean of binary PQ over the images
  of a tissue, then over the tissues; mPQ is the mean over the types of an image, then over the images of a tissue, then
  over the tissues. The PQ of a type is the mean over the images of all tissues. What is left out of a mean says
  `EMPTY_TILES`; that images without true nuclei are is the rule of the authors' evaluation, which the paper does not
  state. Their channel of each type is scored from its own map, where a pixel may belong to nuclei of two types; here a
  pixel belongs to one nucleus.
- CoNIC (Graham et al., arXiv 2111.14485): TP, FP, FN and IoUs of a type are added up over all images, and its PQ comes
  from these sums; mPQ+ is the mean over types.

Nuclei of type 0 count in binary PQ alone. Predictions that match a true one of type 0 (unknown) are left out of the
counts of types, as those in unlabelled regions are by Kirillov et al.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.metrics.instances import MATCH_IOU, Overlap
from histo.metrics.types import types_of


@dataclass(frozen=True, eq=False)
class PanopticCounts:
    """What PQ is made of. Counts of images add up (`+`), in any order; sums of IoU then differ by rounding alone.

    Entry 0 counts all nuclei whatever their type, entry t those of type t.

    Attributes:
        matched: int64 [T+1], matches (TP).
        true: int64 [T+1], true nuclei (TP + FN).
        predicted: int64 [T+1], predicted nuclei (TP + FP).
        iou: float64 [T+1], sum of the IoU of matches.
    """

    matched: NDArray[np.int64]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    iou: NDArray[np.float64]

    @classmethod
    def none(cls, types: int) -> "PanopticCounts":
        """Counts of no image, to start a sum with."""
        zeros = np.zeros(types + 1, dtype=np.int64)
        return cls(zeros, zeros, zeros, zeros.astype(np.float64))

    def __add__(self, other: "PanopticCounts") -> "PanopticCounts":
        """Counts of both.

        Raises:
            InputError: other types.
        """
        if len(self.true) != len(other.true):
            raise InputError(
                f"Counts of {len(self.true) - 1} types and of {len(other.true) - 1} do not add up; score all images "
                "with one list of types."
            )
        return PanopticCounts(
            self.matched + other.matched,
            self.true + other.true,
            self.predicted + other.predicted,
            self.iou + other.iou,
        )

    @property
    def dq(self) -> NDArray[np.float64]:
        """float64 [T+1], F1 of detection; NaN without true or predicted nuclei."""
        return _ratio(2 * self.matched, self.true + self.predicted)

    @property
    def sq(self) -> NDArray[np.float64]:
        """float64 [T+1], mean IoU of matches, 0 without any; NaN without true or predicted nuclei."""
        return np.where(self.true + self.predicted > 0, np.nan_to_num(_ratio(self.iou, self.matched)), np.nan)

    @property
    def pq(self) -> NDArray[np.float64]:
        """float64 [T+1], PQ = DQ · SQ; NaN without true or predicted nuclei."""
        return _ratio(2 * self.iou, self.true + self.predicted)

    @property
    def mean_pq(self) -> float | None:
        """Mean PQ of the types that occur in labels or predictions: mPQ+ of counts of a whole set; None without any."""
        return _mean(self.pq[1:])


@dataclass(frozen=True)
class TissueScores:
    """bPQ and mPQ of the images of a tissue, None where every image is left out."""

    images: int
    bpq: float | None
    mpq: float | None


@dataclass(frozen=True)
class PanNukeScores:
    """bPQ and mPQ over tissues, None where every image is left out.

    Attributes:
        bpq: mean over tissues.
        mpq: mean over tissues.
        types: PQ of each type from 1, mean over the images of all tissues.
        tissues: the scores of each tissue.
    """

    bpq: float | None
    mpq: float | None
    types: tuple[float | None, ...]
    tissues: dict[str, TissueScores]


def panoptic_counts(
    table: Overlap,
    truth_types: NDArray[Any] | None = None,
    prediction_types: NDArray[Any] | None = None,
    types: int = 0,
) -> PanopticCounts:
    """The counts of one image, of all nuclei and of each type.

    Args:
        table: of its true and its predicted map.
        truth_types: integer [K+1], type of each true nucleus by its id, as `Tile.classes`: from 1, 0 unknown.
        prediction_types: integer [L+1], likewise; 0 is no type.
        types: how many there are; 0 for nuclei without types.

    Raises:
        InputError: types of another shape, not integer, or out of range.
    """
    true = types_of(table.truth_ids, truth_types, types, "true")
    found = types_of(table.prediction_ids, prediction_types, types, "predicted")
    ious = table.ious
    match = ious > MATCH_IOU
    ious, a, b = ious[match], true[table.truth_index[match]], found[table.prediction_index[match]]
    right = a == b

    def count(of: NDArray[np.int64], whole: int) -> NDArray[np.int64]:
        return np.concatenate([[whole], np.bincount(of, minlength=types + 1)[1:]])

    return PanopticCounts(
        matched=count(a[right], len(ious)),
        true=count(true, len(true)),
        predicted=count(found, len(found)) - count(b[a == 0], 0),
        iou=np.concatenate([[ious.sum()], np.bincount(a[right], ious[right], minlength=types + 1)[1:]]),
    )


def pannuke_scores(images: Sequence[PanopticCounts], tissues: Sequence[str]) -> dict[str, PanNukeScores]:
    """bPQ and mPQ by the PanNuke rule, both ways of treating images without true nuclei.

    Args:
        images: counts of each image.
        tissues: the tissue of each.

    Returns:
        `published`, the authors' rule, and `false_positives_counted`, where an image or type without true nuclei
        scores 0 if some were predicted.

    Raises:
        InputError: no images, another number of tissues, or images with different numbers of types.
    """
    if not images or len(images) != len(tissues):
        raise InputError(
            f"There are {len(images)} images and {len(tissues)} tissues, expected one tissue for each of at least one "
            "image; give the tissue of every image."
        )
    if len(numbers := {len(image.true) - 1 for image in images}) > 1:
        raise InputError(f"Images have {sorted(numbers)} types of nuclei; score all of them with one list of types.")
    quality = np.stack([image.pq for image in images])
    labelled = np.stack([image.true for image in images]) > 0
    return {
        "published": _by_tissue(np.where(labelled, quality, np.nan), tissues),
        "false_positives_counted": _by_tissue(quality, tissues),
    }


def _by_tissue(quality: NDArray[np.float64], tissues: Sequence[str]) -> PanNukeScores:
    """From the PQ of each image, float64 [N, T+1], NaN where it is left out."""
    known = ~np.isnan(quality[:, 1:])
    over_types = _ratio(np.where(known, quality[:, 1:], 0).sum(axis=1), known.sum(axis=1))
    names = np.array(tissues)
    found = {
        tissue: TissueScores(int(own.sum()), _mean(quality[own, 0]), _mean(over_types[own]))
        for tissue in sorted(set(tissues))
        for own in [names == tissue]
    }
    return PanNukeScores(
        bpq=_mean(np.array([each.bpq for each in found.values()], dtype=np.float64)),
        mpq=_mean(np.array([each.mpq for each in found.values()], dtype=np.float64)),
        types=tuple(_mean(column) for column in quality[:, 1:].T),
        tissues=found,
    )


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean of what is not NaN, None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
