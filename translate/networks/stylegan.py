"""The layers StyleGAN2 is made of, written from its equations (Karras et al. 2020, arXiv 1912.04958).

Plain PyTorch: no compiled operators, no private calls; double backward works, so R1 can be taken through them.
Activations are channels-last friendly `[N, C, H, W]`; every weight is N(0, 1) at birth and scaled at run time by
1/√fan-in (equalised learning rate, Karras et al. 2018, section 4.1).
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SQRT2 = sqrt(2.0)
SLOPE = 0.2


def activate(x: Tensor, gain: float = 1.0) -> Tensor:
    """Leaky ReLU of slope 0.2 times √2, which keeps the variance of a unit-variance input near one. Overwrites x.

    `gain` > 0 is a factor that x still lacks; a leaky ReLU lets it pass, so that it costs nothing beside √2.
    """
    return F.leaky_relu_(x.mul_(SQRT2 * gain), SLOPE)


def _taps(x: Tensor, gain: float = 1.0) -> Tensor:
    """[1, 3, 3, 1]² / 64 · gain as a depthwise kernel for x."""
    line = 4 - (2 * torch.arange(4, device=x.device, dtype=x.dtype) - 3).abs()
    return (line[:, None] * line * (gain / 64)).expand(x.shape[1], 1, 4, 4)


class _Blur(torch.autograd.Function):
    """The gradient of a symmetric filter is the same filter with the complementary padding.

    Left to autograd, a depthwise convolution also runs a kernel for the gradient that can be many times slower.
    """

    @staticmethod
    def forward(x: Tensor, pad: int, gain: float) -> Tensor:
        return F.conv2d(x, _taps(x, gain), padding=pad, groups=x.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
        _, ctx.pad, ctx.gain = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return blur(gradient, 3 - ctx.pad, ctx.gain), None, None


class _Downsample(torch.autograd.Function):
    """Every second pixel of the filtered image; its gradient is zero insertion and the same filter."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.conv2d(x, _taps(x), padding=1, stride=2, groups=x.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        n, c, h, w = gradient.shape
        sparse = gradient.new_zeros(n, 2 * h - 1, 2 * w - 1, c).permute(0, 3, 1, 2)  # channels last
        sparse[:, :, ::2, ::2] = gradient
        return blur(sparse, 2)


def blur(x: Tensor, pad: int, gain: float = 1.0) -> Tensor:
    """The low-pass filter [1, 3, 3, 1]² / 64 · gain of StyleGAN2 after zero padding by 0 to 3 pixels on every side.

    Height and width grow by 2 pad - 3.
    """
    return _Blur.apply(x, pad, gain)


def upsample(x: Tensor) -> Tensor:
    """[N, C, H, W] → [N, C, 2H, 2W]; away from the border equal to zero insertion and [1, 3, 3, 1] filtering."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def downsample(x: Tensor) -> Tensor:
    """[N, C, H, W] → [N, C, H/2, W/2], both even, through the [1, 3, 3, 1] filter."""
    return _Downsample.apply(x)


class _Transpose(torch.autograd.Function):
    """A matrix transposed by copying it, forward and backward."""

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        return matrix.t().contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Transpose.apply(gradient)


def _swapped(weight: Tensor) -> Tensor:
    """Channels-last weights [O, I, k, k] → [I, O, k, k].

    PyTorch copies a matrix to its transpose block by block, but a tensor of four axes value by value, which takes ten
    times as long; on the CPU it does so in every pass of a transposed convolution.
    """
    outputs, inputs, k, _ = weight.shape
    matrix = _Transpose.apply(weight.permute(0, 2, 3, 1).reshape(outputs, -1))
    return matrix.view(k, k, inputs, outputs).permute(2, 3, 0, 1)


def _mix(x: Tensor, weight: Tensor) -> Tensor:
    """Channels of each image mixed by its own matrix: [N, C, H, W], [N, K, C] → [N, K, H, W]."""
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(n, h * w, c)  # a view of channels-last x
    return (pixels @ weight.transpose(1, 2)).reshape(n, h, w, -1).permute(0, 3, 1, 2)


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
        # The gain goes on x, which is smaller than the weights.
        return F.linear(x * self.weight_gain, self.weight, self.bias * self.bias_gain)


class EqualConv(nn.Module):
    """k×k convolution with equalised learning rate, bias and activation.

    Args:
        down: halve the resolution through a low-pass filter.
        linear: without bias and activation.
        scale: factor of the output.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, down: bool = False, linear: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = None if linear else nn.Parameter(torch.zeros(outputs))
        self.gain, self.scale = 1 / sqrt(inputs * kernel**2), scale
        self.kernel, self.down = kernel, down

    def forward(self, x: Tensor) -> Tensor:
        # The gain follows the convolution, where `activate` multiplies anyway; a pass over the weights costs more.
        bias = None if self.bias is None else self.bias / self.gain
        if not self.down:
            x = F.conv2d(x, self.weight, bias, padding=self.kernel // 2)
        elif self.kernel == 1:
            x = F.conv2d(downsample(x), self.weight, bias)
        else:
            x = F.conv2d(blur(x, 2), self.weight, bias, stride=2)
        gain = self.gain * self.scale
        return x.mul_(gain) if self.bias is None else activate(x, gain)


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style, with weight demodulation (equations 1 and 3).

    Scaling the input by s and the output by d = 1/√(Σ (w s)² + ε) equals modulating the weights per image, and keeps
    one ordinary convolution for the whole batch.

    Args:
        style: width of the style vector that the affine layer reads.
        up: double the resolution (transposed convolution, then the low-pass filter); for kernel 3.
        demodulate: off for to-RGB layers.
        scale: factor of the output.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style: int,
        up: bool = False,
        demodulate: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = EqualLinear(style, inputs, bias_init=1.0)
        self.gain, self.scale = 1 / sqrt(inputs * kernel**2), scale
        self.kernel, self.up, self.demodulate = kernel, up, demodulate

    def forward(self, x: Tensor, style: Tensor, shift: Tensor) -> Tensor:
        """x: float [N, inputs, H, W]; style: float [N, style]; shift: what to add to the result, of a shape that
        broadcasts to it → float [N, outputs, H or 2H, W or 2W]."""
        s, d = self._scales(style)
        if self.kernel == 1:
            weight = self.weight.flatten(1) * s[:, None] * d[:, :, None]
            x = _mix(x, weight.to(x.dtype))
            return x + shift.to(x.dtype)
        x = x * s[:, :, None, None].to(x.dtype)
        if self.up:
            # The filter has gain 4 here: zero insertion spreads each pixel over four.
            x = blur(F.conv_transpose2d(x, _swapped(self.weight.to(x.dtype)), stride=2), 1, gain=4)
        else:
            x = F.conv2d(x, self.weight, padding=self.kernel // 2)
        # Under autocast x may have become bf16 in the convolution: one fp32 term would make fp32 of all that follows.
        return torch.addcmul(shift.to(x.dtype), x, d[:, :, None, None].to(x.dtype))

    def _scales(self, style: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of input channels [N, inputs] and output channels [N, outputs], which hold every gain."""
        s = self.affine(style).to(self.weight.dtype) * self.gain
        if not self.demodulate:
            return s, s.new_full((len(s), len(self.weight)), self.scale)
        # Sums of squares lose their small terms in bf16: keep them in fp32 under autocast.
        with torch.autocast(s.device.type, enabled=False):
            energy = self.weight.square().sum((2, 3))
            return s, torch.rsqrt(F.linear(s.square(), energy) + 1e-8) * self.scale


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, noise, bias, activation: one layer of the synthesis network (figure 2c)."""

    def __init__(self, inputs: int, outputs: int, style: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style, up, scale=SQRT2)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor, skip: Tensor | None = None) -> Tensor:
        """noise: float [N, 1, H, W] at the output's resolution; skip: features added after the activation."""
        # The activation's √2 is already in every term under it.
        x = self.conv(x, style, noise * (self.noise_strength * SQRT2))
        x += (self.bias * SQRT2)[:, None, None].to(x.dtype)
        x = F.leaky_relu_(x, SLOPE)
        return x if skip is None else x + skip


class ToRGB(nn.Module):
    """Modulated 1×1 convolution without demodulation to three colour channels."""

    def __init__(self, inputs: int, style: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.conv(x, style, self.bias[:, None, None])


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
