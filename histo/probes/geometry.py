"""What embeddings look like without labels: alignment, uniformity, spread and effective rank.

Embeddings are float [N, D]; all but the effective rank look at them scaled to length 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from histo.errors import InputError

_BLOCK = 1024


def centred(embeddings: Tensor, around: Tensor) -> Tensor:
    """Embeddings [..., D] less the mean of others, [N, D].

    Features after a ReLU are positive and share most of their length: without this, cosines between any two tiles are
    near 1 and tell little. What is learned of centred embeddings must be asked of such.
    """
    return embeddings - around.mean(dim=0)


def alignment(one: Tensor, other: Tensor) -> float:
    """Mean squared distance between the embeddings of two views of each tile, 0 to 4; lower is more invariant.

    Wang & Isola, ICML 2020 (arXiv 2005.10242), with α = 2.

    Args:
        one, other: float [N, D], row for row of the same tile.
    """
    difference = normalize(one.double(), dim=1) - normalize(other.double(), dim=1)
    return float(difference.square().sum(dim=1).mean())


def uniformity(embeddings: Tensor) -> float:
    """Logarithm of the mean of exp(-2 d²) over all pairs of different tiles, -8 to 0; lower is more uniform.

    Wang & Isola, ICML 2020 (arXiv 2005.10242), with t = 2.

    Raises:
        InputError: fewer than 2 tiles.
    """
    count = _at_least_two(embeddings)
    unit = normalize(embeddings.double(), dim=1)
    total = sum(float((4 * (part @ unit.T) - 4).clamp(max=0).exp().sum()) for part in unit.split(_BLOCK))
    pairs = count * (count - 1)
    return float(torch.tensor(max(total - count, 0.0) / pairs, dtype=torch.float64).log())  # each with itself gave 1


def spread(embeddings: Tensor) -> float:
    """Standard deviation of each dimension of embeddings of length 1, averaged over the dimensions.

    About 1 / √D where they fill the sphere, and 0 where all tiles got the same: Chen & He, CVPR 2021 (arXiv
    2011.10566), section 4.1.

    Raises:
        InputError: fewer than 2 tiles.
    """
    _at_least_two(embeddings)
    return float(normalize(embeddings.double(), dim=1).std(dim=0, correction=0).mean())


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the singular values' shares, 1 to min(N, D).

    Roy & Vetterli, EUSIPCO 2007; as RankMe (Garrido et al., ICML 2023, arXiv 2210.02885) without subtracting the mean.
    1 for embeddings that are all 0.
    """
    values = torch.linalg.svdvals(embeddings.double())
    shares = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(shares).sum().exp())


def _at_least_two(embeddings: Tensor) -> int:
    if len(embeddings) < 2:
        raise InputError(f"{len(embeddings)} tiles were embedded, expected 2 or more to compare; give more tiles.")
    return len(embeddings)
