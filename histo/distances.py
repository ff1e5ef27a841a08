"""Distances: nuclei as a hill each, whose height is the depth within the nucleus, after DIST.

A network that predicts the hills and which pixels are nuclear predicts instances: hills that touch have two summits,
and a watershed parts them. From Naylor, Laé, Reyal and Walter, "Segmentation of nuclei in histopathology images by deep
regression of the distance map" (IEEE TMI 2019), with every hill of height 1, so that small nuclei count as large ones.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed
from torch import Tensor
from torch.nn import functional as F

from histo.errors import InputError
from histo.masks import as_instances, renumber

_LEAST_DIP = 0.15  # between two summits of one nucleus and those of two, in heights of a hill


def distances_of(instances: NDArray[np.integer]) -> NDArray[np.float32]:
    """The hills of an instance map.

    Args:
        instances: integer [H, W], 0 = background; ids need not be contiguous.

    Returns:
        float32 [1, H, W]: the Euclidean distance to the nearest pixel that is not of the nucleus, over the largest one
        within the nucleus, in (0, 1]; 0 in the background. What lies beyond the map's edge counts as the nucleus.

    Raises:
        InputError: not an instance map.
    """
    instances = renumber(as_instances(instances))
    hills = np.zeros(instances.shape, np.float32)
    for number, place in enumerate(ndimage.find_objects(instances), start=1):
        if place is None:
            continue
        inside = instances[place] == number
        # One pixel of "not the nucleus" around the box, but for sides that are the map's own.
        around = [
            (int(side.start > 0), int(side.stop < length)) for side, length in zip(place, instances.shape, strict=True)
        ]
        padded = np.pad(inside, around)
        if padded.all():
            depth = np.ones(inside.shape)
        else:
            depth = ndimage.distance_transform_edt(padded)
            depth = depth[
                tuple(slice(first, size + first) for (first, _), size in zip(around, inside.shape, strict=True))
            ]
        hills[place][inside] = (depth / depth.max())[inside]
    return hills[None]


def instances_from_distances(
    distance: NDArray[np.floating], logits: NDArray[np.floating], *, threshold: float = 0.0, min_area: int = 12
) -> NDArray[np.int32]:
    """The instance map that hills describe: a watershed of the nuclear pixels from the summits.

    Args:
        distance: float [H, W], about 0 to 1. Summits are the maxima that stand above the dips around them.
        logits: float [H, W], above `threshold` in nuclei.
        min_area: px; smaller nuclei are left out.

    Returns:
        int32 [H, W], ids 1, 2, …, n.

    Raises:
        InputError: different shapes, or values that are not finite.
    """
    if logits.ndim != 2 or logits.size == 0 or distance.shape != logits.shape:
        raise InputError(
            f"The distances have shape {distance.shape} and the logits {logits.shape}, expected [height, width] both; "
            "pass the maps of one image."
        )
    if not (np.isfinite(distance).all() and np.isfinite(logits).all()):
        raise InputError(
            "The distances or the logits hold NaN or infinity, expected finite values; look at the network that made "
            "them."
        )
    foreground = logits > threshold
    if not foreground.any():
        return np.zeros(logits.shape, np.int32)
    hills = np.where(foreground, ndimage.gaussian_filter(distance.astype(np.float64), 1), 0)
    summits, _ = ndimage.label(h_maxima(hills, _LEAST_DIP).astype(bool) & foreground)
    pieces, count = ndimage.label(foreground)
    bare = np.setdiff1d(np.arange(1, count + 1), np.unique(pieces[summits > 0]))  # flat pieces have no summit
    seeds = np.where(np.isin(pieces, bare), summits.max() + pieces, summits)
    grown = watershed(-hills, seeds, mask=foreground)
    areas = np.bincount(grown.ravel())
    return renumber(np.where(areas[grown] >= min_area, grown, 0).astype(np.int32))


def distance_loss(prediction: Tensor, distance: Tensor, foreground: Tensor) -> Tensor:
    """Mean squared error of the hills, and the binary cross-entropy of the foreground.

    Args:
        prediction: float [N, 2, H, W]: the hills, and the logit of being nuclear.
        distance: float [N, 1, H, W], what `distances_of` gives.
        foreground: bool [N, 1, H, W].

    Returns:
        float32, a scalar.
    """
    error = F.mse_loss(prediction[:, :1].float(), distance.float())
    return 10 * error + F.binary_cross_entropy_with_logits(prediction[:, 1:].float(), foreground.float())
