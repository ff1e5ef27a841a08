"""CIE-Lab of sRGB images under D65, and the colour transfer of Reinhard et al., IEEE CG&A 21(5):34-41, 2001.

Mean and deviation of each Lab channel become those of a target. They are of tissue alone and only tissue is changed, so
that it does not matter how much glass a tile shows, and glass stays glass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from histo.stains.depth import check_images, in_blocks, optical_depth
from histo.stains.status import TISSUE_DEPTHS, Status, clamped_ratio, find_tissue, on_grid, usable, worst

# IEC 61966-2-1: linear sRGB to XYZ; CIE 15: the white of D65 seen from 2°. Rows are X, Y, Z.
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
_SMALLEST_DEVIATION = 1.0  # of L; less is noise around a single colour


class ColourStatistics(NamedTuple):
    """Lab colours of the tissue of a batch.

    Attributes:
        means, deviations: float32 [N, 3] of L (0 to 100), a and b.
        status: int64 [N], `Status`.
    """

    means: Tensor
    deviations: Tensor
    status: Tensor


def to_lab(images: Tensor) -> Tensor:
    """CIE-Lab of uint8 or float [N, 3, ...] RGB with levels 0 to 255: float32, L 0 to 100, a and b about ±100."""
    if images.dtype == torch.uint8:
        levels = torch.arange(256, device=images.device).float()
        linear = _linear(levels).index_select(0, images.int().flatten()).view(images.shape)
    else:
        linear = _linear(images.float())
    relative = _mixed(linear, _matrix(images.device))
    x, y, z = torch.where(relative > 0.008856, _power(relative, 1 / 3), 7.787 * relative + 16 / 116).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def from_lab(lab: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `to_lab`, clipped to levels of 0 to 255; rounded where `dtype` is uint8."""
    y = (lab[:, 0] + 16) / 116
    cubes = torch.stack([y + lab[:, 1] / 500, y, (y - lab[:, 2] / 200).clamp(min=0)], dim=1)
    relative = torch.where(cubes > 0.2068966, cubes**3, (cubes - 16 / 116) / 7.787)
    linear = _mixed(relative, torch.linalg.inv(_matrix(lab.device)))
    unit = torch.where(linear > 0.0031308, 1.055 * _power(linear, 1 / 2.4) - 0.055, 12.92 * linear)
    levels = (255 * unit).clamp(0, 255)
    return levels.round().to(dtype) if dtype == torch.uint8 else levels.to(dtype)


def colour_statistics(images: Tensor, pixels: int | None = None) -> ColourStatistics:
    """Lab mean and deviation of the tissue of each image.

    Tissue is where the mean optical depth of the channels reaches 0.15, so that pale eosin counts; whether there is
    enough of any is decided as for stains.

    Args:
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255.
        pixels: look at about so many pixels of each image, on a regular grid; None for all.

    Raises:
        InputError: when `images` is no batch of RGB images.
    """
    check_images(images)
    seen = on_grid(images, pixels)
    depth = optical_depth(seen).flatten(2)
    _, status = find_tissue(depth, images)
    weight = _coloured(depth).float()[:, None]
    lab = to_lab(seen.nan_to_num().clamp(0, 255)).flatten(2)
    count = weight.sum(dim=2).clamp(min=1)
    means = (lab * weight).sum(dim=2) / count
    deviations = (((lab - means[:, :, None]).square() * weight).sum(dim=2) / count).sqrt()
    flat = worst((deviations[:, 0] < _SMALLEST_DEVIATION, Status.ONE_COLOUR), like=images)
    return ColourStatistics(means, deviations, torch.where(usable(status), torch.maximum(status, flat), status))


def transfer_statistics(images: Tensor, source: ColourStatistics, target: ColourStatistics) -> tuple[Tensor, Tensor]:
    """Tissue with the target's means and deviations, and bool [N] whether a ratio of deviations had to be clamped."""
    ratio, clamped = clamped_ratio(target.deviations, source.deviations)
    shift = target.means - ratio * source.means

    def moved(levels: Tensor) -> Tensor:
        lab = to_lab(levels.nan_to_num().clamp(0, 255)) * ratio[:, :, None] + shift[:, :, None]
        return torch.where(_coloured(optical_depth(levels))[:, None], from_lab(lab, images.dtype), levels)

    return in_blocks(images, moved), clamped


def _coloured(depth: Tensor) -> Tensor:
    return depth.mean(dim=1) >= TISSUE_DEPTHS[0]


def _linear(levels: Tensor) -> Tensor:
    unit = levels / 255
    return torch.where(unit > 0.04045, _power((unit + 0.055) / 1.055, 2.4), unit / 12.92)


def _power(values: Tensor, exponent: float) -> Tensor:
    """Powers of values from 1e-6 on; several times faster on a CPU than torch's own."""
    return values.clamp(min=1e-6).log2_().mul_(exponent).exp2_()


def _matrix(device: torch.device) -> Tensor:
    """Linear sRGB to XYZ relative to white, float32 [3, 3]."""
    return torch.tensor(_TO_XYZ, device=device) / torch.tensor(_WHITE, device=device)[:, None]


def _mixed(images: Tensor, matrix: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        return torch.einsum("nc...,dc->nd...", images, matrix)
