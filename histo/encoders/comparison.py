"""Two encoders side by side: their tensors, and how alike their features of the same tiles are."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from histo.encoders.architectures import pooled
from histo.encoders.sources import Opened
from histo.errors import InputError
from histo.phantom import PhantomTissue

TILES, SIDE, BATCH = 64, 96, 32  # of phantom tissue, at 0.5 µm/px
FEWEST = 4  # what the unbiased estimate needs


@dataclass(frozen=True)
class Comparison:
    """What two encoders share.

    Attributes:
        tensors: how many tensors both have under one name and of one shape; alone: how many only one of them has.
        differing: relative distance |a - b| / |a| of those that differ, the largest first.
        alignment: linear CKA of their features, see `alignment`.
    """

    tensors: int
    alone: int
    differing: dict[str, float]
    alignment: float


def phantom_tiles(count: int = TILES) -> Tensor:
    """Tiles that everybody has, uint8 [count, 3, SIDE, SIDE]."""
    tissue = PhantomTissue(0, size=SIDE, count=count)
    return torch.stack([torch.from_numpy(tissue[k].image) for k in range(count)])


def compare(one: Opened, two: Opened, tiles: Tensor) -> Comparison:
    """Compare tensors, and features of tiles.

    Args:
        tiles: uint8 [N, 3, H, W], 4 or more.

    Raises:
        InputError: an encoder whose input scaling is unknown.
    """
    first, second = one.encoder.state_dict(), two.encoder.state_dict()
    shared = [key for key in first if key in second and first[key].shape == second[key].shape]
    away = {
        key: (((first[key] - second[key]).norm()) / first[key].norm().clamp(min=1e-12)).item()
        for key in shared
        if first[key].is_floating_point() and not torch.equal(first[key], second[key])
    }
    return Comparison(
        len(shared),
        len(first) + len(second) - 2 * len(shared),
        dict(sorted(away.items(), key=lambda item: -item[1])),
        alignment(features(one, tiles), features(two, tiles)),
    )


@torch.no_grad()
def features(opened: Opened, tiles: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] → pooled features, float32 [N, D], by the encoder's own input scaling.

    Raises:
        InputError: its card does not say mean and std.
    """
    mean, std = opened.card.get("mean"), opened.card.get("std")
    if mean is None or std is None:
        raise InputError(
            f"The input scaling of {opened.architecture} is unknown, and its features with it; convert it first, with "
            "--mean and --std."
        )
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    network: nn.Module = opened.encoder.eval()
    return torch.cat([pooled(network((part.float() / 255 - shift) / scale)) for part in tiles.split(BATCH)]).float()


def alignment(one: Tensor, two: Tensor) -> float:
    """Linear centred kernel alignment, CKA (Kornblith et al., ICML 2019, arXiv 1905.00414, section 3).

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X Xᵀ and L = Y Yᵀ, where HSIC is the unbiased estimate of
    Song et al. (JMLR 13, 2012). The biased one would call unrelated features alike where there are fewer tiles
    than features. 1: the same up to rotation and scale; about 0: unrelated.

    Args:
        one, two: float [N, D] and [N, E], features of the same N tiles.
    """
    if len(one) != len(two) or len(one) < FEWEST:
        raise ValueError(f"features of {len(one)} and {len(two)} tiles, expected {FEWEST} or more of the same")
    kernels = [(x - x.mean(0)).double() for x in (one, two)]
    k, m = ((x @ x.T).fill_diagonal_(0) for x in kernels)
    return (_hsic(k, m) / (_hsic(k, k) * _hsic(m, m)).clamp(min=1e-300).sqrt()).item()


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """Unbiased HSIC of two kernels [N, N] with zero diagonals."""
    n = len(k)
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return total / (n * (n - 3))
