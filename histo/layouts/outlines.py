"""Outlines of single nuclei: the polygon of Hou et al. (CVPR 2019), smoothed, stretched and of a given area."""

import numpy as np
from numpy.typing import NDArray

from histo.layouts.settings import ShapeSettings

GREATEST_ASPECT = 8.0
_GREATEST_DEVIATION = 2.5  # standard deviations of the diameter's logarithm
_SPINDLES = (3.0, 6.0)
_CORNERS = (10, 17)
_REACH = 1.5  # longest distance from the centre, in half long axes

Points = NDArray[np.float64]


def reach(settings: ShapeSettings) -> float:
    """No outline of this kind goes further from its centre; µm."""
    diameter = settings.diameter * np.exp(_GREATEST_DEVIATION * settings.spread)
    return float(_REACH * diameter / 2 * np.sqrt(GREATEST_ASPECT))


def draw_sizes(generator: np.random.Generator, settings: ShapeSettings, shared: Points) -> tuple[Points, Points]:
    """Equivalent diameters in µm and aspects, float64 [N] each.

    Args:
        shared: standard normal [N], what neighbours' sizes have in common: half of the variance of the logarithm.
    """
    number = len(shared)
    deviation = np.sqrt(0.5) * (shared + generator.standard_normal(number))
    deviation = deviation.clip(-_GREATEST_DEVIATION, _GREATEST_DEVIATION)
    diameter = settings.diameter * np.exp(settings.spread * deviation)
    excess = (settings.aspect - 1) * np.exp(settings.aspect_spread * generator.standard_normal(number))
    spindle = generator.uniform(size=number) < settings.spindles
    aspect = np.where(spindle, generator.uniform(*_SPINDLES, number), 1 + excess)
    return diameter, aspect.clip(1, GREATEST_ASPECT)


def draw_outline(
    generator: np.random.Generator, settings: ShapeSettings, diameter: float, aspect: float, angle: float
) -> Points:
    """Closed outline about (0, 0), float64 [V, 2] in y, x and µm, of the area of a circle of this diameter.

    Args:
        angle: of the long axis, from x to y; radians.
    """
    corners = int(generator.integers(_CORNERS[0], _CORNERS[1], endpoint=True))
    varied = generator.uniform(2 / 3, 4 / 3)  # Hou's range of irregularity, 0.6 to 1.2, is its middle 0.9 times this
    uneven = min(1.0, settings.irregularity * varied)
    steps = 1 + uneven * generator.uniform(-1, 1, corners)
    theta = 2 * np.pi * np.cumsum(steps) / steps.sum()
    spike = settings.spike * generator.uniform(0.5, 1.5)  # Hou's 0.04 to 0.12
    radius = generator.normal(1, spike, corners).clip(0, 2)
    long, short = np.sqrt(aspect), 1 / np.sqrt(aspect)
    along, across = long * radius * np.cos(theta), short * radius * np.sin(theta)
    outline = np.stack([along * np.sin(angle) + across * np.cos(angle), along * np.cos(angle) - across * np.sin(angle)])
    # Chaikin's corner cutting: each corner gives way to points at a quarter and three quarters of its sides.
    following = np.roll(outline, -1, axis=1)
    outline = np.stack([0.75 * outline + 0.25 * following, 0.25 * outline + 0.75 * following], 2).reshape(2, -1)
    outline = outline.T
    y, x = outline.T
    area = abs(np.dot(y, np.roll(x, -1)) - np.dot(x, np.roll(y, -1))) / 2
    outline = outline * (diameter / 2 * np.sqrt(np.pi / area))
    distance = np.hypot(outline[:, 0], outline[:, 1])
    return outline * np.minimum(1, _REACH * diameter / 2 * long / np.maximum(distance, 1e-9))[:, None]


def covered(outline: Points) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Rows and columns, counted from the centre's own, of the pixels whose middle lies inside an outline in pixels.

    Seen from (0, 0), an outline goes round once; so a pixel's direction tells the one side that bounds it, and which
    side of that it lies on settles it. That takes a fourth of the time of a polygon fill that looks at every side.

    Args:
        outline: float64 [V, 2] as `draw_outline` gives it.
    """
    directions = np.arctan2(outline[:, 0], outline[:, 1])
    order = np.argsort(directions)
    directions, ends = directions[order], outline[order]
    (top, left), (bottom, right) = np.ceil(outline.min(0)).astype(int), np.floor(outline.max(0)).astype(int)
    y, x = np.arange(top, bottom + 1)[:, None], np.arange(left, right + 1)[None]
    side = np.searchsorted(directions, np.arctan2(y, x).ravel()).reshape(y.size, x.size) % len(ends)
    starts = np.roll(ends, 1, axis=0)
    steps = ends - starts
    # The cross product of the side with the way to the pixel, (x - x₀) dy - (y - y₀) dx, is not above 0 inside.
    offset = starts[:, 1] * steps[:, 0] - starts[:, 0] * steps[:, 1]
    inside = x * steps[side, 0] - y * steps[side, 1] <= offset[side]
    rows, columns = np.nonzero(inside)
    return rows + top, columns + left
