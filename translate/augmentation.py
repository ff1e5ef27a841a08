"""Augmentation of what a discriminator sees: flips, turns, shifts, geometry and colour, batched and differentiable.

The list, its order and its distributions are those of Karras et al. 2020, "Training Generative Adversarial Networks
with Limited Data" (arXiv 2006.06676), appendix B: blit, geometry and colour, "bgc". All of geometry is one affine map
per image and all of colour one matrix. Two things differ from the paper: a map that takes pixels to pixels (flip,
quarter turn, whole shift) is read off exactly, without any filter; and elsewhere Lanczos-3 at double resolution stands
in for the wavelet filter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import pi, sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from histo.randomness import draws

LOBES = 3  # of the Lanczos kernel, in pixels
REACH = 2 * LOBES - 1  # farthest tap of the kernel at double resolution

# Standard deviations in appendix B: of log2 for scales, contrast and saturation; of the side; of RGB in [-1, 1].
SCALE, DRIFT, BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.125, 0.2, 0.5, 1.0
SHIFT = 0.125  # longest whole shift, of the side


@dataclass(frozen=True)
class Augmentation:
    """What happens to each image of a batch, on the CPU.

    place: float64 [N, 3, 3], where a point (x, y, 1) comes to lie, in pixels from the image's centre, x right, y down.
    colour: float64 [N, 3, 4], the new RGB of (r, g, b, 1), RGB in [-1, 1].
    """

    place: Tensor
    colour: Tensor


def draw(seed: int, stream: str, indices: list[int], p: float, side: int) -> Augmentation:
    """Draw the augmentation of images by global index; pure in (seed, stream, index, p, side).

    Each operation happens where a uniform number of its own is below p, so that what happens at some p happens at every
    larger one too, with the same amount.

    Args:
        p: probability of each operation, in [0, 1]; of at least one of the two rotations together.
        side: of the images, in pixels.
    """
    numbers = [(g.random(13), g.random(8), g.standard_normal(7)) for g in (draws(seed, stream, k) for k in indices)]
    chance, uniform, normal = (np.stack(part, 1) for part in zip(*numbers, strict=True))  # each [number, N]
    rotated = 1 - sqrt(1 - p)  # each of two, so that P(either) = p

    def happens(operation: int, amount: np.ndarray, probability: float = p) -> np.ndarray:
        return np.where(chance[operation] < probability, amount, 0.0)

    flip = happens(0, np.floor(2 * uniform[0]))
    quarters = happens(1, np.floor(4 * uniform[1]))
    whole = happens(2, np.rint((2 * uniform[2:4] - 1) * SHIFT * side))
    zoom = 2 ** happens(3, SCALE * normal[0])
    before = happens(4, (2 * uniform[4] - 1) * pi, rotated)
    stretch = 2 ** happens(5, SCALE * normal[1])
    after = happens(6, (2 * uniform[5] - 1) * pi, rotated)
    drift = happens(7, DRIFT * side * normal[2:4])
    place = (
        translation(*drift)
        @ rotation(after)
        @ scaling(stretch, 1 / stretch)
        @ rotation(before)
        @ scaling(zoom, zoom)
        @ translation(*whole)
        @ quarter_turn(quarters)
        @ scaling(1 - 2 * flip, np.ones_like(flip))
    )
    colour = (
        saturation(2 ** happens(12, SATURATION * normal[6]))
        @ hue(happens(11, (2 * uniform[6] - 1) * pi))
        @ luma_flip(happens(10, np.floor(2 * uniform[7])))
        @ contrast(2 ** happens(9, CONTRAST * normal[5]))
        @ brightness(happens(8, BRIGHTNESS * normal[4]))
    )
    return Augmentation(torch.from_numpy(place), torch.from_numpy(colour[:, :3].copy()))


def translation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Shift by (x, y) pixels: [N] → [N, 3, 3]."""
    zero, one = np.zeros_like(x), np.ones_like(x)
    return _matrices([[one, zero, x], [zero, one, y], [zero, zero, one]])


def scaling(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Scale by x and y: [N] → [N, 3, 3]."""
    zero, one = np.zeros_like(x), np.ones_like(x)
    return _matrices([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def rotation(angle: np.ndarray) -> np.ndarray:
    """Turn anticlockwise as seen (y points down) by radians: [N] → [N, 3, 3]."""
    return _turned(np.cos(angle), np.sin(angle))


def quarter_turn(quarters: np.ndarray) -> np.ndarray:
    """`rotation` by 0 to 3 quarters of a turn, in whole numbers as torch.rot90 does it: [N] → [N, 3, 3]."""
    which = quarters.astype(int)
    return _turned(np.array([1.0, 0.0, -1.0, 0.0])[which], np.array([0.0, 1.0, 0.0, -1.0])[which])


def brightness(amount: np.ndarray) -> np.ndarray:
    """Add `amount` to R, G and B: [N] → [N, 4, 4]."""
    matrices = _identities(len(amount))
    matrices[:, :3, 3] = amount[:, None]
    return matrices


def contrast(factor: np.ndarray) -> np.ndarray:
    """Multiply R, G and B: [N] → [N, 4, 4]."""
    matrices = _identities(len(factor))
    matrices[:, range(3), range(3)] = factor[:, None]
    return matrices


def luma_flip(flip: np.ndarray) -> np.ndarray:
    """Mirror colours at the plane across the grey axis where `flip` is 1: [N] of 0 or 1 → [N, 4, 4]."""
    matrices = _identities(len(flip))
    matrices[:, :3, :3] -= 2 * flip[:, None, None] / 3
    return matrices


def hue(angle: np.ndarray) -> np.ndarray:
    """Turn colours about the grey axis by radians (Rodrigues' formula): [N] → [N, 4, 4]."""
    matrices = _identities(len(angle))
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    across = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / sqrt(3)
    matrices[:, :3, :3] = cosine * np.eye(3) + sine * across + (1 - cosine) / 3
    return matrices


def saturation(factor: np.ndarray) -> np.ndarray:
    """Multiply the distance of colours from the grey axis: [N] → [N, 4, 4]."""
    matrices = _identities(len(factor))
    matrices[:, :3, :3] = factor[:, None, None] * np.eye(3) + (1 - factor[:, None, None]) / 3
    return matrices


def _matrices(rows: list[list[np.ndarray]]) -> np.ndarray:
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _identities(count: int) -> np.ndarray:
    return np.tile(np.eye(4), (count, 1, 1))


def _turned(cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    zero, one = np.zeros_like(sine), np.ones_like(sine)
    return _matrices([[cosine, sine, zero], [-sine, cosine, zero], [zero, zero, one]])


def augment(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Apply an augmentation, differentiably in the images (once: for R1, start again from the result).

    What lies beyond the border is the image's reflection, so that no empty corner tells the discriminator anything. An
    image whose augmentation is the identity comes back bit for bit. Values may leave [-1, 1], as in the paper.

    Args:
        images: float [N, 3, side, side], RGB in about [-1, 1].

    Returns:
        The same shape, dtype and device, channels last.
    """
    inverse = torch.linalg.inv(augmentation.place)
    moved = _differs(augmentation.place, 3)
    linear = inverse[:, :2, :2].abs()
    to_pixels = (inverse == inverse.round()).all(2).all(1) & (linear.sum((1, 2)) == 2)
    with torch.autocast(images.device.type, enabled=False):
        images = _where(images, moved & to_pixels, inverse, _read_off)
        images = _where(images, moved & ~to_pixels, inverse, _warp)
        images = _where(images, _differs(augmentation.colour, 4), augmentation.colour, _recolour)
    return images.contiguous(memory_format=torch.channels_last)  # as tiles and networks are


def _differs(matrices: Tensor, width: int) -> Tensor:
    """Which matrices are not the identity, bool [N]."""
    return (matrices != torch.eye(width, dtype=matrices.dtype)[: matrices.shape[1]]).any(2).any(1)


def _where(images: Tensor, which: Tensor, matrices: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Change some images of a batch; what needs no change costs nothing."""
    (rows,) = which.nonzero(as_tuple=True)
    if not len(rows):
        return images
    there = rows.to(images.device)
    return images.index_copy(0, there, change(images.index_select(0, there), matrices[rows]))


def _read_off(images: Tensor, inverse: Tensor) -> Tensor:
    """Each pixel from the one that `inverse` [N, 3, 3] names, reflected at the middle of the outermost pixels."""
    side = images.shape[-1]
    centre = (side - 1) / 2
    line = torch.arange(side, dtype=inverse.dtype) - centre
    points = torch.stack([line.repeat(side), line.repeat_interleave(side), torch.ones(side * side)])
    sources = (inverse[:, :2] @ points + centre).round().long()
    sources = sources.remainder(2 * (side - 1))
    sources = torch.minimum(sources, 2 * (side - 1) - sources)
    pixels = (sources[:, 1] * side + sources[:, 0]).to(images.device)
    return images.flatten(2).gather(2, pixels[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


def _warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Double the resolution, look up bilinearly where `inverse` [N, 3, 3] says, filter and halve the resolution."""
    side = images.shape[-1]
    enlarge, reduce = (matrix.to(images) for matrix in _resampling(side))
    centre = (side - 1) / 2  # the middles of the outermost pixels are -1 and 1 for grid_sample
    line = torch.arange(-REACH, 2 * side - 1 + REACH).to(images) / 2 / centre - 1
    across, down, shift = inverse[:, None, None, :2].to(images).unbind(-1)
    points = across * line[:, None] + (down * line[:, None, None] + shift / centre)
    fine = F.grid_sample(enlarge @ images @ enlarge.T, points, "bilinear", "reflection", align_corners=True)
    return reduce @ fine @ reduce.T


@lru_cache
def _resampling(side: int) -> tuple[Tensor, Tensor]:
    """Matrices from `side` pixels to these and the points half-way, and from half-pixel steps back to pixels.

    Returns:
        float64 [2 side - 1, side], reflecting at the ends, and float64 [side, 2 side - 1 + 2 REACH], which reads REACH
        half-pixels beyond either end.
    """
    steps = torch.arange(-REACH, REACH + 1, dtype=torch.float64)
    kernel = torch.sinc(steps / 2) * torch.sinc(steps / 2 / LOBES)
    half = kernel[steps % 2 == 1]
    enlarge = torch.zeros(2 * side - 1, side, dtype=torch.float64)
    enlarge[::2] = torch.eye(side)
    for k in range(side - 1):
        for tap, weight in zip(range(k - LOBES + 1, k + LOBES + 1), half / half.sum(), strict=True):
            source = tap % (2 * (side - 1))
            enlarge[2 * k + 1, min(source, 2 * (side - 1) - source)] += weight
    reduce = torch.zeros(side, 2 * side - 1 + 2 * REACH, dtype=torch.float64)
    for k in range(side):
        reduce[k, 2 * k : 2 * k + len(kernel)] = kernel / kernel.sum()
    return enlarge, reduce


def _recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Colour matrices float64 [N, 3, 4] on the pixels."""
    matrices = colour.to(images)
    return torch.baddbmm(matrices[:, :, 3:], matrices[:, :, :3], images.flatten(2)).view(images.shape)
