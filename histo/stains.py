"""Colour of H&E tissue as amounts of stain: optical density, deconvolution, and stain estimation after Macenko.

By the Beer–Lambert law light is dimmed exponentially, so optical densities of stains add up:

    OD = C @ M,    OD = -log10(I / white),    rows of M: the colour of one stain at concentration 1.

Everything is batched and runs on the device of its input. Images are uint8 `[N, 3, H, W]` RGB; results are float32.
A stain matrix is `[3, 3]` or one per image `[N, 3, 3]`: rows haematoxylin, eosin and a third that takes what these two
leave unexplained; columns red, green, blue.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from histo.dyes import HED
from histo.errors import InputError

_MACENKO_WHITE = 240.0  # grey level of empty glass, a little below the sensor's maximum
_TISSUE_DENSITIES = (0.15, 0.10)  # the second is tried where the first leaves too few pixels: pale tiles
_TISSUE_SHARE = 0.05  # of all pixels; fewer say more about dirt and noise than about the stains
_ANGLE_PERCENTILES = (0.01, 0.99)
_SMALLEST_ANGLE = 0.10  # radians between the two stains; closer ones (a single colour) make the inverse explode
_MOST_NEGATIVE = -0.05  # a stain absorbs; a clearly negative entry is noise
_LEAST_GREEN = (
    0.45  # share of green in a unit row; haematoxylin has about 0.7, eosin 0.9, green and blue pen 0.2 to 0.4
)


class StainEstimate(NamedTuple):
    """Stain matrices of a batch.

    Attributes:
        matrices: float32 [N, 3, 3], rows haematoxylin, eosin, residual; `HED` where `ok` is False.
        ok: bool [N], whether the image itself supported an estimate.
    """

    matrices: Tensor
    ok: Tensor


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
    return torch.einsum("nchw,ncs->nshw", density, matrix.inverse().expand(len(images), 3, 3))


def recompose(stains: Tensor, matrix: Tensor | None = None) -> Tensor:
    """Inverse of `concentrations`: float [N, 3, H, W] stain concentrations to uint8 [N, 3, H, W] RGB."""
    matrix = fixed_matrix(stains.device) if matrix is None else matrix
    return from_optical_density(torch.einsum("nshw,nsc->nchw", stains, matrix.expand(len(stains), 3, 3)))


def macenko(images: Tensor) -> StainEstimate:
    """Stain matrix of each image by the method of Macenko et al., ISBI 2009.

    Tissue pixels (mean optical density of the channels at least 0.15, else 0.10) span a plane, that of the two leading
    eigenvectors of their covariance; the 1st and 99th percentile of their angles in this plane are the two stains. The
    one that absorbs more red is haematoxylin. The third row is perpendicular to both.

    Never fails: an image with less than 5 % tissue, of a single colour, or with an estimate no stain can have (pen)
    gets `HED` and `ok` False.

    Args:
        images: uint8 [N, 3, H, W] RGB.

    Returns:
        Estimates of all images; rows have length 1 where `ok`.
    """
    density = optical_density(images, white=_MACENKO_WHITE).flatten(2)
    tissue, enough = _tissue(density)
    plane = _leading_plane(density, tissue)
    first, second = torch.einsum("ncp,nck->knp", density, plane)
    low, high = _percentiles(torch.atan2(second, first), tissue, _ANGLE_PERCENTILES)
    directions = torch.stack([torch.stack([angle.cos(), angle.sin()], dim=-1) for angle in (low, high)], dim=1)
    pair = torch.einsum("nsk,nck->nsc", directions, plane)
    order = pair[:, :, 0].argsort(dim=1, descending=True)
    pair = pair.gather(1, order[:, :, None].expand(-1, -1, 3))
    residual = torch.nn.functional.normalize(torch.linalg.cross(pair[:, 0], pair[:, 1], dim=-1), dim=-1)
    matrices = torch.cat([pair, residual[:, None]], dim=1)
    apart = high - low > _SMALLEST_ANGLE
    stain_like = ((pair > _MOST_NEGATIVE).all(dim=2) & (pair[:, :, 1] > _LEAST_GREEN)).all(dim=1)
    ok = enough & apart & stain_like & matrices.isfinite().all(dim=2).all(dim=1)
    return StainEstimate(torch.where(ok[:, None, None], matrices, fixed_matrix(images.device)), ok)


def _tissue(density: Tensor) -> tuple[Tensor, Tensor]:
    """Tissue of densities [N, 3, P]: bool [N, P], and bool [N] whether it is enough."""
    strict, loose = (density.mean(dim=1) >= threshold for threshold in _TISSUE_DENSITIES)
    tissue = torch.where((strict.float().mean(dim=1) >= _TISSUE_SHARE)[:, None], strict, loose)
    return tissue, tissue.float().mean(dim=1) >= _TISSUE_SHARE


def _leading_plane(density: Tensor, tissue: Tensor) -> Tensor:
    """Orthonormal columns [N, 3, 2] of the plane of densities [N, 3, P] where `tissue`; the first points to the tissue.

    The covariance is taken in double precision, so that a single colour gives zeros rather than rounding noise.
    """
    weight = tissue.double() / tissue.sum(dim=1, keepdim=True).clamp(min=1)
    mean = torch.einsum("ncp,np->nc", density.double(), weight)
    centred = density.double() - mean[:, :, None]
    covariance = torch.einsum("ncp,ndp,np->ncd", centred, centred, weight)
    plane = torch.linalg.eigh(covariance).eigenvectors[:, :, [2, 1]]
    towards_tissue = torch.where(torch.einsum("nck,nc->nk", plane, mean) < 0, -1.0, 1.0)
    return (plane * towards_tissue[:, None, :]).float()


def _percentiles(values: Tensor, where: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Percentiles [N] of values [N, P] among those marked in bool [N, P]; infinite where none is marked."""
    ordered = values.masked_fill(~where, torch.inf).sort(dim=1).values
    last = where.sum(dim=1).sub(1).clamp(min=0)
    return [ordered.gather(1, (share * last).round().long()[:, None])[:, 0] for share in shares]


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(
            f"stain functions got {images.dtype} of shape {tuple(images.shape)}, expected a batch of RGB images:"
            " pass uint8 of shape [N, 3, H, W]."
        )
