"""Draws docs/pictures/phantom.jpg: a row per tissue class, then the same tissue with its exact nucleus outlines."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import find_boundaries

from histo.phantom import EPITHELIAL, LABELS, PhantomTissue
from histo.tiles import Tile

COLUMNS = 6
SIDE = 160  # pixels
COLOURS = np.array([[0, 0, 0], [40, 230, 90], [255, 220, 0]], np.uint8)  # by nucleus type


def outlined(tile: Tile) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] with outlines, green for stromal and yellow for epithelial nuclei."""
    assert tile.instances is not None
    assert tile.types is not None
    picture = tile.image.transpose(1, 2, 0).copy()
    edge = find_boundaries(tile.instances, mode="inner")
    picture[edge] = COLOURS[tile.types[tile.instances[edge]]]
    return picture


def main() -> None:
    tissue = PhantomTissue(3, size=SIDE, mpp=0.4, count=80)
    tiles = [tissue[index] for index in range(len(tissue))]
    rows = []
    for label in LABELS:
        chosen = [
            next(tile for tile in tiles if tile.label == label and tile.patient == patient.name)
            for patient in tissue.patients[:COLUMNS]
        ]
        rows.append(np.concatenate([tile.image.transpose(1, 2, 0) for tile in chosen], axis=1))
    mixed = [tile for tile in tiles if tile.types is not None and EPITHELIAL in tile.types][: COLUMNS - 2]
    plain = [next(tile for tile in tiles[5:] if tile.label == label) for label in ("stroma", "lymphoid")]
    rows.append(np.concatenate([outlined(tile) for tile in (plain[0], *mixed, plain[1])], axis=1))
    target = Path(__file__).parent / "pictures" / "phantom.jpg"
    Image.fromarray(np.concatenate(rows)).save(target, quality=88, optimize=True)


if __name__ == "__main__":
    main()
