"""Losses of classes: cross-entropy, focal, and their weights."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cross_entropy", "focal"]
Weights = Literal["none", "inverse"]


def class_loss(logits: Tensor, numbers: Tensor, kind: Loss, weights: Tensor | None, gamma: float) -> Tensor:
    """Cross-entropy, or the focal loss (Lin et al., ICCV 2017): −(1 − p)^γ · log p of the true class.

    Args:
        logits: float [N, C]; numbers: int64 [N], classes from 0.
        weights: float [C], each image counts with that of its class and the loss is their weighted mean; None: alike.
        gamma: of the focal loss; 0 is cross-entropy.

    Returns:
        float32, a scalar.
    """
    if kind == "cross_entropy":
        return F.cross_entropy(logits.float(), numbers, weights)
    log = F.log_softmax(logits.float(), dim=1).gather(1, numbers[:, None])[:, 0]
    each = -((1 - log.exp()) ** gamma) * log
    if weights is None:
        return each.mean()
    own = weights[numbers]
    return (own * each).sum() / own.sum()


def class_weights(shares: Tensor, kind: Weights) -> Tensor | None:
    """Weights of classes; inverse: those with which every class counts alike, of mean 1 over images.

    Args:
        shares: float [classes], above 0, of each class in the images that are learned from.
    """
    return None if kind == "none" else 1 / (len(shares) * shares)


def type_loss(logits: Tensor, types: Tensor) -> Tensor:
    """Cross-entropy of the types of nuclei over the pixels of those whose type is known.

    Args:
        logits: float [N, T, H, W].
        types: int64 [N, H, W], from 1, 0 in the background and where unknown.

    Returns:
        float32, a scalar; 0 where no type is known.
    """
    known = types > 0
    total = F.cross_entropy(logits.float(), types - 1, ignore_index=-1, reduction="sum")
    return total / known.sum().clamp_min(1)
