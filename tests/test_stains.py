"""Stains against scikit-image, against mixtures of known stains, and on tiles that hold none."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from skimage.color import hed2rgb, rgb2hed
from stain_specimens import (
    EOSIN,
    HAEMATOXYLIN,
    angle,
    mixture,
    noise,
    odd_tiles,
    pen_tile,
    plain_tile,
    torchstain_macenko,
)

from histo import stains
from histo.errors import InputError
from histo.randomness import draws
from histo.stains import Status
from histo.stains.depth import from_optical_depth, map_depth, optical_depth
from histo.stains.factorisation import SPARSITY, amounts

Estimator = Callable[[torch.Tensor, int | None], stains.StainEstimate]


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


def test_macenko_agrees_with_torchstain() -> None:
    """One image at a time, in NumPy: the same stains to float precision, the same strengths."""
    images = torch.cat([mixture(k, strength)[0] for k, strength in enumerate([0.8, 0.5, 1.1])])
    # Where strength varies more than colour, the mean lies along the first axis: angles next to 0 or, turned, to ±π.
    rng = draws(0, "varying", 0)
    part = rng.beta(0.4, 0.4, (96 * 96, 1))
    depth = (part * HAEMATOXYLIN + (1 - part) * EOSIN) * rng.uniform(0.9, 3, (96 * 96, 1))
    varying = torch.from_numpy((240 * np.exp(-depth)).astype(np.uint8).T.reshape(1, 3, 96, 96))
    images = torch.cat([images, varying])
    estimate = stains.macenko(images)
    assert estimate.ok.all()
    for k, image in enumerate(images.numpy()):
        pair, _, strongest = torchstain_macenko(image)
        np.testing.assert_allclose(estimate.matrices[k, :2].numpy(), pair, atol=2e-5)
        np.testing.assert_allclose(estimate.strengths[k].numpy(), strongest, rtol=1e-4)


def test_macenko_takes_the_lower_threshold_on_pale_tiles() -> None:
    image = torch.full((1, 3, 96, 96), 245, dtype=torch.uint8)
    red, green, blue = [(208, 214), (140, 196), (190, 206)]  # red alone has a depth below 0.15, of 0.11 to 0.14
    levels = [
        draws(0, "pale", k).integers(*ends, (24, 96), dtype=np.uint8) for k, ends in enumerate([red, green, blue])
    ]
    image[0, :, :24] = torch.from_numpy(np.stack(levels))
    estimate = stains.macenko(image)
    assert estimate.status.tolist() == [Status.PALE]
    pair = torchstain_macenko(image[0].numpy(), beta=0.10)[0]
    np.testing.assert_allclose(estimate.matrices[0, :2].numpy(), pair, atol=2e-5)


@pytest.mark.parametrize("estimate", [stains.macenko, stains.vahadane])
def test_estimates_know_neither_order_nor_brightness_nor_neighbours(estimate: Estimator) -> None:
    images = torch.cat([mixture(k, strength)[0] for k, strength in enumerate([0.8, 0.5, 1.1])])
    together = estimate(images, None)
    for k in range(3):
        alone = estimate(images[k : k + 1], None)
        for field, whole in zip(alone, together, strict=True):
            torch.testing.assert_close(field[0], whole[k], atol=1e-5, rtol=1e-4)
    order = torch.from_numpy(draws(0, "order", 0).permutation(96 * 96))
    shuffled = estimate(images.flatten(2)[:, :, order].view_as(images), None)
    for field, whole in zip(shuffled, together, strict=True):
        torch.testing.assert_close(field, whole, atol=1e-5, rtol=1e-4)


def test_twice_the_stain_is_twice_as_strong_and_of_the_same_colour() -> None:
    """In floats, without rounding and without glass, so that the tissue is the same."""
    depth = optical_depth(mixture(0, 0.5)[0].clamp(max=190))
    single, double = (stains.macenko(from_optical_depth(times * depth, torch.float32)) for times in (1, 2))
    torch.testing.assert_close(double.matrices, single.matrices, atol=1e-3, rtol=0)
    torch.testing.assert_close(double.strengths, 2 * single.strengths, atol=0, rtol=2e-3)


def test_vahadane_finds_both_stains_of_a_mixture() -> None:
    """Sparsity costs some degrees: less than 3 of the more than 20° between the stains."""
    image, rows = mixture(0)
    estimate = stains.vahadane(image, None)
    assert estimate.status.tolist() == [Status.NORMAL]
    assert angle(rows[0], rows[1]) > 20
    assert angle(estimate.matrices[0, 0].numpy(), rows[0]) < 3
    assert angle(estimate.matrices[0, 1].numpy(), rows[1]) < 3


@pytest.mark.parametrize("sparsity", [0.0, 0.1])
def test_amounts_solve_their_problem_as_scipy_does(sparsity: float) -> None:
    pair = np.stack([HAEMATOXYLIN, EOSIN]) / np.linalg.norm([HAEMATOXYLIN, EOSIN], axis=1, keepdims=True)
    depth = draws(0, "depths", 0).normal(0.2, 0.5, (3, 300))
    found = amounts(torch.from_numpy(depth)[None], torch.from_numpy(pair)[None], sparsity)[0].numpy()
    # ½ ‖v - Wᵀh‖² + λ Σ h is least squares with a shifted right side: W Wᵀ h = W v - λ.
    root = np.linalg.cholesky(pair @ pair.T).T
    for k in range(300):
        expected = nnls(root, np.linalg.solve(root.T, pair @ depth[:, k] - sparsity))[0]
        np.testing.assert_allclose(found[:, k], expected, atol=1e-6)
    assert (found == 0).any()
    assert (found > 0).all(axis=0).any()


def test_the_factorisation_lowers_what_it_minimises() -> None:
    image, _ = mixture(3)
    depth = optical_depth(image).flatten(2).clamp(min=0)
    start = torch.nn.functional.normalize(stains.fixed_matrix()[:2], dim=1)[None]
    found = stains.vahadane(image, None).matrices[:, :2]

    def loss(pair: torch.Tensor) -> float:
        codes = amounts(depth, pair, SPARSITY)
        misfit = (depth - torch.bmm(pair.mT, codes)).square().sum() / 2
        return float(misfit + SPARSITY * codes.sum())

    assert loss(found) < 0.97 * loss(start)
    rng = draws(0, "nearby", 0)
    for _ in range(8):
        nearby = (found + torch.from_numpy(rng.normal(0, 0.03, (1, 2, 3))).float()).clamp(min=0)
        assert loss(found) < loss(torch.nn.functional.normalize(nearby, dim=2))


@pytest.mark.parametrize("estimate", [stains.macenko, stains.vahadane])
def test_odd_tiles_get_a_status_and_a_usable_matrix(estimate: Estimator) -> None:
    found = estimate(odd_tiles(), None)
    expected = [Status.NORMAL, Status.GLASS, *[Status.ONE_COLOUR] * 3, Status.NO_STAIN, *[Status.NOT_FINITE] * 3]
    assert found.status[:9].tolist() == expected
    assert found.status[9] >= Status.GLASS
    torch.testing.assert_close(found.matrices[1:], stains.fixed_matrix().expand(9, 3, 3))
    assert found.matrices.isfinite().all()
    assert found.strengths.isfinite().all()


def test_no_images_have_no_stains() -> None:
    assert len(stains.macenko(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)).status) == 0
    assert stains.macenko(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).status.tolist() == [Status.ONE_COLOUR]


def test_a_quick_estimate_is_close_to_that_of_all_pixels() -> None:
    image, _ = mixture(0, size=256)
    quick, exact = stains.macenko(image, 7000), stains.macenko(image)
    for k in range(2):
        assert angle(quick.matrices[0, k].numpy(), exact.matrices[0, k].numpy()) < 1
    assert not torch.equal(quick.matrices, exact.matrices)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (180, 90, 160), (20, 60, 200), (128, 128, 128)])
def test_macenko_falls_back_on_a_single_colour(colour: tuple[int, int, int]) -> None:
    estimate = stains.macenko(plain_tile(colour))
    assert estimate.ok.tolist() == [False]
    torch.testing.assert_close(estimate.matrices[0], stains.fixed_matrix())


def test_macenko_falls_back_on_pen_and_sparse_tissue_without_touching_the_neighbours() -> None:
    tile, _ = mixture(3)
    sparse = torch.full_like(tile, 250)
    sparse[..., :4, :40] = tile[..., :4, :40]
    estimate = stains.macenko(torch.cat([sparse, tile, pen_tile()]))
    assert estimate.status.tolist() == [Status.GLASS, Status.NORMAL, Status.NO_STAIN]
    torch.testing.assert_close(estimate.matrices[1], stains.macenko(tile).matrices[0])


def test_wrong_images_are_refused_with_a_sentence() -> None:
    with pytest.raises(InputError, match=r"uint8 of shape \[N, 3, H, W\]"):
        stains.concentrations(torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"or float with levels of 0 to 255, of shape \[N, 3, H, W\]"):
        stains.macenko(torch.zeros(3, 8, 8))


def test_maps_of_optical_depth_are_what_they_say() -> None:
    images, rng = noise(4), draws(0, "maps", 0)
    matrix, shift = (torch.from_numpy(rng.uniform(-0.3, 0.9, shape)) for shape in ((2, 3, 3), (2, 3)))
    depth = -np.log((images.numpy().astype(float) + 1) / 240)
    moved = np.einsum("nchw,ncd->ndhw", depth, matrix.numpy()) + shift.numpy()[:, :, None, None]
    expected = np.clip(240 * np.exp(-moved) - 1, 0, 255)
    np.testing.assert_allclose(map_depth(images.float(), matrix, shift).numpy(), expected, atol=2e-3)
    assert np.abs(map_depth(images, matrix, shift).numpy() - expected).max() < 0.51
    assert torch.equal(map_depth(images, torch.eye(3).expand(2, 3, 3)), images)


def test_blocks_of_pixels_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(5)
    matrix = torch.from_numpy(draws(0, "blocks", 0).uniform(0, 0.6, (2, 3, 3)))
    whole = map_depth(images, matrix)
    monkeypatch.setattr("histo.stains.depth.BLOCK", 74)
    torch.testing.assert_close(map_depth(images, matrix), whole, atol=1, rtol=0)
