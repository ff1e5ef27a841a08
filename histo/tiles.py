"""Tiles and sets of tiles: a folder of images, or a folder whose `tiles.csv` says more about each of them.

A plain folder is searched with its sub-folders, in the order of the relative paths. Files ending in .png, .jpg, .jpeg,
.tif or .tiff are tiles. Hidden files and folders are passed over, and so are sub-folders named `labels` or `masks`,
which hold instance maps by custom. Names of folders are not taken for labels. A link that leads out of the folder is
refused; the folder itself may be a link, and linked sub-folders inside it are passed over.

`tiles.csv` has a header and one row per tile; only `path` must be there, and an empty field means unknown:

| column  | meaning                                                             |
|---------|---------------------------------------------------------------------|
| path    | the image, relative to the folder and inside it                     |
| label   | class name                                                          |
| patient | patient identifier                                                  |
| mpp     | µm/px, a number above 0                                             |
| split   | e.g. train, val, test                                               |
| mask    | the instance map (see `histo.masks`), relative to the folder as well |

A mask may also lie in a folder beside the set's own, as `../NAME/file`; nothing may lie further away.

Other columns are ignored unless their name looks like a slip of one of these.
"""

import csv
import difflib
import math
import operator
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from histo.errors import InputError
from histo.images import read_image, read_mpp
from histo.links import stray_link
from histo.masks import read_instances

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
COLUMNS = ("path", "label", "patient", "mpp", "split", "mask")
LONGEST_PATH, LONGEST_NAME = 1000, 255  # characters, and bytes of one name: file systems take no more
_MASK_FOLDERS = ("labels", "masks")


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
        image = read_image(self.path)
        instances = None
        if self.mask is not None:
            polygons = self.mask.suffix.lower() in (".geojson", ".json")
            instances = read_instances(self.mask, size=image.shape[1:] if polygons else None)
            if instances.shape != image.shape[1:]:
                raise InputError(
                    f"{self.mask} is {instances.shape[0]} x {instances.shape[1]} pixels (height x width) but its tile "
                    f"{self.path} is {image.shape[1]} x {image.shape[2]}; pair each mask with its own tile."
                )
        return Tile(image, self.key, self.source, self.patient, self.mpp, self.label, self.split, instances)


class TileCache:
    """Tiles by position, the least recently used thrown out beyond the limit; empty again wherever it is sent."""

    def __init__(self, megabytes: float) -> None:
        self._limit = megabytes * 1e6
        self._bytes = 0
        self._tiles: OrderedDict[int, Tile] = OrderedDict()

    def __reduce__(self) -> tuple[type["TileCache"], tuple[float]]:
        return TileCache, (self._limit / 1e6,)

    def get(self, position: int) -> Tile | None:
        if position in self._tiles:
            self._tiles.move_to_end(position)
        return self._tiles.get(position)

    def put(self, position: int, tile: Tile) -> None:
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
        entries: what is known of each tile without decoding it.
        bad: (path, reason) of the files that `on_bad="skip"` left out.
    """

    def __init__(
        self, entries: Sequence[TileEntry], *, bad: Sequence[tuple[Path, str]] = (), cache_mb: float = 128
    ) -> None:
        self.entries = tuple(entries)
        self.bad = list(bad)
        self._cache = TileCache(cache_mb)

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

    def __iter__(self) -> Iterator[Tile]:
        return (self[position] for position in range(len(self)))

    def require_mpp(self, purpose: str) -> None:
        """Raise an InputError unless the µm/px of every tile is known; `purpose` says what needs it."""
        unknown = [entry for entry in self.entries if entry.mpp is None]
        if unknown:
            raise InputError(
                f"{len(unknown)} of {len(self)} tiles have no known µm/px, first {unknown[0].path}, but {purpose} "
                "needs it; give --data.mpp, or fill the column mpp of tiles.csv."
            )

    def describe(self) -> str:
        """One line for people: tiles, patients, splits, µm/px and sources."""
        patients = {(entry.source, entry.patient) for entry in self.entries if entry.patient is not None}
        splits = Counter(entry.split or "none" for entry in self.entries)
        known = [entry.mpp for entry in self.entries if entry.mpp is not None]
        unknown = len(self) - len(known)
        facts = [_count(len(self), "tile")]
        facts.append(_count(len(patients), "patient") if patients else "patients unknown")
        if set(splits) != {"none"}:
            facts.append("splits " + ", ".join(f"{name} {number}" for name, number in sorted(splits.items())))
        if known:
            low, high = f"{min(known):.4g}", f"{max(known):.4g}"
            gap = f" (unknown for {unknown})" if unknown else ""
            facts.append(f"{low if low == high else f'{low}–{high}'} µm/px{gap}")
        else:
            facts.append("µm/px unknown")
        facts.append("from " + ", ".join(dict.fromkeys(entry.source for entry in self.entries)))
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
) -> TileSet:
    """Open one folder of tiles, or several, one after the other.

    Args:
        path: a folder of images, with or without `tiles.csv`, or a sequence of such folders. A tile's `source` is the
            name of its folder, with as many parents as it takes to tell the folders apart.
        mpp: µm/px of every tile. It goes before the column mpp, and that before what the image file states.
        split: keep only the rows of this split.
        on_bad: "error" raises where a damaged file is reached; "skip" decodes every file once now, leaves the damaged
            ones and links out of the folder out, and lists them in `TileSet.bad`. A broken rule of `tiles.csv` is an
            error either way.
        cache_mb: limit of the cache of decoded tiles, in megabytes per process; 0 switches it off.

    Raises:
        InputError: nothing usable at the path, a broken rule of `tiles.csv`, an unknown split, or a wrong argument.
    """
    if on_bad not in ("error", "skip"):
        raise InputError(f"on_bad is {on_bad!r}, expected 'error' or 'skip'; choose one of the two.")
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise InputError(f"mpp is {mpp}, expected µm/px above 0, such as 0.25; correct --data.mpp.")
    if not cache_mb >= 0:
        raise InputError(f"cache_mb is {cache_mb}, expected megabytes of 0 or more; give 0 for no cache.")
    folders = [Path(path)] if isinstance(path, str | Path) else [Path(folder) for folder in path]
    _check_folders(folders)
    entries: list[TileEntry] = []
    bad: list[tuple[Path, str]] = []
    for folder, source in zip(folders, _sources(folders), strict=True):
        if (folder / "tiles.csv").is_file():
            entries += _from_table(folder, source, split)
        else:
            found, refused = _from_images(folder, source, split)
            entries, bad = entries + found, bad + refused

    if on_bad == "skip":
        entries, bad = _readable(entries, bad)
    elif bad:
        raise InputError(bad[0][1])
    else:
        _check_present(entries)
    return TileSet([_with_mpp(entry, mpp) for entry in entries], bad=bad, cache_mb=cache_mb)


def _check_folders(folders: Sequence[Path]) -> None:
    if not folders:
        raise InputError("no folder of tiles was given, expected at least one; give --data.path.")
    for folder in folders:
        if folder.is_file():
            raise InputError(f"{folder} is a file, expected a folder of tiles; give the folder that holds it.")
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist, expected a folder of tiles;{_nearby(folder)} check the path.")
    resolved = [folder.resolve() for folder in folders]
    for i, inner in enumerate(resolved):
        for j, outer in enumerate(resolved):
            if i != j and inner.is_relative_to(outer):
                relation = "the same folder as" if inner == outer else "a part of"
                raise InputError(
                    f"{folders[i]} is {relation} {folders[j]}, so its tiles would count twice; give one of them."
                )


def _nearby(missing: Path) -> str:
    parent = missing.parent
    names = os.listdir(parent) if parent.is_dir() else []
    close = difflib.get_close_matches(missing.name, names, n=1)
    return f" did you mean {parent / close[0]}? Otherwise" if close else ""


def _sources(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _from_images(folder: Path, source: str, split: str | None) -> tuple[list[TileEntry], list[tuple[Path, str]]]:
    """The tiles of a plain folder, and links that lead out of it with the reason why they are none."""
    if split is not None:
        raise InputError(
            f"{folder} has no tiles.csv and therefore no splits, but split {split!r} was asked for; "
            "write a tiles.csv with the columns path and split, or leave the split out."
        )

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror}); check its permissions.") from error

    found: list[PurePosixPath] = []
    refused: list[tuple[Path, str]] = []
    for root, subfolders, files in os.walk(folder, onerror=refuse):
        here = Path(root)
        if here != folder and "tiles.csv" in files:
            raise InputError(
                f"{here} inside {folder} has a tiles.csv of its own, which would be passed over; "
                "open the folders that have one, by name."
            )
        subfolders[:] = [name for name in subfolders if name[0] != "." and name.lower() not in _MASK_FOLDERS]
        images = [name for name in files if name[0] != "." and name.lower().endswith(SUFFIXES)]
        away = {path: stray_link(path, folder) for path in (here / name for name in [*images, *subfolders])}
        refused += [(path, reason) for path, reason in sorted(away.items()) if reason is not None]
        found += [
            PurePosixPath((here / name).relative_to(folder).as_posix()) for name in images if away[here / name] is None
        ]
    if not found and not refused:
        raise InputError(f"{folder} holds no image, expected files ending in {', '.join(SUFFIXES)}; check the path.")
    return [TileEntry(folder / key, str(key), source, None, None, None, None, None) for key in sorted(found)], refused


def _from_table(folder: Path, source: str, split: str | None) -> list[TileEntry]:
    table = folder / "tiles.csv"
    rows = _rows(table)
    if not rows:
        raise InputError(f"{table} has no rows below its header, expected one per tile; add them.")
    root = folder.resolve()
    entries = []
    first_line: dict[str, int] = {}
    for line, row in rows:
        where = f"line {line} of {table}"
        path = _inside(folder, root, row["path"], "path", where)
        key = PurePosixPath(row["path"]).as_posix()
        if first_line.setdefault(key, line) != line:
            raise InputError(f"{where} repeats the path {key!r} of line {first_line[key]}; remove one of the two rows.")
        mask = _inside(folder, root, row["mask"], "mask", where) if row["mask"] else None
        mpp = _number(row["mpp"], where) if row["mpp"] else None
        texts = {name: row[name] or None for name in ("patient", "label", "split")}
        entries.append(TileEntry(path=path, key=key, source=source, mpp=mpp, mask=mask, **texts))
    if split is None:
        return entries
    present = sorted({entry.split for entry in entries if entry.split is not None})
    if split not in present:
        known = f"its splits are {', '.join(present)}" if present else "it has no splits"
        raise InputError(f"{table} has no split {split!r}: {known}; choose one of those or leave the split out.")
    return [entry for entry in entries if entry.split == split]


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, {column: text}) of every row; a column that the file lacks is empty."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(table, header)
            rows = []
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise InputError(
                        f"line {reader.line_num} of {table} has {len(fields)} fields, expected {len(header)} as in the "
                        "header; put a field that holds a comma in double quotes."
                    )
                row = dict.fromkeys(COLUMNS, "") | {
                    name: field.strip() for name, field in zip(header, fields, strict=True)
                }
                rows.append((reader.line_num, row))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as comma-separated UTF-8 ({error}); save it again so.") from error


def _check_header(table: Path, header: Sequence[str]) -> None:
    repeated = [name for name, number in Counter(header).items() if number > 1]
    if repeated:
        raise InputError(f"{table} has the column {repeated[0]!r} twice; remove one of the two.")
    for name in header:
        meant = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.75)
        if name not in COLUMNS and meant and meant[0] not in header:
            raise InputError(f"{table} has a column {name!r} that looks like {meant[0]!r}; rename the column.")
    if "path" not in header:
        raise InputError(f"{table} has no column 'path' among {', '.join(header) or 'none'}; add it to the header.")


def _inside(folder: Path, root: Path, text: str, column: str, where: str) -> Path:
    """The file of a row; a table from elsewhere must not make us read outside its own folder.

    One exception: published sets keep masks in a folder beside the images', so a mask may start with one '..'.
    """
    beside = column == "mask" and text.startswith("../")
    if beside:
        root, text = root.parent, text.removeprefix("../")
        folder = folder.resolve().parent
    if not text or "\0" in text:
        raise InputError(f"{where} has the {column} {text!r}, expected a file in {folder}; fill it in.")
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).anchor:
        raise InputError(f"{where} has the absolute {column} {text!r}; write it relative to {folder}.")
    if ".." in PurePosixPath(text).parts or ".." in PureWindowsPath(text).parts:
        raise InputError(
            f"{where} has the {column} {text!r}, but '..' would leave {folder}; move the file into the folder."
        )
    if len(text) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in PurePosixPath(text).parts):
        raise InputError(
            f"{where} has a {column} of {len(text)} characters, expected at most {LONGEST_PATH}, and at most "
            f"{LONGEST_NAME} bytes for each name in it; correct it."
        )
    path = folder / text
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(root):
        raise InputError(
            f"{where} has the {column} {text!r}, a link to {target} outside {folder}; copy the file into it."
        )
    return path


def _number(text: str, where: str) -> float:
    try:
        mpp = float(text)
    except ValueError:
        mpp = math.nan
    if not (math.isfinite(mpp) and mpp > 0):
        raise InputError(f"{where} has the mpp {text!r}, expected µm/px above 0; correct it or leave it empty.")
    return mpp


def _check_present(entries: Iterable[TileEntry]) -> None:
    files = [file for entry in entries for file in (entry.path, entry.mask) if file is not None]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(files)} files of the tiles are missing, first {missing[0]}; "
            "restore them or remove their rows from tiles.csv."
        )


def _readable(
    entries: Sequence[TileEntry], bad: list[tuple[Path, str]]
) -> tuple[list[TileEntry], list[tuple[Path, str]]]:
    """The tiles that can be read, and `bad` with all others added."""

    def fault(entry: TileEntry) -> str | None:
        try:
            entry.read()
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(2) as pool:
        checks = tqdm(pool.map(fault, entries), total=len(entries), desc="checking tiles", disable=None)
        faults = list(zip(entries, checks, strict=True))
    good = [entry for entry, reason in faults if reason is None]
    bad = bad + [(entry.path, reason) for entry, reason in faults if reason is not None]
    if not good:
        raise InputError(f"none of the {len(bad)} tiles can be read, the first because {bad[0][1]}")
    return good, bad


def _with_mpp(entry: TileEntry, given: float | None) -> TileEntry:
    if given is not None or entry.mpp is not None:
        return replace(entry, mpp=entry.mpp if given is None else float(given))
    try:
        return replace(entry, mpp=read_mpp(entry.path))
    except InputError:
        return entry  # a damaged file is reported when its tile is read


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bytes(tile: Tile) -> int:
    return tile.image.nbytes + (0 if tile.instances is None else tile.instances.nbytes)
