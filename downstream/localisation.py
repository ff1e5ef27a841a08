"""Whether attention went where a slide's label shows, on slides with masks of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from histo.errors import InputError
from histo.masks import read_instances
from histo.slides.grids import coverage
from histo.slides.readers import Slide
from histo.slides.streaming import SlideEntry
from histo.tiles.entries import TileEntry

_INSIDE = 0.5  # share of a tile that a mask covers, from which the tile counts as marked
_NOTHING = 1e-6  # share below which it is not marked; sums of pixels round
_SAME_SHAPE = 0.02  # by which the aspect of a mask may differ from its slide's


def marked_shares(entries: Sequence[TileEntry]) -> NDArray[np.float64] | None:
    """The share of each tile of a slide that the slide's mask covers, [T]; None without a slide or a mask.

    Raises:
        InputError: the slide or the mask cannot be read, or they have different shapes.
    """
    own = of_slide(entries)
    if own is None or own[0].row.mask is None:
        return None
    first = own[0]
    with Slide(first.row.path, first.row.mpp) as slide:
        width, height = slide.sizes[first.sampling.level]
    mask = read_mask(own[0].row.mask, (3, height, width))
    scale = first.sampling.step * mask.shape[1] / width  # pixels of the tiles to those of the mask
    places = np.array([entry.box[:2] for entry in own], float) * scale
    lefts, column = np.unique(places[:, 0], return_inverse=True)
    tops, row = np.unique(places[:, 1], return_inverse=True)
    return coverage(mask, lefts, tops, first.box[2] * scale)[row, column]


def localisation(weights: NDArray[np.floating], shares: NDArray[np.floating]) -> float | None:
    """The area under the ROC curve of weights: tiles marked by half or more against those not marked at all.

    By ranks, ties counted half (Mann and Whitney, Annals of Mathematical Statistics 18, 1947). Tiles between are left
    out, for they are neither; None where one of both kinds is missing.

    Args:
        weights: [T]; shares: [T], as `marked_shares` gives them.
    """
    marked, bare = shares >= _INSIDE, shares < _NOTHING
    counted = marked | bare
    if not marked.any() or not bare.any():
        return None
    ranks = rankdata(weights[counted])[marked[counted]]
    return float((ranks.sum() - len(ranks) * (len(ranks) + 1) / 2) / (len(ranks) * bare.sum()))


def of_slide(entries: Sequence[TileEntry]) -> list[SlideEntry] | None:
    """The entries, if all of them are of slides that can be read; else None."""
    slides = [entry for entry in entries if isinstance(entry, SlideEntry)]
    return slides if slides and len(slides) == len(entries) else None


def read_mask(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask, bool at any scale, of what has this shape, [3, H, W].

    Raises:
        InputError: it cannot be read, or has another shape.
    """
    mask = read_instances(path) > 0
    ratio = mask.shape[0] / mask.shape[1] * shape[2] / shape[1]
    if abs(ratio - 1) > _SAME_SHAPE:
        raise InputError(
            f"{path} is {mask.shape[0]} x {mask.shape[1]} pixels (height x width), but its slide {shape[1]} x "
            f"{shape[2]}, expected the same shape at any scale; give a mask of the whole slide."
        )
    return mask
