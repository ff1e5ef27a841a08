"""Nucleus masks in files: instance maps from PNG, TIFF, NumPy and GeoJSON files, and back to 16-bit PNG.

An instance map is `int32 [H, W]`: 0 is background and every other value is the id of one nucleus. Ids need not be
contiguous. A map with a single id, such as a binary 0/255 or 0/1 mask, is one instance that keeps its id: nothing is
split into connected components.

| form of the file                                 | what becomes of it                                                |
|--------------------------------------------------|-------------------------------------------------------------------|
| one integer per pixel, 1 to 64 bits; booleans    | the ids, as they are stored                                       |
| palette                                          | the indices are the ids, whatever their colours                   |
| floats                                           | taken where every value is whole; NaN and fractions are refused   |
| polygons (GeoJSON)                               | filled in the order of the file, see `read_instances`             |
| colours, alpha, several pages or planes          | refused: which channel or page is meant would be a guess          |
| an orientation tag other than 1                  | refused: whether the image was turned with it would be a guess    |
| objects, records, texts, dates, complex numbers  | refused; nothing is ever unpickled                                |
| ids below 0 or above 2 147 483 647               | refused; written are ids up to 65 535                             |
| more than `MAX_PIXELS`                           | refused by its header, before decoding                            |
| GeoJSON of more than `MAX_BYTES`, coordinates    | refused                                                           |
|   more than `MAX_PIXELS` from 0                  |                                                                   |
| empty, truncated or damaged                      | refused; a PNG's checksums are verified                           |
"""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage.draw import polygon

from histo.errors import InputError, writing
from histo.files import written_whole
from histo.images import MAX_PIXELS
from histo.links import stray_link
from histo.png import check_png

MAX_BYTES = 100_000_000  # a GeoJSON file takes some ten times its size in memory while it is read
_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # Pillow's modes with one integer per pixel
_SPREAD = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey of 2 and 4 bits by
_ORIENTATION = 274
_RECORD = "nucleate"  # keyword of a PNG's text chunk
_POLYGONS = (".geojson", ".json")  # whose size nothing but an image tells
_SUFFIXES = (".png", ".tif", ".tiff", ".npy", *_POLYGONS)


def as_instances(array: NDArray[Any], source: object = "The instance map") -> NDArray[np.int32]:
    """The array as an instance map; an `int32` map comes back as it is, other integers and booleans are converted.

    Args:
        array: integer or boolean [H, W] with ids from 0 to 2 147 483 647.
        source: what the error sentence calls the array, for example its file.

    Raises:
        InputError: not two-dimensional, no pixels, not integer, or an id out of range.
    """
    if array.ndim != 2 or array.size == 0:
        raise InputError(
            f"{source} has shape {array.shape}, but an instance map is [height, width] with one id per pixel; "
            "give a single-channel label map."
        )
    if array.dtype.kind not in "bui":
        raise InputError(
            f"{source} holds {array.dtype} values, but the ids of an instance map are integers; convert it first."
        )
    smallest, largest = int(array.min()), int(array.max())
    if smallest < 0 or largest > np.iinfo(np.int32).max:
        wrong = smallest if smallest < 0 else largest
        raise InputError(
            f"{source} holds the id {wrong}, but ids run from 0 (background) to {np.iinfo(np.int32).max}; "
            "renumber the map."
        )
    return array.astype(np.int32, copy=False)


def read_instances(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.int32]:
    """Read an instance map.

    Images (`.png`, `.tif`, `.tiff`) have one channel of integers, a palette's indices being the ids; `.npy` holds one
    [H, W] array. Floats are taken where every value is whole. GeoJSON (`.geojson`, `.json`) has the shape QuPath
    writes: a FeatureCollection, one Feature, or a list of Features or geometries, each a Polygon (with holes) or a
    MultiPolygon in pixels, x before y, (0, 0) being the corner of the first pixel. Ids are 1, 2, … in the order of the
    file, a pixel belongs to a polygon that contains its centre, and later polygons overwrite earlier ones. A QuPath
    cell stands for its `nucleusGeometry` where it has one.

    Args:
        path: the file.
        size: (height, width) in pixels. Needed for GeoJSON; for other files the size that is expected.

    Returns:
        int32 [H, W], 0 = background.

    Raises:
        InputError: missing, damaged or unknown file, more than `MAX_PIXELS` pixels, several channels, fractions, NaN,
            negative ids, another size than expected, or a polygon wholly outside the size.
    """
    path = Path(path)
    _suffix(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; check the path of the instance map.")
    try:
        with path.open("rb") as file:
            return _decode(file, path, size)
    except OSError as error:
        raise InputError(f"{path} cannot be read as an instance map ({error}); write the file again.") from error


def mask_files(folder: Path, on_bad: Literal["error", "skip"] = "error") -> tuple[list[Path], list[tuple[Path, str]]]:
    """The instance maps in a folder and its sub-folders, sorted, and those that on_bad=skip leaves out with the reason.

    Args:
        on_bad: "skip" reads every file once now and leaves out what cannot be read; links out of the folder are an
            error or left out likewise.

    Raises:
        InputError: no folder, or no instance map in it that can be used.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected a folder of instance maps.")
    suffixes = [suffix for suffix in _SUFFIXES if suffix not in _POLYGONS]
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no instance maps; expected files ending in {', '.join(suffixes)}.")
    good, bad = [], []
    for file in files:
        try:
            stray = stray_link(file, folder)
            if stray is not None:
                raise InputError(stray)
            if on_bad == "skip":
                read_instances(file)
            good.append(file)
        except InputError as error:
            if on_bad == "error":
                raise
            bad.append((file, str(error)))
    if not good:
        raise InputError(f"None of the {len(bad)} instance maps of {folder} can be read, the first because {bad[0][1]}")
    return good, bad


def decode_instances(data: bytes, name: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.int32]:
    """The instance map in the bytes of a file, by the rules of `read_instances`.

    Args:
        data: the whole file.
        name: its name, which tells the format by its suffix, and which the error sentence shows.
        size: as in `read_instances`.

    Returns:
        int32 [H, W], 0 = background.

    Raises:
        InputError: as `read_instances`.
    """
    return _decode(io.BytesIO(data), Path(name), size)


def _decode(file: BinaryIO, path: Path, size: tuple[int, int] | None) -> NDArray[np.int32]:
    suffix = _suffix(path)
    try:
        if suffix in _POLYGONS:
            return _read_geojson(file, path, size)
        array = {".png": _read_png, ".npy": _read_npy}.get(suffix, _read_tiff)(file, path)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} is over the limit of {MAX_PIXELS} pixels ({error}); cut it into tiles.") from error
    except Exception as error:  # readers of damaged files fail in many ways, none of which is a fault of this program
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{path} cannot be read as an instance map ({reason}); write the file again.") from error
    if array.dtype.kind == "f":
        array = _whole(array, path)
    instances = as_instances(array, path)
    if size is not None and instances.shape != tuple(size):
        raise InputError(
            f"{path} is {instances.shape[0]} x {instances.shape[1]} pixels (height x width), "
            f"but {size[0]} x {size[1]} was expected; pair it with its own image."
        )
    return instances


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(
            f"{path} ends in {suffix!r}, but instance maps are read from {', '.join(_SUFFIXES)}; "
            "convert it to a lossless 16-bit PNG."
        )
    return suffix


def write_instances(path: str | Path, instances: NDArray[Any], record: dict[str, Any] | None = None) -> None:
    """Write an instance map as 16-bit greyscale PNG, atomically: readers see the old file or the whole new one.

    Args:
        path: ends in `.png`; its folder exists.
        instances: integer [H, W], ids from 0 to 65 535, kept as they are.
        record: where the map comes from, kept in the file as JSON (see `read_record`).

    Raises:
        InputError: another suffix, no such folder, not an instance map, an id above 65 535, or a full disk.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} ends in {path.suffix!r}, but instance maps are written as .png; rename it.")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder; make it before writing {path.name} into it.")
    data = encode_instances(instances, path, record)
    with writing(path), written_whole(path) as file:
        file.write(data)


def encode_instances(instances: NDArray[Any], name: object, record: dict[str, Any] | None = None) -> bytes:
    """The bytes of a 16-bit greyscale PNG of an instance map.

    Args:
        instances: integer [H, W], ids from 0 to 65 535, kept as they are.
        name: what the error sentence calls the file.
        record: as in `write_instances`.

    Raises:
        InputError: not an instance map, or an id above 65 535.
    """
    instances = as_instances(instances)
    largest = int(instances.max())
    if largest > np.iinfo(np.uint16).max:
        raise InputError(
            f"The instance map for {name} holds the id {largest}, but a 16-bit PNG ends at 65535; renumber the map, "
            "or save it with numpy.save if it has more nuclei than that."
        )
    with io.BytesIO() as file:
        text = PngInfo()
        if record is not None:
            text.add_text(_RECORD, json.dumps(record))  # escapes what Latin-1, the text of PNG, does not hold
        Image.fromarray(instances.astype(np.uint16)).save(file, format="PNG", pnginfo=text)
        return file.getvalue()


def read_record(path: Path) -> dict[str, Any]:
    """Where an instance map comes from, as `write_instances` noted it in the PNG.

    Raises:
        InputError: no such file, or one without a record.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            record = json.loads(getattr(image, "text", {})[_RECORD])
        if not isinstance(record, dict):
            raise TypeError("it is no object")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path} has no record of what made it ({error}); remove it, and make it again.") from error
    return record


def renumber(instances: NDArray[Any]) -> NDArray[np.int32]:
    """The same map with ids 1, 2, …, n in the order of the old ids.

    Args:
        instances: integer [H, W], ids of 0 or more.

    Returns:
        int32 [H, W].

    Raises:
        InputError: not an instance map.
    """
    instances = as_instances(instances)
    if instances.max() > max(instances.size, 65_535):  # a table up to the largest id would outweigh the map
        ids, positions = np.unique(instances, return_inverse=True)
        return (positions.reshape(instances.shape) + int(ids[0] > 0)).astype(np.int32)
    present = np.bincount(instances.ravel()) > 0
    present[0] = False
    return np.cumsum(present, dtype=np.int32).take(instances)


def _check_pixels(path: Path, shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_PIXELS:
        raise InputError(
            f"{path} has shape {tuple(shape)}, more than the limit of {MAX_PIXELS} pixels; cut it into tiles."
        )


def _check_single_upright(path: Path, pages: int, orientation: int) -> None:
    if pages != 1:
        raise InputError(f"{path} holds {pages} pages, pictures or planes, expected one; save the one you mean alone.")
    if orientation != 1:
        raise InputError(
            f"{path} has the orientation tag {orientation}, but ids are read as they are stored; "
            "save the map upright and without the tag."
        )


def _whole(array: NDArray[Any], path: Path) -> NDArray[np.int64]:
    array = array.astype(np.float64, copy=False)
    wrong = ~((np.abs(array) < 2.0**53) & (array == np.floor(array)))  # NaN and infinity compare as wrong
    if wrong.any():
        raise InputError(
            f"{path} holds the value {array[wrong][0]}, but the ids of an instance map are whole numbers; "
            "give a label map, not probabilities."
        )
    return array.astype(np.int64)


def _read_png(file: BinaryIO, path: Path) -> NDArray[Any]:
    with Image.open(file, formats=["PNG"]) as image:
        _check_pixels(path, (image.height, image.width))
        spread = _SPREAD.get(str(image.tile[0].args), 1)
        _check_single_upright(path, getattr(image, "n_frames", 1), image.getexif().get(_ORIENTATION, 1))
        if image.mode not in _LABEL_MODES:
            raise InputError(
                f"{path} is a colour image (mode {image.mode}), but an instance map has one id per pixel; "
                "give a single-channel label map."
            )
        array = np.asarray(image)
    check_png(file, last_row_blank=not array[-1].any())
    return array if spread == 1 else array // spread


def _read_tiff(file: BinaryIO, path: Path) -> NDArray[Any]:
    with tifffile.TiffFile(file) as tiff:
        # The page and not tifffile's series: those of OME-TIFF may fetch pixels from other files.
        page = tiff.pages.first
        pages = max(len(tiff.pages), int((tiff.imagej_metadata or {}).get("images", 1)))
        _check_pixels(path, page.shape)
        _check_single_upright(path, pages, page.tags.valueof("Orientation", 1))
        if 0 in page.databytecounts:
            raise ValueError("a strip or block of it is empty")
        return np.asarray(page.asarray())


def _read_npy(file: BinaryIO, path: Path) -> NDArray[Any]:
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)(file)
    _check_pixels(path, header[0])
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)  # knows nothing of archives


def _read_geojson(file: BinaryIO, path: Path, size: tuple[int, int] | None) -> NDArray[np.int32]:
    if size is None:
        raise InputError(f"{path} holds polygons without an image size; pass size=(height, width) in pixels.")
    if min(size) < 1:
        raise InputError(f"The size {tuple(size)} for {path} has no pixels; pass (height, width) of the image.")
    _check_pixels(path, size)
    length = file.seek(0, io.SEEK_END)
    if length > MAX_BYTES:
        raise InputError(f"{path} has {length:,} bytes, expected at most {MAX_BYTES:,}; split it by tile.")
    file.seek(0)
    document = json.loads(file.read().decode("utf-8-sig"))
    if isinstance(document, dict):
        document = document["features"] if document.get("type") == "FeatureCollection" else [document]
    instances = np.zeros(size, dtype=np.int32)
    for index, item in enumerate(document, start=1):
        for rings in _polygons(item, f"Item {index} of {path}"):
            outer = rings[0]
            if outer.max(0).min() < 0 or outer[:, 0].min() > size[1] or outer[:, 1].min() > size[0]:
                raise InputError(
                    f"Item {index} of {path} starts at x, y = {outer[0].tolist()}, wholly outside the size "
                    f"{tuple(size)} (height, width); pass the size of its own image."
                )
            inside = covered(outer, size)
            for hole in rings[1:]:
                inside = np.setdiff1d(inside, covered(hole, size), assume_unique=True)
            instances.ravel()[inside] = index
    return instances


def _polygons(item: dict[str, Any], name: str) -> Iterator[list[NDArray[np.float64]]]:
    """Rings [N, 2] in x, y of every polygon of one Feature or geometry: the outline, then its holes."""
    geometry = item
    if item["type"] == "Feature":
        geometry = item.get("nucleusGeometry") or item["geometry"]
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise InputError(
            f"{name} is a {geometry['type']}, but nuclei are given as Polygon or MultiPolygon; remove it from the file."
        )
    parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    for part in parts:
        rings = [np.array([position[:2] for position in ring]) for ring in part]
        if not rings or any(len(ring) < 3 or ring.dtype.kind not in "iuf" for ring in rings):
            raise InputError(f"{name} has a ring of fewer than three points or with what is not a number; mend it.")
        if not all((np.abs(ring) <= MAX_PIXELS).all() for ring in rings):  # NaN compares as wrong
            raise InputError(
                f"{name} has a coordinate that is not a number or beyond {MAX_PIXELS} pixels; give coordinates in "
                "pixels of the tile."
            )
        yield rings


def covered(ring: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.intp]:
    """Flat indices of the pixels of an image of `size` (height, width) whose centre, at +0.5, lies inside a ring.

    Args:
        ring: float [N, 2], x before y in pixels, (0, 0) being the corner of the first pixel.
    """
    rows, columns = polygon(ring[:, 1] - 0.5, ring[:, 0] - 0.5, shape=size)
    return np.ravel_multi_index((rows, columns), size)
