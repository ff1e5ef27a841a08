"""Gaussian blur of views, each with a width of its own."""

from math import ceil

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from histo.randomness import draws
from pretrain.views.settings import ViewSettings

NARROWEST, WIDEST = 0.1, 2.0  # standard deviation in pixels of a view of 224 px
SIDE = 224
REACH = 3  # standard deviations of the widest that the kernel reaches


def draw_blur(settings: ViewSettings, seed: int, stream: str, indices: list[int]) -> Tensor:
    """Draw the blur of views by global image index; pure in (settings, seed, stream, index).

    Returns:
        float32 [N] on the CPU: standard deviation as share of the side, 0 for no blur.
    """
    numbers = np.array([draws(seed, f"{stream}/blur", k).random(2) for k in indices]).reshape(-1, 2)
    width = (NARROWEST + (WIDEST - NARROWEST) * numbers[:, 1]) / SIDE
    return torch.from_numpy(np.where(numbers[:, 0] < settings.blur, width, 0.0)).float()


def blur(images: Tensor, width: Tensor) -> Tensor:
    """Blur images, reflected at the middle of their outermost pixels.

    Args:
        images: float32 [N, 3, S, S].
        width: float32 [N], standard deviation as share of the side, at most 2 / 224; images with 0 are the same bit
            for bit.
    """
    (rows,) = width.nonzero(as_tuple=True)
    if not len(rows):
        return images
    side, there = images.shape[-1], rows.to(images.device)
    reach = min(ceil(REACH * WIDEST * side / SIDE), side - 1)
    weights = torch.exp(-0.5 * (torch.arange(reach + 1) / (width[rows, None] * side)) ** 2)
    weights /= 2 * weights.sum(dim=1, keepdim=True) - weights[:, :1]
    weights = weights.to(images.device)
    changed = images.index_select(0, there)
    for dim, frame in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        changed = _along(F.pad(changed, frame, mode="reflect"), dim, weights)
    return images.index_copy(0, there, changed)


def _along(framed: Tensor, dim: int, weights: Tensor) -> Tensor:
    """Weighted sum of shifted images along a dimension, by half a symmetric kernel [N, reach + 1].

    Twice as fast as a grouped convolution, and the same for any number of images.
    """
    reach = weights.shape[1] - 1
    side = framed.shape[dim] - 2 * reach
    taps = weights[:, :, None, None, None].unbind(1)
    total = framed.narrow(dim, reach, side) * taps[0]
    for k in range(1, reach + 1):
        total.addcmul_(framed.narrow(dim, reach - k, side) + framed.narrow(dim, reach + k, side), taps[k])
    return total
