"""Nuclei as data sets publish them: Aperio's XML polygons, MATLAB files, binary masks, one mask per nucleus."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histo.errors import InputError
from histo.images import MAX_PIXELS
from histo.masks import as_instances, covered, read_instances
from histo.tiles.published import Nuclei, Size

MAX_XML = 50_000_000  # bytes; published files have about one million
MAX_MAT = 200_000_000  # bytes
MOST_IDS = 65_535
LEAST_PIXELS = 10  # smaller components of a binary mask are specks, not nuclei


def aperio_polygons(path: Path, size: Size) -> Nuclei:
    """Instance map of an Aperio ImageScope annotation: `Region`s of `Vertex` X, Y in pixels.

    Ids are 1, 2, … in the order of the file, and later polygons overwrite earlier ones. Regions of fewer than three
    vertices and those wholly outside the image are passed over: the published files hold some.

    Raises:
        InputError: too large, not UTF-8, with a document type (which can hold entities), or not such XML.
    """
    try:
        if path.stat().st_size > MAX_XML:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_XML:,}; is it the file?")
        text = path.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(
                f"{path} declares a document type, which annotations have no use for and which can hold entities that "
                "read other files; remove the declaration if you trust the file."
            )
        rings = [
            np.array([(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")]).reshape(-1, 2)
            for region in ElementTree.fromstring(text).iter("Region")
        ]
    except (OSError, UnicodeDecodeError, ElementTree.ParseError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read as an Aperio annotation ({type(error).__name__}: {error}); unpack the set again."
        ) from error
    instances = np.zeros(size, dtype=np.int32)
    for number, ring in enumerate(rings, start=1):
        if not (np.abs(ring) <= MAX_PIXELS).all():  # NaN compares as wrong
            raise InputError(f"Region {number} of {path} has a coordinate out of range; unpack the set again.")
        if len(ring) >= 3:
            instances.ravel()[covered(ring, size)] = number
    return Nuclei(instances)


def binary_components(path: Path, size: Size) -> Nuclei:
    """Instance map of a binary mask: its 4-connected components of at least `LEAST_PIXELS` pixels.

    Touching nuclei merge, since nothing in the mask tells them apart. Raises as `histo.masks.read_instances`.
    """
    labels, _ = ndimage.label(read_instances(path, size) > 0)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    numbers = np.where(areas >= LEAST_PIXELS, np.cumsum(areas >= LEAST_PIXELS), 0)
    return Nuclei(numbers.astype(np.int32)[labels])


def mask_folder(folder: Path, size: Size) -> Nuclei:
    """Instance map of a folder with one binary PNG for each nucleus, in the order of their names.

    Raises:
        InputError: no PNG in the folder, or one that `histo.masks.read_instances` refuses.
    """
    instances = np.zeros(size, dtype=np.int32)
    files = sorted(folder.glob("*.png"))
    if not files:
        raise InputError(f"{folder} holds no PNG, expected one for each nucleus; unpack the set again.")
    for number, file in enumerate(files, start=1):
        instances[read_instances(file, size) > 0] = number
    return Nuclei(instances)


def matlab_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """Numeric arrays of a MATLAB file up to version 7.

    Raises:
        InputError: missing, too large, damaged, version 7.3, or without one of the arrays.
    """
    from scipy.io import loadmat, whosmat

    try:
        if path.stat().st_size > MAX_MAT:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_MAT:,}; is it the file?")
        shapes = {name: shape for name, shape, _ in whosmat(str(path))}
        for name in names:
            if int(np.prod(shapes.get(name, (0,)), dtype=np.int64)) > MAX_PIXELS:
                raise InputError(
                    f"{path} has {name!r} of shape {shapes[name]}, expected at most {MAX_PIXELS:,} values."
                )
        content = loadmat(str(path), variable_names=names)
    except InputError:
        raise
    except Exception as error:  # the reader meets damaged bytes with exceptions of every type
        raise InputError(f"{path} cannot be read as a MATLAB file ({error}); unpack the set again.") from error
    if missing := [name for name in names if name not in content or content[name].dtype.kind not in "buif"]:
        raise InputError(f"{path} has no numbers {missing[0]!r}, only {', '.join(shapes)}; unpack the set again.")
    return [content[name] for name in names]


def whole_instances(array: NDArray[Any], path: Path) -> NDArray[np.int32]:
    """An instance map of any numeric type as int32 [H, W].

    Raises:
        InputError: fractions, negative or too large ids, or another shape.
    """
    if array.dtype.kind == "f":
        whole = np.nan_to_num(array, nan=-1.0, posinf=-1.0, neginf=-1.0)
        if not (whole == np.floor(whole)).all():
            raise InputError(f"{path} holds ids that are not whole numbers; unpack the set again.")
        array = whole.astype(np.int64)
    return as_instances(array, path)


def classes_of(instances: NDArray[np.int32], kinds: NDArray[Any]) -> NDArray[np.uint8]:
    """Class of each nucleus, uint8 [K+1] by id: the one that most of its pixels have.

    Args:
        instances: int32 [H, W].
        kinds: integer [H, W], class of every pixel, 0 to 255.

    Raises:
        InputError: another shape, or numbers out of range.
    """
    if kinds.shape != instances.shape or kinds.min() < 0 or kinds.max() > 255 or instances.max() > MOST_IDS:
        raise InputError(
            f"The classes of nuclei have shape {list(kinds.shape)} and values {kinds.min()} to {kinds.max()}, expected "
            f"{list(instances.shape)} and 0 to 255 for ids up to {MOST_IDS}; unpack the set again."
        )
    inside = instances > 0
    votes = np.zeros((int(instances.max()) + 1, 256), dtype=np.int64)
    np.add.at(votes, (instances[inside], kinds[inside].astype(np.int64)), 1)
    classes = votes.argmax(axis=1).astype(np.uint8)
    classes[0] = 0
    return classes
