"""Contrast of patches (Park et al. 2020, arXiv 2007.15651)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def patch_nce(queries: Tensor, keys: Tensor, temperature: float = 0.07) -> Tensor:
    """Each place of the output must be told from all others by the same place of the input (equations 2 and 3).

    Cross-entropy of picking key p for query p among the P keys of the same image, logits q · k / temperature, averaged
    over images and places: log P when all keys are alike. Keys are targets: no gradient reaches them.

    Args:
        queries: features of the output, float [N, P, C], unit vectors; computed in fp32 whatever their dtype.
        keys: features of the input at the same places, float [N, P, C], unit vectors.
        temperature: above 0.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.float() @ keys.detach().float().transpose(1, 2) / temperature
    places = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), places.flatten())
