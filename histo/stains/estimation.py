"""Stain matrices of images after Macenko et al., "A method for normalizing histology slides", ISBI 2009.

The procedure and its constants (glass 240, threshold 0.15, 1st and 99th percentile) are those of the published code and
of torchstain; what they do not guard against is told by a status.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from histo.dyes import HED
from histo.stains.depth import check_images, optical_depth
from histo.stains.status import Status, find_tissue, on_grid, usable, worst

PIXELS = (
    7000  # of each image that a quick estimate looks at: every third row and column of 256 px, out of step with JPEG
)
TAIL = 0.01  # beyond the percentiles that stand for the ends of angles and for the largest concentration
SMALLEST_ANGLE = 0.10  # radians between the two stains; closer ones (a single colour) make the inverse explode
MOST_NEGATIVE = -0.05  # a stain absorbs; a clearly negative entry is noise
LEAST_GREEN = 0.45  # share of green in a unit row; haematoxylin has about 0.7, eosin 0.9, green and blue pen 0.2 to 0.4


class StainEstimate(NamedTuple):
    """Stains of a batch.

    Attributes:
        matrices: float32 [N, 3, 3], rows haematoxylin, eosin, residual: of length 1, the third perpendicular to both.
            The fixed `HED` where the status is not usable.
        strengths: float32 [N, 2], 99th percentile of the concentrations of haematoxylin and eosin over all pixels, in
            units of optical depth.
        status: int64 [N], `Status`.
    """

    matrices: Tensor
    strengths: Tensor
    status: Tensor

    @property
    def ok(self) -> Tensor:
        """bool [N], whether the image itself supported an estimate."""
        return usable(self.status)

    @property
    def vectors(self) -> Tensor:
        """float32 [N, 6], the stain vector of each image: the optical depth of its two stains at full strength."""
        return (self.matrices[:, :2] * self.strengths[:, :, None]).flatten(1)


def macenko(images: Tensor, pixels: int | None = None) -> StainEstimate:
    """Stains of each image.

    Tissue pixels (optical depth of every channel at least 0.15, else 0.10) span a plane, that of the two leading
    eigenvectors of their covariance; the 1st and 99th percentile of their angles in this plane are the two stains. The
    one that absorbs more red is haematoxylin. Concentrations are those of the pseudo-inverse.

    Never fails: an image with less than 5 % tissue, of a single colour, or with an estimate no stain can have (pen)
    gets `HED` and a status that says so.

    Args:
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255.
        pixels: look at about so many pixels of each image, on a regular grid; None for all.

    Raises:
        InputError: when `images` is no batch of RGB images.
    """
    check_images(images)
    seen = on_grid(images, pixels)
    depth = optical_depth(seen).flatten(2)
    tissue, status = find_tissue(depth, images)
    with torch.autocast(images.device.type, enabled=False):
        matrices, status = checked_matrices(outermost(depth, tissue), status)
        amounts = torch.bmm(matrices.inverse().mT[:, :2], depth)
    return StainEstimate(matrices, strengths(amounts), status)


def outermost(depth: Tensor, tissue: Tensor) -> Tensor:
    """Unit vectors [N, 2, 3] between which depths [N, 3, P] lie where `tissue` [N, P], but for 1 % at either end."""
    plane = _leading_plane(depth, tissue)
    first, second = torch.einsum("ncp,nck->knp", depth, plane)
    angles = torch.stack(_ends(torch.atan2(second, first), tissue), dim=1)
    return torch.stack([angles.cos(), angles.sin()], dim=2) @ plane.mT


def apart(pair: Tensor) -> Tensor:
    """bool [N]: whether the angle between two unit vectors [N, 2, 3] is one between stains."""
    normal = torch.linalg.cross(pair[:, 0], pair[:, 1], dim=-1)
    return torch.atan2(normal.norm(dim=1), (pair[:, 0] * pair[:, 1]).sum(dim=1)) > SMALLEST_ANGLE


def checked_matrices(pair: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices [N, 3, 3] from two unit rows in any order [N, 2, 3], and the status of those that are no pair of stains.

    The row that absorbs more red becomes haematoxylin. `HED` where the status is not usable.
    """
    order = pair[:, :, 0].argsort(dim=1, descending=True)
    pair = pair.gather(1, order[:, :, None].expand(-1, -1, 3))
    normal = torch.linalg.cross(pair[:, 0], pair[:, 1], dim=-1)
    stain_like = ((pair > MOST_NEGATIVE).all(dim=2) & (pair[:, :, 1] > LEAST_GREEN)).all(dim=1)
    found = worst((~stain_like, Status.NO_STAIN), like=pair)
    found = torch.where(apart(pair), found, int(Status.ONE_COLOUR))
    status = torch.where(usable(status), torch.maximum(status, found), status)
    matrices = torch.cat([pair, torch.nn.functional.normalize(normal, dim=1)[:, None]], dim=1)
    return torch.where(usable(status)[:, None, None], matrices, torch.tensor(HED, device=pair.device)), status


def strengths(amounts: Tensor) -> Tensor:
    """99th percentile [N, K] of concentrations [N, K, P], nearest of the ordered."""
    return amounts.topk(1 + round(TAIL * (amounts.shape[2] - 1)), dim=2).values[:, :, -1]


def _leading_plane(depth: Tensor, tissue: Tensor) -> Tensor:
    """Orthonormal columns [N, 3, 2] of the plane of depths [N, 3, P] where `tissue`; the first points to the tissue.

    Covariance is the mean product less the product of means, in double precision for the sake of that difference.
    """
    masked = (depth * tissue[:, None]).double()
    count = tissue.sum(dim=1).clamp(min=1)[:, None, None]
    mean = masked.sum(dim=2, keepdim=True) / count
    covariance = torch.bmm(masked, masked.mT) / count - torch.bmm(mean, mean.mT)
    plane = torch.linalg.eigh(covariance).eigenvectors[:, :, [2, 1]]
    towards_tissue = torch.where(torch.bmm(mean.mT, plane)[:, 0] < 0, -1.0, 1.0)
    return (plane * towards_tissue[:, None, :]).float()


def _ends(values: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """1st and 99th percentile [N] of values [N, P] among those marked in bool [N, P], nearest rank; 0 where none is.

    Either lies within the last 1 % of all pixels, so that nothing else has to be ordered.
    """
    rank = (TAIL * (where.sum(dim=1) - 1).clamp(min=0)).round().long()[:, None]
    longest = 1 + round(TAIL * (values.shape[1] - 1))
    low, high = (
        values.masked_fill(~where, -torch.inf if largest else torch.inf)
        .topk(longest, dim=1, largest=largest)
        .values.gather(1, rank)[:, 0]
        for largest in (False, True)
    )
    some = where.any(dim=1)
    return torch.where(some, low, 0.0), torch.where(some, high, 0.0)
