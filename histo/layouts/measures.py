"""What can be measured on instance maps without tissue: sizes, shapes, density, and how nuclei cluster."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from histo.errors import InputError
from histo.masks import renumber

QUADRAT = 32.0  # µm
SPINDLE = 3.0  # least aspect
TOUCH = 0.5  # µm
_IQR = 1.349  # interquartile range of the normal distribution in standard deviations


@dataclass(frozen=True)
class Measures:
    """Figures of a set of maps. Sizes and shapes are of nuclei that the border does not cut.

    Attributes:
        maps, nuclei: how many were measured.
        extent: median height and width, µm.
        mpp: median µm/px.
        density: nuclei per mm², those cut by the border counted half since the map beside shares them.
        covered: share of the area that lies in nuclei.
        diameter: median equivalent diameter, µm.
        spread: standard deviation of its natural logarithm, from the quartiles.
        aspect: median ratio of the axes of the ellipse with the same second moments.
        aspect_spread: standard deviation of the natural logarithm of aspect - 1, from the quartiles.
        spindles: share of nuclei with an aspect of 3 or more.
        variation: standard deviation of the maps' densities over their mean; None for a single map.
        dispersion: variance of the counts in quadrats of 32 µm over their mean, within maps: 1 where nuclei are
            scattered independently, more where they cluster (index of dispersion; Fisher, Thornton and Mackenzie 1922).
        clark_evans: mean distance to the nearest nucleus over that of independently scattered ones, with the border's
            correction: below 1 nuclei cluster, above they keep apart (Clark and Evans 1954; Donnelly 1978).
        touching: share of nuclei that another one comes as close to as 0.5 µm.
    """

    maps: int
    nuclei: int
    extent: tuple[float, float]
    mpp: float
    density: float
    covered: float
    diameter: float
    spread: float
    aspect: float
    aspect_spread: float
    spindles: float
    variation: float | None
    dispersion: float
    clark_evans: float
    touching: float


def measure(maps: Iterable[tuple[NDArray[np.int32], float]]) -> Measures:
    """Measure instance maps, one after the other.

    Args:
        maps: pairs of int32 [H, W] and µm/px.

    Raises:
        InputError: fewer than 20 nuclei that the border does not cut.
    """
    found = [_measure_map(instances, mpp) for instances, mpp in maps]
    diameter = np.concatenate([one.diameters for one in found] or [np.zeros(0)])
    aspect = np.concatenate([one.aspects for one in found] or [np.zeros(0)])
    if len(diameter) < 20:
        raise InputError(
            f"{len(found)} maps hold {len(diameter)} whole nuclei, expected 20 or more to measure; give more maps."
        )
    areas = np.array([np.prod(one.extent) for one in found])
    counts = np.array([one.count for one in found])
    densities = 1e6 * counts / areas
    low, high = np.log(np.quantile(diameter, (0.25, 0.75)))
    least, most = np.maximum(np.quantile(aspect, (0.25, 0.75)) - 1, 1e-6)  # perfect circles have no logarithm
    quadrats = np.array([one.quadrats for one in found])
    nearest = np.array([one.nearest for one in found])
    height, width = np.median([one.extent for one in found], axis=0)
    return Measures(
        maps=len(found),
        nuclei=sum(one.nuclei for one in found),
        extent=(float(height), float(width)),
        mpp=float(np.median([one.mpp for one in found])),
        density=float(1e6 * counts.sum() / areas.sum()),
        covered=float(sum(one.covered for one in found) / areas.sum()),
        diameter=float(np.median(diameter)),
        spread=float((high - low) / _IQR),
        aspect=float(np.median(aspect)),
        aspect_spread=float(np.log(most / least) / _IQR),
        spindles=float(np.mean(aspect >= SPINDLE)),
        variation=float(densities.std(ddof=1) / densities.mean()) if len(found) > 1 else None,
        dispersion=float(quadrats[:, 0].sum() / max(quadrats[:, 1].sum(), 1e-9)),
        clark_evans=float(nearest[:, 0].sum() / max(nearest[:, 1].sum(), 1e-9)),
        touching=sum(one.touching for one in found) / sum(one.nuclei for one in found),
    )


@dataclass(frozen=True)
class _OneMap:
    """Of one map: extent in µm, nuclei, the count with cut ones as halves, covered µm², nuclei that touch; of whole
    nuclei diameters and aspects; sums over quadrats of squared deviations and of means; sums over nuclei of the
    nearest neighbour's distance and of what it would be without clustering."""

    extent: tuple[float, float]
    mpp: float
    nuclei: int
    count: float
    covered: float
    diameters: NDArray[np.float64]
    aspects: NDArray[np.float64]
    quadrats: tuple[float, float]
    nearest: tuple[float, float]
    touching: int


def _measure_map(instances: NDArray[np.int32], mpp: float) -> _OneMap:
    instances = renumber(instances)
    extent = (instances.shape[0] * mpp, instances.shape[1] * mpp)
    y, x = np.nonzero(instances)
    ids = instances[y, x] - 1
    pixels = np.bincount(ids).astype(float)
    nuclei = len(pixels)
    cut = np.zeros(nuclei + 1, bool)
    for side in (instances[0], instances[-1], instances[:, 0], instances[:, -1]):
        cut[side] = True
    whole = ~cut[1:]
    middle_y, middle_x = (np.bincount(ids, place, nuclei) / pixels for place in (y, x))
    dy, dx = y - middle_y[ids], x - middle_x[ids]
    # A pixel is a square, whose own second moment is 1/12.
    yy, xx, xy = (np.bincount(ids, product, nuclei) / pixels for product in (dy * dy, dx * dx, dy * dx))
    mean, half = (yy + xx) / 2 + 1 / 12, np.hypot((yy - xx) / 2, xy)
    centres = np.stack([middle_y, middle_x], 1) * mpp
    return _OneMap(
        extent=extent,
        mpp=mpp,
        nuclei=nuclei,
        count=nuclei - (nuclei - whole.sum()) / 2,
        covered=float(pixels.sum()) * mpp**2,
        diameters=(2 * np.sqrt(pixels / np.pi) * mpp)[whole],
        aspects=np.sqrt((mean + half) / (mean - half))[whole],
        quadrats=_quadrats(centres, extent),
        nearest=_nearest(centres, extent),
        touching=_touching(instances, mpp),
    )


def _quadrats(centres: NDArray[np.float64], extent: tuple[float, float]) -> tuple[float, float]:
    """Variance and mean of the counts, both weighted by the degrees of freedom so that maps can be added up."""
    side = min(QUADRAT, min(extent) / 2)
    cells = [int(length / side + 1e-9) for length in extent]
    inside = (centres < np.array(cells) * side).all(1)
    row, column = (centres[inside] / side).astype(int).T
    counts = np.bincount(row * cells[1] + column, minlength=cells[0] * cells[1])
    weight = counts.size - 1
    return float(counts.var(ddof=1) * weight), float(counts.mean() * weight)


def _nearest(centres: NDArray[np.float64], extent: tuple[float, float]) -> tuple[float, float]:
    number = len(centres)
    if number < 2:
        return 0.0, 0.0
    distances = cKDTree(centres).query(centres, k=2)[0][:, 1]
    area, perimeter = extent[0] * extent[1], 2 * (extent[0] + extent[1])
    expected = 0.5 * np.sqrt(area / number) + (0.0514 + 0.041 / np.sqrt(number)) * perimeter / number
    return float(distances.sum()), float(number * expected)


def _touching(instances: NDArray[np.int32], mpp: float) -> int:
    """How many nuclei have a pixel whose square is no more than `TOUCH` from one of another nucleus."""
    reach = TOUCH / mpp + 1
    span = int(reach)
    touched = np.zeros(int(instances.max()) + 1, bool)
    for down in range(span + 1):
        for across in range(-span, span + 1):
            if (down == 0 and across <= 0) or down**2 + across**2 > reach**2:
                continue
            first = instances[: len(instances) - down, max(0, -across) : instances.shape[1] - max(0, across)]
            second = instances[down:, max(0, across) : instances.shape[1] - max(0, -across)]
            met = (first != second) & (first > 0) & (second > 0)
            touched[first[met]] = touched[second[met]] = True
    return int(np.count_nonzero(touched))
