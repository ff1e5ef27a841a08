"""Draws docs/pictures/layout.png: twelve layouts of the default settings as the mask images a translator reads."""

from pathlib import Path

import numpy as np
from PIL import Image

from histo.codec import encode
from histo.layouts import Layouts, LayoutSettings
from histo.randomness import draws

COLUMNS, ROWS = 6, 2
GAP = 4  # pixels


def main() -> None:
    maps = Layouts(LayoutSettings(), 0, size=256, mpp=0.25, count=COLUMNS * ROWS)
    pictures = []
    for k in range(len(maps)):
        tile = maps[k]
        assert tile.instances is not None
        picture = encode(tile.instances, tile.types, draws(0, "fill", k)).transpose(1, 2, 0)
        pictures.append(np.pad(picture, ((0, GAP), (0, GAP), (0, 0)), constant_values=90))
    rows = [np.concatenate(pictures[k : k + COLUMNS], axis=1) for k in range(0, len(pictures), COLUMNS)]
    sheet = Image.fromarray(np.concatenate(rows)[:-GAP, :-GAP])
    target = Path(__file__).parent / "pictures" / "layout.png"
    sheet.quantize(16, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
