"""Colour deconvolution after Ruifrok & Johnston (2001): concentrations of stains by a given matrix, and back.

    OD = C @ M,    OD = -log10(I / white).

Images are uint8 `[N, 3, H, W]` RGB; results are float32, whatever the precision of a training around it.
"""

import torch
from torch import Tensor

from histo.dyes import HED
from histo.errors import InputError


def optical_density(images: Tensor, white: float = 255.0) -> Tensor:
    """Optical density of every channel.

    Args:
        images: uint8 [N, 3, H, W] RGB.
        white: grey level of unstained glass.

    Returns:
        float32 [N, 3, H, W], -log10(max(I, 1) / white); 0 for white, 2.4 for black, below 0 for levels above `white`.
    """
    _check(images)
    return -torch.log10(images.clamp(min=1).float() / white)


def from_optical_density(density: Tensor, white: float = 255.0) -> Tensor:
    """Inverse of `optical_density`: float [N, 3, H, W] to uint8 RGB of the same shape, rounded and clipped."""
    return (white * torch.pow(10.0, -density)).round().clamp(0, 255).to(torch.uint8)


def fixed_matrix(device: torch.device | str = "cpu") -> Tensor:
    """The matrix `HED` of Ruifrok & Johnston as float32 [3, 3]."""
    return torch.tensor(HED, dtype=torch.float32, device=device)


def concentrations(images: Tensor, matrix: Tensor | None = None) -> Tensor:
    """Stain concentrations of every pixel, colour deconvolution.

    Args:
        images: uint8 [N, 3, H, W] RGB.
        matrix: float32 [3, 3] or [N, 3, 3], invertible; None for `HED`.

    Returns:
        float32 [N, 3, H, W] channels haematoxylin, eosin, residual, in units of optical density. Not clipped: a colour
        outside the cone of the three stains has negative ones. With `HED` this is six times scikit-image's `rgb2hed`
        before its clipping at 0, since that takes logarithms to the base 1e6.
    """
    density = optical_density(images)
    matrix = fixed_matrix(images.device) if matrix is None else matrix
    with torch.autocast(images.device.type, enabled=False):
        return torch.einsum("nchw,ncs->nshw", density, matrix.inverse().expand(len(images), 3, 3))


def recompose(stains: Tensor, matrix: Tensor | None = None) -> Tensor:
    """Inverse of `concentrations`: float [N, 3, H, W] stain concentrations to uint8 [N, 3, H, W] RGB."""
    matrix = fixed_matrix(stains.device) if matrix is None else matrix
    with torch.autocast(stains.device.type, enabled=False):
        return from_optical_density(torch.einsum("nshw,nsc->nchw", stains, matrix.expand(len(stains), 3, 3)))


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(
            f"stain functions got {images.dtype} of shape {tuple(images.shape)}, expected a batch of RGB images:"
            " pass uint8 of shape [N, 3, H, W]."
        )
