"""Histogram matching, channel by channel: every level goes to the target's level of the same rank."""

from typing import NamedTuple

import torch
from torch import Tensor

from histo.stains.depth import check_images, optical_depth
from histo.stains.status import Status, find_tissue, on_grid, usable, worst

LEVELS = 256


class Histograms(NamedTuple):
    """Levels of a batch.

    Attributes:
        counts: int64 [N, 3, 256], pixels of each level; float levels count as the nearest whole one.
        status: int64 [N], `Status`.
    """

    counts: Tensor
    status: Tensor


def histograms(images: Tensor, pixels: int | None = None) -> Histograms:
    """Histograms of each image, of all its pixels since every level has its rank, glass too.

    Args:
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255.
        pixels: look for tissue in about so many of them; None for all.

    Raises:
        InputError: when `images` is no batch of RGB images.
    """
    check_images(images)
    rows = len(images) * 3
    offsets = torch.arange(rows, device=images.device)[:, None] * LEVELS
    flat = (_whole_levels(images).flatten(2).flatten(0, 1) + offsets).flatten()
    counts = torch.bincount(flat, minlength=rows * LEVELS).view(len(images), 3, LEVELS)
    _, status = find_tissue(optical_depth(on_grid(images, pixels)).flatten(2), images)
    single = ((counts > 0).sum(dim=2) == 1).all(dim=1)
    one_colour = worst((single, Status.ONE_COLOUR), like=images)
    return Histograms(counts, torch.where(usable(status), torch.maximum(status, one_colour), status))


def matched_levels(source: Tensor, target: Tensor) -> Tensor:
    """What each level becomes, float64 [N, 3, 256], for counts [N, 3, 256] of a source and a target [N or 1, 3, 256].

    The rank of a level, the share of pixels up to it, is looked up in the target's ranks, linearly between levels that
    the target has.
    """
    ranks, known = (counts.cumsum(dim=2).double() / counts.sum(dim=2, keepdim=True) for counts in (source, target))
    known = known.expand_as(ranks).contiguous()
    upper = torch.searchsorted(known, ranks).clamp(max=LEVELS - 1)
    reached = known.gather(2, upper)
    before = known.gather(2, (upper - 1).clamp(min=0))
    lower = torch.searchsorted(known, before)
    inside = (upper > 0) & (before > 0)
    part = torch.where(inside, (ranks - before) / (reached - before).clamp(min=1e-12), 1.0)
    return torch.where(inside, lower + part * (upper - lower), upper.double())


def transfer_histograms(images: Tensor, source: Histograms, target: Histograms) -> tuple[Tensor, Tensor]:
    """Images with the target's histograms, and bool [N], all False: no ratio is taken."""
    table = matched_levels(source.counts, target.counts)
    table = table.round() if images.dtype == torch.uint8 else table
    levels = table.to(images.dtype).gather(2, _whole_levels(images).flatten(2)).view(images.shape)
    return levels, torch.zeros(len(images), dtype=torch.bool, device=images.device)


def _whole_levels(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images.long()
    return images.nan_to_num().clamp(0, LEVELS - 1).round().long()
