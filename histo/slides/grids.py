"""The tiles of a slide: a grid over it, and which of its squares hold enough tissue."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.slides.readers import Slide
from histo.slides.resampling import Sampling, sampling_of
from histo.slides.tissue import TissueMaps, find_tissue

REASONS = ("glass", "little tissue", "pen", "blurred", "unreadable")  # why a tile is dropped
_GLASS, _PEN, _BLURRED = 0.02, 0.05, 0.5  # share of tissue, of pen, and of the tissue that is blurred


@dataclass(frozen=True)
class Tiling:
    """How slides are cut.

    Attributes:
        mpp: µm/px of the tiles.
        size: their side; pixels.
        overlap: pixels that neighbours share.
        tissue: share of a tile that must be tissue.
        allow_upsample: also where slides are more than 1.1 times coarser than `mpp`.

    Raises:
        InputError: a value out of its range.
    """

    mpp: float
    size: int = 256
    overlap: int = 0
    tissue: float = 0.5
    allow_upsample: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mpp) and 0.05 <= self.mpp <= 20):
            raise InputError(f"mpp is {self.mpp}, expected 0.05 to 20 µm/px, such as 0.25; correct it.")
        if not 16 <= self.size <= 4096:
            raise InputError(f"size is {self.size}, expected tiles of 16 to 4096 pixels; correct it.")
        if not 0 <= self.overlap < self.size:
            raise InputError(f"overlap is {self.overlap}, expected 0 to {self.size - 1} pixels; correct it.")
        if not 0 < self.tissue <= 1:
            raise InputError(f"tissue is {self.tissue}, expected a share above 0 and up to 1; correct it.")


@dataclass(frozen=True)
class Grid:
    """The squares of a slide that lie wholly on it, row by row.

    Attributes:
        sampling: the pixels they are made of.
        size, stride: their side, and from one to the next; pixels of the sampling.
        share: float32 [rows, columns], the share of each that is tissue.
        verdict: int8 [rows, columns], -1 for kept, else the position of the reason in `REASONS`.
    """

    sampling: Sampling
    size: int
    stride: int
    share: NDArray[np.float32]
    verdict: NDArray[np.int8]

    @property
    def kept(self) -> NDArray[np.int64]:
        """(row, column) of every kept square, int64 [N, 2]."""
        return np.argwhere(self.verdict < 0)

    def dropped(self) -> dict[str, int]:
        """How many were dropped, by reason."""
        counts = Counter(self.verdict[self.verdict >= 0].tolist())
        return {name: counts[number] for number, name in enumerate(REASONS)}

    def box(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of a square, in pixels of the sampling."""
        return column * self.stride, row * self.stride


def grid_of(slide: Slide, tiling: Tiling) -> tuple[Grid, TissueMaps]:
    """The squares of a slide and what the survey of its tissue found.

    A square is dropped where a part of it cannot be read, a twentieth of it is pen, or too little of it is tissue; and
    where half of its tissue is blurred.

    Raises:
        InputError: µm/px unknown or finer than the slide's.
    """
    sampling = sampling_of(slide, tiling.mpp, allow_upsample=tiling.allow_upsample)
    maps = find_tissue(slide)
    stride = tiling.size - tiling.overlap
    columns, rows = (
        max(0, (math.floor(length / sampling.step) - tiling.size) // stride + 1)
        for length in slide.sizes[sampling.level]
    )
    pixel = sampling.mpp / maps.mpp  # of the tiles, in pixels of the survey
    across, down = ((np.arange(number) * stride * pixel) for number in (columns, rows))
    shares = {
        name: coverage(getattr(maps, name), across, down, tiling.size * pixel)
        for name in ("tissue", "pen", "blurred", "unreadable")
    }
    verdict = np.full((rows, columns), -1, np.int8)
    for reason, found in (  # the last that holds is the one that is told
        ("blurred", shares["blurred"] > _BLURRED * shares["tissue"]),
        ("little tissue", shares["tissue"] < tiling.tissue),
        ("glass", shares["tissue"] < _GLASS),
        ("pen", shares["pen"] > _PEN),
        ("unreadable", shares["unreadable"] > 0),
    ):
        verdict[found] = REASONS.index(reason)
    return Grid(sampling, tiling.size, stride, shares["tissue"].astype(np.float32), verdict), maps


def coverage(
    mask: NDArray[np.bool_], lefts: NDArray[np.floating], tops: NDArray[np.floating], side: float
) -> NDArray[np.float64]:
    """The share of squares that a mask covers, cut pixels counted by their parts.

    Args:
        mask: bool [H, W]; False beyond.
        lefts, tops: float, where the columns and rows of squares begin, [C] and [R]; pixels of the mask, 0 or more.
        side: of the squares; pixels of the mask.

    Returns:
        float64 [R, C].
    """
    if not (len(lefts) and len(tops) and mask.any()):
        return np.zeros((len(tops), len(lefts)))
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.uint32)
    np.cumsum(mask, axis=0, out=sums[1:, 1:])
    np.cumsum(sums, axis=1, out=sums)

    def at(places: NDArray[Any], length: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        places = np.minimum(places, length)
        low = np.minimum(np.floor(places).astype(np.int64), length - 1)
        return low, low + 1, places - low

    def band(places: NDArray[Any]) -> NDArray[Any]:
        """The integral over all rows above each place, [R, W + 1]; linear within a pixel, hence exact."""
        low, high, part = at(places, mask.shape[0])
        return sums[low] * (1 - part[:, None]) + sums[high] * part[:, None]

    def corner(rows: NDArray[Any], places: NDArray[Any]) -> NDArray[Any]:
        low, high, part = at(places, mask.shape[1])
        return rows[:, low] * (1 - part) + rows[:, high] * part

    stripes = band(tops + side) - band(tops)
    return (corner(stripes, lefts + side) - corner(stripes, lefts)) / side**2
