"""Where a slide has tissue worth reading: a small picture of it, and maps of tissue, pen marks and blur.

The slide is surveyed once at 4 µm/px, block by block, so that one without a pyramid takes no more memory than one with.
Of each block stays its picture at 8 µm/px and how sharp it is; all that follows looks at these alone.

- **White balance.** Channels are divided by their 99th percentile, that of empty glass on any slide with some; where it
  is coloured, there is none; then the brightest of the three stands for white, and the lowest thresholds hold.
- **Tissue** has a saturation above Otsu's threshold, or haematoxylin above Otsu's. Otsu (IEEE Trans. Syst. Man Cybern.
  9 (1979) 62) always finds two classes, also in the noise of an empty slide and within tissue that has no glass around
  it; so both thresholds are held within limits. Specks are left out and small holes are filled.
- **Pen.** Ink of green, blue and black absorbs red more than green, or all colours alike and nearly all light; red ink
  absorbs green and blue alike and hardly any red. Dyes of H&E do neither. Small spots of such colours may be pigment,
  marking dye at a margin or blood, and stay; pen strokes are larger.
- **Blur.** The Laplacian at 4 µm/px, relative to the contrast there. It finds tissue that is out of focus by more than
  a nucleus, coverslip edges and bubbles; slight defocus does not show at this scale.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from histo.dyes import HED
from histo.slides.readers import Slide, UnreadableRegionError
from histo.slides.resampling import Sampling, read_grid, sampling_of

_FINE = 4.0  # µm/px of the survey, where blur of more than a nucleus shows
_POOLED = 2  # pixels of it, a side, in one pixel of the picture
_CELL = 16  # pixels of it, a side, over which sharpness is measured: 64 µm
_LARGEST_READ = 1024  # side of what is read at once, pixels of the level
_GLASS = 99  # percentile
_DARKEST_GLASS = 200  # of 255; a slide without glass is not brightened beyond this
_ROWS = 256  # of the picture, looked at together

# Held against Otsu's thresholds. Glass has saturations up to 0.05 through JPEG's noise, pale fat and mucin from 0.1.
_SATURATION = (0.07, 0.15)
_HAEMATOXYLIN = (0.10, 0.20)
_COLOURLESS = 0.04  # haematoxylin has a saturation above this; dust, bubbles and coverslip edges have not

_COOL = 0.08  # optical density by which ink absorbs more red than green
_BLACK = (0.30, 0.12)  # brightest channel, and the spread of channels, at most; of 1
_RED = (0.40, 0.75, 0.35)  # density of green at least; of blue at least, and of red at most, relative to it

_SPECK, _HOLE, _STROKE = 0.02, 0.01, 0.05  # mm²: smaller pieces of tissue, holes in it and spots of ink are passed over
_INK_EDGE = 40.0  # µm around ink, where it is thin

_CONTRAST = 0.02  # optical density; below it there is nothing to be sharp
_SHARP = 0.3  # root mean square of the Laplacian over the contrast; tissue in focus has 1.5, after a blur of 6 µm 0.2


@dataclass(frozen=True)
class TissueMaps:
    """What a survey found; all arrays are [H, W] or [3, H, W] of the same pixels.

    Attributes:
        picture: uint8 [3, H, W], the slide.
        mpp: its µm/px.
        tissue, pen, blurred: bool [H, W]; tissue includes what is blurred, and nothing under pen.
        unreadable: bool [H, W], what could not be decoded; white in the picture.
        thresholds: of saturation and of haematoxylin.
        first_unreadable: the sentence on the first part that could not be decoded, None where all could.
    """

    picture: NDArray[np.uint8]
    mpp: float
    tissue: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    blurred: NDArray[np.bool_]
    unreadable: NDArray[np.bool_]
    thresholds: tuple[float, float]
    first_unreadable: str | None = None


def find_tissue(slide: Slide) -> TissueMaps:
    """Survey a slide of known µm/px; the module says how."""
    assert slide.mpp is not None
    survey = _Survey(slide, sampling_of(slide, max(_FINE, slide.mpp)))
    maps = find_tissue_in(survey.picture, survey.sampling.mpp * _POOLED)
    blurred = maps.tissue & _enlarged(_is_blurred(survey.sums), maps.tissue.shape)
    unreadable = _enlarged(survey.unreadable, maps.tissue.shape)
    return replace(maps, blurred=blurred, unreadable=unreadable, first_unreadable=survey.first_unreadable)


def find_tissue_in(picture: NDArray[np.uint8], mpp: float) -> TissueMaps:
    """Tissue and pen in a small picture, uint8 [3, H, W] RGB, of a slide; sharpness is not looked at."""
    white, has_glass = _white(picture)
    saturation = np.empty(picture.shape[1:], np.uint8)
    haematoxylin, ink = np.empty_like(saturation), np.empty(saturation.shape, bool)
    for row in range(0, len(saturation), _ROWS):
        rows = slice(row, row + _ROWS)
        saturation[rows], haematoxylin[rows], ink[rows] = _looks(picture[:, rows], white)
    thresholds = (_SATURATION[0], _HAEMATOXYLIN[0])  # Otsu would part tissue alone in two
    if has_glass:
        thresholds = _threshold(saturation, _SATURATION), _threshold(haematoxylin, _HAEMATOXYLIN)
    tissue = saturation > 255 * thresholds[0]
    tissue |= (haematoxylin > 255 * thresholds[1]) & (saturation > 255 * _COLOURLESS)
    area = mpp**2 / 1e6  # mm² of a pixel
    pen = _without_small(ink, _STROKE / area)
    pen = ndimage.binary_dilation(pen, iterations=max(1, round(_INK_EDGE / mpp))) if pen.any() else pen
    tissue = ndimage.binary_closing(tissue) | tissue
    tissue = _without_small(tissue & ~pen, _SPECK / area)
    tissue = ~_without_small(~tissue, _HOLE / area) & ~pen
    nowhere = np.zeros_like(tissue)
    return TissueMaps(picture, mpp, tissue, pen, nowhere, nowhere, thresholds)


class _Survey:
    """What is left of a slide after it was read once at 4 µm/px.

    picture: uint8 [3, H, W]; sums: float32 [3, H / 8, W / 8] rounded up, the means over each cell of the density, of
    its square and of its Laplacian's square; unreadable: bool of the cells; first_unreadable: the first one's sentence.
    """

    def __init__(self, slide: Slide, sampling: Sampling) -> None:
        self.slide, self.sampling = slide, sampling
        width, height = (math.ceil(length / sampling.step) for length in slide.sizes[sampling.level])
        self.picture = np.full((3, math.ceil(height / _POOLED), math.ceil(width / _POOLED)), 255, np.uint8)
        cells = (math.ceil(height / _CELL), math.ceil(width / _CELL))
        self.sums = np.zeros((3, *cells), np.float32)
        self.unreadable = np.zeros(cells, bool)
        self.first_unreadable: str | None = None
        doublings = max(0, math.floor(math.log2(_LARGEST_READ / (max(sampling.step, 1) * _CELL))))
        side = _CELL * 2**doublings
        for top in range(0, height, side):
            for left in range(0, width, side):
                self._read(left, top, side)

    def _read(self, left: int, top: int, side: int) -> None:
        """Read a square; where that fails, its quarters, down to a cell."""
        try:
            block = read_grid(self.slide, self.sampling, left - 1, top - 1, side + 2, side + 2)
        except UnreadableRegionError:
            if side > _CELL:
                for x, y in itertools.product((left, left + side // 2), (top, top + side // 2)):
                    self._read(x, y, side // 2)
                return
            try:
                block = self._alone(left, top)
            except UnreadableRegionError as error:
                self.first_unreadable = self.first_unreadable or str(error)
                self.unreadable[top // _CELL : top // _CELL + 1, left // _CELL : left // _CELL + 1] = True
                return
        means = _pooled(block[:, 1:-1, 1:-1].astype(np.float32), _POOLED)
        _put(self.picture, np.rint(means).astype(np.uint8), left // _POOLED, top // _POOLED)
        _put(self.sums, _pooled(_detail(block), _CELL), left // _CELL, top // _CELL)

    def _alone(self, left: int, top: int) -> NDArray[np.uint8]:
        """A cell and one pixel around it, made of nothing but the cell's own pixels: what is beside it is damaged."""
        step = self.sampling.step
        (x0, x1), (y0, y1) = ((round(start * step), round((start + _CELL) * step)) for start in (left, top))
        pixels = self.slide.read(self.sampling.level, x0, y0, x1 - x0, y1 - y0).transpose(1, 2, 0)
        cell = np.asarray(Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.BOX))
        return np.pad(cell.transpose(2, 0, 1), ((0, 0), (1, 1), (1, 1)), "edge")


def _put(into: NDArray[Any], values: NDArray[Any], left: int, top: int) -> None:
    """Write [C, h, w] at a place of [C, H, W], as far as it lies inside."""
    place = into[:, top : top + values.shape[1], left : left + values.shape[2]]
    place[:] = values[:, : place.shape[1], : place.shape[2]]


def _detail(block: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Density, its square and its Laplacian's square, float32 [3, H, W], of uint8 [3, H + 2, W + 2]."""
    grey = np.maximum(block.mean(0, dtype=np.float32), 1)
    density = -np.log10(grey / 255)
    around = density[:-2, 1:-1] + density[2:, 1:-1] + density[1:-1, :-2] + density[1:-1, 2:]
    inner = density[1:-1, 1:-1]
    return np.stack([inner, inner**2, (around - 4 * inner) ** 2])


def _is_blurred(sums: NDArray[np.float32]) -> NDArray[np.bool_]:
    mean, square, laplacian = sums
    contrast = np.sqrt(np.maximum(square - mean**2, 0))
    return (contrast > _CONTRAST) & (np.sqrt(laplacian) < _SHARP * contrast)


def _looks(
    picture: NDArray[np.uint8], white: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    """Saturation and haematoxylin in 255ths (2.55 at most of the latter's density), and ink, each [H, W]."""
    share = np.clip(picture / white[:, None, None], 1 / 255, 1)
    brightest, spread = share.max(0), share.max(0) - share.min(0)
    density = -np.log10(share)
    amounts = np.linalg.inv(HED)[:, 0].astype(np.float32) @ density.reshape(3, -1)
    red, green, blue = density
    cool = red - green > _COOL
    black = (brightest < _BLACK[0]) & (spread < _BLACK[1])
    crimson = (green > _RED[0]) & (blue > _RED[1] * green) & (red < _RED[2] * green)
    haematoxylin = np.clip(amounts, 0, 1).reshape(red.shape)
    return (255 * spread / brightest).astype(np.uint8), (255 * haematoxylin).astype(np.uint8), cool | black | crimson


def _white(picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], bool]:
    """Level of white in each channel, [3], and whether it is that of glass."""
    levels = []
    for channel in picture:
        counts = np.cumsum(np.bincount(channel.ravel(), minlength=256))
        levels.append(int(np.searchsorted(counts, counts[-1] * _GLASS / 100)))
    has_glass = max(levels) - min(levels) <= _SATURATION[0] * max(levels)
    white = levels if has_glass else [max(levels)] * 3
    return np.maximum(white, _DARKEST_GLASS).astype(np.float32), has_glass


def _threshold(values: NDArray[np.uint8], limits: tuple[float, float]) -> float:
    """Otsu's threshold of 255ths, within limits: the level that parts two classes farthest apart."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below / total - sums) ** 2 / (below * (total - below))
    best = int(np.nan_to_num(between, nan=0, posinf=0).argmax())
    return min(max(best / 255, limits[0]), limits[1])


def _pooled(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Means over squares, [C, H / side, W / side]."""
    channels, height, width = values.shape
    return values.reshape(channels, height // side, side, width // side, side).mean((2, 4))


def _enlarged(cells: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    factor = _CELL // _POOLED
    return cells.repeat(factor, 0).repeat(factor, 1)[: shape[0], : shape[1]]


def _without_small(mask: NDArray[np.bool_], smallest: float) -> NDArray[np.bool_]:
    """The mask without its 4-connected pieces of fewer pixels."""
    pieces, _ = ndimage.label(mask)
    large = np.bincount(pieces.ravel()) >= smallest
    large[0] = False
    return large[pieces]
