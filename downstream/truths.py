"""Which prediction belongs to which labelled tile; a prediction too many or too few is refused."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.bagging import in_bags
from downstream.predictions import LABELS, TABLE
from histo.errors import InputError
from histo.masks import mask_files, read_instances
from histo.running.outputs import result_names
from histo.slides.tables import list_slides, slides_source
from histo.tiles import Tile, TileEntry, TileSet, is_described, open_tiles
from histo.tiles.classes import grouped, read_groups, resolved
from histo.tiles.owners import owner_of


@dataclass(frozen=True)
class Truth:
    """A labelled tile.

    Attributes:
        name: what its prediction is called.
        mask: reads its label map, None where it has none.
        image: reads the image, None where there is only a label map.
        tile: reads all of it, None likewise.
        patient: whose it is, or its slide; None where both are unknown.
    """

    name: str
    mask: Callable[[], NDArray[np.int32]] | None
    image: Callable[[], NDArray[np.uint8]] | None = None
    patient: str | None = None
    label: str | None = None
    mpp: float | None = None
    tile: Callable[[], Tile] | None = None


def open_truth(named: str, split: str | None, mpp: float | None) -> tuple[list[Truth], set[str]]:
    """The labelled tiles to score, and the names of those of other splits.

    Args:
        named: tiles with what is known of them, or a plain folder of label maps.

    Raises:
        InputError: nothing usable there, or no such split.
    """
    if not is_described(named):
        if split is not None:
            raise InputError(
                f"--split {split} was given, but {named} has no tiles.csv that names splits; leave it out."
            )
        files, _ = mask_files(Path(named))
        found = {file.relative_to(named).with_suffix("").as_posix(): file for file in files}
        return [Truth(name, _reader(file), mpp=mpp) for name, file in found.items()], set()
    tiles = open_tiles(named, mpp=mpp, cache_mb=0)
    names = result_names(tiles.entries)
    chosen = range(len(tiles))
    if split is not None:
        wanted = tiles.entries.facts("split").among(split).tolist()
        if not wanted:
            raise InputError(f"No tile of {named} is of the split {split!r}: {tiles.describe()}; name one of these.")
        chosen = wanted
    return [_truth(tiles, k, names[k]) for k in chosen], set(names) - {names[k] for k in chosen}


def labelled_bags(named: str, split: str | None, group: list[str]) -> TileSet:
    """Entries of labelled bags, whose labels are their classes: slides of a table, or tiles as training puts them.

    Args:
        split: the one to score; None: splits do not matter.
        group: labels joined to classes, as `--data.group` of the training.

    Raises:
        InputError: nothing usable there, no label, tiles that belong to no bag, or groups that do not fit.
    """
    table, entries = Path(named), list[TileEntry]()
    slides = table.suffix.lower() == ".csv"
    if slides:
        source = slides_source(table)
        for row in list_slides(table):
            entries.append(TileEntry(row.path, row.key, source, row.patient, row.mpp, row.label, row.split, None))
    else:
        entries = list(open_tiles(named, cache_mb=0).entries)
    for entry in entries:
        if entry.label is None:
            raise InputError(f"{entry.key} of {named} has no label to score by; fill the column label of its table.")
    labels = [str(entry.label) for entry in entries]
    classes = grouped(labels, resolved(read_groups(group), labels), named)
    if slides:
        return TileSet([replace(entry, label=name) for entry, name in zip(entries, classes, strict=True)])
    return TileSet(in_bags(entries, classes, any_split=split is None)[0])


def match_maps(folder: Path, truths: Sequence[Truth], others: set[str], labels: str) -> dict[str, Path]:
    """The label map of every tile, from PRED/labels or PRED.

    Raises:
        InputError: a tile without one, one without a tile, or a tile without a mask.
    """
    place = folder / LABELS if (folder / LABELS).is_dir() else folder
    files = {file.relative_to(place).with_suffix("").as_posix(): file for file in mask_files(place)[0]}
    files.pop("preview", None)
    refuse_gaps(str(place), labels, [truth.name for truth in truths], list(files), others)
    for truth in truths:
        if truth.mask is None:
            raise InputError(
                f"The tile {truth.name} of {labels} has no mask to score by; fill the column mask of its tiles.csv, or "
                "leave it out by --split."
            )
    return {truth.name: files[truth.name] for truth in truths}


def read_note(folder: Path) -> dict[str, Any]:
    """What predict.py noted of its results; empty for those of other programs.

    Raises:
        InputError: a damaged note.
    """
    path = folder / "predict.json"
    if not path.is_file():
        return {}
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(note, dict):
            raise TypeError("it is no object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); predict again.") from error
    if not note.get("finished"):
        raise InputError(f"{folder} is unfinished; its command goes on with it: {note.get('command')}")

    return note


def read_predictions(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    """The classes of a predictions.csv, and the probabilities of each tile or bag.

    Raises:
        InputError: a missing or damaged table.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected the {TABLE} that predict.py writes; check the folder.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as comma-separated UTF-8 ({error}); predict again.") from error
    header = lines[0] if lines else []
    classes = [name.removeprefix("p_") for name in header[2:]]
    if (
        header[:2] not in (["tile", "label"], ["bag", "label"])
        or len(classes) < 2
        or not all(name.startswith("p_") for name in header[2:])
    ):
        raise InputError(
            f"{path} has the columns {', '.join(header)[:120] or 'none'}, expected tile or bag, label, and p_CLASS of "
            "each class; predict again."
        )
    rows: dict[str, list[float]] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            values = [float(text) for text in line[2:]]
        except ValueError:
            values = []
        if len(values) != len(classes) or line[0] in rows:
            raise InputError(f"Line {number} of {path} is no new tile with {len(classes)} numbers; predict again.")
        rows[line[0]] = values
    return classes, rows


def read_types(path: Path, names: Sequence[str], instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The type of each nucleus of a predicted map by its id, from 1 in the order of the names; 0 where it has none.

    Args:
        path: types/NAME.csv with the columns id and type.

    Raises:
        InputError: a missing or damaged file, or one that does not belong to the map.
    """
    found = np.zeros(int(instances.max(initial=0)) + 1, np.uint8)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, strict=True))
        if lines[0] != ["id", "type"]:
            raise ValueError(f"its columns are {', '.join(lines[0])}")
        for number, name in lines[1:]:
            if not 0 < int(number) < len(found):
                raise ValueError(f"its map has no nucleus {number}")
            found[int(number)] = 1 + names.index(name)
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{path} does not give the types of its label map ({error}); predict again.") from error
    return found


def refuse_gaps(place: str, labels: str, wanted: list[str], found: list[str], others: set[str]) -> None:
    """Every tile must have a prediction, and every prediction a tile.

    Args:
        place, labels: where they are, for people.
        wanted: names of the tiles; found: of the predictions; others: of tiles that are passed over.

    Raises:
        InputError: one is missing, or one too many.
    """
    there = set(found)
    missing = [name for name in wanted if name not in there]
    if missing:
        raise InputError(
            f"{place} lacks {len(missing)} of the {len(wanted)} tiles of {labels}, first {missing[0]}; predict all of "
            "them, or name the split that was predicted by --split."
        )
    extra = sorted(there - set(wanted) - others)
    if extra:
        raise InputError(
            f"{place} has {len(extra)} predictions of no tile of {labels}, first {extra[0]}; remove them, or name the "
            "labels that they belong to."
        )


def _reader(file: Path) -> Callable[[], NDArray[np.int32]]:
    return lambda: read_instances(file)


def _truth(tiles: TileSet, index: int, name: str) -> Truth:
    entry = tiles.entries[index]

    def mask() -> NDArray[np.int32]:
        instances = entry.read().instances
        assert instances is not None
        return instances

    owner = owner_of(entry)
    return Truth(
        name,
        mask if entry.mask is not None else None,
        entry.read_image,
        None if owner is None else str(owner),
        entry.label,
        entry.mpp,
        entry.read,
    )
