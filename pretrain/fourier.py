"""The colours and broad shading of one image on others, by the low frequencies of their Fourier amplitudes.

Yang & Soatto, CVPR 2020 ("FDA"), equation 1; with one random image of a batch as the target of all it is the step that
Batch Styles Standardization (arXiv 2303.06088) is built on. It knows no stains, and what stands where is in the phases,
which stay.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from histo.stains.depth import check_images

BAND = 0.05  # share of the side that the swapped frequencies reach to, either way: 1 % of all of them


class Spectra(NamedTuple):
    """Low frequencies of a batch.

    Attributes:
        amplitudes: float32 [N, 3, 2r + 1, r + 1] of the frequencies from -r to r down and 0 to r across, counted in
            turns over the image; the others mirror them. Divided by the number of pixels, so that the first is the
            mean level.
        status: int64 [N], `Status`: all normal, since any image has amplitudes.
    """

    amplitudes: Tensor
    status: Tensor


def spectra(images: Tensor) -> Spectra:
    """Amplitudes of low frequencies of each image.

    Args:
        images: uint8 or float [N, 3, S, S] RGB, levels 0 to 255.

    Raises:
        InputError: when `images` is no batch of RGB images.
    """
    check_images(images)
    with torch.autocast(images.device.type, enabled=False):
        amplitudes = torch.fft.rfft2(images.float(), norm="forward")[_band(images)].abs()
    return Spectra(amplitudes, torch.zeros(len(images), dtype=torch.long, device=images.device))


def transfer_spectra(images: Tensor, target: Spectra) -> Tensor:
    """Images with the target's amplitudes at low frequencies, and their own phases.

    Args:
        images: uint8 or float [N, 3, S, S] RGB, levels 0 to 255.
        target: of one image of this size, or of N.

    Returns:
        As `images`, clipped to levels of 0 to 255; uint8 is rounded.
    """
    with torch.autocast(images.device.type, enabled=False):
        whole = torch.fft.rfft2(images.float(), norm="forward")
        band = _band(images)
        own = whole[band]
        whole[band] = torch.polar(target.amplitudes.expand_as(own).contiguous(), own.angle())
        levels = torch.fft.irfft2(whole, s=images.shape[2:], norm="forward").clamp_(0, 255)
    return levels.round_().to(images.dtype) if images.dtype == torch.uint8 else levels.to(images.dtype)


def _band(images: Tensor) -> tuple[slice | Tensor, ...]:
    """Where `rfft2` has the low frequencies: index of [N, 3, H, W // 2 + 1]."""
    reach = max(1, round(BAND * min(images.shape[2:])))
    down = torch.arange(-reach, reach + 1, device=images.device) % images.shape[2]
    return slice(None), slice(None), down, slice(0, reach + 1)
