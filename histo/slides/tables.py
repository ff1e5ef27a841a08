"""Which slides: one file, a folder, or the rows of a `slides.csv`.

A folder is searched with its sub-folders for the suffixes of `histo.slides.readers`; hidden files are passed over, and
links that lead out of the folder are refused. A `slides.csv` in it goes before: a header and one row per slide. Only
`path` must be there, and an empty field means unknown:

| column  | meaning                                                              |
|---------|----------------------------------------------------------------------|
| path    | the slide, relative to the table and below it, or absolute           |
| label   | class name of all its tiles                                          |
| patient | patient identifier; without it the patient is unknown, never guessed |
| mpp     | µm/px of the finest level, before what the file says                 |
| split   | e.g. train, val, test                                                |
| mask    | a map of the whole slide at any µm/px, not 0 where its label shows   |

An absolute path is allowed, since slides lie where there is room for them; a tile is then keyed by the file's name.
Masks lie below the table. Nothing learns from them: they show whether attention went where it should.
"""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from histo.errors import InputError
from histo.links import stray_link
from histo.slides.readers import SUFFIXES
from histo.tiles.tables import inside, pixel_size, table_rows

TABLE = "slides.csv"
COLUMNS = ("path", "label", "patient", "mpp", "split", "mask")


@dataclass(frozen=True)
class SlideRow:
    """What is known of a slide before it is opened.

    Attributes:
        path: its file.
        key: names it among the slides, relative to their folder.
        label, patient, split: None where unknown.
        mpp: µm/px before what the file says; None leaves it to the file.
        mask: where its label shows, a map of the whole slide; None where unknown.
    """

    path: Path
    key: str
    label: str | None = None
    patient: str | None = None
    mpp: float | None = None
    split: str | None = None
    mask: Path | None = None


def slides_source(path: Path) -> str:
    """The name that tiles of these slides give as their source: that of the folder they lie in."""
    return (path if path.is_dir() else path.resolve().parent).resolve().name


def list_slides(path: Path) -> list[SlideRow]:
    """The slides of one file, of a folder, or of a `slides.csv`.

    Raises:
        InputError: there is none, one is missing, or the table breaks a rule.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a slide, a folder of them or a slides.csv; check the path.")
    if path.is_dir() and (path / TABLE).is_file():
        path = path / TABLE
    if path.is_file() and path.suffix.lower() == ".csv":
        return _from_table(path)
    if path.is_file():
        return [SlideRow(path, path.name)]
    found = []
    for root, subfolders, files in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(root, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    for slide in sorted(found):
        if reason := stray_link(slide, path):
            raise InputError(reason)
    if not found:
        raise InputError(f"{path} holds no slide, expected files ending in {', '.join(SUFFIXES)}; check the path.")
    return sorted((SlideRow(slide, slide.relative_to(path).as_posix()) for slide in found), key=lambda row: row.key)


def _from_table(table: Path) -> list[SlideRow]:
    slides: dict[str, SlideRow] = {}
    for line, row in table_rows(table, COLUMNS):
        where = f"line {line} of {table}"
        given = PurePosixPath(row["path"])
        if not row["path"] or "\0" in row["path"] or ".." in given.parts:
            raise InputError(
                f"{where} has the path {row['path']!r}, expected a slide below {table.parent}, or an "
                "absolute path; correct it."
            )
        key = given.name if given.is_absolute() else given.as_posix()
        if key in slides:
            raise InputError(f"{where} has a second slide {key!r}, expected names of their own; remove or rename one.")
        slide = table.parent / given
        if not given.is_absolute() and (reason := stray_link(slide, table.parent)):
            raise InputError(reason)
        if not slide.is_file():
            raise InputError(f"{where} names {slide}, which is missing; restore it or remove the row.")
        mpp = pixel_size(row["mpp"], where) if row["mpp"] else None
        texts = {name: row[name] or None for name in ("label", "patient", "split")}
        mask = inside(table.parent, table.parent.resolve(), row["mask"], "mask", where) if row["mask"] else None
        if mask is not None and not mask.is_file():
            raise InputError(f"{where} names the mask {mask}, which is missing; restore it or leave the field empty.")
        slides[key] = SlideRow(slide, key, mpp=mpp, mask=mask, **texts)
    if not slides:
        raise InputError(f"{table} has no rows below its header, expected one per slide; add them.")
    return list(slides.values())
