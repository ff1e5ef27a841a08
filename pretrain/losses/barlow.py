"""The loss of Barlow Twins (Zbontar et al. 2021, equations 1 and 2)."""

from torch import Tensor


def barlow(first: Tensor, second: Tensor, redundancy: float) -> tuple[Tensor, Tensor]:
    """How far the cross-correlation C of two views' embeddings is from the identity.

    Args:
        first: float [N, D], one embedding of each tile; N of 2 or more.
        second: the other one.
        redundancy: λ, the weight of what is off the diagonal.

    Returns:
        Σ_i (1 - C_ii)² and λ Σ_i Σ_{j≠i} C_ij², each divided by D so that its size does not grow with the width.
    """
    standardised = [(z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt() for z in (first, second)]
    correlation = standardised[0].T @ standardised[1] / len(first)
    diagonal = correlation.diagonal()
    invariance = (1 - diagonal).square().mean()
    others = correlation.square().sum() - diagonal.square().sum()
    return invariance, redundancy * others / correlation.shape[0]
