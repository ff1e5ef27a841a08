"""Small pictures of a slide: as it is, and showing which tiles were kept and why others were not."""

import io
import math
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from histo.slides.grids import Grid
from histo.slides.readers import Slide, UnreadableRegionError
from histo.slides.resampling import read_grid, sampling_of
from histo.slides.tissue import TissueMaps

_LONGEST = 1600  # pixels of a side
_LARGEST_READ = 2048  # side of what is read at once, pixels of the level
_KEPT, _PEN, _BLURRED = (0, 150, 60), (230, 0, 200), (0, 110, 255)
_OUTLINED = 8  # pixels that a tile must measure for a frame of its own


def picture_of(slide: Slide, longest: int = 1000) -> tuple[NDArray[np.uint8], float]:
    """A slide of known µm/px, uint8 [3, H, W] of at most about `longest` pixels a side, and the µm/px of it.

    Read in blocks, so that a slide without a pyramid takes no more memory; white where it cannot be decoded.
    """
    assert slide.mpp is not None
    sampling = sampling_of(slide, slide.mpp * max(1.0, max(slide.sizes[0]) / longest))
    width, height = (math.ceil(length / sampling.step) for length in slide.sizes[sampling.level])
    picture = np.full((3, height, width), 255, np.uint8)
    side = max(1, int(_LARGEST_READ / max(sampling.step, 1)))
    for top in range(0, height, side):
        for left in range(0, width, side):
            block = picture[:, top : top + side, left : left + side]
            with suppress(UnreadableRegionError):
                block[:] = read_grid(slide, sampling, left, top, block.shape[2], block.shape[1])
    return picture, sampling.mpp


def overview(maps: TissueMaps, grid: Grid) -> bytes:
    """A JPEG file: what is no tissue is dimmed, pen is magenta, blur blue, and kept tiles are framed green."""
    scale = min(1.0, _LONGEST / max(maps.picture.shape[1:]))
    enlarged = max(1, int(_LONGEST / 2 / max(maps.picture.shape[1:])))  # of small slides
    size = tuple(max(1, round(length * scale * enlarged)) for length in maps.picture.shape[:0:-1])
    colours = maps.picture.transpose(1, 2, 0).astype(np.float32)
    colours[~maps.tissue] = 0.7 * colours[~maps.tissue] + 0.3 * 160
    for mask, colour in ((maps.pen, _PEN), (maps.blurred, _BLURRED)):
        colours[mask] = 0.5 * colours[mask] + 0.5 * np.array(colour, np.float32)
    picture = Image.fromarray(colours.astype(np.uint8)).resize(size, Image.Resampling.BOX).convert("RGBA")
    pixel = grid.sampling.mpp / maps.mpp * scale * enlarged
    tint = Image.new("RGBA", size)
    pen = ImageDraw.Draw(tint)
    framed = grid.size * pixel >= _OUTLINED
    fill, frame = (*_KEPT, 25 if framed else 90), (*_KEPT, 255 if framed else 0)
    for row, column in grid.kept.tolist():
        left, top = (place * pixel for place in grid.box(row, column))
        pen.rectangle((left, top, left + grid.size * pixel - 1, top + grid.size * pixel - 1), fill, frame)
    data = io.BytesIO()
    Image.alpha_composite(picture, tint).convert("RGB").save(data, "JPEG", quality=85)
    return data.getvalue()
