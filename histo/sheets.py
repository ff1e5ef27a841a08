"""Sheets of small pictures with titles, as training shows them in TensorBoard."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

HEADER = 16  # pixels


def sheet(columns: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Columns of tiles, uint8 [N, 3, s, s] each, under their titles; small ones are enlarged without smoothing.

    Returns:
        RGB uint8 [H, W, 3].
    """
    side = next(iter(columns.values())).shape[-1]
    zoom = max(1, 128 // side)
    cell = side * zoom + 4
    rows = len(next(iter(columns.values())))
    page = Image.new("RGB", (cell * len(columns), HEADER + cell * rows), "white")
    pen = ImageDraw.Draw(page)
    for across, (title, tiles) in enumerate(columns.items()):
        pen.text((across * cell + 4, 2), title, fill="black")
        for down, tile in enumerate(tiles):
            picture = Image.fromarray(tile.transpose(1, 2, 0)).resize((side * zoom,) * 2, Image.Resampling.NEAREST)
            page.paste(picture, (across * cell + 2, HEADER + down * cell + 2))
    return np.asarray(page)


def outlined(
    image: NDArray[np.uint8], instances: NDArray[np.integer], colour: tuple[int, int, int] = (0, 255, 0)
) -> NDArray[np.uint8]:
    """A tile with the outlines of its nuclei, uint8 [3, H, W]; of an instance map, integer [H, W]."""
    picture = image.copy()
    picture[:, find_boundaries(instances, mode="inner")] = np.array(colour, dtype=np.uint8)[:, None]
    return picture
