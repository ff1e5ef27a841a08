"""Random square crops of tiles, the image and its instance map together."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import label

from histo.errors import InputError
from histo.masks import renumber
from histo.tiles import Tile


def crop(
    tile: Tile,
    size: int,
    generator: np.random.Generator,
    *,
    smallest_side: float = 1.0,
    step: float = 1.0,
    turn: bool = True,
) -> Tile:
    """A random crop of size x size pixels, with the rest of the tile's facts.

    A square of side U(smallest_side, 1)·size·step is taken anywhere in the tile and resized to size: the image
    bilinearly, over as many pixels as become one, and the instance map by the nearest pixel. UNITPathSSL (arXiv
    2309.07394) jitters the scale so, with smallest_side 0.8. µm/px follow the resize. An axis shorter than the square
    is continued by reflection about its outermost pixels; then every connected piece (8 neighbours) of an id becomes an
    instance of its own, since a mirror image apart from its nucleus is another nucleus and one that touches it is not.

    Args:
        tile: of any size and aspect ratio.
        size: side of the crop in pixels, 1 or more.
        generator: source of the draws; the same state gives the same crop.
        smallest_side: in (0, 1]; 1 keeps the scale.
        step: pixels of the tile from one pixel of the crop to the next, above 0; 1 keeps the scale.
        turn: mirror and rotate by multiples of 90°, all eight cases equally likely.

    Returns:
        A tile of uint8 [3, size, size], with its instances int32 [size, size] numbered 1, 2, …, n and `types`
        following them. Its arrays are its own.

    Raises:
        InputError: size, smallest_side or step out of range.
    """
    if size < 1:
        raise InputError(f"the crop size is {size}, expected 1 pixel or more; correct it.")
    if not 0 < smallest_side <= 1:
        raise InputError(f"smallest_side is {smallest_side}, expected above 0 and at most 1; correct it.")
    if not step > 0:
        raise InputError(f"step is {step}, expected above 0; correct it.")
    side = max(1, round(generator.uniform(smallest_side, 1.0) * size * step))
    height, width = tile.image.shape[1:]
    rows = _window(height, side, generator)
    columns = _window(width, side, generator)
    symmetry = int(generator.integers(8)) if turn else 0

    image = _resized(_cut(tile.image, rows, columns), size)
    cropped = replace(
        tile,
        image=_turned(image, symmetry).copy(order="C"),
        mpp=None if tile.mpp is None else tile.mpp * side / size,
    )
    if tile.instances is None:
        return cropped
    instances = _cut(tile.instances, rows, columns)
    types = tile.types
    if side > min(height, width):
        instances, types = _separated(instances, types)
    if side != size:
        nearest = ((np.arange(size) + 0.5) * side / size).astype(np.intp)
        instances = instances[nearest[:, None], nearest]
    if types is not None:
        present = np.bincount(instances.ravel(), minlength=len(types)) > 0
        present[0] = True
        types = types[present]
    instances = renumber(np.ascontiguousarray(_turned(instances, symmetry)))
    return replace(cropped, instances=instances, types=types)


def _window(length: int, side: int, generator: np.random.Generator) -> slice | NDArray[np.intp]:
    """`side` consecutive positions along an axis, reflected about its ends where the axis is shorter."""
    first = int(generator.integers(min(0, length - side), max(0, length - side), endpoint=True))
    if side <= length:
        return slice(first, first + side)
    period = max(1, 2 * (length - 1))
    positions = np.arange(first, first + side) % period
    return np.minimum(positions, period - positions) if length > 1 else np.zeros(side, dtype=np.intp)


def _cut(pixels: NDArray[Any], rows: slice | NDArray[np.intp], columns: slice | NDArray[np.intp]) -> NDArray[Any]:
    return pixels[..., rows, :][..., columns]


def _resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if image.shape[1] == size:
        return image
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _turned(pixels: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """One of the eight symmetries of the square, 0 being the identity, of the last two axes."""
    if symmetry >= 4:
        pixels = pixels[..., ::-1]
    return np.rot90(pixels, symmetry % 4, axes=(-2, -1))


def _separated(
    instances: NDArray[np.int32], types: NDArray[np.uint8] | None
) -> tuple[NDArray[np.int32], NDArray[np.uint8] | None]:
    """Every connected piece of an id as an instance of its own, with the type of that id."""
    pieces = label(instances, background=0, connectivity=2).astype(np.int32)
    if types is None:
        return pieces, None
    piece_types = np.zeros(int(pieces.max()) + 1, dtype=np.uint8)
    piece_types[pieces.ravel()] = types[instances.ravel()]
    return pieces, piece_types
