"""Instance maps as the 3-channel mask images that the translator draws and reads, and back.

The image is black. Red is the outline of every nucleus: those of its own pixels of which a 4-neighbour belongs to
something else, so two touching nuclei are parted by a line two pixels wide. Green fills the nuclei of the first type,
blue those of the second, up to the outline, which is pure red. A nucleus cut by the image's edge has no outline along
the edge, hence a crop of the mask image is the mask image of the crop but for its outermost pixels.

The mottled fill follows measurements on the figures of UNITPathSSL (arXiv 2309.07394): about 0.44 ± 0.13.

This is the form "paper". Three poorer ones exist for ablations; their nuclei are filled to the edge, so that two which
touch are one when read: "two_channel" has no outline, "grey" the fill in all three channels, "binary" white nuclei.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histo.errors import InputError
from histo.masks import as_instances

Form = Literal["paper", "two_channel", "grey", "binary"]

_FILL, _FILL_SPREAD = 0.44, 0.13
_FILL_RANGE = (0.2, 0.75)
_FILL_ROWS = 512  # at a time, so that floats do not span a large image
_GRAINS = ((8, 0.8), (4, 0.6))  # (lattice spacing in pixels, share of the standard deviation) of each octave
_REACH = 32  # pixels that nuclei grow; thin tails of real nuclei need 15, and wider red is no outline
_ALL_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def encode(
    instances: NDArray[Any],
    types: NDArray[Any] | None = None,
    texture: np.random.Generator | None = None,
    form: Form = "paper",
) -> NDArray[np.uint8]:
    """Draw an instance map as a mask image.

    Args:
        instances: integer [H, W], 0 = background; ids need not be contiguous.
        types: uint8 [largest id + 1], 1 or 2 for each id that occurs; entry 0 and those of absent ids are not looked
            at. None = all of the first type.
        texture: draws the fill, smooth noise of 0.44 ± 0.13 within [0.2, 0.75]; None = a flat 0.44.
        form: what the three channels hold, as at the top of this module.

    Returns:
        uint8 [3, H, W]: in the form "paper" outline, first type, second type.

    Raises:
        InputError: not an instance map, or a nucleus without type 1 or 2.
    """
    instances = as_instances(instances)
    interior = instances > 0
    image = np.zeros((3, *instances.shape), dtype=np.uint8)
    if form == "binary":
        image[:] = 255 * interior.astype(np.uint8)
        return image
    fill = round(255 * _FILL) if texture is None else _mottle(instances.shape, texture)
    if form == "grey":
        np.multiply(interior, fill, out=image[0], dtype=np.uint8)
        image[1:] = image[0]
        return image
    if form == "paper":
        outline = _differs_from_a_neighbour(instances)
        outline &= interior
        interior &= ~outline
        np.multiply(outline, 255, out=image[0], dtype=np.uint8)
    np.multiply(interior, fill, out=image[1], dtype=np.uint8)
    if types is not None:
        second = _types_of_pixels(instances, np.asarray(types)) == 2
        np.multiply(image[1], second, out=image[2])
        image[1] -= image[2]
    return image


def decode(
    mask_image: NDArray[Any],
    *,
    fill_threshold: float = 0.15,
    outline_threshold: float = 0.5,
    min_area: int = 1,
    form: Form = "paper",
) -> NDArray[np.int32]:
    """Read the instances of a mask image, exact or predicted.

    Interiors are the 8-connected components of filled pixels off the outline; in an exact image two nuclei's interiors
    never meet, not even at a corner. They then grow into the outline, a pixel a round: first to their 4-neighbours,
    which in an exact image always are of the same nucleus, then to all 8. A pixel that two nuclei claim in the same
    round goes to the one of higher id (further down the image). Outline that no interior reaches is a nucleus too small
    for one, 8-connected; where it touches a larger nucleus it is joined to that.

    Args:
        mask_image: uint8 [3, H, W], or float [3, H, W] on the scale [0, 1].
        fill_threshold: least green or blue of an interior, on the scale [0, 1].
        outline_threshold: least red of an outline, on the scale [0, 1].
        min_area: nuclei of fewer pixels, outline included, become background.
        form: how the image was drawn. Without outlines, nuclei are the 8-connected components of filled pixels, in
            "grey" and "binary" by the mean of the three channels; "binary" needs half of full brightness.

    Returns:
        int32 [H, W], ids 1, 2, …, n.

    Raises:
        InputError: not a mask image, NaN, or a threshold outside (0, 1].
    """
    _refuse_other(mask_image, fill_threshold, outline_threshold)
    if form != "paper":
        mask_image = _as_paper(mask_image, form)
    if form == "binary":
        fill_threshold = max(fill_threshold, 0.5)  # half bright is where background becomes nucleus
    interior, outline = _parts(mask_image, fill_threshold, outline_threshold)
    # A frame of background lets every pixel of the outline look at its neighbours by flat offsets.
    framed, count = ndimage.label(np.pad(interior, 1), structure=_ALL_NEIGHBOURS)
    labels = framed.ravel()
    line = framed.shape[1]
    beside = (-line, -1, 1, line)
    around = (*beside, -line - 1, -line + 1, line - 1, line + 1)
    unclaimed = np.flatnonzero(np.pad(outline, 1))
    for neighbours in (beside, *[around] * _REACH):
        claims = np.maximum.reduce([labels[unclaimed + offset] for offset in neighbours])
        labels[unclaimed] = claims
        unclaimed = unclaimed[claims == 0]
        if unclaimed.size == 0 or (neighbours is around and not claims.any()):
            break
    if unclaimed.size:
        alone = np.zeros(framed.shape, dtype=bool)
        alone.ravel()[unclaimed] = True
        labels[unclaimed] = ndimage.label(alone, structure=_ALL_NEIGHBOURS)[0].ravel()[unclaimed] + count
    instances = np.ascontiguousarray(framed[1:-1, 1:-1], dtype=np.int32)
    return _without_specks(instances, min_area) if min_area > 1 else instances


def foreground(
    mask_image: NDArray[Any], *, fill_threshold: float = 0.15, outline_threshold: float = 0.5
) -> NDArray[np.bool_]:
    """Where a mask image has nuclei, outlines included.

    Args:
        mask_image: uint8 [3, H, W], or float [3, H, W] on the scale [0, 1].
        fill_threshold: least green or blue of an interior, on the scale [0, 1].
        outline_threshold: least red of an outline, on the scale [0, 1].

    Returns:
        bool [H, W], true exactly where `decode` with the same thresholds and `min_area=1` has a nucleus.

    Raises:
        InputError: not a mask image, NaN, or a threshold outside (0, 1].
    """
    _refuse_other(mask_image, fill_threshold, outline_threshold)
    interior, outline = _parts(mask_image, fill_threshold, outline_threshold)
    return interior | outline


def _as_paper(mask_image: NDArray[Any], form: Form) -> NDArray[Any]:
    """A mask image without outlines, its fill in the channels where `_parts` looks for it."""
    image = np.zeros_like(mask_image)
    if form == "two_channel":
        image[1:] = mask_image[1:]
    else:
        image[1] = mask_image.mean(0)
    return image


def _differs_from_a_neighbour(instances: NDArray[np.int32]) -> NDArray[np.bool_]:
    differs = np.zeros(instances.shape, dtype=bool)
    vertical = instances[1:] != instances[:-1]
    differs[1:] |= vertical
    differs[:-1] |= vertical
    horizontal = instances[:, 1:] != instances[:, :-1]
    differs[:, 1:] |= horizontal
    differs[:, :-1] |= horizontal
    return differs


def _types_of_pixels(instances: NDArray[np.int32], types: NDArray[Any]) -> NDArray[np.uint8]:
    largest = int(instances.max())
    if types.ndim != 1 or len(types) <= largest:
        raise InputError(
            f"The types have shape {types.shape}, but the largest nucleus id is {largest}; "
            f"give one type per id, {largest + 1} entries with the background's first."
        )
    unknown = 3
    table = np.where((types == 1) | (types == 2), types, unknown).astype(np.uint8)
    table[0] = 0
    of_pixels = table.take(instances)
    if of_pixels.max() == unknown:
        nucleus = int(instances[of_pixels == unknown][0])
        raise InputError(f"Nucleus {nucleus} has type {types[nucleus]}, but types are 1 and 2; map its type to these.")
    return of_pixels


def _mottle(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Fill uint8 [H, W]: octaves of value noise, each a Gaussian lattice interpolated smoothly between its points."""
    octaves = []
    for grain, share in _GRAINS:
        # A random shift of the lattice keeps its grid from showing at the same place in every image.
        rows, columns = (np.arange(length) + generator.integers(grain) for length in shape)
        row, row_weight, row_power = _between_points(rows, grain)
        column, column_weight, column_power = _between_points(columns, grain)
        lattice = generator.standard_normal((row[-1] + 2, column[-1] + 2), dtype=np.float32)
        lattice *= share / np.sqrt(row_power * column_power)
        across = lattice[:, column] * (1 - column_weight) + lattice[:, column + 1] * column_weight
        octaves.append((across, row, row_weight[:, None]))
    fill = np.empty(shape, dtype=np.uint8)
    low, high = (round(255 * bound) for bound in _FILL_RANGE)
    for first in range(0, shape[0], _FILL_ROWS):
        noise = np.zeros((min(_FILL_ROWS, shape[0] - first), shape[1]), dtype=np.float32)
        for across, row, weight in octaves:
            part = slice(first, first + _FILL_ROWS)
            noise += across[row[part]] * (1 - weight[part])
            noise += across[row[part] + 1] * weight[part]
        noise *= 255 * _FILL_SPREAD
        noise += 255 * _FILL + 0.5  # the half rounds to nearest when the fraction is cut off
        fill[first : first + _FILL_ROWS] = np.clip(noise, low, high, out=noise)
    return fill


def _between_points(positions: NDArray[np.int64], grain: int) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
    """Lattice point before each position, smoothstep weight of the point after it, mean variance of the blend."""
    before, inside = np.divmod(positions, grain)
    phases = np.arange(grain, dtype=np.float32) / grain
    weights = (phases * phases * (3 - 2 * phases)).astype(np.float32)
    return before, weights[inside], float(np.mean(weights**2 + (1 - weights) ** 2))


def _refuse_other(mask_image: NDArray[Any], fill_threshold: float, outline_threshold: float) -> None:
    """Refuse what is no mask image, and thresholds out of range."""
    if mask_image.ndim != 3 or len(mask_image) != 3 or mask_image.size == 0:
        raise InputError(
            f"The mask image has shape {mask_image.shape}, but [3, height, width] was expected; "
            "put the channels first and pass one image at a time."
        )
    if mask_image.dtype != np.uint8 and mask_image.dtype.kind != "f":
        raise InputError(
            f"The mask image is {mask_image.dtype}, but uint8, or float in [0, 1], was expected; convert it."
        )
    if mask_image.dtype.kind == "f" and np.isnan(mask_image).any():
        raise InputError("The mask image holds NaN, but values in [0, 1] were expected; check the network it is from.")
    for name, value in (("fill_threshold", fill_threshold), ("outline_threshold", outline_threshold)):
        if not 0 < value <= 1:
            raise InputError(f"{name} is {value}, but a share of full brightness in (0, 1] was expected; change it.")


def _parts(
    mask_image: NDArray[Any], fill_threshold: float, outline_threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Interior and outline, bool [H, W] each."""
    fill_least, outline_least = fill_threshold, outline_threshold
    if mask_image.dtype == np.uint8:
        fill_least, outline_least = int(np.ceil(255 * fill_threshold)), int(np.ceil(255 * outline_threshold))
    red, green, blue = mask_image
    outline = red >= outline_least
    interior = np.maximum(green, blue) >= fill_least
    interior &= ~outline
    return interior, outline


def _without_specks(instances: NDArray[np.int32], min_area: int) -> NDArray[np.int32]:
    kept = np.bincount(instances.ravel()) >= min_area
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32).take(instances)
