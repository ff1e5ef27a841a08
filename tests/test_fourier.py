"""Fourier style transfer: identities, amplitudes and phases of what comes out, and levels."""

import numpy as np
import pytest
import torch

from histo.randomness import draws
from pretrain.fourier import Spectra, spectra, transfer_spectra

SIDE = 64
REACH = 3  # round(0.05 · 64)


def tiles(index: int, count: int = 3) -> torch.Tensor:
    """Smooth noise between the levels 90 and 170, so that nothing is clipped."""
    levels = draws(0, "fourier", index).uniform(90, 170, (count, 3, SIDE, SIDE))
    return torch.from_numpy((levels + np.roll(levels, 1, 3) + np.roll(levels, 1, 2)) / 3).float()


def low() -> torch.Tensor:
    """bool [S, S]: the low frequencies of the whole transform."""
    turns = torch.fft.fftfreq(SIDE, 1 / SIDE).abs()
    return (turns[:, None] <= REACH) & (turns[None] <= REACH)


def test_an_image_in_its_own_style_is_itself() -> None:
    images = tiles(0)
    torch.testing.assert_close(transfer_spectra(images, spectra(images)), images, rtol=0, atol=1e-3)
    whole = images.round().byte()
    assert torch.equal(transfer_spectra(whole, spectra(whole)), whole)


def test_low_amplitudes_are_the_targets_and_all_else_is_kept() -> None:
    images, target = tiles(0), tiles(1, count=1)
    before, wanted, after = (torch.fft.fft2(x) for x in (images, target, transfer_spectra(images, spectra(target))))
    band = low()
    assert band.sum() == 49
    torch.testing.assert_close(after.abs()[..., band], wanted.abs()[..., band].expand(3, 3, -1), rtol=1e-3, atol=0.1)
    torch.testing.assert_close(after[..., ~band], before[..., ~band], rtol=1e-3, atol=0.1)
    turn = (after / before)[..., band]
    torch.testing.assert_close(turn.angle(), torch.zeros_like(turn.angle()), rtol=0, atol=1e-3)


def test_the_mean_colour_is_the_targets() -> None:
    images, target = tiles(0), tiles(1, count=1) * torch.tensor([1.0, 0.7, 1.2]).view(1, 3, 1, 1)
    found = transfer_spectra(images, spectra(target)).mean(dim=(2, 3))
    torch.testing.assert_close(found, target.mean(dim=(2, 3)).expand(3, 3), rtol=0, atol=0.05)


def test_each_image_can_have_a_target_of_its_own() -> None:
    images, targets = tiles(0), tiles(1)
    together = transfer_spectra(images, spectra(targets))
    for k in range(3):
        alone = transfer_spectra(images[k : k + 1], spectra(targets[k : k + 1]))
        torch.testing.assert_close(together[k], alone[0])


@pytest.mark.parametrize("colour", [0, 255])
def test_plain_images_and_extreme_targets_stay_within_levels(colour: int) -> None:
    plain = torch.full((2, 3, SIDE, SIDE), colour, dtype=torch.uint8)
    noise = torch.from_numpy(draws(0, "fourier", 9).integers(0, 256, (2, 3, SIDE, SIDE), dtype=np.uint8))
    for one, other in ((plain, noise), (noise, plain), (plain, plain)):
        found = transfer_spectra(one.float(), spectra(other))
        assert found.isfinite().all()
        assert 0 <= found.min() <= found.max() <= 255
    assert isinstance(spectra(noise), Spectra)
    assert transfer_spectra(noise, spectra(plain)).dtype == torch.uint8
