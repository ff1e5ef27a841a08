"""Writing a picture as a slide: a tiled TIFF with a pyramid and its µm/px, which OpenSlide and tiffslide open."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from histo.files import written_whole

_TILE = 256  # pixels of a side
_SMALLEST = 512  # pixels; a level whose longer side is at most so long is the last


def write_pyramid(path: Path, image: NDArray[np.uint8], mpp: float) -> None:
    """Write uint8 [3, H, W] RGB; each level has half the pixels a side of the one before, by means of four.

    Raises:
        OSError: it cannot be written.
    """
    level, picture = 0, np.ascontiguousarray(image.transpose(1, 2, 0))
    with written_whole(path) as file, tifffile.TiffWriter(file) as writer:
        while True:
            writer.write(
                picture,
                photometric="rgb",
                subfiletype=int(level > 0),
                tile=(_TILE, _TILE),
                compression="deflate",
                compressionargs={"level": 1},
                resolution=(1e4 / mpp / 2**level, 1e4 / mpp / 2**level),
                resolutionunit="CENTIMETER",
            )
            if max(picture.shape[:2]) <= _SMALLEST:
                return
            height, width = (side // 2 for side in picture.shape[:2])
            squares = picture[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
            picture, level = np.rint(squares.mean((1, 3))).astype(np.uint8), level + 1
