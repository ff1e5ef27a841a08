"""Sets of tiles: folders of images, folders with a `tiles.csv`, shards, and tables of slides, opened alike and mixed.

`histo.tiles.tables` says what a folder may hold, `histo.tiles.shards` what a shard may, and `histo.slides` how slides
are cut; all give the same `TileSet`.
"""

import difflib
import math
import operator
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from histo.errors import InputError
from histo.tiles.entries import Entries, Tile, TileEntry, of_split
from histo.tiles.remote import Url, place
from histo.tiles.shards import is_shards, open_shards, packed_source
from histo.tiles.tables import SUFFIXES, open_folder

if TYPE_CHECKING:
    from histo.datasets import NamedSet

__all__ = [
    "SUFFIXES",
    "Tile",
    "TileCache",
    "TileEntry",
    "TileSet",
    "Tiles",
    "is_described",
    "local_place",
    "open_tiles",
]


class TileCache:
    """Tiles by position, the least recently used thrown out beyond the limit; empty again wherever it is sent."""

    def __init__(self, megabytes: float) -> None:
        self._limit = megabytes * 1e6
        self._bytes = 0
        self._tiles: OrderedDict[int, Tile] = OrderedDict()

    def __reduce__(self) -> tuple[type["TileCache"], tuple[float]]:
        return TileCache, (self._limit / 1e6,)

    def get(self, position: int) -> Tile | None:
        """The tile kept at a position, now the most recently used; None where there is none."""
        if position in self._tiles:
            self._tiles.move_to_end(position)
        return self._tiles.get(position)

    def put(self, position: int, tile: Tile) -> None:
        """Keep a tile, unless it alone is larger than the limit."""
        size = _bytes(tile)
        if size > self._limit:
            return
        self._tiles[position] = tile
        self._bytes += size
        while self._bytes > self._limit:
            _, oldest = self._tiles.popitem(last=False)
            self._bytes -= _bytes(oldest)


class Tiles(Protocol):
    """What every set of tiles offers: a folder's, a phantom's, or a source of masks alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tile: ...

    def describe(self) -> str:
        """One line for people."""
        ...


class TileSet:
    """Tiles by position: `tiles[i]` decodes on access and depends on `i` alone.

    Decoded tiles stay in a cache of `cache_mb` megabytes per process, because several crops of one large image are
    often drawn in turn. Their arrays are shared and therefore read-only.

    Attributes:
        entries: what is known of each tile without decoding it, made anew at every look where the tiles lie in shards.
        bad: (path, reason) of the files that `on_bad="skip"` left out.
    """

    def __init__(
        self, entries: Sequence[TileEntry], *, bad: Sequence[tuple[Path, str]] = (), cache_mb: float = 128
    ) -> None:
        if not isinstance(entries, Entries):
            entries = Entries([tuple(entries) if isinstance(entries, list) else entries])
        self.entries = entries
        self.bad = list(bad)
        self._cache_mb = cache_mb
        self._cache = TileCache(cache_mb)

    def subset(self, positions: NDArray[np.integer]) -> "TileSet":
        """The tiles at some positions, with a cache of their own that is as large as this one's."""
        return TileSet(self.entries.take(positions), cache_mb=self._cache_mb)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Tile:
        """Decode one tile.

        Raises:
            InputError: its file or its mask cannot be read; the sentence names the file.
        """
        position = range(len(self))[operator.index(index)]
        tile = self._cache.get(position)
        if tile is None:
            tile = self.entries[position].read()
            tile.image.flags.writeable = False
            if tile.instances is not None:
                tile.instances.flags.writeable = False
            self._cache.put(position, tile)
        return tile

    def image(self, index: int) -> NDArray[np.uint8]:
        """The image alone, uint8 [3, H, W], without its facts and past the cache; raises as indexing does."""
        return self.entries.read_image(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator[Tile]:
        return (self[position] for position in range(len(self)))

    def require_mpp(self, purpose: str) -> None:
        """Raise an InputError unless the µm/px of every tile is known; `purpose` says what needs it."""
        unknown = self.entries.facts("mpp").among(None)
        if len(unknown):
            first = self.entries[int(unknown[0])].path
            raise InputError(
                f"{len(unknown)} of {len(self)} tiles have no known µm/px, first {first}, but {purpose} "
                "needs it; give --data.mpp, or fill the column mpp of tiles.csv."
            )

    def describe(self) -> str:
        """One line for people: tiles, patients, splits, µm/px and sources."""
        sources, patient = self.entries.facts("source"), self.entries.facts("patient")
        known_patients = patient.among(*(name for name in patient.values if name is not None))
        pairs = sources.codes[known_patients].astype(np.int64) * len(patient.values) + patient.codes[known_patients]
        patients = len(np.unique(pairs))
        splits: Counter[str] = Counter()
        for name, number in self.entries.facts("split").counts().items():
            splits[name or "none"] += number
        mpp = self.entries.facts("mpp").counts()
        unknown = mpp.pop(None, 0)
        facts = [_count(len(self), "tile")]
        facts.append(_count(patients, "patient") if patients else "patients unknown")
        if set(splits) != {"none"}:
            facts.append("splits " + ", ".join(f"{name} {number}" for name, number in sorted(splits.items())))
        if mpp:
            low, high = f"{min(mpp):.4g}", f"{max(mpp):.4g}"
            gap = f" (unknown for {unknown})" if unknown else ""
            facts.append(f"{low if low == high else f'{low}–{high}'} µm/px{gap}")
        else:
            facts.append("µm/px unknown")
        facts.append("from " + ", ".join(sources.counts()))
        if self.bad:
            facts.append(f"{len(self.bad)} skipped as unreadable")
        return " · ".join(facts)


def open_tiles(
    path: str | Path | Sequence[str | Path],
    *,
    mpp: float | None = None,
    split: str | None = None,
    on_bad: Literal["error", "skip"] = "error",
    cache_mb: float = 128,
    size: int = 256,
) -> TileSet:
    """Open one set of tiles, or several, one after the other.

    Args:
        path: a folder of images, with or without `tiles.csv`, a folder of shards, one `.tar`, the URL of a folder of
            packed shards (see `histo.tiles.remote`), a published set as `NAME:PATH` (see `histo.datasets`), a
            `slides.csv` (see `histo.slides.tables`), whose slides are read tile by tile, or a sequence of these. A
            tile's `source` is the name of its folder (for packed shards, of the folder that was packed), with as many
            parents as it takes to tell the sets apart, or the NAME.
        mpp: µm/px of every tile. It goes before the column mpp, and that before what the image file states. Slides are
            cut at it.
        split: keep only the tiles of this split.
        on_bad: "error" raises where a damaged file is reached; "skip" decodes every file once now, leaves the damaged
            ones and links out of the folder out, and lists them in `TileSet.bad`; of slides it leaves out those that
            cannot be opened, and decodes no tile. A broken rule of `tiles.csv` is an error either way.
        cache_mb: limit of the cache of decoded tiles, in megabytes per process; 0 switches it off.
        size: side of the tiles that slides are cut into; pixels.

    Raises:
        InputError: nothing usable at the path, a broken rule of `tiles.csv` or of shards, an unknown split, or a wrong
            argument.
    """
    if on_bad not in ("error", "skip"):
        raise InputError(f"on_bad is {on_bad!r}, expected 'error' or 'skip'; choose one of the two.")
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise InputError(f"mpp is {mpp}, expected µm/px above 0, such as 0.25; correct --data.mpp.")
    if not cache_mb >= 0:
        raise InputError(f"cache_mb is {cache_mb}, expected megabytes of 0 or more; give 0 for no cache.")
    folders = [place(folder) for folder in ([path] if isinstance(path, str | Path) else path)]
    published = [_published(folder) for folder in folders]
    folders = [folder if known is None else known.folder for folder, known in zip(folders, published, strict=True)]
    _check_folders(folders)
    parts: list[Sequence[TileEntry]] = []
    bad: list[tuple[Path, str]] = []
    from_slides: list[range] = []
    for folder, source, known in zip(folders, _sources(folders), published, strict=True):
        if known is not None:
            alone = sum(other is not None and other.name == known.name for other in published) == 1
            source = known.name if alone else f"{known.name}:{source}"
            parts.append(known.entries(source, mpp=mpp, split=split, on_bad=on_bad))
            continue
        if _is_slides(folder):
            from histo.slides.streaming import open_slides

            cut, refused = open_slides(folder, source, mpp=mpp, size=size, on_bad=on_bad)
            slides = Entries(cut)
            parts.append(slides if split is None else slides.take(of_split(slides, split, folder)))
            start = sum(map(len, parts[:-1]))
            from_slides.append(range(start, start + len(parts[-1])))
            bad += refused
            continue
        if not is_shards(folder):
            found, refused = open_folder(folder, source, mpp=mpp, split=split, on_bad=on_bad)
            parts.append(found)
            bad += refused
            continue
        packed = Entries(open_shards(folder, source, mpp=mpp))
        parts.append(packed if split is None else packed.take(of_split(packed, split, folder)))
    entries = Entries(parts)
    if on_bad == "skip":
        good, bad = _readable(entries, from_slides, bad)
        entries = entries.take(good)
    return TileSet(entries, bad=bad, cache_mb=cache_mb)


def is_described(named: str) -> bool:
    """Whether tiles are named with what is known of them, masks among it: by `tiles.csv`, as shards, or NAME:PATH."""
    path = place(named)
    return _published(path) is not None or is_shards(path) or (path / "tiles.csv").is_file()


def local_place(named: str) -> Path | None:
    """Where the tiles a user names lie on this machine, links followed; None for a URL."""
    path = place(named)
    known = _published(path)
    return None if isinstance(path, Url) else (path if known is None else known.folder).resolve()


def _published(path: Path) -> "NamedSet | None":
    if ":" not in str(path):
        return None
    from histo.datasets import named_set

    return named_set(path)


def _check_folders(folders: Sequence[Path]) -> None:
    if not folders:
        raise InputError("no folder of tiles was given, expected at least one; give --data.path.")
    for folder in folders:
        if isinstance(folder, Url):
            continue
        if folder.is_file() and not is_shards(folder) and not _is_slides(folder):
            raise InputError(f"{folder} is a file, expected a folder of tiles; give the folder that holds it.")
        if not folder.exists():
            raise InputError(f"{folder} does not exist, expected a folder of tiles;{_nearby(folder)} check the path.")
    resolved = [folder.resolve() for folder in folders]
    for i, inner in enumerate(resolved):
        for j, outer in enumerate(resolved):
            if i != j and inner.is_relative_to(outer):
                relation = "the same folder as" if inner == outer else "a part of"
                raise InputError(
                    f"{folders[i]} is {relation} {folders[j]}, so its tiles would count twice; give one of them."
                )


def _is_slides(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and path.name != "tiles.csv" and path.is_file()  # of that, the folder is named


def _nearby(missing: Path) -> str:
    parent = missing.parent
    names = os.listdir(parent) if parent.is_dir() else []
    close = difflib.get_close_matches(missing.name, names, n=1)
    return f" did you mean {parent / close[0]}? Otherwise" if close else ""


def _sources(folders: Sequence[Path]) -> list[str]:
    homes = [folder.resolve().parent if folder.is_file() else folder.resolve() for folder in folders]
    names = [
        packed_source(folder) or (home if _is_slides(folder) else folder.resolve()).name
        for folder, home in zip(folders, homes, strict=True)
    ]
    if len(set(names)) == len(set(zip(names, homes, strict=True))):  # archives packed together have one source
        return names
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _readable(
    entries: Sequence[TileEntry], unread: Sequence[range], bad: list[tuple[Path, str]]
) -> tuple[list[int], list[tuple[Path, str]]]:
    """Positions of the tiles that can be read, and `bad` with all others added; those of `unread` are taken as good."""

    def fault(position: int) -> str | None:
        if any(position in stretch for stretch in unread):
            return None
        try:
            entries[position].read()
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(2) as pool:
        positions = range(len(entries))
        faults = list(tqdm(pool.map(fault, positions), total=len(entries), desc="checking tiles", disable=None))
    good = [position for position, reason in enumerate(faults) if reason is None]
    bad = bad + [(entries[position].path, reason) for position, reason in enumerate(faults) if reason is not None]
    if not good:
        raise InputError(f"none of the {len(bad)} tiles can be read, the first because {bad[0][1]}")
    return good, bad


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bytes(tile: Tile) -> int:
    return tile.image.nbytes + (0 if tile.instances is None else tile.instances.nbytes)
