"""NT-Xent, the loss of SimCLR (Chen et al. 2020, equation 1)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Mean over all 2N embeddings of -log( exp(z·z⁺/τ) / Σ_{z' ≠ z} exp(z·z'/τ) ), z of unit length.

    Written here, since the libraries that have it take no part of gathered embeddings (lightly) or build all pairs of
    pairs (pytorch-metric-learning: 8 GB for 512 tiles).

    Args:
        first: float [N, D], one embedding of each tile (or nucleus); of none the loss is 0.
        second: the other one.
        temperature: τ, above 0.
    """
    if len(first) == 0:
        return (first.sum() + second.sum()).float()  # 0, with a gradient of 0
    z = F.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    count = len(first)
    partner = torch.arange(2 * count, device=z.device).roll(count)
    return F.cross_entropy(similarity, partner)
