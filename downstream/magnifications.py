"""Tiles at several magnifications: at which a tile can be shown, and how a finer tile is brought to a coarser one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import isclose

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.magnification import FINEST, step_to
from histo.probes.embedding import resized
from histo.tiles import Tile, TileEntry, TileSet

VIEWS = 3  # crops along a side of a tile that is looked at, at most


@dataclass(frozen=True)
class Magnifications:
    """µm/px at which tiles are shown.

    Attributes:
        values: µm/px, ascending.
        learned: positions in `values` of those that are learned from; the others are only scored.
        resampled: whether tiles are brought to the values; otherwise each tile is shown at its own.
    """

    values: tuple[float, ...]
    learned: tuple[int, ...]
    resampled: bool

    @classmethod
    def of(cls, tiles: TileSet, asked: Sequence[float] | None, held_out: Sequence[float]) -> "Magnifications":
        """Those of settings.

        Args:
            asked: µm/px; none: those that the tiles have.
            held_out: of these, those that are not learned from.

        Raises:
            InputError: tiles of unknown µm/px, µm/px held out that are none of them, or all held out.
        """
        tiles.require_mpp("task smse")
        values = sorted(asked or tiles.entries.facts("mpp").counts())
        for value in held_out:
            if not _within(value, values):
                raise InputError(
                    f"smse.held_out names {value:g} µm/px, but tiles are shown at {_names(values)}; name some of these."
                )
        learned = tuple(place for place, value in enumerate(values) if not _within(value, held_out))
        if not learned:
            raise InputError(
                f"smse.held_out names all of {_names(values)} µm/px, expected some left to learn from; leave one out."
            )
        return cls(tuple(values), learned, bool(asked))

    def name(self, place: int) -> str:
        """Of one of the values, in names of scores."""
        return f"{self.values[place]:.4g}" + ("" if place in self.learned else "_held_out")

    def describe(self) -> str:
        """One line for people, in µm/px."""
        unseen = [value for place, value in enumerate(self.values) if place not in self.learned]
        kind = "tiles resampled" if self.resampled else "tiles as they are"
        learned = _names([self.values[place] for place in self.learned])
        return f"{learned} learned from" + (f", {_names(unseen)} only scored" if unseen else "") + f", {kind}"

    def allowed(self, tiles: TileSet, side: int) -> NDArray[np.bool_]:
        """bool [N, S]: whether a tile is fine enough for each of the values, and at least `side` px there.

        Every tile is decoded for it, once in a process.

        Raises:
            InputError: a tile that cannot be read.
        """
        found = np.zeros((len(tiles), len(self.values)), bool)
        for row, entry in zip(found, tiles.entries, strict=True):
            assert entry.mpp is not None
            for place, value in enumerate(self.values):
                if entry.mpp <= value * FINEST if self.resampled else entry.mpp == value:
                    row[place] = min(self._shape(_measured(entry), entry.mpp, place)) >= side
        return found

    def shown(self, tile: Tile, place: int) -> Tile:
        """The image of a tile at one of the values, bilinearly with antialias; without instances.

        Raises:
            InputError: a tile that is coarser.
        """
        assert tile.mpp is not None
        height, width = tile.image.shape[1:]
        shape = self._shape((height, width), tile.mpp, place)
        image = tile.image if shape == (height, width) else resized(tile.image, *shape)
        return replace(tile, image=image, mpp=self.values[place], instances=None, types=None, classes=None)

    def _shape(self, shape: tuple[int, int], mpp: float, place: int) -> tuple[int, int]:
        if not self.resampled:
            return shape
        step = step_to(self.values[place], mpp, "A tile")
        height, width = (max(1, round(length / step)) for length in shape)
        return height, width


def views(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Square crops that lie evenly over an image: as many as fit beside each other, at most 3 along a side.

    Args:
        image: uint8 [3, H, W].
        side: of the crops; pixels.

    Returns:
        uint8 [1 to 9, 3, side, side].

    Raises:
        InputError: an image smaller than a crop.
    """
    if min(image.shape[1:]) < side:
        raise InputError(
            f"The image is {image.shape[1]} x {image.shape[2]} px, expected {side} px or more a side, the crops that "
            "were learned from; give a larger image, or a finer one."
        )
    rows, columns = (_starts(length, side) for length in image.shape[1:])
    return np.stack([image[:, y : y + side, x : x + side] for y, x in product(rows, columns)])


def _starts(length: int, side: int) -> list[int]:
    """Where crops begin along an axis; a single one lies in the middle."""
    count = min(VIEWS, length // side)
    if count == 1:
        return [(length - side) // 2]
    return [round(k * (length - side) / (count - 1)) for k in range(count)]


@cache
def _measured(entry: TileEntry) -> tuple[int, int]:
    """Height and width of a tile, for every fold and seed of a process."""
    height, width = entry.read_image().shape[1:]
    return height, width


def _within(value: float, values: Sequence[float]) -> bool:
    """Whether a µm/px is one of them, as people write them."""
    return any(isclose(value, other, rel_tol=1e-3) for other in values)


def _names(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
