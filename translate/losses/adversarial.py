"""Adversarial losses: non-saturating with R1 for tissue, least squares for masks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def non_saturating(fake_logits: Tensor) -> Tensor:
    """Generator's side, −log D(G(x)) on logits [N] (Goodfellow et al. 2014)."""
    return F.softplus(-fake_logits).mean()


def logistic(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's side of `non_saturating`: −log D(y) − log(1 − D(G(x)))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """½ E‖∇_y D(y)‖² on real images [N, 3, H, W] (Mescheder et al. 2018, equation 9).

    Needs the eager discriminator: a compiled one cannot be differentiated twice. Computed in fp32.
    """
    real = real.detach().float().requires_grad_(True)
    with torch.autocast(real.device.type, enabled=False):
        logits = discriminator(real)
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return 0.5 * gradient.square().sum((1, 2, 3)).mean()


def least_squares_generator(fake_scores: Tensor) -> Tensor:
    """Generator's side, (D(S(y)) − 1)² averaged over patches (Mao et al. 2017)."""
    return (fake_scores - 1).square().mean()


def least_squares(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Discriminator's side: ½ ((D(x) − 1)² + D(S(y))²) averaged over patches."""
    return 0.5 * ((real_scores - 1).square().mean() + fake_scores.square().mean())
