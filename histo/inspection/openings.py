"""What lies at a path, opened so that one fault does not hide the others."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from histo.datasets import NamedSet, named_set
from histo.errors import InputError
from histo.inspection.report import Report
from histo.tiles import open_tiles
from histo.tiles.entries import TileEntry
from histo.tiles.integrity import integrity
from histo.tiles.remote import place
from histo.tiles.shards import is_shards
from histo.tiles.tables import COLUMNS, MASK_FOLDERS, SUFFIXES, images_lying, row_entry, table_rows, with_mpp

_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".npy")


def opened(path: str, *, progress: bool) -> tuple[Report, Sequence[TileEntry]]:
    """The tiles at a path with all that can be said before they are looked at.

    Args:
        path: a folder with or without `tiles.csv`, shards, or `NAME:PATH`.

    Raises:
        InputError: there is nothing that can be read as tiles.
    """
    folder = place(path)
    known = named_set(path)
    if known is not None:
        return _named(known, progress)
    if is_shards(folder) or not folder.is_dir():
        tiles = open_tiles(folder)  # which says what is wrong with a path that is neither
        return Report(f"{folder}: shards"), tiles.entries
    if (folder / "tiles.csv").is_file():
        report = Report(f"{folder}: a folder of tiles with a tiles.csv")
        try:
            return report, _listed(folder, report)
        except InputError as error:
            report.add("table", [str(error)])
            return report, _lying(folder, report)
    report = Report(f"{folder}: a folder of images without a tiles.csv")
    return report, _lying(folder, report)


def _named(known: NamedSet, progress: bool) -> tuple[Report, Sequence[TileEntry]]:
    wrong, notes = integrity(known, progress=progress)
    facts = known.facts
    report = Report(f"{known.folder}: {facts.title}", notes=notes)
    report.facts["licence"] = facts.licence
    if facts.notes:
        report.facts["of the set"] = facts.notes
    report.add("published set", wrong)
    return report, known.entries(known.name)


def _listed(folder: Path, report: Report) -> list[TileEntry]:
    """Rows of the table whose files are there; the rest becomes findings."""
    rows = table_rows(folder / "tiles.csv", COLUMNS)
    if not rows:
        raise InputError(f"{folder / 'tiles.csv'} has no rows below its header, expected one per tile; add them.")
    report.add("columns", [name for name in rows[0][1] if name not in COLUMNS])
    entries: list[TileEntry] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        try:
            entry = row_entry(folder, folder.resolve().name, line, row)
        except InputError as error:
            report.add("table", [str(error)])
            continue
        if lines.setdefault(entry.key, line) != line:
            report.add("repeated keys", [f"{entry.key}: lines {lines[entry.key]} and {line}"])
            continue
        missing = [str(file) for file in (entry.path, entry.mask) if file is not None and not file.is_file()]
        report.add("missing files", missing)
        if not missing:
            entries.append(with_mpp(entry, None))
    named = {str(folder / key) for key in lines}
    homes = {Path(name).parent for name in named}  # a picture elsewhere is no forgotten tile
    images = {str(path) for path in _images(folder) if path.parent in homes}
    report.add("unlisted images", sorted(images - named - {str(entry.mask) for entry in entries}))
    with_mask = [entry for entry in entries if entry.mask is not None]
    if with_mask:
        report.add("images without mask", [entry.key for entry in entries if entry.mask is None])
        used = {str(entry.mask.resolve()) for entry in with_mask if entry.mask is not None}
        lying = [path for path in _masks(folder) if str(path.resolve()) not in used]
        report.add("masks without image", [str(path.relative_to(folder)) for path in lying])
        shared = Counter(str(entry.mask) for entry in with_mask)
        report.add("table", [f"{mask} is the mask of {number} tiles" for mask, number in shared.items() if number > 1])
    return entries


def _lying(folder: Path, report: Report) -> list[TileEntry]:
    """Images as they lie, with the masks of their names where the folder has some."""
    found, refused = images_lying(folder, folder.resolve().name)
    found = [with_mpp(entry, None) for entry in found]
    report.add("links", [reason for _, reason in refused])
    masks: dict[str, Path] = {}
    for path in _masks(folder):
        masks.setdefault(path.stem, path)
    if not masks:
        return found
    stems = Counter(entry.path.stem for entry in found)
    report.add("images without mask", [entry.key for entry in found if entry.path.stem not in masks])
    report.add(
        "masks without image", [str(path.relative_to(folder)) for stem, path in masks.items() if stem not in stems]
    )
    report.notes.append("masks are used for training once a tiles.csv names them in its column mask.")
    return [replace(entry, mask=masks.get(entry.path.stem) if stems[entry.path.stem] == 1 else None) for entry in found]


def _images(folder: Path) -> list[Path]:
    return [
        path
        for path in _files(folder)
        if path.suffix.lower() in SUFFIXES and not _is_mask_place(path.relative_to(folder))
    ]


def _masks(folder: Path) -> list[Path]:
    return [
        path
        for path in _files(folder)
        if path.suffix.lower() in _MASK_SUFFIXES and _is_mask_place(path.relative_to(folder))
    ]


def _is_mask_place(path: Path) -> bool:
    return any(part.lower() in MASK_FOLDERS for part in path.parts[:-1])


def _files(folder: Path) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return found
