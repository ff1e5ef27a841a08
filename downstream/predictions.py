"""What `downstream/predict.py` makes of tiles: label maps, or classes, and a picture of the first ones for people."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from downstream.inference import TrainedTask
from histo.contact import KEPT, contact_sheet, overlay
from histo.errors import InputError, writing
from histo.files import written_whole
from histo.magnification import step_to
from histo.masks import read_instances, write_instances
from histo.running.outputs import result_names
from histo.segmenters import MPP_TOLERANCE
from histo.tiles import TileSet

LABELS, TYPES, PROBABILITIES, PARTS = "labels", "types", "probabilities", "parts"
TABLE, PREVIEW = "predictions.csv", "preview.png"
SHOWN = 24  # tiles in the picture
CHUNK = 256  # tiles whose classes are kept together, so that a stopped call goes on


class Maps:
    """Nuclei or regions of tiles: labels/NAME.png, named as the tiles are; types/NAME.csv where nuclei have types.

    Args:
        probabilities: of regions, also probabilities/NAME.npy, float16 [classes, H, W].
    """

    def __init__(self, task: TrainedTask, tiles: TileSet, probabilities: bool) -> None:
        self.task, self.tiles, self.probabilities = task, tiles, probabilities
        self.names = result_names(tiles.entries)

    def __len__(self) -> int:
        return len(self.tiles)

    def files(self, index: int) -> list[Path]:
        name = self.names[index]
        more = [Path(PROBABILITIES, f"{name}.npy")] if self.probabilities else []
        more += [Path(TYPES, f"{name}.csv")] if self.task.types else []
        return [Path(LABELS, f"{name}.png"), *more]

    def make(self, index: int, folder: Path) -> None:
        found = self.task.predict(self.tiles.image(index), self.tiles.entries[index].mpp)
        label, *more = (with_folder(folder / file) for file in self.files(index))
        for path in more:
            if path.suffix == ".csv":
                assert found.types is not None
                named = (
                    (number, self.task.types[kind - 1]) for number, kind in enumerate(found.types.tolist()) if kind
                )
                write_rows(path, [("id", "type"), *named])
                continue
            assert found.probabilities is not None
            with writing(path), written_whole(path) as file:
                np.save(file, found.probabilities.astype(np.float16))
        values = found.regions if found.instances is None else found.instances
        assert values is not None
        write_instances(label, values)

    def describe(self) -> str:
        return self.tiles.describe()

    def conclude(self, made: list[int], folder: Path) -> None:
        """Write the picture of the first tiles."""
        pictures = []
        for index in made[:SHOWN]:
            values = read_instances(folder / self.files(index)[0])
            text = f"{self.names[index]}\n{self._said(values)}"
            pictures.append((text, overlay(self.tiles.image(index), values, KEPT)))
        write_picture(folder / PREVIEW, contact_sheet(pictures))

    def _said(self, values: NDArray[np.int32]) -> str:
        if self.task.nuclei:
            return f"{len(np.unique(values[values > 0]))} nuclei"
        shares = np.bincount(values.ravel(), minlength=len(self.task.card["classes"])) / values.size
        return ", ".join(f"{name} {share:.0%}" for name, share in zip(self.task.card["classes"], shares, strict=True))


class Classes:
    """Classes of tiles: parts/NUMBER.csv of some tiles each, which `conclude` joins to predictions.csv."""

    def __init__(self, task: TrainedTask, tiles: TileSet, on_bad: str) -> None:
        self.task, self.tiles, self.on_bad = task, tiles, on_bad
        keys = [entry.key for entry in tiles.entries]
        if len(set(keys)) < len(keys):
            twice = next(key for k, key in enumerate(keys) if key in keys[:k])
            raise InputError(
                f"Two tiles are called {twice}, and so would be their rows; predict their sets one by one."
            )

    def __len__(self) -> int:
        return -(-len(self.tiles) // CHUNK)

    def files(self, index: int) -> list[Path]:
        return [Path(PARTS, f"{index:06d}.csv")]

    def make(self, index: int, folder: Path) -> None:
        rows = []
        for number in range(index * CHUNK, min((index + 1) * CHUNK, len(self.tiles))):
            entry = self.tiles.entries[number]
            try:
                found = self.task.predict(self.tiles.image(number), entry.mpp)
            except InputError as error:
                if self.on_bad == "error":
                    raise
                print(f"skipped: {error}", flush=True)
                continue
            assert found.probabilities is not None
            rows.append([entry.key, found.label, *(f"{value:.6g}" for value in found.probabilities)])
        write_rows(folder / self.files(index)[0], rows)

    def inputs(self) -> Iterator[str]:
        """The names of what is looked at, which those of the files do not tell."""
        return (entry.key for entry in self.tiles.entries)

    def describe(self) -> str:
        return self.tiles.describe()

    def conclude(self, made: list[int], folder: Path) -> None:
        """Join the parts to the table, and write the picture of the first tiles."""
        rows = read_rows(folder / self.files(index)[0] for index in made)
        if not rows:
            raise InputError(f"None of the {len(self.tiles)} tiles could be read; the reasons are above.")
        classes = self.task.card["classes"]
        write_rows(folder / TABLE, [["tile", "label", *(f"p_{name}" for name in classes)], *rows])
        number_of = {entry.key: k for k, entry in enumerate(self.tiles.entries)}
        pictures = []
        for key, label, *values in rows[:SHOWN]:
            image = self.tiles.image(number_of[key])
            text = f"{key}\n{label} {float(values[classes.index(label)]):.2f}"
            pictures.append((text, overlay(image, np.zeros(image.shape[1:], np.int32), KEPT)))
        write_picture(folder / PREVIEW, contact_sheet(pictures))


def scale_notes(task: TrainedTask, tiles: TileSet) -> list[str]:
    """What people must know of the tiles' µm/px beside the network's, one sentence for each kind of tiles.

    Raises:
        InputError: tiles that are too coarse for the network.
    """
    if learned := task.card.get("magnifications"):
        names = ", ".join(f"{mpp:.4g}" for mpp in learned)
        return [f"The network learned at {names} µm/px: a tile is read at the finest of these no finer than it is."]
    if task.mpp is None:
        return [f"{task.path.name} does not say at which µm/px it learned; tiles are read as they are."]
    notes, whole = [], task.classes_tiles or task.judges_bags
    for mpp, count in tiles.entries.facts("mpp").counts().items():
        some = f"{count} tile{'' if count == 1 else 's'} of"
        if mpp is None:
            notes.append(f"{some} unknown µm/px: taken to be of {task.mpp:g} µm/px, as the network learned at.")
        elif step_to(task.mpp, mpp, f"{count} of the tiles") != 1:
            shown = f"shown whole, as {task.card['tile_size']} px, to a network that learned at {task.mpp:g}."
            read = f"read at the {task.mpp:g} of the training, maps keep their own pixels."
            notes.append(f"{some} {mpp:g} µm/px: {shown if whole else read}")
        elif mpp != task.mpp:
            notes.append(f"{some} {mpp:g} µm/px: read as they are by a network that learned at {task.mpp:g}.")
    return notes + (_field_notes(task, tiles) if whole else [])


def _field_notes(task: TrainedTask, tiles: TileSet) -> list[str]:
    """A classifier of tiles or bags looks at whole tiles, resized to its side: their width in µm counts."""
    learned, first = task.card.get("tile_pixels"), tiles.entries[0]
    if task.mpp is None or not learned or first.mpp is None:
        return []
    own, wanted = tiles.image(0).shape[2] * first.mpp, learned[1] * task.mpp
    if abs(own / wanted - 1) <= MPP_TOLERANCE:
        return []
    return [
        f"Tile {first.key} is {own:.4g} µm wide, those of the training {wanted:.4g}; both are shown to the network as "
        f"{task.card['tile_size']} px, so that nuclei are {wanted / own:.2f} times as large as it knows them."
    ]


def read_rows(parts: Iterable[Path]) -> list[list[str]]:
    """The rows of tables without header, one after the other."""
    rows = []
    for part in parts:
        with part.open(encoding="utf-8", newline="") as file:
            rows += list(csv.reader(file))
    return rows


def with_folder(path: Path) -> Path:
    """The path, its folder made."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture by its suffix, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    data = io.BytesIO()
    picture.save(data, {".png": "PNG", ".jpg": "JPEG"}[path.suffix])
    with writing(path), written_whole(path) as file:
        file.write(data.getvalue())


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    with writing(path), written_whole(path) as file:
        file.write(text.getvalue().encode())
