"""Cycle consistency (Zhu et al. 2017, equation 2)."""

from torch import Tensor


def cycle(reconstruction: Tensor, original: Tensor) -> Tensor:
    """L1 distance of a round trip, both float [N, 3, H, W] in about [-1, 1], averaged over all values."""
    return (reconstruction.float() - original.float()).abs().mean()
