"""A linear layer on features: it reaches the closed form, stops early, and repeats itself."""

import pytest
import torch

from downstream.linear import LinearSettings, fit
from histo.errors import InputError


def problem(seed: int, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes of normal features, one standard deviation apart in four of eight directions."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(count) % 2
    features = torch.randn(count, 8, generator=generator)
    features[:, :4] += numbers[:, None]
    return features, numbers


def test_the_layer_is_that_of_linear_discriminant_analysis() -> None:
    """With equal spread everywhere the best weights lie along the difference of the means: (1, 1, 1, 1, 0, 0, 0, 0)."""
    features, numbers = problem(0, 4000)
    found = fit(features, numbers, 2, LinearSettings(steps=3000, learning_rate=3e-3), 0)
    direction = found.layer.weight[1] - found.layer.weight[0]
    wanted = torch.tensor([1.0] * 4 + [0.0] * 4)
    assert torch.cosine_similarity(direction, wanted, dim=0) > 0.99
    assert float(direction.norm()) == pytest.approx(2.0, rel=0.1)  # the log-odds' own slope
    test, truth = problem(1, 4000)
    accuracy = float((found.layer(test).argmax(1) == truth).float().mean())
    assert accuracy == pytest.approx(0.8413, abs=0.02)  # of two normal distributions two deviations apart


def test_it_stops_when_validation_no_longer_improves() -> None:
    features, numbers = problem(0, 40)
    noise = (torch.randn(60, 8, generator=torch.Generator().manual_seed(3)), torch.arange(60) % 2)
    found = fit(features, numbers, 2, LinearSettings(steps=2000, look_every=50, learning_rate=0.01), 0, noise)
    assert found.steps < 2000
    assert found.steps - found.best >= 400
    assert max(accuracy for _, accuracy in found.course) == dict(found.course)[found.best]
    accuracy = float((found.layer(noise[0]).argmax(1) == noise[1]).float().mean())
    assert accuracy == pytest.approx(dict(found.course)[found.best])


def test_a_seed_repeats_itself() -> None:
    features, numbers = problem(0)
    one, again, other = (fit(features, numbers, 2, LinearSettings(steps=50), seed).layer.weight for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_class_weights_move_the_border() -> None:
    features, numbers = problem(0)
    plain, heavy = (
        fit(features, numbers, 2, LinearSettings(steps=500, learning_rate=0.01), 0, weights=weights)
        .layer(features)
        .argmax(1)
        .sum()
        for weights in (None, torch.tensor([1.0, 5.0]))
    )
    assert heavy > 1.2 * plain


def test_the_focal_loss_is_learned_by() -> None:
    """Without focus it is cross-entropy; with it, what is right already counts less, so that weights stay smaller."""
    features, numbers = problem(0)
    settings = LinearSettings(steps=300, learning_rate=0.01)
    plain, blunt, sharp = (
        fit(features, numbers, 2, settings, 0, loss=loss, gamma=gamma).layer.weight
        for loss, gamma in (("cross_entropy", 2.0), ("focal", 0.0), ("focal", 4.0))
    )
    torch.testing.assert_close(plain, blunt, rtol=1e-3, atol=1e-4)
    assert sharp.norm() < 0.8 * plain.norm()


@pytest.mark.parametrize("change", [{"steps": 0}, {"learning_rate": 0.0}, {"patience": 0.0}])
def test_settings_out_of_range(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"linear.{next(iter(change))} is"):
        LinearSettings(**change)  # type: ignore[arg-type]
