"""One look at one tile: whether it can be read, its form, its pixels' hash, its nuclei."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from histo.errors import InputError
from histo.inspection.likeness import spectrum
from histo.tiles.entries import TileEntry
from histo.tiles.published import PublishedEntry


@dataclass(frozen=True)
class Look:
    """What was seen of a tile.

    Attributes:
        faults: (kind of finding, sentence), none for a sound tile.
        size: (height, width) in pixels, None where the image cannot be read.
        mode: channels and bits as the file has them, None where unknown.
        digest: of the pixels.
        spectrum: see `histo.inspection.likeness`; None for a blank tile.
        diameters: of nuclei that the border does not cut, pixels; None without a mask.
    """

    faults: tuple[tuple[str, str], ...] = ()
    size: tuple[int, int] | None = None
    mode: str | None = None
    digest: bytes = b""
    spectrum: NDArray[np.float32] | None = None
    diameters: NDArray[np.float64] | None = None


def look(entry: TileEntry) -> Look:
    """Read one tile and what belongs to it; nothing is raised for a damaged one."""
    empty = [path for path in (entry.path, entry.mask) if path is not None and path.is_file() and not _bytes(path)]
    if empty:
        return Look(faults=tuple(("empty files", str(path)) for path in empty))
    try:
        image = entry.read_image()
        mode = _mode(entry)
    except InputError as error:
        return Look(faults=(("images", str(error)),))
    digest = hashlib.blake2b(f"{image.shape}".encode() + image.tobytes(), digest_size=16).digest()
    size = (image.shape[1], image.shape[2])
    faults, diameters = _mask(entry, size)
    return Look(faults, size, mode, digest, spectrum(image), diameters)


def nucleus_diameters(instances: NDArray[np.int32]) -> NDArray[np.float64]:
    """Diameters in pixels of the circles with the areas of the nuclei [H, W] that the border does not cut, [K]."""
    frame = np.concatenate([instances[0], instances[-1], instances[:, 0], instances[:, -1]])
    ids, areas = np.unique(instances, return_counts=True)
    return 2 * np.sqrt(areas[(ids > 0) & ~np.isin(ids, frame)] / np.pi)


def _mask(entry: TileEntry, size: tuple[int, int]) -> tuple[tuple[tuple[str, str], ...], NDArray[np.float64] | None]:
    if entry.mask is None:
        return (), None
    try:
        polygons = entry.mask.suffix.lower() in (".geojson", ".json")
        published = isinstance(entry, PublishedEntry)
        instances = entry.read_mask(size if polygons or published else None)
    except InputError as error:
        return (("masks", str(error)),), None
    if instances.shape != size:
        shapes = f"{instances.shape[0]} x {instances.shape[1]}, image {size[0]} x {size[1]} (height x width)"
        return (("mask sizes", f"{entry.mask}: mask {shapes}"),), None
    if not instances.any():
        return (("empty masks", str(entry.mask)),), None
    if instances.max() == instances[instances > 0].min() and (parts := int(ndimage.label(instances > 0)[1])) > 1:
        return (("binary masks", f"{entry.mask}: {parts} separate pieces of id {instances.max()}"),), None
    return (), nucleus_diameters(instances)


def _mode(entry: TileEntry) -> str | None:
    if isinstance(entry, PublishedEntry) and entry.image_of is not None:
        return None
    with Image.open(entry.path if entry.path.is_file() else io.BytesIO(entry.image_file())) as image:
        return str(image.mode)


def _bytes(path: Path) -> int:
    return path.stat().st_size
