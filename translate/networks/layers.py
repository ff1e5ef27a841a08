"""Layers of the classic convolutional generators, which keep channels-last tensors as they are.

Convolutions on the CPU are fastest in channels last, as long as nothing between them copies to another layout.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def instance_norm(x: Tensor) -> Tensor:
    """Each channel of each image brought to mean 0 and variance 1 (Ulyanov et al. 2016), without scale or shift.

    Equal to `F.instance_norm`, which on the CPU copies channels-last tensors to and fro; batch normalisation, which a
    batch of one image makes the same thing, does not.

    Args:
        x: float [N, C, H, W] with H · W > 1: a single pixel has no variance, and PyTorch raises ValueError.
    """
    if x.device.type != "cpu":
        return F.instance_norm(x)
    images = [F.batch_norm(image, None, None, training=True) for image in x.split(1)]
    return images[0] if len(images) == 1 else torch.cat(images)


def reflect(x: Tensor, pad: int) -> Tensor:
    """[N, C, H, W] mirrored about its outermost pixels by `pad` < H, W on every side."""
    return F.pad(x, [pad] * 4, mode="reflect")


def _taps(x: Tensor) -> Tensor:
    """[1, 2, 1]² / 16 as a depthwise kernel for x."""
    line = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype)
    return (line[:, None] * line / 16).expand(x.shape[1], 1, 3, 3)


class _Decimate(torch.autograd.Function):
    """Every second value of the filtered image, [N, C, 2H + 1, 2W + 1] → [N, C, H, W].

    The gradient is zero insertion and the same filter; PyTorch's own takes forty times as long on the CPU.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.conv2d(x, _taps(x), stride=2, groups=x.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        n, c, h, w = gradient.shape
        sparse = gradient.new_zeros(n, 2 * h + 1, 2 * w + 1, c).permute(0, 3, 1, 2)  # channels last
        sparse[:, :, 1::2, 1::2] = gradient
        return F.conv2d(sparse, _taps(sparse), padding=1, groups=c)


def halve(x: Tensor) -> Tensor:
    """[N, C, H, W] → [N, C, H/2, W/2], both even: pixels 0, 2, 4, … through [1, 2, 1]² / 16, mirrored at the border."""
    return _Decimate.apply(F.pad(x, (1, 0, 1, 0), mode="reflect"))


def draw_weights(network: nn.Module) -> None:
    """Convolutions and linear layers start as N(0, 0.02), their biases as 0 (Zhu et al. 2017, Park et al. 2020)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
