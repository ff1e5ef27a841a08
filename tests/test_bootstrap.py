"""Intervals of means: against the normal theory, and wider where images of a patient are alike."""

import numpy as np
import pytest

from histo.bootstrap import SAMPLES, balanced_interval, mean_interval
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


def test_balanced_scores_are_computed_anew_from_what_is_drawn() -> None:
    """Against a loop that draws patients, takes each class's recall, and their mean over the classes that it drew."""
    generator = draws(4, "test", 0)
    patients, classes = generator.integers(0, 7, 60), np.repeat(["many", "few"], [52, 8])
    right = (generator.random(60) < 0.7).astype(float)
    names = list(dict.fromkeys(patients.tolist()))
    drawn = draws(0, "bootstrap", 0).multinomial(7, np.full(7, 1 / 7), SAMPLES)
    slow = []
    for counts in drawn:
        often = np.array([counts[names.index(patient)] for patient in patients])
        kinds = [classes == kind for kind in ("many", "few")]
        slow.append(np.mean([(often * right)[kind].sum() / often[kind].sum() for kind in kinds if often[kind].sum()]))
    found = balanced_interval(right, classes.tolist(), patients.tolist())
    assert found == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_balanced_scores_of_a_perfect_classifier_have_no_width() -> None:
    """90 and 10 tiles of fifty patients, one class each: nothing above 1, though a draw may lack the small class."""
    classes, patients = ["a"] * 90 + ["b"] * 10, [k // 2 for k in range(100)]
    assert balanced_interval(np.ones(100), classes, patients) == (1, 1)
    low, high = balanced_interval(np.arange(100) < 90, classes, patients)
    assert 0.5 == low <= high <= 1
