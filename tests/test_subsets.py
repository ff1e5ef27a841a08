"""Subsets of labels: nested, stratified, of few patients, and refused where a class would have none."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from downstream.subsets import growing_order, labelled_subset
from histo.errors import InputError

PATIENTS = [f"p{k // 6}" for k in range(120)]  # 20 patients of 6 tiles
LABELS = ["rare" if k // 6 % 5 == 0 else "often" for k in range(120)]  # a fifth of the patients is rare


@pytest.mark.parametrize("labels", [LABELS, None])
@pytest.mark.parametrize("seed", [0, 1])
def test_smaller_sets_lie_inside_larger_ones(labels: list[str] | None, seed: int) -> None:
    sets = [
        set(labelled_subset(PATIENTS, labels, fraction=share, seed=seed).tolist())
        for share in (0.02, 0.1, 0.11, 0.5, 1)
    ]
    assert all(one < other for one, other in pairwise(sets))
    assert [len(one) for one in sets] == [2, 12, 13, 60, 120]


def test_every_beginning_is_stratified() -> None:
    order = growing_order(PATIENTS, LABELS, 3)
    assert sorted(order) == list(range(120))
    for count in range(2, 121):
        rare = Counter(LABELS[k] for k in order[:count])["rare"]
        assert rare >= 1
        assert abs(rare - count / 5) <= 1 + (count < 10)  # the first rare tile comes early


def test_patients_come_one_after_the_other() -> None:
    """Twelve tiles are two patients where one by one in a random order they would be about ten."""
    assert len({PATIENTS[k] for k in growing_order(PATIENTS, None, 0)[:12]}) == 2
    by_class = labelled_subset(PATIENTS, LABELS, images=30, seed=0)
    assert len({PATIENTS[k] for k in by_class}) == 5  # 24 of four patients, 6 of one rare one


def test_seeds_differ_and_repeat() -> None:
    one, again, other = (labelled_subset(PATIENTS, LABELS, images=12, seed=seed).tolist() for seed in (0, 0, 1))
    assert one == again != other


def test_tiles_of_unknown_patient_stand_alone() -> None:
    order = growing_order([None] * 50 + ["p"] * 50, None, 0)
    places = np.flatnonzero(order >= 50)
    assert places.tolist() == list(range(places[0], places[0] + 50))  # the patient's are together


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"images": 121}, "label_images is 121, expected at most 120"),
        ({"images": 1}, "leaves 1 for 2 classes.*give 2 or more"),
        ({"fraction": 0.001}, r"label_fraction 0.001 of 120 tiles leaves 1 for 2 classes.*give 0.017 or more"),
    ],
)
def test_refusals(asked: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        labelled_subset(PATIENTS, LABELS, **asked)  # type: ignore[arg-type]
