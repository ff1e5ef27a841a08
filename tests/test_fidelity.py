"""Fréchet distance against closed forms and torchmetrics, KID against a double loop, stains against scipy."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from histo.errors import InputError
from histo.randomness import draws
from histo.stains import HED, concentrations, optical_density, recompose
from translate import staining
from translate.fidelity import Kept, Moments, frechet, kid, mean_pairwise_distance, refuse_few
from translate.staining import Staining, stain_distance


def normal(index: int, *shape: int) -> Tensor:
    return torch.from_numpy(draws(0, "fidelity", index).standard_normal(shape))


def gaussian(mean: Tensor, covariance: Tensor, count: int = 5) -> Moments:
    return Moments(count, mean.double(), covariance.double() * (count - 1))


def test_gaussians_that_commute() -> None:
    """Covariances with the same axes: |m₁ - m₂|² + Σ (σ₁ - σ₂)², σ being the standard deviations."""
    axes = torch.linalg.qr(normal(0, 6, 6)).Q
    first, second = torch.tensor([[0, 0.5, 1, 2, 3, 40], [1, 0, 1, 5, 2, 0.01]], dtype=torch.float64)
    covariances = [axes @ torch.diag(deviation.square()) @ axes.T for deviation in (first, second)]
    means = normal(1, 2, 6)
    expected = (means[0] - means[1]).square().sum() + (first - second).square().sum()
    assert frechet(gaussian(means[0], covariances[0]), gaussian(means[1], covariances[1])) == pytest.approx(
        float(expected), rel=1e-10
    )


def test_gaussians_of_two_dimensions_at_an_angle() -> None:
    """For 2 x 2 matrices tr((Σ₁ Σ₂)^½) = √(tr(Σ₁ Σ₂) + 2 √(det Σ₁ det Σ₂))."""
    covariances = [a @ a.T for a in normal(2, 2, 2, 2)]
    product = covariances[0] @ covariances[1]
    shared = (product.trace() + 2 * (covariances[0].det() * covariances[1].det()).sqrt()).sqrt()
    expected = float(covariances[0].trace() + covariances[1].trace() - 2 * shared)
    zero = torch.zeros(2)
    assert expected > 0.1
    assert frechet(*(gaussian(zero, covariance) for covariance in covariances)) == pytest.approx(expected, rel=1e-10)


def test_degenerate_gaussians() -> None:
    """Rank one: variance along a, and along b, where the roots overlap by |a·b|; and points."""
    a, b = normal(3, 2, 5)
    zero = torch.zeros(5)
    expected = float(a @ a + b @ b - 2 * (a @ b).abs())
    lines = [gaussian(zero, torch.outer(v, v)) for v in (a, b)]
    assert frechet(*lines) == pytest.approx(expected, rel=1e-9)
    points = [gaussian(v, torch.zeros(5, 5)) for v in (a, b)]
    assert frechet(*points) == pytest.approx(float((a - b).square().sum()), rel=1e-12)


@pytest.mark.parametrize(("count", "width"), [(500, 32), (20, 200)])
def test_a_set_is_at_no_distance_from_itself(count: int, width: int) -> None:
    features = normal(4, count, width) * 3 + 100
    moments = Moments.of(features)
    shuffled = Moments.of(features[torch.from_numpy(draws(0, "shuffle", 0).permutation(count))])
    assert frechet(moments, moments) <= 1e-6
    assert frechet(moments, shuffled) <= 1e-6
    assert frechet(moments, Moments.of(features + 0.1)) == pytest.approx(0.01 * width, abs=1e-6)


def test_moments_of_parts_add_up() -> None:
    features = normal(5, 103, 7) * 0.01 + 1e4  # sums of squares would lose this variance in float32
    whole = Moments.of(features)
    ends = [0, 1, 2, 50, 100, 103]
    parts = [Moments.of(features[first:last]) for first, last in pairwise(ends)]
    for order in (parts, parts[::-1]):
        total = order[0]
        for part in order[1:]:
            total = total + part
        assert total.count == 103
        torch.testing.assert_close(total.mean, features.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(total.covariance, torch.cov(features.T), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(whole.covariance, torch.cov(features.T), rtol=1e-9, atol=1e-15)


def test_torchmetrics_agrees() -> None:
    """Its metric takes any module: one that hands features through."""
    metric = FrechetInceptionDistance(feature=_Identity(), normalize=True).set_dtype(torch.float64)
    real, generated = normal(6, 300, 12), normal(7, 200, 12) * 1.3 + 0.2
    metric.update(real, real=True)
    metric.update(generated, real=False)
    assert frechet(Moments.of(real), Moments.of(generated)) == pytest.approx(float(metric.compute()), rel=1e-6)


class _Identity(nn.Module):
    num_features = 12

    def forward(self, x: Tensor) -> Tensor:
        return x


def slow_mmd2(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> float:
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    own = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kid_of_whole_sets_is_the_double_loop() -> None:
    real, generated = normal(8, 9, 4), normal(9, 9, 4) + 0.5
    found = kid(real, generated)
    assert found.mean == pytest.approx(slow_mmd2(real, generated), rel=1e-10)
    assert (found.subsets, found.size, found.deviation) == (1, 9, None)


def test_kid_over_subsets_draws_without_replacement() -> None:
    """Of ten vectors, of which nine are one point, subsets of nine hold that point eight times or nine."""
    real = torch.zeros(10, 2)
    real[3] = 5
    generated = torch.ones(9, 2)
    possible = {round(slow_mmd2(real[list(rows)], generated), 9) for rows in combinations(range(10), 9)}
    found = kid(real, generated, size=9, subsets=40)
    assert len(possible) == 2
    assert min(possible) < found.mean < max(possible)
    assert found.deviation is not None
    assert found.deviation > 0
    assert (found.subsets, found.size) == (40, 9)


def test_kid_has_no_bias() -> None:
    """Sets of one distribution: 0 within the error of 400 estimates, though each is of only 8 vectors."""
    values = [kid(normal(100 + k, 8, 3), normal(600 + k, 8, 3)).mean for k in range(400)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0
    assert kid(normal(8, 400, 3), normal(9, 400, 3) + 1, 200, 5).mean > 20 * error


def test_kid_repeats_itself() -> None:
    real, generated = normal(10, 30, 4), normal(11, 25, 4)
    assert kid(real, generated, 10, 3, seed=1) == kid(real, generated, 10, 3, seed=1)
    assert kid(real, generated, 10, 3, seed=1).mean != kid(real, generated, 10, 3, seed=2).mean
    assert kid(real, generated, 1000).size == 25


def test_what_is_kept_depends_on_the_indices_alone() -> None:
    features = torch.arange(200.0)[:, None].expand(-1, 3)
    one, first, second = (Kept(5, most=20) for _ in range(3))
    for start in range(0, 200, 7):
        one.add(features[start : start + 7], range(start, min(start + 7, 200)))
    second.add(features[150:], range(150, 200))
    first.add(features[:150], range(150))
    second.merge(first)
    assert len(one) == len(second) == 20
    assert torch.equal(one.features, second.features)
    assert len(set(one.features[:, 0].tolist())) == 20
    assert one.features[:, 0].max() > 100  # not simply the first
    few = Kept(5)
    few.add(features[:6], range(6))
    assert torch.equal(few.features, features[:6])


def test_diversity() -> None:
    vectors = normal(12, 5, 6)
    pairs = list(combinations(vectors, 2))
    for norm in (1, 2):
        expected = sum(float(torch.linalg.vector_norm(a - b, norm)) for a, b in pairs) / len(pairs)
        assert mean_pairwise_distance(vectors, norm) == pytest.approx(expected, rel=1e-12)
    assert mean_pairwise_distance(torch.full((4, 6), 200, dtype=torch.uint8), 1) == 0


@pytest.mark.parametrize(
    ("real", "generated", "force", "words"),
    [
        (2, 2, False, r"There are 2 real images for 64 features.*--force"),
        (64, 63, False, r"There are 63 generated images for 64 features"),
        (1, 64, True, r"There is 1 real image, expected 2 or more"),
        (64, 0, True, r"There is 0 generated image"),
    ],
)
def test_too_few_images(real: int, generated: int, force: bool, words: str) -> None:
    with pytest.raises(InputError, match=words):
        refuse_few(real, generated, 64, force)


def test_enough_images() -> None:
    refuse_few(64, 64, 64, False)
    refuse_few(2, 2, 64, True)


def test_features_that_are_not_finite() -> None:
    with pytest.raises(InputError, match="not finite"):
        frechet(Moments.of(torch.full((3, 2), torch.nan)), Moments.of(normal(0, 3, 2)))
    with pytest.raises(InputError, match="got 1 image"):
        frechet(Moments.of(normal(0, 1, 2)), Moments.of(normal(0, 3, 2)))


def tissue(index: int, haematoxylin: float, eosin: float, count: int = 4) -> Tensor:
    """Tiles of random amounts of the two stains up to these, half of their pixels white."""
    generator = draws(1, "tissue", index)
    amounts = generator.uniform(0.2, 1, (count, 3, 32, 32)) * np.array([haematoxylin, eosin, 0])[:, None, None]
    images = recompose(torch.from_numpy(amounts.astype(np.float32)))
    images[..., :16] = 255
    return images


def stained_pixels(images: Tensor) -> Tensor:
    """[P, 2]"""
    return concentrations(images).movedim(1, -1)[optical_density(images).mean(1) >= 0.15][:, :2]


def test_stains_against_scipy() -> None:
    real, generated = tissue(0, 0.9, 0.5), tissue(1, 0.5, 0.6, count=3)
    found = stain_distance(Staining.of(real), Staining.of(generated))
    pixels = [stained_pixels(images).numpy() for images in (real, generated)]
    for k, stain in enumerate(("haematoxylin", "eosin")):
        expected = wasserstein_distance(pixels[0][:, k], pixels[1][:, k])
        assert found[stain] == pytest.approx(expected, abs=staining.BIN)
    assert found["haematoxylin"] > 0.15
    assert found["eosin"] < 0.1


def test_stain_statistics_leave_white_out_and_add_up() -> None:
    images = tissue(2, 0.9, 0.5)
    whole = Staining.of(images)
    total = Staining.of(images[:1]) + Staining.of(images[1:])
    pixels = stained_pixels(images).double()
    assert whole.pixels == len(pixels) <= 4 * 32 * 16
    assert torch.equal(total.counts, whole.counts)
    torch.testing.assert_close(total.mean, pixels.mean(0))
    torch.testing.assert_close(total.deviation, pixels.std(0, correction=0))
    assert stain_distance(whole, total) == {"haematoxylin": 0, "eosin": 0}


def test_more_of_a_stain_is_as_far_as_there_is_more() -> None:
    flat = torch.zeros(1, 3, 8, 8)
    pale, dark = flat.clone(), flat.clone()
    pale[:, 0], dark[:, 0] = 0.5, 0.9
    found = stain_distance(Staining.of(recompose(pale)), Staining.of(recompose(dark)))
    assert found["haematoxylin"] == pytest.approx(0.4, abs=0.02)
    assert found["eosin"] == pytest.approx(0, abs=0.02)


def test_no_tissue_has_no_distance() -> None:
    white = Staining.of(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8))
    assert white.pixels == 0
    assert stain_distance(white, Staining.of(tissue(3, 0.9, 0.5))) == {"haematoxylin": None, "eosin": None}


def test_every_colour_lies_within_the_bins() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0, 255], dtype=torch.uint8)] * 3)
    amounts = concentrations(corners[:, :, None, None])[:, :2]
    assert len(HED) == 3
    assert staining.LOW <= amounts.min() < staining.LOW + 2 * staining.BIN
    assert staining.HIGH - 2 * staining.BIN < amounts.max() <= staining.HIGH
