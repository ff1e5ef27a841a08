"""The two judges: shapes, depth, and what their verdicts depend on."""

import pytest
import torch
from torch import Tensor, nn

from histo.errors import InputError
from translate.networks.discriminators import (
    DiscriminatorSettings,
    PatchDiscriminator,
    ResidualBlock,
    TissueDiscriminator,
)

NARROW = DiscriminatorSettings(channel_base=256, channel_max=16, deviation_group=2, mask_width=4)


def images(number: int, resolution: int, seed: int = 0) -> Tensor:
    return torch.rand(number, 3, resolution, resolution, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("resolution", [64, 128])
def test_tissue_logits(resolution: int) -> None:
    torch.manual_seed(0)
    judge = TissueDiscriminator(NARROW, resolution)
    logits = judge(images(4, resolution))
    assert logits.shape == (4,)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert sum(isinstance(module, ResidualBlock) for module in judge.modules()) == {64: 4, 128: 5}[resolution]


def test_tissue_logits_are_fp32_under_autocast() -> None:
    judge = TissueDiscriminator(NARROW, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert judge(images(2, 64)).dtype == torch.float32


def test_tissue_groups_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    judge = TissueDiscriminator(NARROW, 64).eval()
    x = images(4, 64)
    with torch.no_grad():
        torch.testing.assert_close(judge(x), torch.cat([judge(x[:2]), judge(x[2:])]), rtol=1e-4, atol=1e-5)
        swapped = judge(x[[0, 2, 1, 3]])
    assert not torch.allclose(swapped[0], judge(x)[0], atol=1e-6), "the deviation of the group must count"


def test_every_parameter_of_the_judges_learns() -> None:
    torch.manual_seed(0)
    for judge in (TissueDiscriminator(NARROW, 64), PatchDiscriminator(NARROW.mask_width, 64)):
        judge(images(4, 64)).square().mean().backward()
        idle = [name for name, p in judge.named_parameters() if p.grad is None]
        assert idle == []


def test_residual_block_halves_and_keeps_unit_variance() -> None:
    torch.manual_seed(0)
    result = ResidualBlock(32, 48)(torch.randn(4, 32, 16, 16))
    assert result.shape == (4, 48, 8, 8)
    assert 0.3 < result.std().item() < 1.2


@pytest.mark.parametrize("resolution", [64, 128, 256])
def test_patch_scores(resolution: int) -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(NARROW.mask_width, resolution)
    scores = judge(images(2, resolution))
    assert scores.shape == (2, 1, resolution // 16 + 1, resolution // 16 + 1)
    assert scores.dtype == torch.float32
    convolutions = [module for module in judge.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [4, 8, 16, 32, 1]
    assert sum(isinstance(module, nn.InstanceNorm2d) for module in judge.modules()) == 3


def test_patch_scores_of_the_smallest_tile_that_cannot_be_normed() -> None:
    judge = PatchDiscriminator(NARROW.mask_width, 16)
    assert torch.isfinite(judge(images(2, 16))).all()


def test_patch_scores_of_an_image_ignore_its_batch() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(NARROW.mask_width, 64)
    x = images(3, 64)
    with torch.no_grad():
        torch.testing.assert_close(judge(x)[1:2], judge(x[1:2]), rtol=1e-4, atol=1e-6)


def test_patch_scores_are_local() -> None:
    """Far corners: only the statistics of instance norm reach there, so without it nothing may change."""
    torch.manual_seed(0)
    judge = PatchDiscriminator(NARROW.mask_width, 256)
    for name, module in list(judge.layers.named_children()):
        if isinstance(module, nn.InstanceNorm2d):
            judge.layers[int(name)] = nn.Identity()
    x = images(1, 256)
    changed = x.clone()
    changed[..., :8, :8] *= -1
    with torch.no_grad():
        difference = (judge(x) - judge(changed)).abs()[0, 0]
    assert difference[0, 0] > 0
    assert difference[8:, 8:].max() == 0


@pytest.mark.parametrize("name", ["channel_base", "channel_max", "deviation_group", "mask_width"])
def test_settings_out_of_range(name: str) -> None:
    with pytest.raises(InputError, match=f"discriminator.{name} is 0"):
        DiscriminatorSettings(**{name: 0})


@pytest.mark.slow
@pytest.mark.parametrize("patches", [False, True])
def test_compiled_whole_it_gives_the_same_scores(patches: bool) -> None:
    settings = DiscriminatorSettings(channel_base=512, channel_max=16)
    network = PatchDiscriminator(8, 64) if patches else TissueDiscriminator(settings, 64)
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))
    compiled(images).sum().backward()
