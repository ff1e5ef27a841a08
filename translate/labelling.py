"""Tissue becomes a labelled set: images/, labels/ and, where a mask failed the gate, set_aside/ instead of both.

A tile is done when its mask is there, in labels/ or in set_aside/. Every mask says in its own file what made it (see
`histo.masks.read_record`), so that a folder can be continued, summed up, and taken apart.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError, writing
from histo.files import written_whole
from histo.finders import Finder
from histo.masks import read_record, write_instances
from histo.running.outputs import Layout
from histo.tiles import SUFFIXES, TileSet
from translate.quality import GateSettings, Quality, measure

IMAGES, LABELS, ASIDE = "images", "labels", "set_aside"
LAYOUT = Layout(
    "summary.json", (IMAGES, LABELS, ASIDE), ("tiles.csv", "set_aside.csv", "contact.png", "agreement.json")
)


@dataclass(frozen=True)
class Outcome:
    """What came of one tile.

    reason: why it was set aside, None where it is kept.
    """

    index: int
    quality: Quality
    reason: str | None


class Labelling:
    """Pseudo-masks for tissue of known µm/px.

    Raises:
        InputError: unknown µm/px, or two tiles that would have one name.
    """

    def __init__(self, tissue: TileSet, finder: Finder, gate: GateSettings) -> None:
        tissue.require_mpp("the size of nuclei, by which pseudo-masks are judged,")
        self.tissue, self.finder, self._gate = tissue, finder, gate
        self._several = len({entry.source for entry in tissue.entries}) > 1
        self.names = [self.name(entry.source, entry.key) for entry in tissue.entries]
        first: dict[str, int] = {}
        for k, name in enumerate(self.names):
            if first.setdefault(name, k) != k:
                raise InputError(
                    f"The tiles {tissue.entries[first[name]].path} and {tissue.entries[k].path} would both be called "
                    f"{name}; rename one of them."
                )

    def name(self, source: str, key: str) -> str:
        """The name of a tile's files without suffix: its path, with that of the set where there are several."""
        path = PurePosixPath(key).with_suffix("")
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"The tile {key!r} would be written outside --out; rename it.")
        if path.parts[0] == IMAGES and len(path.parts) > 1:
            path = path.relative_to(IMAGES)
        return (source / path if self._several else path).as_posix()

    def image(self, index: int) -> Path:
        """The copy of a kept tile, relative to the folder."""
        suffix = PurePosixPath(self.tissue.entries[index].key).suffix
        return Path(IMAGES, self.names[index] + (suffix if suffix.lower() in SUFFIXES else ".png"))

    def label(self, index: int) -> Path:
        """The mask of a kept tile."""
        return Path(LABELS, f"{self.names[index]}.png")

    def aside(self, index: int) -> Path:
        """The mask of a tile that is set aside."""
        return Path(ASIDE, f"{self.names[index]}.png")

    def mask(self, index: int, folder: Path) -> Path | None:
        """Where the mask of a tile lies; None where there is none yet."""
        return next(
            (folder / file for file in (self.label(index), self.aside(index)) if (folder / file).is_file()), None
        )

    def make(self, images: Mapping[int, NDArray[np.uint8]], folder: Path, facts: dict[str, Any]) -> None:
        """Find the nuclei of some tiles and write their files, each whole or not at all, a tile's mask last.

        Args:
            images: of the tiles, by their index.
            facts: for the record in each mask, beside those of the finder and of the tile.

        Raises:
            InputError: a tile that the finder refuses, or a file that cannot be written.
        """
        entries = [self.tissue.entries[index] for index in images]
        found = self.finder(list(images.values()), [entry.mpp for entry in entries])
        for (index, image), entry, nuclei in zip(images.items(), entries, found, strict=True):
            assert entry.mpp is not None
            quality = measure(image, nuclei, entry.mpp)
            reason = self._gate.reason(quality)
            record = {
                "tile": entry.key,
                "source": entry.source,
                "mpp": entry.mpp,
                "finder": self.finder.facts,
                "quality": asdict(quality),
                "set_aside": reason,
                **facts,
            }
            if reason is None:
                copy = _with_folder(folder / self.image(index))
                with writing(copy), written_whole(copy) as file:
                    file.write(entry.image_file())
            mask = self.label(index) if reason is None else self.aside(index)
            write_instances(_with_folder(folder / mask), nuclei, record)

    def outcome(self, index: int, folder: Path) -> Outcome | None:
        """What came of a tile, as its mask says; None where nothing did yet.

        Raises:
            InputError: a mask that does not say.
        """
        mask = self.mask(index, folder)
        if mask is None:
            return None
        record = read_record(mask)
        try:
            return Outcome(index, Quality(**record["quality"]), record["set_aside"])
        except (LookupError, TypeError) as error:
            raise InputError(f"{mask} has a damaged record ({error}); remove it, and make it again.") from error

    def row(self, index: int) -> list[object]:
        """The line of a kept tile in tiles.csv; patients of several sets stay apart."""
        entry = self.tissue.entries[index]
        patient = f"{entry.source}/{entry.patient}" if self._several and entry.patient else entry.patient
        image, label = self.image(index).as_posix(), self.label(index).as_posix()
        return [image, entry.label, patient, entry.mpp, entry.split, label]


def _with_folder(path: Path) -> Path:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path
