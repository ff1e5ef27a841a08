"""The pixel grid, and nuclei drawn on it as an exact instance map."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histo.phantom.nuclei import EPITHELIAL, Nuclei

Plane = NDArray[np.float32]
_FAR = 1e3  # µm, "no cell in reach"
_CELL_REACH = 9.0  # µm around an epithelial nucleus in which its cell competes with its neighbours
_LEAST_PIXELS = 3  # a nucleus of which less is visible is left out of picture and mask alike


@dataclass(frozen=True)
class Drawing:
    """Nuclei on the canvas.

    Attributes:
        instances: int32 [H, W], 0 = background, ids 1…K contiguous, each 4-connected.
        nuclei: rows of NUCLEUS [K], row i has id i + 1.
        depth: float32 [H, W], about the distance to the own outline in µm inside nuclei.
        nucleoli: float32 [H, W], 0 to 1.
        nearest, second: float32 [H, W], distance in µm to the outlines of the two nearest epithelial nuclei.
    """

    instances: NDArray[np.int32]
    nuclei: Nuclei
    depth: Plane
    nucleoli: Plane
    nearest: Plane
    second: Plane


@dataclass(frozen=True)
class Canvas:
    """Pixel grid of a field of view; pixel (i, j) has its centre at ((i + ½) mpp, (j + ½) mpp)."""

    shape: tuple[int, int]
    mpp: float

    def window(self, y: float, x: float, reach: float) -> tuple[tuple[slice, slice], Plane, Plane] | None:
        """Slices of the square of ± reach µm, and the offsets dy [h, 1], dx [1, w] in µm; None if off the canvas."""
        bounds = []
        for centre, pixels in zip((y, x), self.shape, strict=True):
            start = max(0, int(np.floor((centre - reach) / self.mpp)))
            stop = min(pixels, int(np.ceil((centre + reach) / self.mpp)))
            if start >= stop:
                return None
            bounds.append((start, stop))
        (top, bottom), (left, right) = bounds
        dy = ((np.arange(top, bottom, dtype=np.float32) + 0.5) * self.mpp - y).astype(np.float32)
        dx = ((np.arange(left, right, dtype=np.float32) + 0.5) * self.mpp - x).astype(np.float32)
        return (slice(top, bottom), slice(left, right)), dy[:, None], dx[None, :]


def draw_nuclei(generator: np.random.Generator, nuclei: Nuclei, canvas: Canvas) -> Drawing:
    """Rasterise the nuclei in their order; a later one never covers an earlier one.

    Where an overlap cuts the later one in two, its largest part stays.
    """
    instances = np.zeros(canvas.shape, np.int32)
    depth, nucleoli = np.zeros(canvas.shape, np.float32), np.zeros(canvas.shape, np.float32)
    nearest, second = np.full(canvas.shape, _FAR, np.float32), np.full(canvas.shape, _FAR, np.float32)
    spots = generator.uniform(-0.45, 0.45, size=(len(nuclei), 2, 2))
    kept: list[int] = []
    for row, nucleus in enumerate(nuclei):
        epithelial = nucleus["type"] == EPITHELIAL
        reach = 1.3 * nucleus["major"] + (_CELL_REACH if epithelial else 0.5)
        place = canvas.window(nucleus["y"], nucleus["x"], reach)
        if place is None:
            continue
        where, dy, dx = place
        inward, u, v = _inward(nucleus, dy, dx)
        free = (inward > 0) & (instances[where] == 0)
        parts, number = ndimage.label(free)
        if number > 1:
            free = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        visible = np.count_nonzero(free)
        if visible < _LEAST_PIXELS or visible < 0.5 * np.count_nonzero(inward > 0):
            continue
        kept.append(row)
        instances[where][free] = len(kept)
        depth[where][free] = inward[free]
        for spot in spots[row, : nucleus["nucleoli"]]:
            distance = ((u - spot[0]) * nucleus["major"]) ** 2 + ((v - spot[1]) * nucleus["minor"]) ** 2
            dot = np.exp(-distance / 0.65**2)
            nucleoli[where][free] = np.maximum(nucleoli[where], dot)[free]
        if epithelial:
            distance = -inward
            second[where] = np.minimum(second[where], np.maximum(nearest[where], distance))
            nearest[where] = np.minimum(nearest[where], distance)
    return Drawing(instances, nuclei[kept], depth, nucleoli, nearest, second)


def _inward(nucleus: np.void, dy: Plane, dx: Plane) -> tuple[NDArray[np.floating], ...]:
    """About the distance inwards from the outline in µm (negative outside), and the nuclear coordinates u, v."""
    cosine, sine = np.float32(np.cos(nucleus["angle"])), np.float32(np.sin(nucleus["angle"]))
    u = (dx * cosine + dy * sine) / np.float32(nucleus["major"])
    v = (dy * cosine - dx * sine) / np.float32(nucleus["minor"])
    v = v + np.float32(nucleus["bend"]) * (np.minimum(u * u, 1.5) - np.float32(0.4))
    radius = np.sqrt(u * u + v * v) + np.float32(1e-6)
    turn = (u + 1j * v) / radius
    h2, h3, h4, h5 = nucleus["harmonics"].astype(np.complex64)
    outline = 1 + (turn * turn * (h2 + turn * (h3 + turn * (h4 + turn * h5)))).real
    return (outline - radius) * np.float32(nucleus["minor"]), u, v
