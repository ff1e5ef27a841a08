"""The layers of StyleGAN2 against their textbook formulation, image by image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from translate.networks.discriminators import ResidualBlock
from translate.networks.stylegan import (
    EqualConv,
    EqualLinear,
    Mapping,
    ModulatedConv,
    StyledConv,
    ToRGB,
    activate,
    blur,
    channels_at,
    downsample,
    minibatch_deviation,
    upsample,
)

NOTHING = torch.tensor(0.0)
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + seed), dtype=dtype)


def filtered(x: Tensor, lead: int, trail: int, gain: float = 1.0) -> Tensor:
    """[1, 3, 3, 1]² as one explicit depthwise convolution."""
    kernel = (TAPS[:, None] * TAPS / 64 * gain).to(x.dtype)
    channels = x.shape[1]
    padded = F.pad(x, [lead, trail, lead, trail])
    return F.conv2d(padded, kernel.expand(channels, 1, 4, 4), groups=channels)


def textbook(layer: ModulatedConv, x: Tensor, style: Tensor) -> Tensor:
    """Equations 1 to 3: weights modulated and demodulated for each image, which is convolved on its own."""
    scales = F.linear(style, layer.affine.weight / style.shape[1] ** 0.5, layer.affine.bias)
    _, inputs, kernel, _ = layer.weight.shape
    images = []
    for image, scale in zip(x, scales, strict=True):
        weight = layer.weight / (inputs * kernel**2) ** 0.5 * scale[None, :, None, None]
        if layer.demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if layer.up:
            wide = F.conv_transpose2d(image[None], weight.transpose(0, 1), stride=2)
            images.append(filtered(wide, 1, 1, gain=4))
        else:
            images.append(F.conv2d(image[None], weight, padding=kernel // 2))
    return torch.cat(images)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("kernel", "up"), [(3, False), (1, False), (3, True)])
def test_modulated_convolution_is_the_textbook_one(kernel: int, up: bool, demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = ModulatedConv(6, 5, kernel, 7, up=up, demodulate=demodulate)
    torch.nn.init.normal_(layer.affine.bias)
    x, style = noise(3, 6, 8, 12), noise(3, 7, seed=1)
    shift = noise(5, 1, 1, seed=2)
    result = layer(x, style, shift)
    assert result.shape == ((3, 5, 16, 24) if up else (3, 5, 8, 12))
    torch.testing.assert_close(result, textbook(layer, x, style) + shift, rtol=1e-4, atol=4e-6)


def test_scale_multiplies_the_convolution_but_not_the_shift() -> None:
    for kernel, demodulate in ((3, True), (3, False), (1, False)):
        torch.manual_seed(0)
        layer = ModulatedConv(6, 5, kernel, 7, demodulate=demodulate, scale=3.0)
        x, style = noise(3, 6, 8, 12), noise(3, 7, seed=1)
        expected = 3 * textbook(layer, x, style) + 0.5
        torch.testing.assert_close(layer(x, style, torch.tensor(0.5)), expected, rtol=1e-4, atol=1e-5)


def test_demodulation_keeps_the_variance_whatever_the_style() -> None:
    torch.manual_seed(0)
    layer = ModulatedConv(64, 64, 3, 8)
    x = noise(4, 64, 16, 16)
    for scale in (0.1, 1.0, 30.0):
        inside = layer(x, scale * noise(4, 8, seed=1), NOTHING)[..., 1:-1, 1:-1]
        assert inside.std().item() == pytest.approx(1, rel=0.1)


def test_upsampling_convolution_keeps_the_brightness_of_a_flat_image() -> None:
    layer = ModulatedConv(1, 1, 3, 2, up=True, demodulate=False)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.affine.weight)
    up = layer(torch.ones(1, 1, 8, 8), torch.zeros(1, 2), NOTHING)
    # Nine equal taps of 1/3 on a zero-inserted flat image: mean 9/3/4 a pixel, times the filter's gain of 4.
    torch.testing.assert_close(up[..., 4:-4, 4:-4], torch.full((1, 1, 8, 8), 3.0))


@pytest.mark.parametrize(("kernel", "up"), [(3, False), (1, False), (3, True)])
def test_modulated_convolution_under_autocast_stays_close(kernel: int, up: bool) -> None:
    """Values and gradients; bf16 has 8 bits, and they are sums of 32 or more rounded products of order one."""
    torch.manual_seed(0)
    layer = ModulatedConv(32, 32, kernel, 16, up=up)
    x, style = noise(2, 32, 8, 8).requires_grad_(), noise(2, 16, seed=1)
    results, gradients = [], []
    for bf16 in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            result = layer(x, style, torch.zeros(32, 1, 1))
        assert result.dtype == (torch.bfloat16 if bf16 else torch.float32), (
            "an fp32 input must not slow down what follows"
        )
        results.append(result.float())
        loss = (result.float() * noise(*result.shape, seed=2)).sum()
        gradients.append(torch.autograd.grad(loss, [x, layer.weight, layer.affine.weight]))
    assert (results[0] - results[1]).abs().mean() < 0.02
    for rough, exact in zip(*gradients, strict=True):
        assert (rough - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("pad", "gain"), [(1, 1.0), (2, 1.0), (1, 4.0), (0, 1.0)])
def test_blur_is_a_depthwise_convolution(pad: int, gain: float, channels_last: bool) -> None:
    x = noise(2, 3, 9, 12, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    torch.testing.assert_close(blur(x, pad, gain), filtered(x, pad, pad, gain), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", [lambda x: blur(x, 1), lambda x: blur(x, 2), lambda x: blur(x, 1, 4), downsample])
def test_gradients_of_the_filters(layer: Callable[[Tensor], Tensor]) -> None:
    x = noise(2, 2, 4, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("layer", [lambda x: blur(x, 2), downsample])
def test_filters_in_bf16_stay_close_and_channels_last(layer: Callable[[Tensor], Tensor]) -> None:
    """The taps are exact in bf16, so only the input and the result are rounded: 2⁻⁸ relative."""
    x = noise(2, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    exact, x = layer(x.bfloat16().float()), x.bfloat16().requires_grad_()
    rough = layer(x)
    torch.testing.assert_close(rough.float(), exact, rtol=2**-8, atol=2**-8)
    rough.backward(torch.ones_like(rough))
    assert x.grad is not None
    for tensor in (rough, x.grad):
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [4, 8, 10])
def test_downsample_is_every_second_pixel_of_the_filtered_image(side: int) -> None:
    x = noise(2, 3, side, side, dtype=torch.float64)
    result = downsample(x)
    assert result.shape == (2, 3, side // 2, side // 2)
    torch.testing.assert_close(result, filtered(x, 1, 1)[:, :, ::2, ::2], rtol=1e-12, atol=1e-12)


def test_upsample_is_zero_insertion_and_filtering_away_from_the_border() -> None:
    x = noise(2, 3, 8, 8, dtype=torch.float64)
    sparse = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    sparse[:, :, ::2, ::2] = x
    expected = filtered(sparse, 2, 1, gain=4)
    torch.testing.assert_close(upsample(x)[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_halving_convolution_filters_first_and_activates_last(kernel: int, linear: bool) -> None:
    torch.manual_seed(0)
    layer = EqualConv(4, 5, kernel, down=True, linear=linear, scale=0.5)
    x = noise(2, 4, 12, 12)
    pad = 1 if kernel == 1 else 2
    expected = F.conv2d(filtered(x, pad, pad), layer.weight / (4 * kernel**2) ** 0.5, stride=2)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
        expected = F.leaky_relu(expected + layer.bias[:, None, None], 0.2) * 2**0.5
    torch.testing.assert_close(layer(x), expected * 0.5, rtol=1e-4, atol=1e-5)
    assert layer(x).shape == (2, 5, 6, 6)
    assert linear == (layer.bias is None)


@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
def test_equal_linear_keeps_unit_variance(lr_multiplier: float) -> None:
    torch.manual_seed(0)
    layer = EqualLinear(300, 400, bias_init=2.0, lr_multiplier=lr_multiplier)
    y = layer(noise(500, 300))
    assert y.mean().item() == pytest.approx(2, abs=0.02)
    assert y.std().item() == pytest.approx(1, rel=0.03)


def test_lr_multiplier_slows_the_layer_down() -> None:
    """A step of Adam moves every parameter by lr; the output must move by lr_multiplier times as much."""
    moves = []
    for lr_multiplier in (1.0, 0.01):
        layer = EqualLinear(16, 16, lr_multiplier=lr_multiplier)
        x = noise(4, 16)
        before = layer(x)
        with torch.no_grad():
            layer.weight.add_(0.001)
            layer.bias.add_(0.001)
        moves.append(layer(x) - before)
    torch.testing.assert_close(moves[1], moves[0] * 0.01, rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_equal_conv_keeps_unit_variance(kernel: int) -> None:
    torch.manual_seed(0)
    y = EqualConv(64, 64, kernel, linear=True)(noise(4, 64, 24, 24))
    assert y.shape == (4, 64, 24, 24)
    assert y[..., 4:-4, 4:-4].std().item() == pytest.approx(1, rel=0.04)


def test_activation_keeps_the_second_moment() -> None:
    x = noise(200_000)
    # Half of the mass is scaled by √2, half by 0.2 √2: ½ · 2 · (1 + 0.04).
    assert activate(x).square().mean().item() == pytest.approx(1.04, rel=0.02)


def test_mapping_normalises_the_second_moment_of_z() -> None:
    mapping = Mapping(64, 3)
    z = noise(4, 64)
    torch.testing.assert_close(mapping(z), mapping(7 * z), rtol=1e-4, atol=1e-5)
    assert len(mapping.layers) == 3


def test_styled_convolution_adds_noise_bias_and_skip_in_order() -> None:
    torch.manual_seed(0)
    layer = StyledConv(4, 6, 5)
    torch.nn.init.constant_(layer.noise_strength, 0.7)
    torch.nn.init.normal_(layer.bias)
    x, style, grain, skip = noise(2, 4, 8, 8), noise(2, 5, seed=1), noise(2, 1, 8, 8, seed=2), noise(2, 6, 8, 8, seed=3)
    before = textbook(layer.conv, x, style) + 0.7 * grain + layer.bias[None, :, None, None]
    expected = torch.where(before > 0, before, 0.2 * before) * 2**0.5 + skip
    torch.testing.assert_close(layer(x, style, grain, skip), expected, rtol=1e-4, atol=1e-5)


def test_to_rgb_is_a_plain_weighted_sum_of_styled_channels() -> None:
    torch.manual_seed(0)
    layer = ToRGB(6, 5)
    torch.nn.init.normal_(layer.bias)
    x, style = noise(2, 6, 4, 4), noise(2, 5, seed=1)
    assert not layer.conv.demodulate
    expected = textbook(layer.conv, x, style) + layer.bias[None, :, None, None]
    torch.testing.assert_close(layer(x, style), expected, rtol=1e-4, atol=1e-5)


def test_channels_follow_base_and_maximum() -> None:
    assert [channels_at(side, 2048, 128) for side in (4, 16, 32, 64)] == [128, 128, 64, 32]


@pytest.mark.parametrize(("images", "group", "size"), [(8, 4, 4), (6, 2, 2), (6, 4, 6), (3, 4, 3), (1, 4, 1)])
def test_minibatch_deviation_against_a_loop(images: int, group: int, size: int) -> None:
    x = noise(images, 3, 4, 4)
    result = minibatch_deviation(x, group)
    assert result.shape == (images, 4, 4, 4)
    torch.testing.assert_close(result[:, :3], x)
    for first in range(0, images, size):
        part = x[first : first + size]
        spread = 0.0
        for place in range(3 * 4 * 4):
            values = part.reshape(size, -1)[:, place]
            spread += float(((values - values.mean()) ** 2).mean() + 1e-8) ** 0.5
        expected = torch.full((size, 4, 4), spread / 48)
        torch.testing.assert_close(result[first : first + size, 3], expected, rtol=1e-4, atol=1e-5)


def test_halves_of_a_batch_form_the_groups_of_the_whole() -> None:
    x = noise(8, 3, 4, 4)
    halves = torch.cat([minibatch_deviation(x[:4], 2), minibatch_deviation(x[4:], 2)])
    torch.testing.assert_close(minibatch_deviation(x, 2), halves)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("kernel", "up"), [(3, False), (1, False), (3, True)])
def test_double_backward_of_the_modulated_convolution(kernel: int, up: bool, demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = ModulatedConv(2, 2, kernel, 2, up=up, demodulate=demodulate).double()
    x, style = noise(1, 2, 4, 4, dtype=torch.float64), noise(1, 2, seed=1, dtype=torch.float64)
    shift = noise(1, 1, 1, seed=2, dtype=torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, style, shift, layer.weight))

    def convolve(x: Tensor, style: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
        return functional_call(layer, {"weight": weight}, (x, style, shift))

    assert torch.autograd.gradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(convolve, inputs)


def test_gradients_of_the_styled_convolution() -> None:
    """The activation works in place: what it overwrites must not be needed by anything before it."""
    torch.manual_seed(0)
    layer = StyledConv(2, 3, 2, up=True).double()
    torch.nn.init.constant_(layer.noise_strength, 0.7)
    x, style = noise(1, 2, 3, 3, dtype=torch.float64), noise(1, 2, seed=1, dtype=torch.float64)
    grain, skip = noise(1, 1, 6, 6, seed=2, dtype=torch.float64), noise(1, 3, 6, 6, seed=3, dtype=torch.float64)
    names = ["conv.weight", "bias", "noise_strength"]

    def style_it(x: Tensor, style: Tensor, skip: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x, style, grain, skip))

    inputs = (x, style, skip, *(layer.get_parameter(name) for name in names))
    assert torch.autograd.gradcheck(style_it, tuple(tensor.requires_grad_() for tensor in inputs))


def test_double_backward_of_the_residual_block() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(2, 3).double()
    x = noise(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(block, (x,))
    assert torch.autograd.gradgradcheck(block, (x,))
