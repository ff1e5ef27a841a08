"""Whether µm/px fit the nuclei: their median diameter against what nuclei of tissue have.

Of sets with instance maps whose µm/px are known, the median over all nuclei is 4.2 to 5.6 µm; half or twice the true
µm/px thus leave `PLAUSIBLE`. Without maps a watershed finds the nuclei. It searches at the scale that it is told, so it
notices µm/px that are much too small and not those that are too large.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.inspection.looks import Look, nucleus_diameters
from histo.inspection.report import Report
from histo.tiles.entries import TileEntry

PLAUSIBLE = (3.5, 8.2)  # µm, median diameter of the nuclei of annotated tiles
LEAST_BY_WATERSHED = 4.1  # µm
LEAST_NUCLEI = 30
SPREAD = 3.0  # ratio of the tiles' 95th to 5th percentile of median diameters at one magnification
_LEAST_OF_TILE, _LEAST_TILES = 5, 8
_TRIED, _SIDE = 8, 512  # tiles that the watershed looks at, and pixels of a side


def judge(entries: Sequence[TileEntry], looks: Sequence[Look], report: Report) -> None:
    """Add what the sizes of nuclei say about µm/px.

    Args:
        entries, looks: of the same tiles.
        report: what it is added to.
    """
    for mpp in dict.fromkeys(entry.mpp for entry in entries):
        chosen = [k for k, entry in enumerate(entries) if entry.mpp == mpp and looks[k].size is not None]
        diameters = [found for k in chosen if (found := looks[k].diameters) is not None]
        if diameters:
            _by_maps(mpp, diameters, report)
        elif mpp is not None:
            _by_watershed(mpp, [entries[k] for k in chosen], report)


def _by_maps(mpp: float | None, diameters: Sequence[NDArray[np.float64]], report: Report) -> None:
    everything = np.concatenate(diameters)
    if len(everything) < LEAST_NUCLEI:
        return
    middle, (low, high) = float(np.median(everything)), PLAUSIBLE
    said = f"median diameter of {len(everything)} nuclei: {middle:.1f} px"
    if mpp is None:
        fitting = f"{low / middle:.2g} to {high / middle:.2g}"
        report.notes.append(f"{said}; µm/px is unknown, and {fitting} would give {low} to {high} µm.")
    else:
        report.facts[f"nuclei at {mpp:.4g} µm/px"] = f"{said}, {middle * mpp:.1f} µm"
        if not low <= middle * mpp <= high:
            report.add(
                "pixel size", [f"{said} at {mpp:.4g} µm/px are {middle * mpp:.1f} µm, expected {low} to {high} µm"]
            )
    tiles = [float(np.median(found)) for found in diameters if len(found) >= _LEAST_OF_TILE]
    if len(tiles) >= _LEAST_TILES:
        small, large = np.percentile(tiles, [5, 95])
        if large > SPREAD * small:
            where = "of unknown µm/px" if mpp is None else f"at {mpp:.4g} µm/px"
            report.add("mixed magnification", [f"medians of tiles {where} run from {small:.1f} to {large:.1f} px"])


def _by_watershed(mpp: float, entries: Sequence[TileEntry], report: Report) -> None:
    from histo.watershed import segment

    diameters = []
    for entry in entries[:: max(1, len(entries) // _TRIED)][:_TRIED]:
        try:
            diameters.append(nucleus_diameters(segment(entry.read_image()[:, :_SIDE, :_SIDE], mpp)))
        except InputError:
            continue  # told by the look at the tile
    everything = np.concatenate([*diameters, np.zeros(0)])
    if len(everything) < LEAST_NUCLEI:
        return
    middle = float(np.median(everything)) * mpp
    said = f"median diameter of {len(everything)} nuclei that a watershed finds: {middle:.1f} µm"
    report.facts[f"nuclei at {mpp:.4g} µm/px"] = said
    if middle < LEAST_BY_WATERSHED:
        report.add("pixel size", [f"{said} at {mpp:.4g} µm/px, expected at least {LEAST_BY_WATERSHED} µm"])
