"""A contrastive loss with a margin (Hadsell et al. 2006), between each tile and its partner, and all other partners."""

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST = 1e-8  # squared distance: the slope of a distance is not defined at 0


def margin_loss(first: Tensor, second: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Pull ‖u - v‖² of partners, and push max(0, m - ‖u - v_k‖)² of all others k; u and v of unit length.

    Args:
        first: float [N, D], one embedding u of each tile; N of 2 or more.
        second: the other one, v.
        margin: m, the distance from which on two tiles are apart; above 0, and 2 is the largest there is.

    Returns:
        The mean of either over the N pairs, and over the N (N - 1) others.
    """
    u, v = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    distance = (2 - 2 * u @ v.T).clamp(min=_SMALLEST).sqrt()
    others = ~torch.eye(len(u), dtype=torch.bool, device=u.device)
    return (u - v).square().sum(dim=1).mean(), (margin - distance)[others].clamp(min=0).square().mean()
