"""Folders of tiles: their images as they lie, or the rows of `tiles.csv`.

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
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image

from histo.errors import InputError, writing
from histo.files import written_whole
from histo.images import read_mpp
from histo.links import stray_link
from histo.masks import write_instances
from histo.tiles.archives import COMPRESSED
from histo.tiles.entries import Tile, TileEntry, of_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
COLUMNS = ("path", "label", "patient", "mpp", "split", "mask")
LONGEST_PATH, LONGEST_NAME = 1000, 255  # characters, and bytes of one name: file systems take no more
MASK_FOLDERS = ("labels", "masks")


def open_folder(
    folder: Path, source: str, *, mpp: float | None, split: str | None, on_bad: str
) -> tuple[tuple[TileEntry, ...], list[tuple[Path, str]]]:
    """What is known of the tiles of one folder, and (path, reason) of links that are left out.

    Args:
        folder: holds images, with or without `tiles.csv`.
        source: the name its tiles give as their source.
        mpp: µm/px of every tile, before the column mpp, and that before what the image file states.
        split: keep only the rows of this split.
        on_bad: "error" refuses links out of the folder and files that are missing; "skip" leaves the former out.

    Raises:
        InputError: nothing usable in the folder, a broken rule of `tiles.csv`, an unknown split, and see `on_bad`.
    """
    bad: list[tuple[Path, str]] = []
    if (folder / "tiles.csv").is_file():
        entries = _from_table(folder, source, split)
    else:
        if split is not None:
            raise InputError(
                f"{folder} has no tiles.csv and therefore no splits, but split {split!r} was asked for; "
                "write a tiles.csv with the columns path and split, or leave the split out."
            )
        entries, bad = images_lying(folder, source)
    if on_bad == "error":
        if bad:
            raise InputError(bad[0][1])
        _check_present(entries)
    return tuple(with_mpp(entry, mpp) for entry in entries), bad


def write_folder(tiles: Iterable[Tile], folder: Path) -> None:
    """Write tiles as `open_folder` reads them: images/K.png, labels/K.png where there are masks, `tiles.csv` last.

    Raises:
        InputError: the folder cannot be written, or a mask has ids that 16 bits do not hold.
    """
    with writing(folder):
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        rows = []
        for number, tile in enumerate(tiles):
            path = f"images/{number}.png"
            Image.fromarray(tile.image.transpose(1, 2, 0)).save(folder / path)
            mask = "" if tile.instances is None else f"labels/{number}.png"
            if tile.instances is not None:
                write_instances(folder / mask, tile.instances)
            rows.append([path, tile.label, tile.patient, tile.mpp, tile.split, mask])
        write_table(folder, rows)


def write_table(folder: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write `tiles.csv`, whole or not at all; every row has the fields of `COLUMNS`, None where unknown.

    Raises:
        InputError: it cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows([COLUMNS, *rows])
    with writing(folder), written_whole(folder / "tiles.csv") as file:
        file.write(text.getvalue().encode())


def images_lying(folder: Path, source: str) -> tuple[list[TileEntry], list[tuple[Path, str]]]:
    """The images of a folder as they lie, and links that lead out of it with the reason why they are no tiles.

    Raises:
        InputError: no image in the folder, or a `tiles.csv` in one of its sub-folders.
    """

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
        subfolders[:] = [name for name in subfolders if name[0] != "." and name.lower() not in MASK_FOLDERS]
        images = [name for name in files if name[0] != "." and name.lower().endswith(SUFFIXES)]
        away = {path: stray_link(path, folder) for path in (here / name for name in [*images, *subfolders])}
        refused += [(path, reason) for path, reason in sorted(away.items()) if reason is not None]
        found += [
            PurePosixPath((here / name).relative_to(folder).as_posix()) for name in images if away[here / name] is None
        ]
    if not found and not refused:
        if packed := [name for name in sorted(os.listdir(folder)) if name.endswith(COMPRESSED)]:
            raise InputError(
                f"{folder / packed[0]} is compressed, expected images or a plain .tar; unpack it with gunzip or the "
                "like first."
            )
        raise InputError(f"{folder} holds no image, expected files ending in {', '.join(SUFFIXES)}; check the path.")
    return [TileEntry(folder / key, str(key), source, None, None, None, None, None) for key in sorted(found)], refused


def _from_table(folder: Path, source: str, split: str | None) -> list[TileEntry]:
    table = folder / "tiles.csv"
    rows = table_rows(table, COLUMNS)
    if not rows:
        raise InputError(f"{table} has no rows below its header, expected one per tile; add them.")
    entries = []
    first_line: dict[str, int] = {}
    for line, row in rows:
        entry = row_entry(folder, source, line, row)
        if first_line.setdefault(entry.key, line) != line:
            raise InputError(
                f"line {line} of {table} repeats the path {entry.key!r} of line {first_line[entry.key]}; remove one of "
                "the two rows."
            )
        entries.append(entry)
    return entries if split is None else [entries[position] for position in of_split(entries, split, table)]


def row_entry(folder: Path, source: str, line: int, row: Mapping[str, str]) -> TileEntry:
    """What one row of `tiles.csv` says of a tile, whether or not its files are there.

    Args:
        folder: where the table lies.
        source: the source its tiles name.
        line, row: as `table_rows` gives them.

    Raises:
        InputError: a path or a number that breaks the rules.
    """
    where = f"line {line} of {folder / 'tiles.csv'}"
    root = folder.resolve()
    path = inside(folder, root, row["path"], "path", where)
    mask = inside(folder, root, row["mask"], "mask", where) if row["mask"] else None
    mpp = pixel_size(row["mpp"], where) if row["mpp"] else None
    texts = {name: row[name] or None for name in ("patient", "label", "split")}
    key = PurePosixPath(row["path"]).as_posix()
    return TileEntry(path=path, key=key, source=source, mpp=mpp, mask=mask, **texts)


def table_rows(table: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, {column: text}) of every row of a CSV; a column that the file lacks is empty, others are kept.

    Raises:
        InputError: it is no CSV in UTF-8, lacks the column path, or has a column that looks like a slip of a known one.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(table, header, columns)
            rows = []
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise InputError(
                        f"line {reader.line_num} of {table} has {len(fields)} fields, expected {len(header)} as in the "
                        "header; put a field that holds a comma in double quotes."
                    )
                row = dict.fromkeys(columns, "") | {
                    name: field.strip() for name, field in zip(header, fields, strict=True)
                }
                rows.append((reader.line_num, row))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as comma-separated UTF-8 ({error}); save it again so.") from error


def _check_header(table: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    repeated = [name for name, number in Counter(header).items() if number > 1]
    if repeated:
        raise InputError(f"{table} has the column {repeated[0]!r} twice; remove one of the two.")
    for name in header:
        meant = difflib.get_close_matches(name.lower(), columns, n=1, cutoff=0.75)
        if name not in columns and meant and meant[0] not in header:
            raise InputError(f"{table} has a column {name!r} that looks like {meant[0]!r}; rename the column.")
    if "path" not in header:
        raise InputError(f"{table} has no column 'path' among {', '.join(header) or 'none'}; add it to the header.")


def inside(folder: Path, root: Path, text: str, column: str, where: str) -> Path:
    """The file of a row; a table from elsewhere must not make us read outside its own folder.

    One exception: published sets keep masks in a folder beside the images', so a mask may start with one '..'.

    Args:
        folder: where the table lies; root: the same, links followed.
        text: the field; column: its name; where: the line, for the sentence.

    Raises:
        InputError: a path that is absolute, empty, too long, or leads out.
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


def pixel_size(text: str, where: str) -> float:
    """The µm/px in a field of a CSV.

    Raises:
        InputError: it is no number above 0; `where` names the line.
    """
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


def with_mpp(entry: TileEntry, given: float | None) -> TileEntry:
    """The entry with the µm/px that is given, or else that of the table, or else that of the image file."""
    if given is not None or entry.mpp is not None:
        return replace(entry, mpp=entry.mpp if given is None else float(given))
    try:
        return replace(entry, mpp=read_mpp(entry.path))
    except InputError:
        return entry  # a damaged file is reported when its tile is read
