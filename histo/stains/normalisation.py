"""Images in the colours of a target, and images in given stains.

    target = target_of(picture, "macenko")
    images, status = normalise(batch, target, "macenko")

What is learned of images (stains, colours, histograms) is an appearance: a named tuple with one row per image. A target
is one too, of one image or of one for each of the batch, so any image of the batch can be the target of all.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from histo.errors import InputError
from histo.stains.depth import check_images, from_optical_depth, in_blocks, map_depth, optical_depth
from histo.stains.estimation import PIXELS, StainEstimate, macenko
from histo.stains.factorisation import amounts, vahadane
from histo.stains.histograms import Histograms, histograms, transfer_histograms
from histo.stains.lab import ColourStatistics, colour_statistics, transfer_statistics
from histo.stains.status import Status, clamped_ratio, left_alone, usable, worst

Appearance = StainEstimate | ColourStatistics | Histograms
AnyAppearance = TypeVar("AnyAppearance", StainEstimate, ColourStatistics, Histograms)
MethodName = Literal["macenko", "vahadane", "reinhard", "histogram"]
EPSILON = 0.05  # relative to the stain vector of the batch


class Normalised(NamedTuple):
    """A normalised batch.

    Attributes:
        images: as they came in, of the same dtype and shape.
        status: int64 [N], `Status`; from `GLASS` on the image is unchanged.
    """

    images: Tensor
    status: Tensor


class Method(NamedTuple):
    """measure: images and a number of pixels to an appearance. transfer: images, theirs and the target's to images."""

    measure: Callable[[Tensor, int | None], Any]
    transfer: Callable[[Tensor, Any, Any], tuple[Tensor, Tensor]]


def measure(images: Tensor, method: MethodName, pixels: int | None = PIXELS) -> Appearance:
    """Appearance of each image.

    Args:
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255.
        method: Macenko and Vahadane measure stains, Reinhard Lab colours, histogram matching histograms.
        pixels: look at about so many pixels of each image, on a regular grid; None for all. Histograms count all.

    Raises:
        InputError: when `images` is no batch of RGB images, or the method is unknown.
    """
    return _method(method).measure(images, pixels)


def target_of(image: Tensor, method: MethodName) -> Appearance:
    """Appearance of one image, uint8 or float [3, H, W], from all of its pixels, to normalise others to.

    Raises:
        InputError: when it has no appearance to give, such as glass or pen.
    """
    appearance = measure(image[None], method, None)
    status = Status(int(appearance.status))
    if not usable(appearance.status):
        raise InputError(
            f"the target image has nothing to normalise to ({status.name.lower().replace('_', ' ')}), expected H&E"
            " tissue on at least 5 % of its pixels: choose another image."
        )
    return appearance


def picked(appearance: AnyAppearance, index: int | Tensor) -> AnyAppearance:
    """Appearance of some images of a batch: one by its number, several by an int64 [K] of numbers or a bool [N]."""
    rows = slice(index, index + 1) if isinstance(index, int) else index
    return type(appearance)(*(field[rows] for field in appearance))


def normalise(
    images: Tensor,
    target: Appearance,
    method: MethodName,
    source: Appearance | None = None,
    pixels: int | None = PIXELS,
) -> Normalised:
    """Images in the colours of a target.

    Macenko: concentrations of haematoxylin and eosin by the pseudo-inverse, scaled so that their 99th percentiles
    become the target's, in the target's stains; what the two stains leave unexplained goes. Vahadane: the same with
    non-negative concentrations. Reinhard: `histo.stains.lab`. Histogram: `histo.stains.histograms`. Ratios of strengths
    and deviations are kept within 0.5 and 2.

    Args:
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255.
        target: appearance by the same method, of 1 or N images.
        method: how.
        source: appearance of `images` where it is known already, by `measure`; None to measure it.
        pixels: as for `measure`.

    Raises:
        InputError: when `images` is no batch of RGB images, or the method is unknown. Never for what an image shows.
    """
    check_images(images)
    source = measure(images, method, pixels) if source is None else source
    result, clamped = _method(method).transfer(images, source, target)
    changed = worst((clamped, Status.CLAMPED), (~usable(target.status), Status.NO_TARGET), like=images)
    status = torch.where(usable(source.status), torch.maximum(source.status, changed), source.status)
    return Normalised(left_alone(images, result, status), status)


def restain(images: Tensor, matrix: Tensor, source: StainEstimate | None = None) -> Normalised:
    """The same amounts of stain in the colours of a given matrix.

    Args:
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255.
        matrix: float [3, 3] or [N, 3, 3], rows haematoxylin, eosin and what takes the residual.
        source: stains of `images`; None for those of `macenko`.

    Raises:
        InputError: when `images` is no batch of RGB images.
    """
    check_images(images)
    source = macenko(images, PIXELS) if source is None else source
    with torch.autocast(images.device.type, enabled=False):
        result = map_depth(images, source.matrices.inverse() @ matrix.float().expand(len(images), 3, 3))
    return Normalised(left_alone(images, result, source.status), source.status)


def distinct(estimate: StainEstimate, epsilon: float = EPSILON, batch: StainEstimate | None = None) -> Tensor:
    """bool [N]: which images are targets that change the appearance of a batch; None: of the batch they are.

    A target must be usable, and its stain vector further from the mean vector of the batch's usable images than
    `epsilon` times its length.
    """
    batch = estimate if batch is None else batch
    weight = batch.ok.float()[:, None]
    mean = (batch.vectors * weight).sum(dim=0) / weight.sum().clamp(min=1)
    return estimate.ok & ((estimate.vectors - mean).norm(dim=1) > epsilon * mean.norm())


def _method(name: MethodName) -> Method:
    if name not in METHODS:
        raise InputError(f"stain normalisation '{name}' is unknown, expected one of {', '.join(METHODS)}: choose one.")
    return METHODS[name]


def _transfer_stains(images: Tensor, source: StainEstimate, target: StainEstimate) -> tuple[Tensor, Tensor]:
    ratio, clamped = clamped_ratio(target.strengths, source.strengths)
    # The third row is perpendicular to the others: the first two columns of the inverse are the pseudo-inverse.
    to_amounts = source.matrices.inverse()[:, :, :2]
    with torch.autocast(images.device.type, enabled=False):
        return map_depth(images, (to_amounts * ratio[:, None]) @ target.matrices[:, :2]), clamped


def _transfer_non_negative(images: Tensor, source: StainEstimate, target: StainEstimate) -> tuple[Tensor, Tensor]:
    ratio, clamped = clamped_ratio(target.strengths, source.strengths)
    pair = (target.matrices[:, :2] * ratio[:, :, None]).mT

    def moved(levels: Tensor) -> Tensor:
        depth = optical_depth(levels)
        amount = amounts(depth, source.matrices[:, :2])
        return from_optical_depth(torch.baddbmm(depth.clamp(max=0), pair, amount), images.dtype)

    with torch.autocast(images.device.type, enabled=False):
        return in_blocks(images, moved), clamped  # what is brighter than glass stays so


METHODS: dict[str, Method] = {
    "macenko": Method(macenko, _transfer_stains),
    "vahadane": Method(vahadane, _transfer_non_negative),
    "reinhard": Method(colour_statistics, transfer_statistics),
    "histogram": Method(histograms, transfer_histograms),
}
