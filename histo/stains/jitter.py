"""Random changes of the amounts of stain: every concentration c becomes scale · c + shift.

Tellez et al., IEEE TMI 37(9):2126-2136, 2018. What is drawn is separate from its use, as with all augmentation here:
draws are made on the CPU, keyed by the image's number, and images change where they are.
"""

from math import log
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from histo.dyes import HED
from histo.errors import InputError
from histo.randomness import draws
from histo.stains.depth import check_images, finite_images, map_depth, optical_depth
from histo.stains.estimation import PIXELS, StainEstimate, macenko
from histo.stains.normalisation import Normalised
from histo.stains.status import TISSUE_DEPTHS

_SCIKIT_UNIT = log(1e6)  # optical depth of a concentration of 1 as `skimage.color.rgb2hed` counts


class Jitter(NamedTuple):
    """Change of three concentrations (haematoxylin, eosin, third) of each image.

    Attributes:
        scale: float32 [N, 3].
        shift: float32 [N, 3], in the unit of scikit-image's `rgb2hed`: 13.8 of optical depth.
    """

    scale: Tensor
    shift: Tensor


def draw_jitter(seed: int, stream: str, indices: list[int], scale: float, shift: float) -> Jitter:
    """Draw the jitter of images by global index; pure in (seed, stream, index, scale, shift).

    Args:
        scale: factors are uniform in 1 ± scale, at least 0 and below 1; 0.05 is the paper's light jitter, 0.2 strong.
        shift: shifts are uniform in ± shift, at least 0; 0.05 and 0.2 in the paper's unit, which is that of `Jitter`.

    Raises:
        InputError: when a range is not one of these.
    """
    if not (0 <= scale < 1 and shift >= 0):
        raise InputError(
            f"jitter of stains got scale {scale} and shift {shift}, expected a scale from 0 to below 1 and a shift of 0"
            " or more: change them."
        )
    numbers = np.array([draws(seed, stream, k).uniform(-1, 1, (2, 3)) for k in indices]).reshape(-1, 2, 3)
    uniform = torch.from_numpy(numbers).float()
    return Jitter(1 + scale * uniform[:, 0], shift * uniform[:, 1])


def jitter_hed(images: Tensor, jitter: Jitter) -> Tensor:
    """HED jitter: changed concentrations of the fixed stains of Ruifrok & Johnston.

    Negative concentrations are kept, so that a jitter of scale 1 and shift 0 changes nothing; scikit-image clips them.

    Args:
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255; an image with a NaN stays as it is.
        jitter: of each image.

    Raises:
        InputError: when `images` is no batch of RGB images.
    """
    check_images(images)
    matrix = torch.tensor(HED, device=images.device)
    result = _changed(images, matrix.expand(len(images), 3, 3), *_on_device(jitter, images), glass=256)
    return torch.where(finite_images(images)[:, None, None, None], result, images)


def augment_stains(images: Tensor, jitter: Jitter, source: StainEstimate | None = None) -> Normalised:
    """Stain augmentation: changed concentrations of the image's own haematoxylin and eosin, in tissue alone.

    The residual stays, and so does glass (mean optical depth below 0.15). Images without stains are unchanged.

    Args:
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255.
        jitter: of each image; its third column is not used.
        source: stains of `images`, by `macenko` or `vahadane`; None for those of `macenko`.

    Raises:
        InputError: when `images` is no batch of RGB images.
    """
    check_images(images)
    source = macenko(images, PIXELS) if source is None else source
    scale, shift = _on_device(jitter, images)
    keep = torch.tensor([False, False, True], device=images.device)
    result = _changed(images, source.matrices, scale.masked_fill(keep, 1), shift.masked_fill(keep, 0))
    tissue = optical_depth(images).mean(dim=1, keepdim=True) >= TISSUE_DEPTHS[0]
    return Normalised(torch.where(tissue & source.ok[:, None, None, None], result, images), source.status)


def _on_device(jitter: Jitter, images: Tensor) -> tuple[Tensor, Tensor]:
    """Scale, and shift in optical depth."""
    return jitter.scale.to(images.device), jitter.shift.to(images.device) * _SCIKIT_UNIT


def _changed(images: Tensor, matrix: Tensor, scale: Tensor, shift: Tensor, glass: float = 240.0) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        scaled = matrix.inverse() @ (scale[:, :, None] * matrix)
        return map_depth(images, scaled, (shift[:, None] @ matrix)[:, 0], glass)
