"""Nuclei without labels or weights: thresholds and watersheds of the haematoxylin image, the best shapes kept.

No single threshold fits a tile: pale vesicular nuclei need a low one, dense lymphocytes a high one. So a ladder of
thresholds proposes candidates, each one a connected component or a part of it cut by the watershed of its distance
transform. A candidate scores by how much it looks like a nucleus: an ellipse of nuclear size, with a steep edge, darker
than its surroundings and not cut from a clump. The best are kept as long as they do not overlap; a second look takes
what they left over, and each nucleus the dark pixels beside it. Choosing among nested thresholds by shape follows the
extremal regions of Arteta et al. (MICCAI 2012), here without learning.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import expand_labels, watershed

from histo import stains
from histo.errors import InputError

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Mask = NDArray[np.bool_]

# The ladder starts this many spreads below Otsu's threshold, though no lower than the first percentile, and ends at the
# second.
_BELOW_OTSU = 0.70
_PERCENTILES = (20.0, 99.0)
# Standard deviation in µm that smooths distances: maxima of a ragged outline are not centres.
_DISTANCE_BLUR = 0.375
# Side in µm of the blocks of pixels on which clumps are cut.
_CUT_PITCH = 0.5
# Share of the residual stain (yellow to brown: pigment, blood, debris) subtracted from haematoxylin.
_PIGMENT_SHARE = 0.3
# Least spread of haematoxylin (optical density) between nuclei and the rest. Tiles with less have few nuclei, and
# what stands out there by the tile's own measure, noise and fibres, is weak by this one.
_LEAST_SPREAD = 0.11
# The second look, at what the first left over: thresholds, radius in µm of its opening, and least score.
_LEFTOVER_LEVELS = 2
_LEFTOVER_OPENING = 0.25
_LEFTOVER_QUALITY = 0.15
# Pixels that join the nucleus beside them are this many spreads above Otsu's threshold.
_JOINING = 0.3
# What a nucleus looks like, calibrated once on tiles of five laboratories (benchmarks/watershed_teacher.py).
_ELLIPSE = (0.72, 1.0)  # area as a share of the ellipse with the same second moments: worthless, perfect
_EDGE = 0.85  # gradient at the outline, in spreads per 0.25 µm, that earns full marks
_EDGE_WEIGHT = 0.70
_CONTRAST = 1.36  # spreads above the background that earn full marks
_WIDTH = (1.5, 3.7)  # µm, minor axis: no bonus, full bonus
_WIDTH_WEIGHT = 0.44
_CUT_WEIGHT = 0.90  # how much an outline that is all cut lines loses


@dataclass(frozen=True)
class Watershed:
    """Settings of `segment`; lengths in µm, areas in µm², so that they hold at every magnification.

    Attributes:
        levels: thresholds tried, 1 to 64; time grows with it.
        blur: standard deviation of the Gaussian that smooths chromatin texture, above 0.
        background: side of the window whose mean haematoxylin is the local background, above 0.
        background_share: share of the local background that is subtracted, 0 to 1.
        smallest: least area of a nucleus, above 0; one cut by the tile's border may have a third of it.
        largest: greatest area of a nucleus, above `smallest`.
        hole: greatest area of a hole that is filled, 0 or more.
        split: least distance of two centres in a clump, above 0.
        quality: least score of a nucleus, 0 to 1; higher keeps fewer and surer ones.
        overlap: share of a nucleus that better ones may already occupy, 0 to 1; it loses these pixels.
        reach: how far a nucleus takes in dark pixels around it, 0 or more.
    """

    levels: int = 10
    blur: float = 0.25
    background: float = 35.0
    background_share: float = 0.4
    smallest: float = 8.0
    largest: float = 400.0
    hole: float = 20.0
    split: float = 1.5
    quality: float = 0.235
    overlap: float = 0.1
    reach: float = 0.5

    def __post_init__(self) -> None:
        self._check("levels", 1 <= self.levels <= 64, "1 to 64")
        for name in ("blur", "background", "smallest", "split"):
            self._check(name, getattr(self, name) > 0, "a number above 0")
        for name in ("hole", "reach"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("background_share", "quality", "overlap"):
            self._check(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        self._check("largest", self.largest > self.smallest, f"more than smallest, {self.smallest}")

    def _check(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise InputError(f"watershed.{name} is {getattr(self, name)!r}, expected {expected}: change this setting.")


class _Candidates(NamedTuple):
    """Shapes of one label image that passed; `labels` int32 [H, W], the others [K]."""

    labels: Ints
    ids: Ints
    scores: Floats
    boxes: list[tuple[slice, slice]]


class _Scene(NamedTuple):
    """What candidates are measured against; images [H, W]."""

    stain: Floats
    gradient: Floats  # of stain, per µm
    otsu: float
    floor: float  # mean stain outside nuclei
    spread: float  # half the distance from there to the mean stain of nuclei
    mpp: float


def segment(image: NDArray[np.uint8], mpp: float | None, settings: Watershed | None = None) -> NDArray[np.int32]:
    """Instance map of the nuclei of one H&E tile. Deterministic; a tile without nuclei gives an empty map.

    Args:
        image: uint8 [3, H, W] RGB.
        mpp: µm per pixel. It sets all sizes, so an unknown one (None) is refused.
        settings: None for the defaults.

    Returns:
        int32 [H, W], 0 = background, nuclei numbered from 1 without gaps.

    Raises:
        InputError: µm/px unknown or not a positive number, or not an image as above.
    """
    if mpp is None or not (math.isfinite(mpp) and mpp > 0):
        raise InputError(
            f"mpp is {mpp}, but the watershed needs µm per pixel to know the size of a nucleus:"
            " give it in tiles.csv, or pass an assumed value such as 0.25 for tiles scanned at 40x."
        )
    if image.ndim != 3 or len(image) != 3 or image.dtype != np.uint8:
        raise InputError(
            f"the watershed got an image {image.dtype} {list(image.shape)}, expected one RGB tile uint8 [3, H, W]:"
            " convert it."
        )
    settings = settings or Watershed()
    scene = _scene(image, mpp, settings)
    low, high = np.percentile(scene.stain, _PERCENTILES)
    low = max(low, scene.otsu - _BELOW_OTSU * scene.spread)
    nuclei = np.zeros(scene.stain.shape, np.int32)
    masks = (scene.stain > level for level in np.linspace(low, high, settings.levels, endpoint=False))
    _add_best(nuclei, masks, scene, settings)
    leftovers = _leftovers(nuclei, np.linspace(scene.otsu, high, _LEFTOVER_LEVELS, endpoint=False), scene)
    _add_best(nuclei, leftovers, scene, replace(settings, quality=min(settings.quality, _LEFTOVER_QUALITY)))
    dark = scene.stain > scene.otsu + _JOINING * scene.spread
    reached = expand_labels(nuclei, settings.reach / mpp)
    return np.where(dark, reached, nuclei)


def _scene(image: NDArray[np.uint8], mpp: float, settings: Watershed) -> _Scene:
    haematoxylin, _, residual = stains.concentrations(torch.tensor(image)[None])[0].clamp(min=0).numpy()
    stain = haematoxylin - _PIGMENT_SHARE * residual
    stain = ndimage.gaussian_filter(stain, settings.blur / mpp)
    window = max(1, round(settings.background / mpp))
    stain -= settings.background_share * ndimage.uniform_filter(stain, window)
    gradient = np.hypot(*np.gradient(stain)) / mpp if min(stain.shape) > 1 else np.zeros_like(stain)
    otsu = float(threshold_otsu(stain))
    dark = stain > otsu
    floor = float(stain[~dark].mean())
    top = float(stain[dark].mean()) if dark.any() else floor
    return _Scene(stain, gradient, otsu, floor, max((top - floor) / 2, _LEAST_SPREAD), mpp)


def _filled(mask: Mask, largest: float) -> Mask:
    """Holes of up to `largest` pixels filled."""
    gaps = ndimage.label(~mask)[0]
    small = np.bincount(gaps.ravel()) <= largest
    small[0] = False
    return mask | small[gaps]


def _pieces(mask: Mask, mpp: float, settings: Watershed) -> Ints:
    """Components cut at their necks: watershed of the distance to the background, one basin per maximum.

    Cuts are found on blocks of pixels of about `_CUT_PITCH`, which costs a quarter at 0.25 µm/px; outlines stay exact.
    """
    step = max(1, round(_CUT_PITCH / mpp))
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % step), (0, -width % step)))
    blocks = padded.reshape(padded.shape[0] // step, step, -1, step).mean(axis=(1, 3)) >= 0.5
    pitch = mpp * step
    distance = ndimage.gaussian_filter(
        ndimage.distance_transform_edt(blocks).astype(np.float32), _DISTANCE_BLUR / pitch
    )
    window = 2 * round(settings.split / pitch) + 1
    peaks = blocks & (ndimage.maximum_filter(distance, window) == distance)
    # Blocks that the mask fills by less than half belong to the basin beside them.
    basins = expand_labels(watershed(-distance, ndimage.label(peaks)[0], mask=blocks), 1.5)
    return np.where(mask, basins.repeat(step, axis=0).repeat(step, axis=1)[:height, :width], 0)


def _candidates(labels: Ints, scene: _Scene, settings: Watershed) -> _Candidates:
    """Shapes of a label image within the range of areas and of sufficient score."""
    areas = np.bincount(labels.ravel()).astype(np.float64)
    frame = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    smallest = np.full(len(areas), float(settings.smallest))
    smallest[frame] /= 3
    sized = (areas * scene.mpp**2 >= smallest) & (areas * scene.mpp**2 <= settings.largest)
    sized[0] = False
    ids = np.flatnonzero(sized)
    scores = _scores(labels, ids, areas[ids], scene)
    keep = scores > settings.quality
    boxes = ndimage.find_objects(labels)
    return _Candidates(labels, ids[keep], scores[keep], [boxes[i - 1] for i in ids[keep]])


def _scores(labels: Ints, ids: Ints, areas: Floats, scene: _Scene) -> Floats:
    """How much each of the labels `ids` [K] looks like a nucleus, [K] in 0 to 1."""
    order = np.full(labels.max() + 1, -1)
    order[ids] = np.arange(len(ids))
    shape = order[labels.ravel()]
    pixels = np.flatnonzero(shape >= 0)
    shape = shape[pixels]
    y, x = (axis.astype(np.float64) for axis in np.divmod(pixels, labels.shape[1]))

    def mean(values: Floats) -> Floats:
        return np.bincount(shape, values, minlength=len(ids)) / areas

    y -= mean(y)[shape]
    x -= mean(x)[shape]
    # 1/12 is the second moment of a pixel about its own centre.
    yy, xx, xy = mean(y * y) + 1 / 12, mean(x * x) + 1 / 12, mean(x * y)
    determinant = np.maximum(yy * xx - xy * xy, 1e-9)
    fill = areas / (4 * np.pi * np.sqrt(determinant))
    major = (yy + xx) / 2 + np.sqrt(np.maximum(((yy + xx) / 2) ** 2 - determinant, 0))
    width = 4 * np.sqrt(determinant / major) * scene.mpp

    outline, cut = (image.ravel()[pixels] for image in _outlines(labels))
    length = np.maximum(np.bincount(shape[outline], minlength=len(ids)), 1)
    steepness = np.bincount(shape[outline], scene.gradient.ravel()[pixels[outline]], minlength=len(ids)) / length
    severed = np.bincount(shape[cut], minlength=len(ids)) / length
    contrast = (mean(scene.stain.ravel()[pixels]) - scene.floor) / scene.spread
    return (
        _ramp(fill, *_ELLIPSE)
        * (1 - _EDGE_WEIGHT * (1 - _ramp(steepness * 0.25 / scene.spread, 0, _EDGE)))
        * np.sqrt(_ramp(contrast, 0, _CONTRAST))
        * (1 - _WIDTH_WEIGHT * (1 - _ramp(width, *_WIDTH)))
        * (1 - _CUT_WEIGHT * severed)
    )


def _outlines(labels: Ints) -> tuple[Mask, Mask]:
    """Pixels with a 4-neighbour of another label, and those among them where this neighbour is no background."""
    outline, cut = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    for near, far in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = labels[near] != labels[far]
        between = differ & (labels[near] > 0) & (labels[far] > 0)
        for side in (near, far):
            outline[side] |= differ
            cut[side] |= between
    return outline, cut


def _leftovers(nuclei: NDArray[np.int32], levels: Floats, scene: _Scene) -> Iterator[Mask]:
    """What is darker than each level and belongs to no nucleus, without the slivers along the nuclei."""
    disk = _disk(round(_LEFTOVER_OPENING / scene.mpp))
    free = nuclei == 0
    for level in levels:
        yield ndimage.binary_opening((scene.stain > level) & free, disk)


def _add_best(nuclei: NDArray[np.int32], masks: Iterable[Mask], scene: _Scene, settings: Watershed) -> None:
    """Add the candidates of all masks by descending score, each unless nuclei already cover too much of it."""
    found = []
    for mask in masks:
        filled = _filled(mask, settings.hole / scene.mpp**2)
        found.append(_candidates(ndimage.label(filled)[0], scene, settings))
        found.append(_candidates(_pieces(filled, scene.mpp, settings), scene, settings))
    entries = [(group, k) for group in found for k in range(len(group.ids))]
    order = np.argsort(-np.concatenate([group.scores for group in found]), kind="stable")
    count = int(nuclei.max())
    for group, k in (entries[i] for i in order):
        window = nuclei[group.boxes[k]]
        own = group.labels[group.boxes[k]] == group.ids[k]
        free = own & (window == 0)
        if np.count_nonzero(free) >= (1 - settings.overlap) * np.count_nonzero(own):
            count += 1
            window[free] = count


def _ramp(values: Floats, zero: float, one: float) -> Floats:
    return np.clip((values - zero) / (one - zero), 0, 1)


def _disk(radius: int) -> Mask:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return y * y + x * x <= radius * radius
