"""Guidance: what S must find in tissue that G rendered from a known mask."""

from torch import Tensor
from torch.nn import functional as F


def semantic(logits: Tensor, foreground: Tensor) -> Tensor:
    """Binary cross-entropy of nucleus logits [N, 1, H, W] on G(x) against the foreground of x, bool [N, 1, H, W].

    UNITPathSSL's semantic guidance (SSG); G(x) is not detached, so the gradient teaches G to show the nuclei too.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), foreground.float())
