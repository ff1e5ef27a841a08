"""Images of any size through a network that reads square tiles: windows that overlap, blended and delivered in bands.

Windows lie on a grid of the whole plane, so what a pixel becomes does not depend on the image's size, and reach over
the image's border, beyond which the image is mirrored. Every pixel is the mean of all windows over it, with weights
that fall to zero at a window's edges as sin² and add up to a constant where the step divides the tile. Where windows
overlap by less than half they begin at the image's first pixels, the weights fall only where windows overlap, and a
pixel of the border has one window. A side no longer than a tile is read in one window. Floats exist for one row of
windows at a time and are handed on as soon as no further window reaches them, so that memory grows with the image's
width alone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histo.errors import InputError

Corner = tuple[int, int]
Network = Callable[[Tensor, list[Corner]], Tensor]
"""Windows float [N, 3, t, t] in [-1, 1] and the image's row and column of their first pixels → float [N, C, t, t]."""
Band = tuple[int, NDArray[np.float32]]
"""First row, and float32 [C, rows, W]."""


@dataclass(frozen=True)
class Grid:
    """Where windows lie.

    Args:
        tile: side of the windows in pixels.
        step: pixels between neighbours, which divides the tile or lies between its half and itself; tile / 2 overlaps
            by half.
        origin: row and column of any one window's first pixel; without effect where windows overlap by less than half.
    """

    tile: int
    step: int
    origin: Corner = (0, 0)

    def __post_init__(self) -> None:
        if self.tile < 1 or self.step < 1 or (self.tile % self.step and not self.narrow):
            raise InputError(
                f"Windows of {self.tile} pixels have a step of {self.step}, expected a step that divides the window, "
                "or one from its half to itself; choose a half or a quarter of it."
            )

    @property
    def narrow(self) -> bool:
        """Whether windows overlap, and by less than half."""
        return self.tile / 2 < self.step < self.tile

    def starts(self, length: int, axis: int) -> list[int]:
        """First pixels, rising, of the windows that touch a side of `length` pixels; below 0 for the first ones."""
        if length <= self.tile:
            return [0]
        if self.narrow:
            return list(range(0, length - (self.tile - self.step), self.step))
        first = self.origin[axis] % self.step
        first -= -(-(self.tile - 1 + first) // self.step) * self.step  # the least above -tile
        first += self.step if first <= -self.tile else 0
        return list(range(first, length, self.step))

    def weights(self, length: int) -> NDArray[np.float32]:
        """float32 [tile], which add up to 1 wherever windows on a side of `length` pixels overlap, up to its border."""
        if length <= self.tile:
            return np.ones(self.tile, dtype=np.float32)
        if self.narrow:
            overlap = self.tile - self.step
            ramp = np.sin(np.pi * (np.arange(overlap) + 0.5) / (2 * overlap)) ** 2
            flat = np.ones(2 * self.step - self.tile)
            return np.concatenate([ramp, flat, ramp[::-1]]).astype(np.float32)
        bump = np.sin(np.pi * (np.arange(self.tile) + 0.5) / self.tile) ** 2
        total = bump.reshape(-1, self.step).sum(0)
        return (bump / np.tile(total, self.tile // self.step)).astype(np.float32)


def window_of(tile: int, step: float) -> int:
    """The side of windows of an image that a network reads at `tile` pixels, `step` of the image's to one; even."""
    return max(2, 2 * round(tile * step / 2))


def at_side(network: Network, side: int) -> Network:
    """A network that reads windows of any side at `side` pixels; what it makes of them is brought back to their own."""

    def look(tiles: Tensor, corners: list[Corner]) -> Tensor:
        own = tiles.shape[2:]
        if own == (side, side):
            return network(tiles, corners)
        read = F.interpolate(tiles, (side, side), mode="bilinear", antialias=True, align_corners=False)
        outputs = network(read, corners).float()
        return F.interpolate(outputs, tuple(own), mode="bilinear", align_corners=False)

    return look


def windows(image: NDArray[np.uint8], corners: list[Corner], tile: int) -> NDArray[np.uint8]:
    """Square cut-outs uint8 [N, C, tile, tile] of an image [C, H, W], mirrored beyond its borders."""
    height, width = image.shape[1:]
    cut = [
        image[:, _mirrored(row, tile, height)[:, None], _mirrored(column, tile, width)[None, :]]
        for row, column in corners
    ]
    return np.stack(cut)


@torch.no_grad()
def blend(network: Network, image: NDArray[np.uint8], grid: Grid, batch: int = 16) -> Iterator[Band]:
    """What a network makes of an image, in bands of rows from top to bottom.

    Args:
        network: any function of windows; it decides on device and precision.
        image: uint8 [3, H, W].
        batch: windows at a time.

    Yields:
        Bands that follow one another and cover all rows, float32 [C, rows, W].
    """
    height, width = image.shape[1:]
    rows, columns = grid.starts(height, 0), grid.starts(width, 1)
    left, right = columns[0], columns[-1] + grid.tile
    # Pixels of the border that one window alone has, where its weight is below 1.
    heights, widths = (_alone(grid, starts, length) for starts, length in ((rows, height), (columns, width)))
    down, across = (torch.from_numpy(grid.weights(length)) for length in (height, width))
    weight = down[:, None] * across
    total: Tensor | None = None
    for row in rows:
        for first in range(0, len(columns), batch):
            corners = [(row, column) for column in columns[first : first + batch]]
            tiles = torch.from_numpy(windows(image, corners, grid.tile)).float() / 127.5 - 1
            outputs = network(tiles, corners).float().cpu()
            if total is None:
                total = torch.zeros(outputs.shape[1], grid.tile, right - left)
            for (_, column), output in zip(corners, outputs, strict=True):
                total[:, :, column - left : column - left + grid.tile].addcmul_(output, weight)
        assert total is not None
        done = grid.tile if row == rows[-1] else grid.step
        top, bottom = max(row, 0), min(row + done, height)
        if bottom > top:
            band = total[:, top - row : bottom - row, -left : width - left].numpy().copy()
            if grid.narrow:
                band /= heights[top:bottom, None] * widths
            yield top, band
        kept = total[:, done:].clone()
        total[:, : grid.tile - done] = kept
        total[:, grid.tile - done :] = 0


def _alone(grid: Grid, starts: list[int], length: int) -> NDArray[np.float32]:
    """What the weights of all windows come to at every pixel of a side, float32 [length]."""
    total = np.zeros(starts[-1] + grid.tile - starts[0], np.float32)
    for start in starts:
        total[start - starts[0] : start - starts[0] + grid.tile] += grid.weights(length)
    return total[-starts[0] :][:length]


def to_image(bands: Iterable[Band], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [C, H, W] of bands in [-1, 1], rounded and clipped."""
    image: NDArray[np.uint8] | None = None
    for top, band in bands:
        if image is None:
            image = np.empty((len(band), *shape), dtype=np.uint8)
        grey = np.rint((band + 1) * 127.5)
        image[:, top : top + band.shape[1]] = np.clip(grey, 0, 255, out=grey)
    assert image is not None
    return image


def _mirrored(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Positions on a side of `length` pixels that `count` positions from `start` stand for: 1 0 | 0 1 2 | 2 1."""
    folded = np.arange(start, start + count) % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)
