"""A tile, what is known of it before it is decoded, and long sequences of the latter that take little memory."""

import bisect
import itertools
import operator
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histo.errors import InputError
from histo.images import read_image
from histo.masks import read_instances


@dataclass(frozen=True)
class Tile:
    """One image of tissue with what is known about it.

    Attributes:
        image: uint8 [3, H, W] RGB.
        key: name unique within its source, the path relative to the folder.
        source: name of the folder it came from.
        patient: patient identifier, None where unknown.
        mpp: µm/px, None where unknown.
        label: class name, None where unlabelled.
        split: e.g. "train", None where the set has no splits.
        instances: int32 [H, W] instance map, 0 = background; None without a mask.
        types: uint8 [K+1] nucleus type (1 or 2) by instance id, index 0 unused; None without types.
        classes: uint8 [K+1] published class of each nucleus by instance id, 0 unknown; None without classes. What a
            number means stands in the `nuclei` of the set's facts (see `histo.datasets`).
    """

    image: NDArray[np.uint8]
    key: str
    source: str
    patient: str | None
    mpp: float | None
    label: str | None
    split: str | None
    instances: NDArray[np.int32] | None = None
    types: NDArray[np.uint8] | None = None
    classes: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class TileEntry:
    """What is known of a tile without decoding it; the fields are those of `Tile` and the two files."""

    path: Path
    key: str
    source: str
    patient: str | None
    mpp: float | None
    label: str | None
    split: str | None
    mask: Path | None

    def read(self) -> Tile:
        """Decode the image and, where there is one, the mask.

        Raises:
            InputError: a file that cannot be read, or a mask of another size than its tile.
        """
        image = self.read_image()
        instances = None
        if self.mask is not None:
            polygons = self.mask.suffix.lower() in (".geojson", ".json")
            instances = self.read_mask(size=image.shape[1:] if polygons else None)
            if instances.shape != image.shape[1:]:
                raise InputError(
                    f"{self.mask} is {instances.shape[0]} x {instances.shape[1]} pixels (height x width) but its tile "
                    f"{self.path} is {image.shape[1]} x {image.shape[2]}; pair each mask with its own tile."
                )
        return Tile(image, self.key, self.source, self.patient, self.mpp, self.label, self.split, instances)

    def read_image(self) -> NDArray[np.uint8]:
        """uint8 [3, H, W] RGB."""
        return read_image(self.path)

    def read_mask(self, size: tuple[int, int] | None) -> NDArray[np.int32]:
        """int32 [H, W]; only for an entry that has a mask, and `size` as in `histo.masks.read_instances`."""
        assert self.mask is not None
        return read_instances(self.mask, size)

    def image_file(self) -> bytes:
        """The image's file as it lies, undecoded."""
        return self.path.read_bytes()

    def mask_file(self) -> bytes:
        """The mask's file as it lies; only for an entry that has a mask."""
        assert self.mask is not None
        return self.mask.read_bytes()


@dataclass(frozen=True)
class Facts:
    """One fact of many entries, in a byte or a few of each: what is asked of all tiles is asked of the few values.

    Attributes:
        values: the different values.
        codes: unsigned [N], for each entry the position of its own among the values.
    """

    values: list[Any]
    codes: NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, facts: Iterable[Hashable]) -> "Facts":
        """Those in a list of what each entry says."""
        facts = list(facts)
        numbers = {value: number for number, value in enumerate(dict.fromkeys(facts))}
        codes = np.fromiter(map(numbers.__getitem__, facts), dtype=np.min_scalar_type(len(numbers)))
        return cls(list(numbers), codes)

    @classmethod
    def joined(cls, parts: Sequence["Facts"]) -> "Facts":
        """Those of parts laid end to end."""
        numbers: dict[Hashable, int] = {}
        own = [[numbers.setdefault(value, len(numbers)) for value in part.values] for part in parts]
        kind = np.min_scalar_type(len(numbers))
        codes = [np.array(new, dtype=kind)[part.codes] for new, part in zip(own, parts, strict=True)]
        return cls(list(numbers), np.concatenate([np.empty(0, dtype=kind), *codes]))

    def counts(self) -> dict[Any, int]:
        """How many entries have each value, in the order in which the values first come; none has 0."""
        found, first, numbers = np.unique(self.codes, return_index=True, return_counts=True)
        return {self.values[found[k]]: int(numbers[k]) for k in np.argsort(first)}

    def among(self, *wanted: object) -> NDArray[np.int64]:
        """Positions of the entries that have one of these values, int [n], ascending."""
        chosen = np.array([value in wanted for value in self.values], dtype=bool)
        return np.flatnonzero(chosen[self.codes])


@runtime_checkable
class Columns(Protocol):
    """Entries that can say one fact of all of them, which costs far less than making each."""

    def facts(self, name: str) -> Facts:
        """The facts by the name of a field of `TileEntry`: source, patient, mpp, label or split."""
        ...


@runtime_checkable
class Images(Protocol):
    """Entries that can read an image by its position, which costs less than making the entry first."""

    def read_image(self, index: int) -> NDArray[np.uint8]:
        """uint8 [3, H, W] RGB."""
        ...


class Entries(Sequence[TileEntry]):
    """Sequences of entries one after the other, of which some are kept, in a given order; none is copied.

    Args:
        parts: the sequences.
        positions: int [N], what is kept of the parts laid end to end; None keeps everything.
    """

    def __init__(self, parts: Iterable[Sequence[TileEntry]], positions: ArrayLike | None = None) -> None:
        self._parts = tuple(parts)
        self._ends = list(itertools.accumulate(map(len, self._parts)))
        self._positions: range | NDArray[np.int64] = range(self._ends[-1] if self._ends else 0)
        if positions is not None:
            self._positions = np.asarray(positions, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> TileEntry: ...

    @overload
    def __getitem__(self, index: slice) -> "Entries": ...

    def __getitem__(self, index: int | slice) -> "TileEntry | Entries":
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        position = int(self._positions[operator.index(index)])
        part = bisect.bisect_right(self._ends, position)
        return self._parts[part][position - self._ends[part]]  # counted from the part's end: below 0

    def read_image(self, index: int) -> NDArray[np.uint8]:
        """The image of one entry, uint8 [3, H, W]; a part that can read it without making the entry does so."""
        position = int(self._positions[index])
        number = bisect.bisect_right(self._ends, position)
        part, place = self._parts[number], position - self._ends[number]
        return part.read_image(place) if isinstance(part, Images) else part[place].read_image()

    def take(self, positions: ArrayLike) -> "Entries":
        """The entries at these positions, int [N], in this order."""
        own = np.arange(len(self)) if isinstance(self._positions, range) else self._positions
        return Entries(self._parts, own[np.asarray(positions, dtype=np.int64)])

    def facts(self, name: str) -> Facts:
        """One fact of every entry, by the name of a field of `TileEntry`."""
        joined = Facts.joined(
            [
                part.facts(name) if isinstance(part, Columns) else Facts.of(getattr(entry, name) for entry in part)
                for part in self._parts
            ]
        )
        if isinstance(self._positions, range):
            return joined
        return Facts(joined.values, joined.codes[self._positions])


class Texts(Sequence[str]):
    """Many short texts in two blocks of memory; a list has an object for each, which every look at it writes to."""

    def __init__(self, texts: Iterable[str]) -> None:
        coded = [text.encode("utf-8") for text in texts]
        self._bytes = b"".join(coded)
        self._ends = np.cumsum([0, *map(len, coded)], dtype=np.int64)
        self._ends = self._ends.astype(np.min_scalar_type(len(self._bytes)))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        positions = range(len(self))[index]
        if isinstance(positions, range):
            return [self[position] for position in positions]
        return self._bytes[self._ends[positions] : self._ends[positions + 1]].decode("utf-8")


def of_split(entries: Sequence[TileEntry], split: str, name: object) -> NDArray[np.int64]:
    """Positions of the entries of a split, int [n].

    Raises:
        InputError: there is none; the sentence names the set and its splits.
    """
    splits = Entries([entries]).facts("split")
    present = sorted(own for own in splits.counts() if own is not None)
    if split not in present:
        known = f"its splits are {', '.join(present)}" if present else "it has no splits"
        raise InputError(f"{name} has no split {split!r}: {known}; choose one of those or leave the split out.")
    return splits.among(split)
