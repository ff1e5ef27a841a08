"""Slides made by code: phantom tissue on glass, as TIFF with and without pyramid and resolution."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from histo.phantom import PhantomTissue

MPP = 0.5


def tissue_on_glass(rows: int = 1, columns: int = 2, side: int = 512) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] at 0.5 µm/px: phantom tissue, with glass of half a tile around it; JPEG's noise is imitated."""
    phantom = PhantomTissue(3, size=side, mpp=MPP, count=rows * columns, cache_mb=0)
    height, width = (rows + 1) * side, (columns + 1) * side
    picture = np.full((height, width, 3), 243, np.int16)
    picture += np.random.default_rng(0).integers(-2, 3, picture.shape, dtype=np.int16)
    for number in range(rows * columns):
        top, left = (side // 2 + place * side for place in divmod(number, columns))
        picture[top : top + side, left : left + side] = phantom[number].image.transpose(1, 2, 0)
    return picture.astype(np.uint8)


def write_slide(
    path: Path,
    picture: NDArray[np.uint8],
    *,
    mpp: float | tuple[float, float] | None = MPP,
    levels: int = 3,
    tile: int | None = 256,
) -> Path:
    """A TIFF of uint8 [H, W, 3]; each level has half the pixels of the one before, by means of four.

    Args:
        mpp: µm/px, (across, down) where they differ; None writes no resolution.
        tile: side of the file's own tiles; None writes strips, which OpenSlide does not open.
    """
    across, down = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            options: dict = {"compression": "deflate", "compressionargs": {"level": 1}}
            if tile is not None:
                options["tile"] = (tile, tile)
            if tile is None:
                options["rowsperstrip"] = 64
            if across is not None and down is not None:
                options["resolution"] = (1e4 / across / 2**level, 1e4 / down / 2**level)
                options["resolutionunit"] = "CENTIMETER"
            writer.write(
                picture,
                photometric="rgb",
                subfiletype=int(level > 0),
                **options,
            )
            height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
            halves = picture[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
            picture = np.rint(halves.mean((1, 3))).astype(np.uint8)
    return path
