"""Published data sets as they are unpacked: what is known of one, and its tiles, whatever files they lie in."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo.errors import InputError
from histo.links import stray_link
from histo.masks import encode_instances
from histo.tiles.entries import Tile, TileEntry

Size = tuple[int, int]


class Nuclei(NamedTuple):
    """An annotation: int32 [H, W] instance map, and uint8 [K+1] class by instance id (0 unknown), None without."""

    instances: NDArray[np.int32]
    classes: NDArray[np.uint8] | None = None


ImageReader = Callable[[Path], NDArray[np.uint8]]
NucleiReader = Callable[[Path, Size], Nuclei]


@dataclass(frozen=True)
class Facts:
    """What is known of a published set. None and empty mean: not known for certain, so nothing is compared with it.

    Attributes:
        title: name and tissue, for people.
        licence: terms of the data; `noncommercial` says whether they exclude commercial use, None where unclear.
        citation: what to cite.
        get: what to download from where.
        layout: the files that are read, as published.
        magnification: as the authors state it.
        mpp: µm/px, None where unknown or where tiles differ.
        patients: how a tile's patient is known; None where patients are unknown.
        disjoint: whether the official splits share no patient; None where that cannot be known.
        classes: label → number of tiles of the whole set, None where the number is not known.
        nuclei: classes of nuclei by their number in `Tile.classes`, from 1.
        tiles: number of tiles of the whole set.
        splits: split → number of tiles of the whole set.
        size: (height, width) in pixels of every tile; None where they differ.
        parts: what may follow `NAME@`, with what it does.
        notes: known flaws, and how splits were made.
        unconfirmed: which of these rest on memory alone and are to be checked before they are relied upon.
    """

    title: str
    licence: str
    noncommercial: bool | None
    citation: str
    get: str
    layout: str
    magnification: str
    mpp: float | None
    patients: str | None
    disjoint: bool | None = None
    classes: Mapping[str, int | None] = field(default_factory=dict)
    nuclei: Sequence[str] = ()
    tiles: int | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    size: Size | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    unconfirmed: Sequence[str] = ()


@dataclass(frozen=True)
class PublishedEntry(TileEntry):
    """A tile of a published set; `path` and `mask` may name a row of an array as `images.npy/17`.

    Attributes:
        image_of: reads `path`; None for a PNG, JPEG or TIFF file.
        nuclei_of: reads `mask`; None for an instance map as `histo.masks` reads it.
    """

    image_of: ImageReader | None = None
    nuclei_of: NucleiReader | None = None

    def read(self) -> Tile:
        image = self.read_image()
        height, width = image.shape[1:]
        nuclei = Nuclei(None) if self.mask is None else self._nuclei((height, width))  # type: ignore[arg-type]
        if nuclei.instances is not None and nuclei.instances.shape != (height, width):
            raise InputError(
                f"{self.mask} is {nuclei.instances.shape[0]} x {nuclei.instances.shape[1]} pixels (height x width) but "
                f"its tile {self.path} is {height} x {width}; unpack the set again."
            )
        return Tile(
            image,
            self.key,
            self.source,
            self.patient,
            self.mpp,
            self.label,
            self.split,
            nuclei.instances,
            classes=nuclei.classes,
        )

    def read_image(self) -> NDArray[np.uint8]:
        return super().read_image() if self.image_of is None else self.image_of(self.path)

    def read_mask(self, size: Size | None) -> NDArray[np.int32]:
        height, width = size or self.read_image().shape[1:]
        return self._nuclei((height, width)).instances

    def image_file(self) -> bytes:
        """The image's file as it lies; a PNG of it where it lies in none of its own or in another form."""
        if self.image_of is None:
            return super().image_file()
        with io.BytesIO() as file:
            Image.fromarray(self.read_image().transpose(1, 2, 0)).save(file, format="PNG")
            return file.getvalue()

    def mask_file(self) -> bytes:
        """A 16-bit PNG of the instance map."""
        return encode_instances(self.read_mask(None), self.mask)

    def _nuclei(self, size: Size) -> Nuclei:
        assert self.mask is not None
        if self.nuclei_of is None:
            return Nuclei(super().read_mask(size))
        return self.nuclei_of(self.mask, size)


def found(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder by a glob pattern, sorted, hidden ones left out.

    Raises:
        InputError: one is a link out of the folder.
    """
    paths = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    for path in paths:
        if reason := stray_link(path, folder):
            raise InputError(reason)
    return paths
