"""The U-Net generator of pix2pix (Isola et al. 2017, arXiv 1611.07004, section 6.1.1), CycleGAN's other choice."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histo.errors import InputError
from translate.networks.layers import draw_weights, instance_norm


class UNetGenerator(nn.Module):
    """4×4 convolutions of stride 2 down to a few pixels and up again, each level handed across by concatenation.

    Published for 256² pixels with 8 levels, batch norm, and dropout as its only randomness. Here instance norm, as in
    CycleGAN; no dropout, since a step is a pure function; and as many levels as leave a training tile 2 to 8 px at the
    bottom (7 for 256²), because a norm over fewer values keeps nothing of them. As published the first level and the
    bottom have no norm. Convolutions before a norm have no bias, which it would subtract again. Weights start as
    N(0, 0.02), biases as 0.

    Instance norm takes its statistics from the whole input, as published: the same tissue in another tile gets other
    statistics, so outputs of neighbouring tiles do not meet exactly, and a large image is not the sum of its tiles.

    Args:
        tile_size: side of the training tiles in pixels, 2 to 8 times a power of two.
        width: channels of the first level, doubled three times on the way down.
        inputs, outputs: channels of the images.

    Attributes:
        stride: inputs must be multiples of it; tile_size ≥ 2 · stride.

    Raises:
        InputError: another tile size, or no channel.
    """

    def __init__(self, tile_size: int, width: int = 64, inputs: int = 3, outputs: int = 3) -> None:
        super().__init__()
        if width < 1:
            raise InputError(f"The U-Net's width is {width}, expected 1 or more.")
        bottom = tile_size
        while bottom > 2 and bottom % 2 == 0:
            bottom //= 2
        if not 2 <= bottom <= 8 or tile_size < 8:
            raise InputError(
                f"The U-Net cannot be made for tiles of {tile_size} px, expected 2, 3, 5 or 7 times a power of two "
                "and 8 or more; take a power of two."
            )
        self.stride = tile_size // bottom
        levels = self.stride.bit_length() - 1
        widths = [width * 2 ** min(level, 3) for level in range(levels)]
        self.downs = nn.ModuleList(
            nn.Conv2d(before, after, 4, 2, 1, bias=level in (0, levels - 1))
            for level, (before, after) in enumerate(zip([inputs, *widths], widths, strict=False))
        )
        # From the bottom up; beside what comes from below, all but the bottom read the level's own features.
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(
                widths[level] * (1 if level == levels - 1 else 2),
                widths[level - 1] if level else outputs,
                4,
                2,
                1,
                bias=level == 0,
            )
            for level in reversed(range(levels))
        )
        draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [N, inputs, H, W] in [-1, 1] → float [N, outputs, H, W] in [-1, 1].

        Raises:
            InputError: H or W is no multiple of `stride`.
        """
        height, width = x.shape[2:]
        if height % self.stride or width % self.stride or not height * width:
            raise InputError(
                f"The U-Net was given {height} × {width} pixels, expected multiples of its stride {self.stride}; "
                "crop or pad the image."
            )
        levels = [self.downs[0](x)]
        for down in self.downs[1:-1]:
            levels.append(instance_norm(down(F.leaky_relu(levels[-1], 0.2))))
        x = self.downs[-1](F.leaky_relu(levels[-1], 0.2))
        for up in self.ups[:-1]:
            x = torch.cat([levels.pop(), instance_norm(up(F.relu(x)))], 1)
        return torch.tanh(self.ups[-1](F.relu(x)).float())
