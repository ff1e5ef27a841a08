"""The residual generator: its layers against PyTorch's, its shape against the papers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histo.errors import InputError
from translate.networks.layers import draw_weights, halve, instance_norm, reflect
from translate.networks.resnet import CUT_LAYERS, ResNetGenerator

BOTH = pytest.mark.parametrize("anti_aliased", [False, True])


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def images(number: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def small(anti_aliased: bool, blocks: int = 2) -> ResNetGenerator:
    torch.manual_seed(0)
    return ResNetGenerator(4, blocks, anti_aliased=anti_aliased)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_instance_norm_is_the_one_of_pytorch(number: int, channels_last: bool) -> None:
    x = noise(number, 5, 7, 6, dtype=torch.float64) * 3 + 2
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    x.requires_grad_()
    result, expected = instance_norm(x), F.instance_norm(x)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    slope = noise(*x.shape, seed=1, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((result * slope).sum(), x), torch.autograd.grad((expected * slope).sum(), x)
    )
    assert torch.autograd.gradcheck(instance_norm, (x,))
    assert result.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_instance_norm_of_a_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        instance_norm(noise(2, 3, 1, 1))


def test_instance_norm_in_bf16_keeps_a_small_spread_on_a_large_mean() -> None:
    """Statistics in fp32: values 100 and 101 have a spread that sums in bf16 would lose."""
    x = (100 + (torch.arange(64) % 2)).reshape(1, 1, 8, 8).bfloat16().expand(1, 3, 8, 8)
    x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(instance_norm(x).float().abs(), torch.ones(1, 3, 8, 8), rtol=0.01, atol=0.01)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (2, 2)])
def test_halving_is_a_filter_and_a_decimation(height: int, width: int) -> None:
    x = noise(2, 3, height, width, dtype=torch.float64).requires_grad_()
    taps = torch.tensor([1.0, 2, 1], dtype=torch.float64) / 4
    padded = F.pad(x, [1] * 4, mode="reflect")
    filtered = F.conv2d(padded, (taps[:, None] * taps).expand(3, 1, 3, 3), groups=3)
    torch.testing.assert_close(halve(x), filtered[..., ::2, ::2], rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(halve, (x,))


def test_halving_keeps_brightness_and_layout() -> None:
    x = torch.full((1, 8, 8, 8), 0.3).contiguous(memory_format=torch.channels_last).requires_grad_()
    half = halve(x)
    torch.testing.assert_close(half, torch.full((1, 8, 4, 4), 0.3))
    half.sum().backward()
    assert x.grad is not None
    for tensor in (half, x.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.sum().item() == pytest.approx(half.numel(), rel=1e-5)


def test_reflection_mirrors_about_the_outermost_pixels() -> None:
    row = torch.arange(5.0).expand(1, 1, 5, 5)
    assert reflect(row, 3)[0, 0, 0].tolist() == [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]


def test_weights_start_as_published() -> None:
    torch.manual_seed(0)
    network = ResNetGenerator(16, 3, anti_aliased=False)
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(weight.mean().item()) < 0.002, name


def test_weights_of_linear_layers_start_so_too() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 100)
    draw_weights(layer)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not layer.bias.any()


@BOTH
def test_number_of_weights_is_the_published_one_without_idle_biases(anti_aliased: bool) -> None:
    with torch.device("meta"):
        network = ResNetGenerator(anti_aliased=anti_aliased)
    idle = 64 + 128 + 256 + 18 * 256 + 128 + 64
    assert sum(weight.numel() for weight in network.parameters()) + idle == 11_378_179


@BOTH
@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 36), (64, 48)])
def test_output_is_an_image_of_the_same_size(anti_aliased: bool, height: int, width: int) -> None:
    result = small(anti_aliased)(images(2, height, width))
    assert result.shape == (2, 3, height, width)
    assert result.abs().max() <= 1
    assert result.std() > 0


def test_other_numbers_of_channels() -> None:
    network = ResNetGenerator(4, 1, inputs=1, outputs=2, anti_aliased=True)
    assert network(images(1, 16, 16)[:, :1]).shape == (1, 2, 16, 16)
    assert network.channels([0, 1, 2, 3]) == [1, 8, 16, 16]


def test_cyclegan_form_is_the_published_sequence() -> None:
    """Layer by layer from PyTorch's modules, as the paper's appendix lists them."""
    network = small(False)

    def norm(x: Tensor) -> Tensor:
        return F.relu(F.instance_norm(x))

    x = images(2, 24, 32)
    y = norm(F.conv2d(nn.ReflectionPad2d(3)(x), network.stem.weight))
    for down in network.downs:
        y = norm(F.conv2d(y, down.weight, stride=2, padding=1))
    for block in network.blocks:
        inner = norm(F.conv2d(nn.ReflectionPad2d(1)(y), block.first.weight))
        y = y + F.instance_norm(F.conv2d(nn.ReflectionPad2d(1)(inner), block.second.weight))
    for up in network.ups:
        y = norm(F.conv_transpose2d(y, up.weight, stride=2, padding=1, output_padding=1))
    y = torch.tanh(F.conv2d(nn.ReflectionPad2d(3)(y), network.last.weight, network.last.bias))
    torch.testing.assert_close(network(x), y, rtol=1e-4, atol=1e-6)


@BOTH
def test_features_are_those_of_the_whole_network(anti_aliased: bool) -> None:
    network = small(anti_aliased, blocks=5)
    x, seen = images(2, 32, 24), {}
    modules = [network.downs[0], network.downs[1], *network.blocks]
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, layer=layer: seen.update({layer: output.clone()}))
        for layer, module in enumerate(modules, start=1)
    ]
    whole = network(x)
    for hook in hooks:
        hook.remove()
    layers = [7, 0, 3, 1, 2, 3]
    features = network.features(x, layers)
    image, on_the_way = network.with_features(x, layers)
    torch.testing.assert_close(image, whole, rtol=0, atol=0)
    torch.testing.assert_close(features[1], F.pad(x, [3] * 4, mode="reflect"), rtol=0, atol=0)
    for layer, feature, same in zip(layers, features, on_the_way, strict=True):
        torch.testing.assert_close(feature, same, rtol=0, atol=0)
        if layer:
            torch.testing.assert_close(feature, seen[layer], rtol=0, atol=0)
    assert [feature.shape[1] for feature in features] == network.channels(layers)


def test_features_stop_at_the_deepest_layer() -> None:
    network = small(True)
    network.blocks[1].register_forward_hook(lambda *_: pytest.fail("ran too far"))
    network.last.register_forward_hook(lambda *_: pytest.fail("ran too far"))
    assert len(network.features(images(1, 16, 16), [1, 3])) == 2
    assert network.features(images(1, 16, 16), []) == []


def test_receptive_fields_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """1, 9, 15, 35 and 99 pixels (Park et al. 2020). Without norms, which see everything, and with positive weights,
    which cancel nothing."""
    monkeypatch.setattr("translate.networks.resnet.instance_norm", lambda x: x)
    network = ResNetGenerator(1, 5, anti_aliased=True)
    for weight in network.parameters():
        nn.init.constant_(weight, 0.1)
    x = torch.rand(1, 3, 256, 256).requires_grad_()
    fields = []
    for feature in network.features(x, CUT_LAYERS):
        middle = feature[0, 0, feature.shape[2] // 2, feature.shape[3] // 2]
        (gradient,) = torch.autograd.grad(middle, x, retain_graph=True)
        columns = gradient.abs().sum((0, 1, 2)).nonzero()
        fields.append(int(columns.max() - columns.min()) + 1)
    assert fields == [1, 9, 15, 35, 99]


@BOTH
def test_rows_and_columns_are_treated_alike(anti_aliased: bool) -> None:
    """With weights that are their own transposes, the transposed image gives the transposed result."""
    network = small(anti_aliased)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 4:
                weight.copy_((weight + weight.transpose(2, 3)) / 2)
    x = images(1, 16, 24)
    torch.testing.assert_close(network(x.transpose(2, 3)).transpose(2, 3), network(x), rtol=1e-4, atol=1e-6)


@BOTH
def test_an_image_ignores_its_batch(anti_aliased: bool) -> None:
    network, x = small(anti_aliased), images(3, 16, 16)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-4, atol=1e-6)


@BOTH
def test_every_weight_learns_and_a_pass_repeats_bit_for_bit(anti_aliased: bool) -> None:
    gradients = []
    for _ in range(2):
        network = small(anti_aliased)
        network(images(2, 32, 32)).mul(noise(2, 3, 32, 32)).sum().backward()
        for name, weight in network.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.abs().max() > 1e-6, name
        gradients.append([weight.grad for weight in network.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


@BOTH
def test_channels_last_under_autocast_stays_close(anti_aliased: bool) -> None:
    torch.manual_seed(0)
    network = ResNetGenerator(16, 2, anti_aliased=anti_aliased)
    x = images(2, 32, 32)
    exact = network(x)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x), exact, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough, features = network.with_features(x.contiguous(memory_format=torch.channels_last), [1, 4])
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.03 * exact.norm()
    for feature in features:
        assert feature.dtype == torch.bfloat16
        assert feature.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("height", "width"), [(18, 16), (16, 30), (12, 64)])
def test_sizes_that_do_not_fit_are_refused(height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"{height} × {width} pixels, expected multiples of 4 from 16 up"):
        small(False)(images(1, height, width))


def test_layers_and_settings_that_do_not_exist_are_refused() -> None:
    network = small(False)
    for layer in (-1, 5):
        with pytest.raises(InputError, match=f"Layer {layer} of the residual generator .* 0 to 4"):
            network.features(images(1, 16, 16), [0, layer])
    with pytest.raises(InputError, match="blocks is 0"):
        ResNetGenerator(4, 0, anti_aliased=False)
    with pytest.raises(InputError, match="width is 0"):
        ResNetGenerator(0, anti_aliased=False)
