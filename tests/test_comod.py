"""The co-modulated generator: shapes, purity of its styles, and what reaches the image."""

import pytest
import torch
from torch import Tensor

from histo.errors import InputError
from translate.networks.comod import CoModGenerator, CoModSettings, Style

NARROW = {"channel_base": 256, "channel_max": 16, "style_width": 8, "mapping_layers": 2, "code_width": 12}


def generator_of(resolution: int, **changed: float) -> CoModGenerator:
    torch.manual_seed(0)
    generator = CoModGenerator(CoModSettings(**{**NARROW, **changed}), resolution)  # type: ignore[arg-type]
    for layer in [generator.first, *generator.enlarge, *generator.refine]:
        torch.nn.init.constant_(layer.noise_strength, 0.1)  # zero at birth, which would hide the noise
    return generator.eval()


def mask_of(images: int, resolution: int, seed: int = 0) -> Tensor:
    return torch.rand(images, 3, resolution, resolution, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def render(generator: CoModGenerator, mask: Tensor, style: Style) -> Tensor:
    return generator(mask, style.z, style.keep, style.noise)


@pytest.mark.parametrize("resolution", [64, 128])
def test_shapes(resolution: int) -> None:
    generator = generator_of(resolution)
    style = generator.style(0, "style", [3, 4], training=True)
    assert style.z.shape == (2, 8)
    assert style.keep.shape == (2, 12)
    sides = [4] + [side for side in (8, 16, 32, 64, 128) if side <= resolution for _ in range(2)]
    assert [tuple(plane.shape) for plane in style.noise] == [(2, 1, side, side) for side in sides]
    tissue = render(generator, mask_of(2, resolution), style)
    assert tissue.shape == (2, 3, resolution, resolution)
    assert tissue.dtype == torch.float32
    assert torch.isfinite(tissue).all()


def test_style_is_pure_and_independent_of_its_batch() -> None:
    generator = generator_of(64)
    together = generator.style(5, "style", [10, 11, 12], training=True)
    for place, index in enumerate((10, 11, 12)):
        alone = generator.style(5, "style", [index], training=True)
        assert torch.equal(alone.z[0], together.z[place])
        assert torch.equal(alone.keep[0], together.keep[place])
        for one, many in zip(alone.noise, together.noise, strict=True):
            assert torch.equal(one[0], many[place])


@pytest.mark.parametrize("other", [(6, "style", 10), (5, "cycle", 10), (5, "style", 11)])
def test_seed_stream_and_index_each_change_the_style(other: tuple[int, str, int]) -> None:
    generator = generator_of(64)
    one = generator.style(5, "style", [10], training=True)
    two = generator.style(other[0], other[1], [other[2]], training=True)
    assert not torch.equal(one.z, two.z)
    assert not torch.equal(one.noise[-1], two.noise[-1])


def test_noise_planes_are_standard_normal_and_differ() -> None:
    style = generator_of(64).style(0, "style", list(range(8)), training=True)
    for plane in style.noise[-2:]:
        assert plane.mean().item() == pytest.approx(0, abs=0.03)
        assert plane.std().item() == pytest.approx(1, rel=0.03)
    assert not torch.equal(style.noise[-1], style.noise[-2])


def test_dropout_scales_what_it_keeps_and_is_off_outside_training() -> None:
    generator = generator_of(64, code_width=400, dropout=0.25)
    keep = generator.style(0, "style", list(range(10)), training=True).keep
    assert keep.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert (keep == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert keep.mean().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(generator.style(0, "style", [0, 1], training=False).keep, torch.ones(2, 400)), (
        "nothing may be dropped outside training"
    )
    whole = generator_of(64, dropout=0).style(0, "style", [0], training=True)
    assert torch.equal(whole.keep, torch.ones(1, 12))


def test_training_changes_nothing_but_the_dropout() -> None:
    generator = generator_of(64)
    on, off = (generator.style(0, "style", [2], training=training) for training in (True, False))
    assert torch.equal(on.z, off.z)
    assert all(torch.equal(one, other) for one, other in zip(on.noise, off.noise, strict=True))


def test_everything_reaches_the_image() -> None:
    generator = generator_of(64)
    style, other = (generator.style(0, "style", [index], training=False) for index in (0, 1))
    mask = mask_of(1, 64)
    tissue = render(generator, mask, style)
    assert not torch.allclose(tissue, render(generator, mask, Style(other.z, style.keep, style.noise)))
    assert not torch.allclose(tissue, render(generator, mask, Style(style.z, style.keep * 0, style.noise)))
    assert not torch.allclose(tissue, render(generator, mask_of(1, 64, seed=1), style))
    for k in range(len(style.noise)):
        noise = [plane + (j == k) for j, plane in enumerate(style.noise)]
        assert not torch.equal(tissue, render(generator, mask, Style(style.z, style.keep, noise))), f"noise {k}"


def test_images_of_a_batch_do_not_mix() -> None:
    generator = generator_of(64)
    mask = mask_of(3, 64)
    together = render(generator, mask, generator.style(0, "style", [7, 8, 9], training=True))
    alone = render(generator, mask[1:2], generator.style(0, "style", [8], training=True))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns() -> None:
    generator = generator_of(64)
    style = generator.style(0, "style", [0, 1], training=False)
    generator(mask_of(2, 64), style.z, style.keep, style.noise).square().mean().backward()
    idle = [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize(("skip_resolution", "sides"), [(16, [8, 16]), (64, [8, 16, 32, 64]), (4, [])])
def test_encoder_features_are_added_at_the_skip_resolution_and_below(skip_resolution: int, sides: list[int]) -> None:
    generator = generator_of(64, skip_resolution=skip_resolution)
    features: dict[int, Tensor] = {}
    for side, encode in zip(generator.sides[::-1], generator.encode, strict=True):
        encode.register_forward_hook(lambda module, inputs, output, side=side: features.update({side: output}))
    added: dict[int, Tensor] = {}
    for side, enlarge in zip(generator.sides[1:], generator.enlarge, strict=True):
        enlarge.register_forward_pre_hook(
            lambda module, inputs, side=side: added.update({side: inputs[3]} if inputs[3] is not None else {})
        )
    render(generator, mask_of(1, 64), generator.style(0, "style", [0], training=False))
    assert sorted(added) == sides
    for side, skip in added.items():
        torch.testing.assert_close(skip, features[side])


def test_without_code_and_skips_the_mask_still_reaches_the_image_through_the_lowest_features() -> None:
    generator = generator_of(64, skip_resolution=4)
    style = generator.style(0, "style", [0], training=False)
    style = Style(style.z, style.keep * 0, style.noise)
    one, two = (render(generator, mask_of(1, 64, seed), style) for seed in (0, 1))
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("wrong", [{"channel_base": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"mapping_layers": 0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"generator.{name} is"):
        CoModSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_compiled_whole_it_gives_the_same_image_and_gradients() -> None:
    generator = generator_of(64)
    mask, style = mask_of(2, 64), generator.style(0, "style", [0, 1], training=True)
    compiled = torch.compile(generator, backend="aot_eager", fullgraph=True)
    images, gradients = [], []
    for network in (generator, compiled):
        image = network(mask, style.z, style.keep, style.noise)
        images.append(image)
        gradients.append(torch.autograd.grad(image.square().mean(), list(generator.parameters())))
    torch.testing.assert_close(images[1], images[0], rtol=1e-5, atol=1e-6)
    for result, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_mixing_takes_the_second_style_from_the_crossover_on() -> None:
    generator = generator_of(64, mixing=1.0)
    style = generator.style(0, "style", list(range(20)), training=True)
    assert style.other is not None
    assert style.crossover is not None
    assert 1 <= style.crossover.min() < style.crossover.max() < generator.layers
    w = generator.mixed(style)
    for n, crossover in enumerate(style.crossover.tolist()):
        for layer in range(generator.layers):
            one = style.z if layer < crossover else style.other
            torch.testing.assert_close(w[n, layer], generator.mapping(one)[n])
    first, second = (Style(style.z[:1], style.keep[:1], [n[:1] for n in style.noise]) for _ in range(2))
    second.z = style.other[:1]
    mask = mask_of(1, 64)
    mixed = generator(mask, first.z, first.keep, first.noise, w=w[:1])
    assert not torch.allclose(mixed, render(generator, mask, first), atol=1e-5)
    assert not torch.allclose(mixed, render(generator, mask, second), atol=1e-5)
    same = generator.mapping(first.z)[:, None].expand(-1, generator.layers, -1)
    torch.testing.assert_close(
        generator(mask, second.z, first.keep, first.noise, w=same), render(generator, mask, first)
    )


def test_mixing_happens_as_often_as_asked_and_never_outside_training() -> None:
    generator = generator_of(64, mixing=0.3)
    crossover = generator.style(0, "style", list(range(2000)), training=True).crossover
    assert crossover is not None
    assert (crossover < generator.layers).float().mean().item() == pytest.approx(0.3, abs=0.035)
    assert generator.style(0, "style", [0], training=False).other is None
    plain = generator_of(64).style(0, "style", [3], training=True)
    assert plain.other is None
    assert torch.equal(plain.z, generator.style(0, "style", [3], training=True).z)


def test_truncation_goes_from_the_mean_style_to_the_style_itself() -> None:
    generator = generator_of(64)
    z = generator.style(0, "style", [0, 1], training=False).z
    torch.testing.assert_close(generator.truncated(z, 1.0)[:, 0], generator.mapping(z))
    torch.testing.assert_close(generator.truncated(z, 0.0)[:, 0], generator.mean_style().expand(2, -1))
    half = (generator.mapping(z) + generator.mean_style()) / 2
    torch.testing.assert_close(generator.truncated(z, 0.5)[:, 0], half)
