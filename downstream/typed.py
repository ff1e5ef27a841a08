"""Scores of typed nuclei over tiles: panoptic quality by PanNuke's and CoNIC's rules, and F1 of detection by type."""

import numpy as np
from numpy.typing import NDArray

from histo.metrics import (
    RADIUS_MICRONS,
    DetectionCounts,
    Overlap,
    PanopticCounts,
    detection_counts,
    pannuke_scores,
    panoptic_counts,
)
from histo.tiles import Tile


class TypedScores:
    """Counts of tiles, added up one by one.

    Args:
        names: of the types from 1; without any there are no scores.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.panoptic: list[PanopticCounts] = []
        self.tissues: list[str] = []
        self.detection: list[DetectionCounts] = []

    def add(
        self,
        tile: Tile,
        table: Overlap,
        true: NDArray[np.uint8],
        instances: NDArray[np.int32],
        types: NDArray[np.uint8],
    ) -> None:
        """Count one tile, whose label is its tissue.

        Args:
            table: of its true and its predicted map.
            true: uint8 [K + 1], types of the true nuclei by id; types: uint8 [n + 1], of the predicted ones.
            instances: int32 [H, W], the predicted map.
        """
        assert tile.instances is not None
        count = len(self.names)
        self.panoptic.append(panoptic_counts(table, true, types, count))
        self.tissues.append(tile.label or "unknown")
        if tile.mpp is not None:
            radius = RADIUS_MICRONS / tile.mpp
            self.detection.append(detection_counts(tile.instances, instances, radius, true, types, count))

    def scores(self) -> dict[str, float]:
        """bpq, mpq (PanNuke as published), mpq_plus (CoNIC), detection_f1, and f1 and a name for each type.

        What no tile can tell is left out; so is detection where µm/px are unknown.
        """
        if not self.panoptic:
            return {}
        pannuke = pannuke_scores(self.panoptic, self.tissues)["published"]
        pooled = sum(self.panoptic, PanopticCounts.none(len(self.names)))
        found = {"bpq": pannuke.bpq, "mpq": pannuke.mpq, "mpq_plus": pooled.mean_pq}
        if self.detection:
            counts = sum(self.detection, DetectionCounts.none(len(self.names)))
            found["detection_f1"] = counts.f1
            found |= {f"f1_{name}": float(f1) for name, f1 in zip(self.names, counts.f1_by_type, strict=True)}
        return {name: value for name, value in found.items() if value is not None and not np.isnan(value)}
