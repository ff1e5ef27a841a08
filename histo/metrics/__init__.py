"""Scores: of instance maps, of typed nuclei, of detections, of classes and of numbers.

| module | |
|---|---|
| `instances` | one contingency table of two maps; AJI, AJI+, PQ, DQ, SQ, Dice; what tiles without nuclei score |
| `panoptic` | typed nuclei: bPQ and mPQ by tissue (PanNuke), pooled PQ and mPQ+ (CoNIC) |
| `detection` | F1 of detection and of its types from centroids (HoVer-Net) |
| `pairing`, `types` | one-to-one pairs; the type of each nucleus |
| `classification` | accuracy, balanced accuracy, macro-F1, AUROC, calibration, confusion; by image and by patient |
| `regions` | Dice and IoU of region maps from one table of pixels; what absent classes score |
| `regression` | mean absolute difference, prediction probability |

Functions of maps and counts are NumPy and stand here; `classification` takes tensors and is imported by its own name,
so that who scores maps does not wait for PyTorch.
"""

from histo.metrics.detection import RADIUS_MICRONS, DetectionCounts, detection_counts
from histo.metrics.instances import (
    EMPTY_TILES,
    InstanceScores,
    Overlap,
    aji_plus,
    compare,
    mean_scores,
    mean_scores_by_empties,
    overlap,
    scores_of,
)
from histo.metrics.panoptic import PanNukeScores, PanopticCounts, TissueScores, pannuke_scores, panoptic_counts
from histo.metrics.regression import l1, prediction_probability

__all__ = [
    "EMPTY_TILES",
    "RADIUS_MICRONS",
    "DetectionCounts",
    "InstanceScores",
    "Overlap",
    "PanNukeScores",
    "PanopticCounts",
    "TissueScores",
    "aji_plus",
    "compare",
    "detection_counts",
    "l1",
    "mean_scores",
    "mean_scores_by_empties",
    "overlap",
    "pannuke_scores",
    "panoptic_counts",
    "prediction_probability",
    "scores_of",
]
