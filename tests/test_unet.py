"""The U-Net generator: levels, skips, and what is published."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from histo.errors import InputError
from translate.networks.unet import UNetGenerator


def images(number: int, height: int, width: int) -> Tensor:
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def small(tile_size: int = 32, seed: int = 0) -> UNetGenerator:
    torch.manual_seed(seed)
    return UNetGenerator(tile_size, 4)


@pytest.mark.parametrize(("tile_size", "stride"), [(8, 4), (64, 32), (128, 64), (256, 128), (96, 32), (224, 32)])
def test_levels_leave_two_to_eight_pixels(tile_size: int, stride: int) -> None:
    network = small(tile_size)
    assert network.stride == stride
    assert len(network.downs) == len(network.ups) == stride.bit_length() - 1
    sizes = []
    network.downs[-1].register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[2:]))
    result = network(images(1, tile_size, tile_size))
    assert result.shape == (1, 3, tile_size, tile_size)
    assert result.abs().max() <= 1
    assert result.std() > 0
    assert sizes == [(tile_size // stride, tile_size // stride)]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 16), (64, 80)])
def test_other_sizes_than_the_tile(height: int, width: int) -> None:
    assert small()(images(2, height, width)).shape == (2, 3, height, width)


def test_number_of_weights() -> None:
    """54.414 M published for 8 levels with batch norm, whose scales and shifts instance norm does not have."""
    with torch.device("meta"):
        network = UNetGenerator(512)
    scales_and_shifts = 2 * (128 + 256 + 4 * 512) + 2 * (4 * 512 + 256 + 128 + 64)
    biases_of_levels_without_norm = 64 + 512
    ours = sum(weight.numel() for weight in network.parameters())
    assert round((ours + scales_and_shifts - biases_of_levels_without_norm) / 1e6, 3) == 54.414


def test_it_is_the_published_sequence() -> None:
    """Three levels spelt out with PyTorch's functions."""
    network, x = small(16), images(2, 16, 24)
    down, up = [layer.weight for layer in network.downs], [layer.weight for layer in network.ups]

    def halved(x: Tensor, level: int) -> Tensor:
        return F.conv2d(x, down[level], network.downs[level].bias, stride=2, padding=1)

    def doubled(x: Tensor, step: int) -> Tensor:
        return F.conv_transpose2d(F.relu(x), up[step], network.ups[step].bias, stride=2, padding=1)

    with torch.no_grad():
        for layer in (network.downs[0], network.downs[2], network.ups[2]):
            assert layer.bias is not None
            layer.bias.normal_()
    first = halved(x, 0)
    second = F.instance_norm(halved(F.leaky_relu(first, 0.2), 1))
    bottom = halved(F.leaky_relu(second, 0.2), 2)
    y = torch.cat([second, F.instance_norm(doubled(bottom, 0))], 1)
    y = torch.cat([first, F.instance_norm(doubled(y, 1))], 1)
    torch.testing.assert_close(network(x), torch.tanh(doubled(y, 2)), rtol=1e-4, atol=1e-6)


def test_every_weight_learns_and_a_pass_repeats_bit_for_bit() -> None:
    gradients = []
    for _ in range(2):
        network = small().train()
        network(images(2, 32, 32)).square().sum().backward()
        for name, weight in network.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.abs().max() > 1e-6, name
        gradients.append([weight.grad for weight in network.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_weights_start_as_published() -> None:
    for name, weight in UNetGenerator(32, 16).named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name


def test_channels_last_under_autocast_stays_close() -> None:
    torch.manual_seed(0)
    network, x = UNetGenerator(32, 16), images(2, 32, 32)
    exact = network(x)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x), exact, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x.contiguous(memory_format=torch.channels_last))
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("tile_size", [0, 4, 100, 250, 127, 7])
def test_tiles_that_cannot_be_halved_are_refused(tile_size: int) -> None:
    with pytest.raises(InputError, match=f"tiles of {tile_size} px, expected 2, 3, 5 or 7 times a power of two"):
        UNetGenerator(tile_size)


def test_other_input_is_refused() -> None:
    with pytest.raises(InputError, match="32 × 24 pixels, expected multiples of its stride 16"):
        small()(images(1, 32, 24))
    with pytest.raises(InputError, match="width is 0"):
        UNetGenerator(64, 0)
