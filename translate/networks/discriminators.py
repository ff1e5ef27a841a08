"""The two judges: StyleGAN2's discriminator for tissue and a PatchGAN for mask images."""

from dataclasses import dataclass
from math import log2, sqrt

from torch import Tensor, nn

from histo.errors import InputError
from translate.networks.stylegan import EqualConv, EqualLinear, activate, channels_at, minibatch_deviation


@dataclass
class DiscriminatorSettings:
    """Judges of tissue (StyleGAN2) and of masks (PatchGAN)."""

    channel_base: int = 16384
    """tissue: channels at resolution r are min(channel_base / r, channel_max)"""
    channel_max: int = 512
    """tissue: ceiling on the channels of a layer"""
    deviation_group: int = 4
    """tissue: images per group of the minibatch standard deviation"""
    mask_width: int = 64
    """masks: channels of the first PatchGAN layer, doubled three times"""

    def __post_init__(self) -> None:
        for name in ("channel_base", "channel_max", "deviation_group", "mask_width"):
            if getattr(self, name) < 1:
                raise InputError(f"discriminator.{name} is {getattr(self, name)}, expected 1 or more.")


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, the second halving the resolution, beside a 1×1 shortcut; sum over √2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = EqualConv(inputs, inputs, 3)
        self.halve = EqualConv(inputs, outputs, 3, down=True, scale=1 / sqrt(2))
        self.shortcut = EqualConv(inputs, outputs, 1, down=True, linear=True, scale=1 / sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.halve(self.conv(x)) + self.shortcut(x)


class TissueDiscriminator(nn.Module):
    """StyleGAN2's residual discriminator with minibatch standard deviation (Karras et al. 2020).

    Args:
        settings: widths.
        resolution: side of the tile in pixels, a power of two.
    """

    def __init__(self, settings: DiscriminatorSettings, resolution: int) -> None:
        super().__init__()
        self.settings = settings
        sides = [2**k for k in range(int(log2(resolution)), 2, -1)]  # resolution, …, 8
        width = {side: channels_at(side, settings.channel_base, settings.channel_max) for side in [*sides, 4]}
        self.from_rgb = EqualConv(3, width[resolution], 1)
        self.blocks = nn.Sequential(*(ResidualBlock(width[side], width[side // 2]) for side in sides))
        self.last = EqualConv(width[4] + 1, width[4], 3)
        self.hidden = EqualLinear(width[4] * 16, width[4])
        self.out = EqualLinear(width[4], 1)

    def forward(self, image: Tensor) -> Tensor:
        """image: float [N, 3, r, r] in about [-1, 1] → logits, float [N], positive for real."""
        x = self.blocks(self.from_rgb(image))
        x = self.last(minibatch_deviation(x, self.settings.deviation_group))
        return self.out(activate(self.hidden(x.flatten(1))))[:, 0].float()


@dataclass
class PatchSettings:
    """Judges by patches."""

    width: int = 64
    """channels of the first layer, doubled three times"""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"discriminator.width is {self.width}, expected 1 or more.")


class PatchDiscriminator(nn.Module):
    """Four 4×4 convolutions and a fifth to one score per patch (Isola et al. 2017, Zhu et al. 2017).

    Instance norm is left out where a layer's output would be a single pixel, which it cannot norm.

    Args:
        width: channels of the first layer, doubled three times.
        resolution: side of the images in pixels.
        last_stride: of the fourth convolution, the others have 2. 2 as in UNITPathSSL, patches of 94 pixels; 1 as
            published, patches of 70.
    """

    def __init__(self, width: int, resolution: int, last_stride: int = 2) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(4)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        side = resolution // 2
        for k in range(1, 4):
            stride = last_stride if k == 3 else 2
            layers.append(nn.Conv2d(widths[k - 1], widths[k], 4, stride, 1))
            side = (side - 2) // stride + 1
            if side > 1:
                layers.append(nn.InstanceNorm2d(widths[k]))
            layers.append(nn.LeakyReLU(0.2))
        # Scores at the border of UNITPathSSL's judge, whose map is small, rest on padding; the published one has less.
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=2 if last_stride == 2 else 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """image: float [N, 3, r, r] in about [-1, 1] → scores, float [N, 1, h, w], 1 for real and 0 for fake."""
        return self.layers(image).float()
