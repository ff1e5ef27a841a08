"""The projector: a perceptron between features and embeddings, thrown away after pretraining (SimCLR, section 4.2)."""

from collections.abc import Callable
from itertools import pairwise

from torch import nn


def projector(widths: list[int], norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    """Linear layers of the given widths, a norm and ReLU between them, the last one bare.

    Args:
        widths: of the features, of each layer; [512, 512, 128] for a ResNet-18 in SimCLR.
        norm: makes the norm of a width; batch norm, but for rows of which not all count.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), norm(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
