"""Stains against scikit-image, against mixtures of known stains, and on tiles that hold none."""

import math

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed

from histo import stains
from histo.errors import InputError
from histo.randomness import draws

HAEMATOXYLIN = np.array([0.60, 0.72, 0.35])
EOSIN = np.array([0.15, 0.95, 0.27])


def noise(index: int, low: int = 1, size: int = 32) -> torch.Tensor:
    pixels = draws(0, "stains", index).integers(low, 256, (2, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(pixels)


def mixture(index: int, strength: float = 0.8, size: int = 96) -> tuple[torch.Tensor, np.ndarray]:
    """A tile whose pixels mix two known stains, and the unit rows of these two."""
    rng = draws(0, "mixture", index)
    rows = np.stack([HAEMATOXYLIN, EOSIN]) / np.linalg.norm([HAEMATOXYLIN, EOSIN], axis=1, keepdims=True)
    amounts = rng.beta(0.4, 0.4, (size * size, 1)) * rng.uniform(0.6, 1.4, (size * size, 1))
    amounts = np.concatenate([amounts, np.clip(1.2 - amounts, 0, None)], axis=1) * strength
    pixels = (240 * 10 ** -(amounts @ rows)).round().clip(0, 255).astype(np.uint8)
    return torch.from_numpy(pixels.T.reshape(1, 3, size, size)), rows


def angle(one: np.ndarray, other: np.ndarray) -> float:
    return math.degrees(math.acos(min(1.0, float(one @ other))))


def test_concentrations_agree_with_scikit_image_up_to_its_unit() -> None:
    images = noise(0)
    ours = stains.concentrations(images).clamp(min=0) / 6
    theirs = rgb2hed(images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1).numpy(), theirs, atol=1e-5)


def test_recomposition_agrees_with_scikit_image_within_one_level() -> None:
    amounts = torch.from_numpy(draws(0, "amounts", 0).uniform(0, 0.6, (2, 3, 16, 16)).astype(np.float32))
    ours = stains.recompose(amounts).permute(0, 2, 3, 1).numpy().astype(float)
    theirs = hed2rgb(amounts.permute(0, 2, 3, 1).numpy() / 6) * 255
    assert np.abs(ours - theirs).max() <= 1


def test_deconvolution_and_recomposition_invert_each_other_for_any_matrix() -> None:
    images = noise(1)
    matrices = stains.fixed_matrix() + torch.from_numpy(
        draws(0, "matrices", 0).uniform(-0.05, 0.05, (2, 3, 3)).astype(np.float32)
    )
    for matrix in (None, stains.fixed_matrix(), matrices):
        again = stains.recompose(stains.concentrations(images, matrix), matrix)
        assert (again.int() - images.int()).abs().max() <= 1


def test_concentrations_of_a_known_mixture_are_its_amounts() -> None:
    amounts = torch.tensor([0.7, 0.4, 0.0]).reshape(1, 3, 1, 1)
    found = stains.concentrations(stains.recompose(amounts))
    torch.testing.assert_close(found, amounts, atol=0.02, rtol=0)


def test_optical_density_has_its_closed_form_at_white_and_black() -> None:
    levels = torch.tensor([255, 24, 0], dtype=torch.uint8).reshape(1, 3, 1, 1)
    expected = torch.tensor([0.0, -math.log10(24 / 255), math.log10(255)]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(stains.optical_density(levels), expected)


def test_macenko_finds_both_stains_of_a_mixture() -> None:
    image, rows = mixture(0)
    estimate = stains.macenko(image)
    assert estimate.ok.tolist() == [True]
    assert angle(estimate.matrices[0, 0].numpy(), rows[0]) < 3
    assert angle(estimate.matrices[0, 1].numpy(), rows[1]) < 3
    torch.testing.assert_close(estimate.matrices[0].norm(dim=1), torch.ones(3))
    torch.testing.assert_close(estimate.matrices[0, 2] @ estimate.matrices[0, :2].T, torch.zeros(2), atol=1e-5, rtol=0)


def test_macenko_agrees_with_a_plain_loop() -> None:
    image, _ = mixture(1)
    density = -np.log10(np.maximum(image[0].numpy().reshape(3, -1).T, 1) / 240)
    tissue = density[density.mean(axis=1) >= 0.15]
    plane = np.linalg.eigh(np.cov(tissue.T, bias=True))[1][:, [2, 1]]
    plane *= np.where(tissue.mean(axis=0) @ plane < 0, -1, 1)
    angles = np.arctan2(*(tissue @ plane).T[::-1])
    ends = [plane @ [np.cos(a), np.sin(a)] for a in np.percentile(angles, [1, 99], method="nearest")]
    ends.sort(key=lambda row: -row[0])
    np.testing.assert_allclose(stains.macenko(image).matrices[0, :2].numpy(), ends, atol=1e-4)


def test_macenko_takes_the_lower_threshold_on_pale_tiles() -> None:
    image, rows = mixture(2, strength=0.2)
    density = stains.optical_density(image, white=240).mean(dim=1)
    assert (density >= 0.15).float().mean() < 0.05 <= (density >= 0.10).float().mean()
    estimate = stains.macenko(image)
    assert estimate.ok.tolist() == [True]
    assert angle(estimate.matrices[0, 0].numpy(), rows[0]) < 12


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (180, 90, 160), (20, 60, 200), (128, 128, 128)])
def test_macenko_falls_back_on_a_single_colour(colour: tuple[int, int, int]) -> None:
    image = torch.tensor(colour, dtype=torch.uint8).reshape(1, 3, 1, 1).repeat(1, 1, 40, 40)
    estimate = stains.macenko(image)
    assert estimate.ok.tolist() == [False]
    torch.testing.assert_close(estimate.matrices[0], stains.fixed_matrix())


def test_macenko_falls_back_on_pen_and_sparse_tissue_without_touching_the_neighbours() -> None:
    tile, _ = mixture(3)
    pen = torch.full_like(tile, 250)
    rng = draws(0, "pen", 0)
    for channel, levels in enumerate([(0, 20), (60, 160), (20, 160)]):
        pen[0, channel, 20:60] = torch.from_numpy(rng.integers(*levels, (40, tile.shape[3]), dtype=np.uint8))
    sparse = torch.full_like(tile, 250)
    sparse[..., :4, :40] = tile[..., :4, :40]
    estimate = stains.macenko(torch.cat([sparse, tile, pen]))
    assert estimate.ok.tolist() == [False, True, False]
    torch.testing.assert_close(estimate.matrices[1], stains.macenko(tile).matrices[0])


def test_wrong_images_are_refused_with_a_sentence() -> None:
    with pytest.raises(InputError, match=r"uint8 of shape \[N, 3, H, W\]"):
        stains.concentrations(torch.rand(1, 3, 8, 8))
