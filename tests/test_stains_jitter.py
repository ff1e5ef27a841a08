"""HED jitter and stain augmentation against their formulas, and on tiles that hold no stain."""

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed
from stain_specimens import mixture, noise, odd_tiles

from histo import stains
from histo.errors import InputError
from histo.stains import Jitter, Status


def test_jitter_is_pure_in_seed_stream_and_index() -> None:
    together = stains.draw_jitter(3, "stains", [5, 900, 7], 0.2, 0.05)
    for k, index in enumerate([5, 900, 7]):
        alone = stains.draw_jitter(3, "stains", [index], 0.2, 0.05)
        assert torch.equal(alone.scale[0], together.scale[k])
        assert torch.equal(alone.shift[0], together.shift[k])
    assert not torch.equal(together.scale, stains.draw_jitter(4, "stains", [5, 900, 7], 0.2, 0.05).scale)


def test_jitter_is_uniform_in_its_ranges() -> None:
    scale, shift = stains.draw_jitter(0, "ranges", list(range(2000)), 0.2, 0.05)
    for values, middle, reach in ((scale, 1, 0.2), (shift, 0, 0.05)):
        assert values.shape == (2000, 3)
        assert (values - middle).abs().max() <= reach + 1e-6
        assert (values - middle).abs().max() > 0.99 * reach
        np.testing.assert_allclose(values.std(dim=0), reach / np.sqrt(3), rtol=0.05)
    assert stains.draw_jitter(0, "none", [], 0.2, 0.05).scale.shape == (0, 3)


def test_hed_jitter_agrees_with_scikit_image() -> None:
    """Where no concentration is negative, since `rgb2hed` clips those."""
    hed = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.08 + 0.01
    images = torch.from_numpy(hed2rgb(hed.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2).float() * 255
    jitter = stains.draw_jitter(0, "hed", [0, 1], 0.2, 0.01)
    amounts = rgb2hed(images.permute(0, 2, 3, 1).numpy() / 255)
    changed = amounts * jitter.scale[:, None, None].numpy() + jitter.shift[:, None, None].numpy()
    expected = 255 * hed2rgb(changed)
    found = stains.jitter_hed(images, jitter).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - images.permute(0, 2, 3, 1).numpy()).mean() > 5
    assert np.abs(found - expected).max() < 1.5  # scikit-image's white is 255, (I + 1) / 256 here


def test_jitter_of_nothing_changes_nothing() -> None:
    images = noise(0, low=0)
    nothing = Jitter(torch.ones(2, 3), torch.zeros(2, 3))
    assert torch.equal(stains.jitter_hed(images, nothing), images)
    tile = mixture(0)[0]
    assert torch.equal(stains.augment_stains(tile, Jitter(torch.ones(1, 3), torch.zeros(1, 3))).images, tile)


def test_augmentation_scales_and_shifts_the_amounts_of_an_images_own_stains() -> None:
    tile = mixture(0)[0]
    tile[:, :, :10] = 245
    source = stains.macenko(tile)
    jitter = Jitter(torch.tensor([[1.2, 0.8, 5.0]]), torch.tensor([[0.004, -0.003, 5.0]]))
    found, status = stains.augment_stains(tile, jitter, source)
    assert status.tolist() == [Status.NORMAL]
    matrix = source.matrices[0].double().numpy()
    depth = -np.log((tile[0].numpy().reshape(3, -1).T.astype(float) + 1) / 240)
    amounts = depth @ np.linalg.inv(matrix) * [1.2, 0.8, 1] + np.array([0.004, -0.003, 0]) * np.log(1e6)
    expected = np.where(depth.mean(axis=1, keepdims=True) >= 0.15, 240 * np.exp(-amounts @ matrix) - 1, 245)
    assert np.abs(found[0].numpy() - expected.clip(0, 255).T.reshape(tile.shape[1:])).max() < 0.52


def test_odd_tiles_are_never_thrown_at() -> None:
    images = odd_tiles()
    jitter = stains.draw_jitter(0, "odd", list(range(len(images))), 0.2, 0.02)
    found, status = stains.augment_stains(images, jitter)
    assert status[0] == Status.NORMAL
    assert not torch.equal(found[0], images[0])
    torch.testing.assert_close(found[1:], images[1:], equal_nan=True, atol=0, rtol=0)
    hed = stains.jitter_hed(images, jitter)
    torch.testing.assert_close(hed[6:9], images[6:9], equal_nan=True, atol=0, rtol=0)
    assert hed[:6].isfinite().all()


def test_autocast_changes_nothing() -> None:
    images = torch.cat([mixture(0)[0], mixture(1)[0]])
    jitter = stains.draw_jitter(0, "cast", [0, 1], 0.2, 0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hed, own = stains.jitter_hed(images, jitter), stains.augment_stains(images, jitter).images
    assert torch.equal(hed, stains.jitter_hed(images, jitter))
    assert torch.equal(own, stains.augment_stains(images, jitter).images)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.1), (-0.1, 0.1), (0.1, -1.0), (float("nan"), 0.0)])
def test_impossible_ranges_are_refused_with_a_sentence(scale: float, shift: float) -> None:
    with pytest.raises(InputError, match="expected a scale from 0 to below 1"):
        stains.draw_jitter(0, "stains", [0], scale, shift)
