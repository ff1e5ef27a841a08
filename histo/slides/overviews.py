"""A small picture of a slide that shows which tiles were kept and why others were not."""

import io

import numpy as np
from PIL import Image, ImageDraw

from histo.slides.grids import Grid
from histo.slides.tissue import TissueMaps

_LONGEST = 1600  # pixels of a side
_KEPT, _PEN, _BLURRED = (0, 150, 60), (230, 0, 200), (0, 110, 255)
_OUTLINED = 8  # pixels that a tile must measure for a frame of its own


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
