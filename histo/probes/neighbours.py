"""Classification by nearest neighbours: no training, so nothing to choose."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

NEIGHBOURS = 20
TEMPERATURE = 0.07
_BLOCK = 1024


def knn(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """The class that a tile's nearest neighbours vote for.

    Neighbours are the k tiles of largest cosine similarity s, each with exp(s / temperature) votes: Wu et al., CVPR
    2018 (arXiv 1805.01978), with the k of DINO (arXiv 2104.14294).

    Args:
        train: float [N, D] features of tiles whose class is known.
        labels: int64 [N], their classes from 0.
        test: float [M, D].
        classes: how many there are.
        k: neighbours asked; all of `train` where it has fewer.
        temperature: above 0.

    Returns:
        int64 [M]; on a tie the lower class.
    """
    known, votes = normalize(train.float(), dim=1), one_hot(labels, classes).float()
    found = []
    for part in normalize(test.float(), dim=1).split(_BLOCK):
        similarity, nearest = (part @ known.T).topk(min(k, len(known)), dim=1)
        weight = ((similarity - 1) / temperature).exp()  # a common factor, so that no temperature overflows
        found.append((weight[:, None] @ votes[nearest])[:, 0].argmax(dim=1))
    return torch.cat(found)
