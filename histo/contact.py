"""A contact sheet: the outlines of pseudo-masks on their tissue, for a person to look at."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

CELL, CAPTION, COLUMNS = 224, 42, 6  # pixels of a picture and of the text above it; pictures in a row
LETTERS = 38  # of a line above a picture
CROP = 256  # pixels: larger tiles show their middle
KEPT, ASIDE = (60, 255, 90), (255, 60, 60)


def overlay(image: NDArray[np.uint8], instances: NDArray[np.int32], colour: tuple[int, int, int]) -> Image.Image:
    """The middle of a tile with its nuclei outlined, as a square picture of `CELL` pixels.

    Args:
        image: uint8 [3, H, W] RGB.
        instances: int32 [H, W].
        colour: RGB of the outlines.
    """
    height, width = instances.shape
    top, left = max(0, height - CROP) // 2, max(0, width - CROP) // 2
    window = (slice(top, top + CROP), slice(left, left + CROP))
    picture = Image.fromarray(np.ascontiguousarray(image[:, *window].transpose(1, 2, 0)))
    zoom = CELL / max(picture.size)
    size = (max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom)))
    nuclei = Image.fromarray(instances[window]).resize(size, Image.Resampling.NEAREST)
    pixels = np.array(picture.resize(size, Image.Resampling.BICUBIC))
    pixels[find_boundaries(np.asarray(nuclei), mode="inner")] = colour
    return Image.fromarray(pixels)


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures in rows, each under three lines of text; RGB."""
    rows = -(-len(pictures) // COLUMNS)
    across = min(len(pictures), COLUMNS)
    sheet = Image.new("RGB", (across * (CELL + 4), rows * (CELL + CAPTION + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (caption, picture) in enumerate(pictures):
        x, y = k % COLUMNS * (CELL + 4) + 2, k // COLUMNS * (CELL + CAPTION + 4) + 2
        lines = [part for line in caption.split("\n") for part in wrap(line, LETTERS)]
        pen.multiline_text((x, y), "\n".join(lines[:3]), fill="black", font_size=11, spacing=1)
        sheet.paste(picture, (x, y + CAPTION))
    return sheet
