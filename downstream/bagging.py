"""Which tiles make a bag: those of a slide, or those of a patient where they come from no slide."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from downstream.labelled import DataSettings, Labelled, divided, open_needed
from histo.errors import InputError
from histo.slides.streaming import SlideEntry
from histo.tiles import TileSet
from histo.tiles.entries import TileEntry
from histo.tiles.owners import slide_of


@dataclass
class Bags:
    """Bags of one seed and fold.

    Attributes:
        tiles: all tiles; members: of each bag the positions of its own, int64 [T] ascending.
        labelled: the bags themselves as entries, divided; what is known of one is known of all its tiles.
    """

    tiles: TileSet
    members: list[NDArray[np.int64]]
    labelled: Labelled

    def of(self, bag: int) -> TileSet:
        """The tiles of one bag."""
        return TileSet(self.tiles.entries.take(self.members[bag]), cache_mb=0)

    def of_tiles(self) -> Labelled:
        """The same parts, of tiles."""
        own, order = self.labelled, np.argsort(np.concatenate(self.members))
        bag_of = np.repeat(np.arange(len(self.members)), [len(some) for some in self.members])[order]
        parts = {name: np.flatnonzero(np.isin(bag_of, places)) for name, places in own.parts.items()}
        patients = [own.patients[bag] for bag in bag_of]
        return replace(own, tiles=self.tiles, parts=parts, numbers=own.numbers[bag_of], patients=patients)


def open_bags(settings: DataSettings, side: int, seed: int, fold: int = 0) -> Bags:
    """Open labelled tiles, put them into bags, and divide these by patient, so that no bag is in two parts.

    Args:
        side: of the tiles that slides are cut into; pixels.
        seed, fold: as in `downstream.labelled.open_labelled`; fractions and numbers of labels are those of bags.

    Raises:
        InputError: as `open_labelled`; tiles that belong to no bag, or a bag of two labels, patients or splits.
    """
    tiles, labels = open_needed(settings, "label", side)
    assert labels is not None
    entries, members, classes = in_bags(list(tiles.entries), labels, any_split=settings.folds > 0)
    labelled = divided(settings, TileSet(entries), classes, seed, fold, "bag")
    sizes = [len(some) for some in members]
    labelled.facts["tiles"] = f"{tiles.describe()} · in bags of {min(sizes)} to {max(sizes)} tiles"
    return Bags(tiles, members, labelled)


def in_bags(
    entries: Sequence[TileEntry], labels: Sequence[str], *, any_split: bool = False
) -> tuple[list[TileEntry], list[NDArray[np.int64]], list[str]]:
    """Put tiles into bags.

    Args:
        labels: the class of each tile.
        any_split: the tiles' splits do not matter.

    Returns:
        An entry for each bag, in the order of their first tiles; the positions of its tiles; its class.

    Raises:
        InputError: a tile of no slide and unknown patient, or a bag of two labels, patients or splits.
    """
    bags, members, classes = [], [], []
    for (source, key), some in bag_members(entries).items():
        first = entries[some[0]]
        label = _one(key, "labels", [labels[k] for k in some], "the column label, or join classes (--data.group)")
        patient = _one(key, "patients", [entries[k].patient for k in some], "the column patient")
        splits = [None] if any_split else [entries[k].split for k in some]
        split = _one(key, "splits", splits, "the column split, or give --data.folds 5")
        path = first.row.path if isinstance(first, SlideEntry) else first.path
        bags.append(TileEntry(path, key, source, patient, first.mpp, label, split, None))
        members.append(np.array(some, dtype=np.int64))
        classes.append(str(label))
    return bags, members, classes


def bag_members(entries: Iterable[TileEntry]) -> dict[tuple[str, str], list[int]]:
    """The positions of the tiles of each bag, by its source and key, in the order of their first tiles.

    Raises:
        InputError: a tile of no slide and unknown patient.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for position, entry in enumerate(entries):
        places.setdefault((entry.source, _bag_of(entry)), []).append(position)
    return places


def _bag_of(entry: TileEntry) -> str:
    if (slide := slide_of(entry)) is not None:
        return slide
    if entry.patient is None:
        raise InputError(
            f"The tile {entry.key} of {entry.source} is of no slide and of unknown patient, expected one of them, "
            "since a bag is the tiles of a slide or of a patient; fill the column patient of tiles.csv."
        )
    return entry.patient


def _one(bag: str, noun: str, values: Sequence[str | None], column: str) -> str | None:
    """The value that all tiles of a bag have."""
    found = list(dict.fromkeys(values))
    if len(found) > 1:
        names = " and ".join("none" if value is None else value for value in found[:2])
        raise InputError(
            f"The tiles of the bag {bag} have {len(found)} {noun}, {names}, expected one; correct {column}."
        )
    return found[0]
