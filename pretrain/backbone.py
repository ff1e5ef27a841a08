"""The network that learns: a timm encoder that takes RGB levels, as all views are."""

import torch
from torch import Tensor, nn

from histo.encoders import STRIDES, Architecture

MEAN = STD = (0.5, 0.5, 0.5)


class Backbone(nn.Module):
    """RGB levels → features; `model` keeps timm's own keys.

    Args:
        model: a timm model without classifier.
        architecture: what rebuilds it.
        mean, std: of the channels, for levels scaled to [0, 1]. The published SimCLR encoders of histology have 0.5.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ) -> None:
        super().__init__()
        self.model, self.architecture, self.mean, self.std = model, architecture, tuple(mean), tuple(std)
        self.register_buffer("shift", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(1, 3, 1, 1) * 255), persistent=False)
        self.width = int(model.num_features)  # type: ignore[arg-type]  # of most models; see pretrain/start.py
        stages = list(getattr(model, "feature_info", []))
        strides = [stage["reduction"] for stage in stages]
        self.levels = [strides.index(stride) for stride in STRIDES if strides.count(stride) == 1]
        self.channels = [int(stages[level]["num_chs"]) for level in self.levels]  # of `maps`

    def forward(self, levels: Tensor) -> Tensor:
        """uint8 or float [N, 3, H, W] of 0 to 255 → pooled features, float [N, D]."""
        return self.model(self.scaled(levels))

    def maps(self, levels: Tensor) -> list[Tensor]:
        """The same, not pooled: maps of strides 4, 8, 16 and 32, each float [N, C, H/stride, W/stride]."""
        return self.model.forward_intermediates(  # type: ignore[operator]
            self.scaled(levels), indices=self.levels, intermediates_only=True
        )

    def scaled(self, levels: Tensor) -> Tensor:
        """Levels as the encoder's weights expect them."""
        return (levels.float() - self.shift) * self.scale
