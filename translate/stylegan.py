"""The layers StyleGAN2 is made of, written from its equations (Karras et al. 2020, arXiv 1912.04958).

Plain PyTorch: no compiled operators, no private calls; double backward works, so R1 can be taken through them.
Activations are channels-last friendly `[N, C, H, W]`; every weight is N(0, 1) at birth and scaled at run time by
1/√fan-in (equalised learning rate, Karras et al. 2018, section 4.1).
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SQRT2 = sqrt(2.0)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 times √2, which keeps the variance of a unit-variance input near one."""
    return F.leaky_relu(x, 0.2) * SQRT2


def _taps(x: Tensor, dim: int, lead: int, trail: int) -> Tensor:
    """[1, 3, 3, 1] / 8 along one axis after zero padding by (lead, trail); the axis shrinks by 3 - lead - trail."""
    pad = [0, 0, lead, trail] if dim == 2 else [lead, trail]
    x = F.pad(x, pad)
    length = x.shape[dim] - 3
    outer = x.narrow(dim, 0, length) + x.narrow(dim, 3, length)
    inner = x.narrow(dim, 1, length) + x.narrow(dim, 2, length)
    return outer.mul(0.125) + inner.mul(0.375)


def blur(x: Tensor, lead: int, trail: int) -> Tensor:
    """The separable low-pass filter [1, 3, 3, 1] of StyleGAN2 with zero padding (lead, trail) on both axes.

    Written as shifted sums: on CPU a depthwise convolution of the same taps is several times slower in backward.
    """
    return _taps(_taps(x, 3, lead, trail), 2, lead, trail)


def upsample(x: Tensor) -> Tensor:
    """[N, C, H, W] → [N, C, 2H, 2W]; away from the border equal to zero insertion and [1, 3, 3, 1] filtering."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def downsample(x: Tensor) -> Tensor:
    """[N, C, H, W] → [N, C, H/2, W/2] through the [1, 3, 3, 1] filter."""
    return blur(x, 1, 1)[:, :, ::2, ::2]


class EqualLinear(nn.Module):
    """y = x (w · lr/√in)ᵀ + b · lr, with w ~ N(0, 1)/lr.

    Args:
        bias_init: starting value of the bias (1 for style affines, so that modulation starts as identity).
        lr_multiplier: learning-rate factor of the layer (0.01 in the mapping network).
    """

    def __init__(self, inputs: int, outputs: int, bias_init: float = 0.0, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / sqrt(inputs)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class EqualConv(nn.Module):
    """k×k convolution with equalised learning rate; `down` halves the resolution through a low-pass filter."""

    def __init__(self, inputs: int, outputs: int, kernel: int, down: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain = 1 / sqrt(inputs * kernel**2)
        self.kernel, self.down = kernel, down

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.gain
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.kernel // 2)
        if self.kernel == 1:
            return F.conv2d(downsample(x), weight, self.bias)
        return F.conv2d(blur(x, 2, 2), weight, self.bias, stride=2)


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style, with weight demodulation (equations 1 and 3).

    Scaling the input by s and the output by d = 1/√(Σ (w s)² + ε) equals modulating the weights per image, and keeps
    one ordinary convolution for the whole batch.

    Args:
        style: width of the style vector that the affine layer reads.
        up: double the resolution (transposed convolution, then the low-pass filter).
        demodulate: off for to-RGB layers.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style: int, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = EqualLinear(style, inputs, bias_init=1.0)
        self.gain = 1 / sqrt(inputs * kernel**2)
        self.kernel, self.up, self.demodulate = kernel, up, demodulate

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x: float [N, inputs, H, W]; style: float [N, style] → float [N, outputs, H or 2H, W or 2W]."""
        s = self.affine(style)
        weight = self.weight * self.gain
        x = x * s[:, :, None, None].to(x.dtype)
        if self.up:
            # The filter has gain 4 here: zero insertion spreads each pixel over four.
            x = blur(F.conv_transpose2d(x, weight.transpose(0, 1) * 4, stride=2), 1, 1)
        else:
            x = F.conv2d(x, weight, padding=self.kernel // 2)
        if self.demodulate:
            # Sums of squares lose their small terms in bf16: keep them in fp32 under autocast.
            with torch.autocast(x.device.type, enabled=False):
                energy = weight.float().square().sum((2, 3))
                d = torch.rsqrt(F.linear(s.float().square(), energy) + 1e-8)
            x = x * d[:, :, None, None].to(x.dtype)
        return x


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, noise, bias, activation: one layer of the synthesis network (figure 2c)."""

    def __init__(self, inputs: int, outputs: int, style: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style, up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor, skip: Tensor | None = None) -> Tensor:
        """noise: float [N, 1, H, W] at the output's resolution; skip: features added after the activation."""
        x = self.conv(x, style)
        x = x + (noise * self.noise_strength).to(x.dtype) + self.bias[:, None, None].to(x.dtype)
        x = activate(x)
        return x if skip is None else x + skip


class ToRGB(nn.Module):
    """Modulated 1×1 convolution without demodulation to three colour channels."""

    def __init__(self, inputs: int, style: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.conv(x, style) + self.bias[:, None, None].to(x.dtype)


class Mapping(nn.Module):
    """z ∈ R^d → w ∈ R^d: second-moment normalisation and `layers` fully connected layers, lr multiplier 0.01."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(width, width, lr_multiplier=0.01) for _ in range(layers))

    def forward(self, z: Tensor) -> Tensor:
        w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers:
            w = activate(layer(w))
        return w


def channels_at(resolution: int, base: int, maximum: int) -> int:
    """Width of the network at a resolution: min(base / resolution, maximum)."""
    return min(base // resolution, maximum)


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """Append one channel with the standard deviation over groups of adjacent images (Karras et al. 2018, section 3).

    Groups are runs of neighbours in the batch, so that processes that share a batch form the same groups as one
    process alone, as long as `group` divides the local batch; otherwise the whole local batch is one group.
    """
    n, _, h, w = x.shape
    size = group if n % group == 0 else n
    spread = x.float().reshape(n // size, size, *x.shape[1:])
    deviation = (spread.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    plane = deviation.repeat_interleave(size).reshape(n, 1, 1, 1).expand(n, 1, h, w)
    return torch.cat([x, plane.to(x.dtype)], 1)
