"""Where a bag classifier looked: its attention over the picture of a slide, or the tiles that it looked at most."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from downstream.localisation import of_slide, read_mask
from histo.errors import writing
from histo.files import written_whole
from histo.probes.embedding import fitted
from histo.sheets import sheet
from histo.slides.overviews import picture_of
from histo.slides.readers import Slide
from histo.slides.tables import SlideRow
from histo.tiles import TileSet

TITLE, LEGEND = 20, 36  # rows above and below the picture; pixels
OPACITY = 0.2, 0.7  # of no attention, under which the tissue must show, and of the greatest
SHOWN = 8  # tiles of a contact sheet, a row
_SIDE = 128  # of a tile there
_ANCHORS = np.array([[40, 30, 110], [30, 130, 150], [250, 225, 50]], np.float64)  # dark to light, for any eye
_TRUTH = (220, 20, 20)


def colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The colour of each value from 0 (dark blue) to 1 (yellow), uint8 [..., 3]."""
    places = np.linspace(0, 1, len(_ANCHORS))
    found = [np.interp(values, places, _ANCHORS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(found, -1)).astype(np.uint8)


def heat_map(
    picture: NDArray[np.uint8],
    boxes: NDArray[np.floating],
    weights: NDArray[np.floating],
    title: str = "",
    truth: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Attention over a picture, with a title above and the scale of the colours below.

    Colours go from no attention to the greatest of the bag, which the scale gives as a multiple of an even share.

    Args:
        picture: uint8 [3, H, W] of a slide.
        boxes: [T, 4], left, top, right and bottom of its tiles; pixels of the picture. What no tile covers stays.
        weights: [T], 0 or more.
        truth: bool [H, W], a region to outline in red.

    Returns:
        uint8 [TITLE + H + LEGEND, W, 3] RGB.
    """
    _, height, width = picture.shape
    highest = float(weights.max())
    relative = weights / highest if highest else weights
    opacity = OPACITY[0] + (OPACITY[1] - OPACITY[0]) * relative
    shown = picture.transpose(1, 2, 0).copy()
    tiles = zip(np.rint(boxes).astype(int).tolist(), colours(relative), opacity, strict=True)
    for (left, top, right, bottom), colour, share in tiles:
        where = slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))
        shown[where] = np.rint((1 - share) * shown[where] + share * colour)
    if truth is not None:
        inner = truth.copy()
        inner[2:-2, 2:-2] &= truth[:-4, 2:-2] & truth[4:, 2:-2] & truth[2:-2, :-4] & truth[2:-2, 4:]
        shown[truth & ~inner] = _TRUTH
    page = Image.new("RGB", (width, TITLE + height + LEGEND), "white")
    page.paste(Image.fromarray(shown), (0, TITLE))
    pen = ImageDraw.Draw(page)
    pen.text((4, 4), title, fill="black")
    bar = colours(np.linspace(0, 1, min(256, width)))[None].repeat(12, 0)
    page.paste(Image.fromarray(bar), (0, TITLE + height + 4))
    marked = "; red: marked in the slide's mask" if truth is not None and truth.any() else ""
    scale = f"attention from 0 to {highest * len(weights):.1f} times an even share{marked}"
    pen.text((4, TITLE + height + 19), scale, fill="black")
    return np.asarray(page)


def contact_sheet(tiles: TileSet, weights: NDArray[np.floating], title: str = "") -> NDArray[np.uint8]:
    """The tiles of a bag that were attended to most, each under its multiple of an even share.

    Args:
        tiles: of the bag; weights: [T], of each.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    order = np.argsort(-weights, kind="stable")[:SHOWN]
    page = sheet(
        {
            f"{place + 1}: {weights[k] * len(weights):.2f} x even": fitted(tiles[int(k)], _SIDE)[None]
            for place, k in enumerate(order)
        }
    )
    whole = Image.new("RGB", (page.shape[1], TITLE + page.shape[0]), "white")
    whole.paste(Image.fromarray(page), (0, TITLE))
    ImageDraw.Draw(whole).text((4, 4), title, fill="black")
    return np.asarray(whole)


def draw_bag(tiles: TileSet, weights: NDArray[np.floating], title: str = "") -> NDArray[np.uint8]:
    """What a bag's attention looks like: over the slide that its tiles are cut from, else its most attended tiles.

    Args:
        tiles: of the bag; weights: [T], of each.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        InputError: the slide, its mask or a tile cannot be read.
    """
    entries = of_slide(list(tiles.entries))
    if entries is None:
        return contact_sheet(tiles, weights, title)
    boxes = np.array([entry.box for entry in entries], float)
    boxes[:, 2:] += boxes[:, :2]
    return draw_slide(entries[0].row, boxes, entries[0].sampling.mpp, weights, title)


def draw_slide(
    row: SlideRow,
    boxes: NDArray[np.floating],
    mpp: float | None,
    weights: NDArray[np.floating],
    title: str = "",
) -> NDArray[np.uint8]:
    """Attention over a slide of known µm/px, with the outline of its mask where it has one.

    Args:
        boxes: [T, 4], left, top, right and bottom of its tiles.
        mpp: µm/px of the boxes; None: in pixels of the finest level.
        weights: [T], of each tile.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        InputError: the slide or its mask cannot be read.
    """
    with Slide(row.path, row.mpp) as slide:
        picture, shown = picture_of(slide)
        pixel = slide.mpp if mpp is None else mpp
    assert pixel is not None
    truth = None
    if row.mask is not None:
        mask = Image.fromarray(read_mask(row.mask, picture.shape))
        truth = np.asarray(mask.resize(picture.shape[:0:-1], Image.Resampling.NEAREST))
    return heat_map(picture, boxes * (pixel / shown), weights, title, truth)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write uint8 [H, W, 3] as PNG, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            Image.fromarray(picture).save(file, "PNG")
