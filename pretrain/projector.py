"""The projector: a perceptron between features and embeddings, thrown away after pretraining (SimCLR, section 4.2)."""

from itertools import pairwise

from torch import nn


def projector(widths: list[int]) -> nn.Sequential:
    """Linear layers of the given widths, batch norm and ReLU between them, the last one bare.

    Args:
        widths: of the features, of each layer; [512, 512, 128] for a ResNet-18 in SimCLR.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
