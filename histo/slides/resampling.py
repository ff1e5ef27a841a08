"""Reading a slide at any µm/px: which level, and how its pixels become those of a tile."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo.errors import InputError
from histo.magnification import FINEST, TOLERANCE
from histo.slides.readers import Slide

_LANCZOS = 3  # pixels on each side of a new pixel that its value is made of, in the larger of both grids


@dataclass(frozen=True)
class Sampling:
    """A grid of pixels laid over a slide.

    Attributes:
        level: the level that is read.
        step: pixels of that level from one pixel of the grid to the next; 1 takes them as they are.
        mpp: µm/px of the grid.
    """

    level: int
    step: float
    mpp: float


def sampling_of(slide: Slide, mpp: float, *, allow_upsample: bool = False) -> Sampling:
    """How to read a slide at a µm/px.

    The coarsest level that is not coarser than asked is resampled (Lanczos, with a support that grows with the step, so
    that nothing aliases). A level within 2 % of what was asked is taken as it is, and then the tile's µm/px is its own.

    Args:
        mpp: µm/px asked for.
        allow_upsample: also where that is more than 1.1 times finer than the slide.

    Raises:
        InputError: the slide's µm/px is unknown, or what is asked is finer than allowed.
    """
    if slide.mpp is None:
        power = "" if slide.power is None else f" (only an objective power of {slide.power:g}, which settles none)"
        raise InputError(
            f"{slide.path} does not say its µm/px{power}; look it up and give --assume_mpp, or the column "
            "mpp of a slides.csv."
        )
    if mpp * FINEST < slide.mpp and not allow_upsample:
        raise InputError(
            f"{slide.path} has {slide.mpp:.4g} µm/px, coarser than the {mpp:.4g} asked for; ask for "
            f"{slide.mpp:.4g} or more (`nucleate tile` also takes --allow_upsample)."
        )
    own = [slide.mpp * ratio for ratio in slide.downsamples]
    for level, found in enumerate(own):
        if abs(found / mpp - 1) <= TOLERANCE:
            return Sampling(level, 1.0, found)
    level = max([level for level, found in enumerate(own) if found < mpp], default=0)
    return Sampling(level, mpp / own[level], mpp)


def read_grid(slide: Slide, sampling: Sampling, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
    """A rectangle of a grid's pixels; beyond the slide they are white.

    The same pixel is the same in whatever rectangle it is read, up to rounding, since each is made of what lies around
    it and not of its rectangle alone.

    Args:
        left, top, width, height: in pixels of the grid.

    Returns:
        uint8 [3, height, width] RGB.

    Raises:
        UnreadableRegionError: it cannot be decoded.
    """
    if sampling.step == 1:
        return np.ascontiguousarray(slide.read(sampling.level, left, top, width, height))
    step = sampling.step
    margin = math.ceil(_LANCZOS * max(step, 1)) + 1
    spans = [
        _span(place * step, (place + length) * step, margin, limit)
        for place, length, limit in zip((left, top), (width, height), slide.sizes[sampling.level], strict=True)
    ]
    starts = [start for start, _ in spans]
    lengths = [end - start for start, end in spans]
    pixels = slide.read(sampling.level, *starts, *lengths)
    box = (
        left * step - starts[0],
        top * step - starts[1],
        (left + width) * step - starts[0],
        (top + height) * step - starts[1],
    )
    picture = Image.fromarray(pixels.transpose(1, 2, 0)).resize((width, height), Image.Resampling.LANCZOS, box)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _span(start: float, end: float, margin: int, limit: int) -> tuple[int, int]:
    """Whole pixels around a stretch, with a margin that stays on the slide: what lies beyond would bleed into it."""
    first, last = math.floor(start), math.ceil(end)
    return max(first - margin, min(first, 0)), min(last + margin, max(last, limit))
