"""Where CUT looks at features, and the heads it compares them in (Park et al. 2020, arXiv 2007.15651, section 3)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from translate.networks.layers import draw_weights


def draw_places(sizes: Sequence[tuple[int, int]], patches: int, generator: np.random.Generator) -> list[Tensor]:
    """Places at which features are compared: for each layer's (height, width) int64 [P], each row · width + column.

    No place comes twice; P is `patches`, or all places of a layer that has fewer. With a generator from
    `histo.randomness.draws` they are a pure function of its key.
    """
    return [
        torch.from_numpy(generator.choice(height * width, min(patches, height * width), replace=False))
        for height, width in sizes
    ]


class PatchProjections(nn.Module):
    """A two-layer perceptron of its own for each layer, whose results are brought to unit length.

    Weights start as N(0, 0.02), biases as 0.

    Args:
        channels: of each layer's features.
        width: of both layers of the perceptrons.
    """

    def __init__(self, channels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width)) for inputs in channels
        )
        draw_weights(self)

    def forward(self, features: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """features: float [N, C, h, w] of each layer; places: int64 [N, P] of each layer, rows from `draw_places`
        → unit vectors, fp32 [N, P, width], one tensor for each layer."""
        return [
            F.normalize(head(_pixels(x, where.to(x.device))).float(), dim=2)
            for head, x, where in zip(self.heads, features, places, strict=True)
        ]


def _pixels(x: Tensor, places: Tensor) -> Tensor:
    """Features of x, [N, C, h, w], at the places of each image, [N, P] → [N, P, C]."""
    images, _, height, width = x.shape
    first = torch.arange(images, device=x.device)[:, None] * (height * width)
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)  # a view of channels-last x
    return rows.index_select(0, (first + places).flatten()).unflatten(0, places.shape)
