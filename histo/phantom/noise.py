"""Smooth random functions of position in µm, the same tissue at every magnification."""

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_SPLINE_VARIANCE = 151 / 315  # mean over positions of the summed squares of the four cubic B-spline weights


class Field(Protocol):
    """A function of position in µm."""

    def on(self, shape: tuple[int, int], mpp: float) -> NDArray[np.float32]:
        """Values at the pixel centres of a canvas: float32 [H, W]."""
        ...

    def at(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.floating]:
        """Values at points in µm, [N]."""
        ...


class SmoothField:
    """A uniform cubic B-spline over a grid of normal draws: mean 0, variance about 1.

    Args:
        generator: where the grid comes from; the draws depend on `extent` and `grain` alone.
        extent: height and width of the field of view, µm.
        grain: spacing of the grid, µm.
    """

    def __init__(self, generator: np.random.Generator, extent: tuple[float, float], grain: float) -> None:
        cells = [int(np.ceil(side / grain)) + 4 for side in extent]
        self.extent = extent
        self.grain = grain
        self.grid = generator.standard_normal(cells, dtype=np.float32) / np.float32(_SPLINE_VARIANCE)

    def on(self, shape: tuple[int, int], mpp: float) -> NDArray[np.float32]:
        """Values at the pixel centres of a canvas: float32 [H, W]."""
        # Four taps an axis rather than a product of matrices: the sums keep one order whatever the threads of BLAS.
        first, weights = _pixel_taps(shape[0], mpp, self.grain)
        rows = sum(weights[tap][:, None] * self.grid[first + tap] for tap in range(4))
        first, weights = _pixel_taps(shape[1], mpp, self.grain)
        return sum(weights[tap] * rows[:, first + tap] for tap in range(4))

    def at(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values at points in µm, float32 [N]; points outside the field take the value at its edge."""
        row, down = _taps(np.clip(y, 0, self.extent[0]) / self.grain)
        column, across = _taps(np.clip(x, 0, self.extent[1]) / self.grain)
        return sum(down[i] * across[j] * self.grid[row + i, column + j] for i in range(4) for j in range(4))


def _taps(positions: NDArray[np.float64]) -> tuple[NDArray[np.int_], NDArray[np.float32]]:
    """First of the four grid points that each position [N] leans on, and the cubic B-spline weights [4, N]."""
    first = np.floor(positions).astype(int)
    t = positions - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return first, weights.astype(np.float32)


@lru_cache(maxsize=64)
def _pixel_taps(pixels: int, mpp: float, grain: float) -> tuple[NDArray[np.int_], NDArray[np.float32]]:
    return _taps(np.arange(0.5, pixels) * mpp / grain)
