"""The residual generator of CycleGAN (Zhu et al. 2017, arXiv 1703.10593, section 7.2) and of CUT (Park et al. 2020).

Its blocks are those of Johnson et al. 2016. CUT's differs in how it changes resolution: convolutions of stride 1 with a
low-pass filter before each decimation, and bilinear enlargement before a convolution (Zhang 2019, arXiv 1904.11486).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histo.errors import InputError
from translate.networks.layers import draw_weights, halve, instance_norm, reflect
from translate.networks.stylegan import upsample

CUT_LAYERS = (0, 1, 2, 3, 7)
"""The layers CUT contrasts: pixels, both reductions, residual blocks 1 and 5 (Park et al. 2020, appendix C.1)."""


class ResidualBlock(nn.Module):
    """x + IN(conv(ReLU(IN(conv(x))))), both convolutions 3×3 with reflection padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, bias=False)
        self.second = nn.Conv2d(width, width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(instance_norm(self.first(reflect(x, 1))))
        return x + instance_norm(self.second(reflect(y, 1)))


class ResNetGenerator(nn.Module):
    """7×7 convolution, two reductions, residual blocks, two enlargements, 7×7 convolution, tanh.

    Convolutions before a normalisation have no bias, since it would be subtracted again (published code keeps them:
    11.378 M weights with width 64 and 9 blocks, here 11.373 M). Weights start as N(0, 0.02), biases as 0.

    Instance norm takes its statistics from the whole input, as published: the same tissue in another tile gets other
    statistics, so outputs of neighbouring tiles do not meet exactly, and a large image is not the sum of its tiles.

    Args:
        width: channels at full resolution, doubled by each reduction.
        blocks: residual blocks, 1 or more.
        inputs, outputs: channels of the images.
        anti_aliased: True for CUT's form: [1, 2, 1] filters before decimation, which give the features of `CUT_LAYERS`
            the receptive fields of the paper (1, 9, 15, 35 and 99 pixels), and bilinear enlargement, which is
            [1, 3, 3, 1] filtering; False for CycleGAN's form: strided and transposed convolutions.

    Raises:
        InputError: no residual block, or no channel.
    """

    def __init__(
        self, width: int = 64, blocks: int = 9, inputs: int = 3, outputs: int = 3, *, anti_aliased: bool
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("blocks", blocks)):
            if value < 1:
                raise InputError(f"The residual generator's {name} is {value}, expected 1 or more.")
        self.inputs, self.width, self.anti_aliased = inputs, width, anti_aliased
        self.stem = nn.Conv2d(inputs, width, 7, bias=False)
        step = 1 if anti_aliased else 2
        self.downs = nn.ModuleList(
            nn.Conv2d(side * width, 2 * side * width, 3, step, padding=1, bias=False) for side in (1, 2)
        )
        self.blocks = nn.ModuleList(ResidualBlock(4 * width) for _ in range(blocks))
        self.ups = nn.ModuleList(self._enlargement(2 * side * width, side * width) for side in (2, 1))
        self.last = nn.Conv2d(width, outputs, 7)
        draw_weights(self)

    def _enlargement(self, inputs: int, outputs: int) -> nn.Module:
        if self.anti_aliased:
            return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.ConvTranspose2d(inputs, outputs, 3, 2, padding=1, output_padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [N, inputs, H, W] in [-1, 1] → float [N, outputs, H, W] in [-1, 1].

        Raises:
            InputError: H or W is below 16 or no multiple of 4.
        """
        return self.with_features(x, ())[0]

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Features of the encoder on x (as for `forward`), without running what comes after the deepest of them.

        Args:
            layers: any of 0 (the mirrored pixels, [N, inputs, H + 6, W + 6]), 1 and 2 (what the convolutions that
                double the channels give, before their norm), 2 + k (after residual block k = 1, 2, …).

        Returns:
            One tensor [N, channels, h, w] for each layer, in the order asked for; `channels` tells their widths.

        Raises:
            InputError: a layer that does not exist, or a size as for `forward`.
        """
        self.channels(layers)
        found: dict[int, Tensor] = {}
        for layer, feature in zip(range(max(layers, default=-1) + 1), self._encode(x), strict=False):
            found[layer] = feature
        return [found[layer] for layer in layers]

    def with_features(self, x: Tensor, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """`forward` and `features` of the same x in one pass."""
        self.channels(layers)
        found = {}
        for layer, feature in enumerate(self._encode(x)):
            if layer in layers:
                found[layer] = feature
        x = feature
        for up in self.ups:
            x = F.relu_(instance_norm(up(upsample(x) if self.anti_aliased else x)))
        return torch.tanh(self.last(reflect(x, 3)).float()), [found[layer] for layer in layers]

    def channels(self, layers: Sequence[int]) -> list[int]:
        """Channels of the features at `layers`.

        Raises:
            InputError: a layer that does not exist.
        """
        widths = [self.inputs, 2 * self.width] + [4 * self.width] * (1 + len(self.blocks))
        for layer in layers:
            if not 0 <= layer < len(widths):
                raise InputError(
                    f"Layer {layer} of the residual generator does not exist; choose from 0 to {len(widths) - 1}."
                )
        return [widths[layer] for layer in layers]

    def _encode(self, x: Tensor) -> Iterator[Tensor]:
        """What `features` can be asked for, one after the other; the last is where the decoder starts."""
        height, width = x.shape[2:]
        if height % 4 or width % 4 or min(height, width) < 16:
            raise InputError(
                f"The residual generator was given {height} × {width} pixels, "
                "expected multiples of 4 from 16 up; crop or pad the image."
            )
        x = reflect(x, 3)
        yield x
        x = F.relu_(instance_norm(self.stem(x)))
        for down in self.downs:
            x = down(x)
            yield x
            x = F.relu_(instance_norm(x))
            x = halve(x) if self.anti_aliased else x
        for block in self.blocks:
            x = block(x)
            yield x
