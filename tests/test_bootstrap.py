"""Intervals of means: against the normal theory, and wider where images of a patient are alike."""

import numpy as np
import pytest

from histo.bootstrap import mean_interval
from histo.randomness import draws


def test_interval_of_independent_images_is_that_of_the_normal_theory() -> None:
    values = draws(1, "test", 0).normal(0.5, 0.1, (400, 2))
    low, high = mean_interval(values, range(400))
    error = values.std(0) / 20
    np.testing.assert_allclose(low, values.mean(0) - 1.96 * error, atol=0.15 * error.max())
    np.testing.assert_allclose(high, values.mean(0) + 1.96 * error, atol=0.15 * error.max())


def test_patients_are_drawn_whole() -> None:
    """Ten patients with forty like images each say as much as ten images."""
    of_patients = draws(2, "test", 0).normal(0.5, 0.1, 10)
    patients = np.repeat(np.arange(10), 40)
    values = of_patients[patients][:, None]
    low, high = mean_interval(values, [f"patient {k}" for k in patients])
    apart = mean_interval(values, range(400))
    ten = mean_interval(of_patients[:, None], range(10))
    assert (high - low).item() == pytest.approx((ten[1] - ten[0]).item())
    assert (high - low).item() > 4 * (apart[1] - apart[0]).item()


def test_means_weigh_images_and_not_patients() -> None:
    values = np.array([[1.0]] * 9 + [[0.0]])
    low, high = mean_interval(values, ["a"] * 9 + ["b"])
    assert (low.item(), high.item()) == (0, 1)
    low, high = mean_interval(values, ["a"] * 10)
    assert (low.item(), high.item()) == (0.9, 0.9)


def test_the_same_seed_gives_the_same_interval_whatever_patients_are_called() -> None:
    values = draws(3, "test", 0).random((30, 1))
    names = [k % 7 for k in range(30)]
    one, other = mean_interval(values, names), mean_interval(values, [f"TCGA-{k}" for k in names])
    assert one == other
    assert one != mean_interval(values, names, seed=1)
