"""Classes of pixels and types of nuclei that a part of the tiles lacks: found in the masks, before anything is learned.

What is never shown cannot be learned, and a class that neither labels nor predictions of a tile have counts as right.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from downstream.labelled import TRAIN, VALIDATION, DataSettings, Labelled
from histo.errors import InputError
from histo.tiles import Tile, TileSet

Numbers = Callable[[Tile], NDArray[np.integer]]


def refuse_absent_classes(
    labelled: Labelled, settings: DataSettings, parts: Sequence[str], names: Mapping[int, str], numbers: Numbers
) -> None:
    """Every one of these parts must have a pixel of each class; a part without tiles is passed over.

    Args:
        names: of the classes by their number; numbers: the class of each pixel of a tile.

    Raises:
        InputError: a class that a part lacks, or a tile that cannot be read.
    """
    for part in parts:
        for number in _absent(_tiles(labelled, part), names, numbers):
            share = ", or give another data.validation_share" if settings.validation_share else ""
            raise InputError(
                f"The class {names[number]} has no pixel in {_said(labelled, part)}, expected some of each "
                "class; correct the splits, the masks or segment.classes, or use more labels"
                f"{share if part == VALIDATION else ''}."
            )


def refuse_absent_types(labelled: Labelled, names: Mapping[int, str], numbers: Numbers) -> None:
    """The train part must have a nucleus of each type; others may lack rare ones, as `TypedScores` goes by.

    Args:
        names: of the types by their number; numbers: the type at each pixel of a tile.

    Raises:
        InputError: a type that it lacks, or a tile that cannot be read.
    """
    for number in _absent(_tiles(labelled, TRAIN), names, numbers):
        raise InputError(
            f"The type {names[number]} has no nucleus in {_said(labelled, TRAIN)}, expected some of each "
            "type; correct the splits, use more labels, or leave instances.types out."
        )


def _tiles(labelled: Labelled, part: str) -> list[TileSet]:
    return [tiles for tiles, _ in labelled.learned()] if part == TRAIN else [labelled.part(part)]


def _said(labelled: Labelled, part: str) -> str:
    return f"the {part} part" + (", which is data.extra" if part == TRAIN and labelled.extra_share == 1 else "")


def _absent(sets: Sequence[TileSet], names: Mapping[int, str], numbers: Numbers) -> list[int]:
    """Numbers of the names that no tile has, ascending; masks are read only until each of them was met."""
    missing, total = set(names), sum(map(len, sets))
    if not total:
        return []
    with tqdm(total=total, desc="looking for every class", unit="tile", leave=False, disable=None) as bar:
        for tiles in sets:
            for entry in tiles.entries:
                missing -= set(np.unique(numbers(entry.read())).tolist())
                if not missing:
                    return []
                bar.update()
    return sorted(missing)
