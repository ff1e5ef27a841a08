"""Rows of large arrays in .npy and HDF5 files, read one by one: `images.npy/17` names row 17 of `images.npy`."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.images import MAX_PIXELS

MAX_CHANNELS = 16  # of an image, or classes of nuclei


def npy_array(path: Path, *, dimensions: int) -> NDArray[Any]:
    """A .npy file, memory-mapped and read-only; nothing is unpickled.

    Args:
        dimensions: how many it must have.

    Raises:
        InputError: missing, damaged, an array of Python objects, or of other dimensions.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        if "Python objects" in str(error):
            raise InputError(
                f"{path} holds Python objects, which are not read because they could run code; download the set again, "
                "or save the array as numbers or texts in an environment that you can afford to lose."
            ) from error
        raise InputError(f"{path} cannot be read as a NumPy array ({error}); unpack the set again.") from error
    if array.ndim != dimensions or array.dtype.kind not in "buifUS":
        raise InputError(
            f"{path} is {array.dtype} of shape {list(array.shape)}, expected numbers or texts in {dimensions} "
            "dimensions as published; unpack the set again."
        )
    return array


def npy_row(path: Path) -> NDArray[Any]:
    """One row [H, W, C] of a .npy file of [N, H, W, C], `path` being `images.npy/17`; raises as `npy_array`."""
    array = npy_array(path.parent, dimensions=4)
    _check_row(path, array.shape)
    return np.array(array[int(path.name)])


def npy_image(path: Path) -> NDArray[np.uint8]:
    """One picture, uint8 [3, H, W], of a .npy file of [N, H, W, 3] with levels from 0 to 255.

    Raises:
        InputError: as `npy_array`, or levels that are not whole or out of range.
    """
    return rgb_row(npy_row(path), path)


def h5_array_length(path: Path, name: str) -> int:
    """Number of rows of one array of an HDF5 file; raises as `h5_rows`."""
    with _h5(path) as file:
        return int(_h5_member(file, path, name).shape[0])


def h5_rows(path: Path, name: str) -> NDArray[Any]:
    """One whole array of an HDF5 file, for labels.

    Raises:
        InputError: h5py is not installed, or the file is missing, damaged or without the array.
    """
    with _h5(path) as file:
        return np.asarray(_h5_member(file, path, name)[:])


def h5_image(path: Path) -> NDArray[np.uint8]:
    """One picture, uint8 [3, H, W], of the array `x` [N, H, W, 3] of an HDF5 file; raises as `h5_rows`."""
    # Opened for each row: an open file of HDF5 does not survive the forks that make loader workers.
    with _h5(path.parent) as file:
        member = _h5_member(file, path.parent, "x")
        _check_row(path, member.shape)
        return rgb_row(np.asarray(member[int(path.name)]), path)


def rgb_row(row: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] with whole levels from 0 to 255 as uint8 [3, H, W].

    Raises:
        InputError: other channels or levels.
    """
    if row.ndim != 3 or row.shape[2] != 3:
        raise InputError(f"{path} has shape {list(row.shape)}, expected [height, width, 3]; unpack the set again.")
    pixels = row.astype(np.uint8) if row.dtype == np.uint8 or _is_8_bit(row) else None
    if pixels is None:
        raise InputError(f"{path} has levels that are not whole numbers from 0 to 255; unpack the set again.")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _is_8_bit(row: NDArray[Any]) -> bool:
    return bool(((row >= 0) & (row <= 255) & (row == np.floor(row))).all())


def _check_row(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[1] * shape[2] > MAX_PIXELS or shape[3] > MAX_CHANNELS or int(path.name) >= shape[0]:
        raise InputError(
            f"{path.parent} has shape {list(shape)}, expected [N, height, width, channels] of at most {MAX_PIXELS:,} "
            f"pixels, {MAX_CHANNELS} channels and more than {path.name} rows; unpack the set again."
        )


def _h5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f'{path} is HDF5, which h5py reads; install it: pip install "nucleate[sets]".') from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5 ({error}); unpack the set again.") from error


def _h5_member(file: Any, path: Path, name: str) -> Any:
    member = file.get(name)
    if member is None or not getattr(member, "shape", None):
        raise InputError(f"{path} has no array {name!r}, expected it as published; unpack the set again.")
    return member
