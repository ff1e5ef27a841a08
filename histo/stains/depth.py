"""Optical depth of images, and images whose optical depth is an affine map of what it was.

τ = -ln((I + 1) / 240): natural logarithms and empty glass of level 240, as Macenko's published code and torchstain have
it, so that thresholds and strengths are in their units. Images are uint8 or float `[N, 3, H, W]` RGB, levels 0 to 255.
"""

from collections.abc import Callable
from math import log

import torch
from torch import Tensor

from histo.errors import InputError

BLOCK = 2**17  # pixels of all images together
GLASS = 240.0  # grey level of empty glass, a little below the sensor's maximum


def check_images(images: Tensor) -> None:
    """Raises InputError for what is no batch of RGB images."""
    known = images.dtype == torch.uint8 or images.is_floating_point()
    if not known or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise InputError(
            f"stain functions got {images.dtype} of shape {tuple(images.shape)}, expected a batch of RGB images: pass"
            " uint8, or float with levels of 0 to 255, of shape [N, 3, H, W]."
        )


def finite_images(images: Tensor) -> Tensor:
    """bool [N]: whether all levels of an image are numbers."""
    if images.dtype == torch.uint8:
        return torch.ones(len(images), dtype=torch.bool, device=images.device)
    return images.isfinite().flatten(1).all(dim=1)


def optical_depth(images: Tensor) -> Tensor:
    """Optical depth of every channel.

    Args:
        images: uint8 or float [N, 3, ...] RGB, levels 0 to 255; others are clipped, and NaN is glass.

    Returns:
        float32 of the same shape; 0 at level 239, 5.5 for black, below 0 for brighter levels.
    """
    return _logarithms(images).mul_(-log(2)).add_(log(GLASS))


def from_optical_depth(depth: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `optical_depth`, clipped to 0 to 255; rounded where `dtype` is uint8."""
    return _levels(log(GLASS) - depth, dtype)


def map_depth(images: Tensor, matrix: Tensor, shift: Tensor | None = None, glass: float = GLASS) -> Tensor:
    """Images with optical depth τ @ matrix + shift, in every pixel.

    One affine map of the logarithms of levels. Neither a product of matrices nor powers of 2 make it: these round by
    how many pixels there are beside, and an image would depend on its batch.

    Args:
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255.
        matrix: float [N, 3, 3].
        shift: float [N, 3]; None for 0.
        glass: level + 1 of what has depth 0 here, and which a matrix therefore leaves as it is.

    Returns:
        As `images`; uint8 is rounded. An identity returns uint8 images exactly.
    """
    across = matrix.float().mT
    offset = log(glass) * (1 - across.sum(dim=2))
    if shift is not None:
        offset = offset - shift.float()
    red, green, blue = (log(2) * across)[..., None].unbind(2)

    def mapped(levels: Tensor) -> Tensor:
        logarithms = _logarithms(levels)
        changed = torch.addcmul(offset[:, :, None], red, logarithms[:, :1])
        changed.addcmul_(green, logarithms[:, 1:2]).addcmul_(blue, logarithms[:, 2:])
        return _levels(changed, images.dtype)

    return in_blocks(images, mapped)


def in_blocks(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Images changed pixel by pixel, on a CPU some pixels of all images at a time.

    What lies between input and output then stays in the cache; as a whole it takes the system longer to hand out the
    memory than to compute.

    Args:
        images: [N, 3, H, W].
        change: function of pixels [N, 3, P] to as many of the same dtype.
    """
    pixels, changed = images.flatten(2), torch.empty(images.shape, dtype=images.dtype, device=images.device)
    block = max(1, BLOCK // max(1, len(images))) if images.device.type == "cpu" else pixels.shape[2]
    for start in range(0, pixels.shape[2], block):
        part = slice(start, start + block)
        changed.flatten(2)[:, :, part] = change(pixels[:, :, part])
    return changed


def _logarithms(images: Tensor) -> Tensor:
    """log2(I + 1), float32, in memory of its own."""
    if images.dtype == torch.uint8:  # looked up: a CPU takes twice as long to compute them
        table = torch.arange(1, 257, device=images.device).float().log2()
        return table.index_select(0, images.int().flatten()).view(images.shape)
    return images.float().nan_to_num(nan=GLASS - 1).clamp_(0, 255).add_(1).log2_()


def _levels(logarithms: Tensor, dtype: torch.dtype) -> Tensor:
    """Levels I of log(I + 1); overwrites it."""
    if dtype == torch.uint8:
        return logarithms.exp_().sub_(0.5).clamp_(0, 255).to(dtype)  # half up, by truncation
    return logarithms.exp_().sub_(1).clamp_(0, 255).to(dtype)
