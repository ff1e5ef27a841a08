"""A labelled set of tiles at another µm/px, so that small tiles show more tissue: images by area, labels by the nearest
pixel, splits and patients as they were.

    python benchmarks/resample.py nuclei/monuseg2018 nuclei/tnbc_naylor --mpp 0.5 --out SETS
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from histo.masks import renumber
from histo.tiles import Tile, TileSet, open_tiles
from histo.tiles.tables import write_folder


def resampled(tiles: TileSet, mpp: float) -> Iterator[Tile]:
    """The tiles at `mpp`, which must not be finer than their own."""
    for tile in tiles:
        assert tile.mpp is not None
        assert tile.mpp <= mpp
        height, width = (round(side * tile.mpp / mpp) for side in tile.image.shape[1:])
        picture = Image.fromarray(tile.image.transpose(1, 2, 0)).resize((width, height), Image.Resampling.BOX)
        instances = tile.instances
        if instances is not None:
            rows, columns = (
                ((np.arange(new) + 0.5) * old / new).astype(int)
                for new, old in zip((height, width), instances.shape, strict=True)
            )
            instances = renumber(np.ascontiguousarray(instances[rows[:, None], columns]))
        yield replace(tile, image=np.asarray(picture).transpose(2, 0, 1), instances=instances, mpp=mpp)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", help="folders with a tiles.csv")
    parser.add_argument("--mpp", type=float, default=0.5, help="µm/px to make (default: 0.5)")
    parser.add_argument("--assume_mpp", type=float, help="µm/px of sets that do not say")
    parser.add_argument("--out", type=Path, required=True, help="folder in which each set gets its own")
    arguments = parser.parse_args()
    for folder in arguments.sets:
        tiles = open_tiles(folder, mpp=arguments.assume_mpp)
        write_folder(resampled(tiles, arguments.mpp), arguments.out / folder.name)
        print(f"{arguments.out / folder.name}: {len(tiles)} tiles at {arguments.mpp} µm/px")


if __name__ == "__main__":
    main()
