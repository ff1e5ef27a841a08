"""Which images can be normalised, and what is done about those that cannot: nothing here ever throws on an image.

A tile of glass, pen, a single colour or of NaN has no stains to speak of. It stays as it is, and a code says why, so
that a training can count them.
"""

from enum import IntEnum

import torch
from torch import Tensor

from histo.stains.depth import finite_images

TISSUE_DEPTHS = (0.15, 0.10)  # the second is tried where the first leaves too few pixels: pale tiles
TISSUE_SHARE = 0.05  # of all pixels; fewer say more about dirt and noise than about the stains
RATIOS = (0.5, 2.0)  # by how much a strength may change; dividing by that of a pale tile wrecks it


class Status(IntEnum):
    """What happened to an image; of several things, the one with the highest code. From `GLASS` on it is unchanged."""

    NORMAL = 0  # as published
    PALE = 1  # tissue was found by the lower threshold alone
    CLAMPED = 2  # a ratio of strengths or deviations was brought to `RATIOS`
    GLASS = 3  # less than 5 % tissue
    ONE_COLOUR = 4  # one direction of colour or none: two stains cannot be told apart
    NO_STAIN = 5  # colours that no H&E stain has, such as pen
    NOT_FINITE = 6  # NaN or infinite levels
    NO_TARGET = 7  # it was the target that has no stains


def usable(status: Tensor) -> Tensor:
    """bool [N] of status codes [N]: whether the image has an appearance that can be changed or given to others."""
    return status < Status.GLASS


def worst(*conditions: tuple[Tensor, Status], like: Tensor) -> Tensor:
    """int64 [N]: for each image the highest status whose condition, bool [N], holds; `NORMAL` where none does."""
    status = torch.zeros(len(like), dtype=torch.long, device=like.device)
    for condition, code in conditions:
        status = torch.where(condition, status.clamp(min=int(code)), status)
    return status


def find_tissue(depth: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tissue and whether there is enough of it.

    A pixel is tissue where every channel has an optical depth of 0.15, else, on a tile with less than 5 % of such
    pixels, of 0.10.

    Args:
        depth: float [N, 3, P].
        images: [N, 3, H, W] that it was made from.

    Returns:
        bool [N, P], and int64 [N] `NORMAL`, `PALE`, `GLASS` or `NOT_FINITE`.
    """
    least = depth.amin(dim=1)
    strict, loose = (least >= threshold for threshold in TISSUE_DEPTHS)
    pale = strict.float().mean(dim=1) < TISSUE_SHARE
    glass = loose.float().mean(dim=1) < TISSUE_SHARE
    broken = ~finite_images(images)
    status = worst((pale, Status.PALE), (glass, Status.GLASS), (broken, Status.NOT_FINITE), like=images)
    return torch.where(pale[:, None], loose, strict), status


def left_alone(images: Tensor, result: Tensor, status: Tensor) -> Tensor:
    """`result`, overwritten by `images` where the status is not usable."""
    rows = (~usable(status)).nonzero()[:, 0]  # on a CPU much cheaper than to choose pixel by pixel
    return result.index_copy_(0, rows, images[rows])


def clamped_ratio(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """target / source [N, K] within `RATIOS`, and bool [N] whether any had to be brought there."""
    ratio = target / source.clamp(min=1e-6)
    held = ratio.clamp(*RATIOS)
    return held, (held != ratio).any(dim=1)


def on_grid(images: Tensor, pixels: int | None) -> Tensor:
    """Every k-th row and column, [N, 3, h, w] with h·w about `pixels` or a little more; all of them for None."""
    step = 1 if pixels is None else max(1, int((images.shape[2] * images.shape[3] / pixels) ** 0.5))
    return images[:, :, step // 2 :: step, step // 2 :: step]
