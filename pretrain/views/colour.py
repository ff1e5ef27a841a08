"""Colour of views: stains, then brightness, contrast, saturation and hue in an order of each image's own, then grey.

The changes of colour are those of torchvision's `adjust_brightness`, `adjust_contrast`, `adjust_saturation`,
`adjust_hue` and `rgb_to_grayscale`. The first three mix an image with black, its mean grey or its grey, so that one
expression does any of them, to each image another. Levels are float32, 0 to 255.
"""

from collections.abc import Callable
from math import log
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from histo.randomness import draws
from histo.stains import Jitter, augment_stains, draw_jitter, jitter_hed
from pretrain.views.settings import ViewSettings

CONTRAST, SATURATION = 1, 2  # among the factors, behind brightness
LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue in grey
_STAIN_UNIT = log(1e6)  # optical depth of a shift of 1 in a `Jitter`


class Colour(NamedTuple):
    """Changes of the colour of each image, on the CPU.

    Attributes:
        factors: float32 [N, 3], of brightness, contrast and saturation; 1 for none.
        order: int64 [N, 3], which of these three comes first, second and third.
        hue: float32 [N], turn of the hue as share of the colour circle; 0 for none.
        hue_after: int64 [N], how many of the three come before the hue.
        grey: bool [N], whether no colour is left.
        hed: HED jitter, of other images none.
        stain: stain augmentation, of other images none.
    """

    factors: Tensor
    order: Tensor
    hue: Tensor
    hue_after: Tensor
    grey: Tensor
    hed: Jitter | None
    stain: Jitter | None


def draw_colour(settings: ViewSettings, seed: int, stream: str, indices: list[int]) -> Colour:
    """Draw the colour of views by global image index; pure in (settings, seed, stream, index).

    All orders of the four changes are equally likely, as in torchvision's ColorJitter.
    """
    numbers = np.array([draws(seed, f"{stream}/colour", k).random(10) for k in indices]).reshape(-1, 10)
    uniform = torch.from_numpy(numbers)
    happens = uniform[:, 0] < settings.jitter
    reach = torch.tensor([settings.brightness, settings.contrast, settings.saturation], dtype=torch.float64)
    factors = 1 + reach * (2 * uniform[:, 1:4] - 1) * happens[:, None]
    hue = settings.hue * (2 * uniform[:, 4] - 1) * happens
    jitters = (
        draw_jitter(seed, f"{stream}/{name}", indices, strength, strength / _STAIN_UNIT) if strength else None
        for name, strength in (("hed", settings.hed), ("stain", settings.stain))
    )
    return Colour(
        factors.float(),
        uniform[:, 5:8].argsort(dim=1),
        hue.float(),
        (4 * uniform[:, 8]).long(),
        uniform[:, 9] < settings.grey,
        *jitters,
    )


def recolour(images: Tensor, colour: Colour) -> Tensor:
    """Change the colour of images.

    Args:
        images: float32 [N, 3, H, W], levels 0 to 255.
        colour: of each image.

    Returns:
        float32 [N, 3, H, W], levels 0 to 255. Images without a change are the same bit for bit.
    """
    if colour.stain is not None:
        images = augment_stains(images, colour.stain).images
    images = images.clone() if colour.hed is None else jitter_hed(images, colour.hed)
    mixed = bool((colour.factors != 1).any())
    for step in range(4):
        _change(images, (colour.hue != 0) & (colour.hue_after == step), turn_hue, colour.hue)
        if step < 3 and mixed:
            which = colour.order[:, step]
            _mix(images, which, colour.factors.gather(1, which[:, None])[:, 0])
    _change(images, colour.grey, lambda some: _grey(some)[:, None].expand(-1, 3, -1, -1))
    return images


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of images in HSV, which keeps the largest and the smallest channel of every pixel.

    With the hue h counted from 0 to 6 and its distance d around the circle from that of a channel (red 0, green 2, blue
    4), this channel is max - (max - min) · clip(d - 1, 0, 1); no case has to be told from another.

    Args:
        images: float32 [N, 3, H, W].
        turn: float32 [N], share of the colour circle, between -0.5 and 0.5.
    """
    red, green, blue = images.unbind(1)
    largest, smallest = images.amax(dim=1), images.amin(dim=1)
    spread = largest - smallest
    hue = torch.where(
        red == largest,
        green - blue,
        torch.where(green == largest, (blue - red).add_(spread, alpha=2), (red - green).add_(spread, alpha=4)),
    )
    hue.div_(spread.clamp(min=1e-6)).add_(6 * turn[:, None, None])  # from -4 to 8
    away = hue[:, None] - torch.tensor([0.0, 2.0, 4.0], device=images.device)[:, None, None]  # from -8 to 8
    away.abs_().sub_(3).abs_().neg_().add_(3).abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(largest[:, None], spread[:, None], away, value=-1)


def _change(images: Tensor, where: Tensor, change: Callable[..., Tensor], *amounts: Tensor) -> None:
    """Change some images in place; the others cost nothing."""
    (rows,) = where.nonzero(as_tuple=True)
    if len(rows):
        there = rows.to(images.device)
        changed = change(images.index_select(0, there), *(amount[rows].to(images.device) for amount in amounts))
        images.index_copy_(0, there, changed)


def _mix(images: Tensor, which: Tensor, factors: Tensor) -> None:
    """factor · image + (1 - factor) · other in place, where the other is black, the image's mean grey or its grey."""
    rest = 1 - factors
    rest_of_mean, rest_of_grey, factors = (
        part.to(images.device)[:, None, None]
        for part in (rest * (which == CONTRAST), rest * (which == SATURATION), factors)
    )
    other = _grey(images)
    mean = other.mean(dim=2, keepdim=True).mean(dim=1, keepdim=True)  # by rows: the same for any number of images
    other.mul_(rest_of_grey).add_(rest_of_mean * mean)
    images.mul_(factors[:, None]).add_(other[:, None]).clamp_(0, 255)


def _grey(images: Tensor) -> Tensor:
    """[N, 3, H, W] → [N, H, W]."""
    red, green, blue = images.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
