"""Scores against loops over instance masks, hand-worked cases and published-style figures on real labels."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from histo.errors import InputError
from histo.masks import read_instances
from histo.metrics import InstanceScores, compare, mean_scores, overlap

DATA = os.environ.get("NUCLEATE_DATA")


def masks_of(instances):
    return [instances == nucleus for nucleus in sorted(set(instances.ravel().tolist()) - {0})]


def slow_scores(truth, prediction):
    """The definitions, mask by mask."""
    true_masks, predicted_masks = masks_of(truth), masks_of(prediction)
    if not true_masks or not predicted_masks:
        score = 1.0 if len(true_masks) == len(predicted_masks) else 0.0
        return InstanceScores(score, score, score, score, score, len(true_masks), len(predicted_masks), 0)
    intersection_sum = union_sum = 0
    taken, matched = set(), []
    for mask in true_masks:
        best = None
        for index, candidate in enumerate(predicted_masks):
            iou = (mask & candidate).sum() / (mask | candidate).sum()
            if iou > 0.5:
                matched.append(iou)
            if iou > 0 and (best is None or iou > best[0]):
                best = (iou, index)
        if best is None:
            union_sum += mask.sum()
        else:
            taken.add(best[1])
            intersection_sum += (mask & predicted_masks[best[1]]).sum()
            union_sum += (mask | predicted_masks[best[1]]).sum()
    union_sum += sum(mask.sum() for index, mask in enumerate(predicted_masks) if index not in taken)
    dq = len(matched) / (
        len(matched) + (len(true_masks) - len(matched)) / 2 + (len(predicted_masks) - len(matched)) / 2
    )
    sq = sum(matched) / len(matched) if matched else 0.0
    dice = 2 * ((truth > 0) & (prediction > 0)).sum() / ((truth > 0).sum() + (prediction > 0).sum())
    return InstanceScores(
        intersection_sum / union_sum, dq * sq, dq, sq, dice, len(true_masks), len(predicted_masks), len(matched)
    )


def assert_same(scores, expected):
    for name, value in vars(expected).items():
        assert getattr(scores, name) == pytest.approx(value, abs=1e-12), name


def disturbed_pair(seed):
    """Random cells, and the same cells with noise, renamed by a permutation with gaps."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2)
    cells = rng.integers(0, 8, (1 + height // 5, 1 + width // 5))
    truth = np.kron(cells, np.ones((5, 5), dtype=np.int64))[:height, :width]
    noisy = np.where(rng.random(truth.shape) < 0.3 * rng.random(), rng.integers(0, 8, truth.shape), truth)
    names = np.concatenate([[0], rng.permutation(50)[:7] + 1])
    return truth.astype(np.int32), names[noisy].astype(np.uint16)


@pytest.mark.parametrize("seed", range(60))
def test_scores_equal_slow_reference_on_random_maps(seed):
    truth, prediction = disturbed_pair(seed)
    assert_same(compare(truth, prediction), slow_scores(truth, prediction))


def test_random_maps_reach_every_regime():
    pairs = [compare(*disturbed_pair(seed)) for seed in range(60)]
    assert any(0 < pair.matched_nuclei < pair.true_nuclei for pair in pairs)
    assert any(pair.matched_nuclei == pair.true_nuclei > 1 for pair in pairs)


@pytest.mark.parametrize("scale", [1, 1_000, 200_000_000])
def test_ids_with_gaps_do_not_change_scores(scale):
    truth, prediction = disturbed_pair(3)
    renamed = truth.astype(np.int64) * scale
    assert_same(compare(renamed, prediction), slow_scores(truth, prediction))
    assert_same(compare(prediction, renamed), slow_scores(prediction, truth))


def test_more_nuclei_than_a_dense_table_takes():
    rng = np.random.default_rng(0)
    truth = rng.permutation(64).reshape(8, 8)
    prediction = np.where(rng.random((8, 8)) < 0.6, truth, rng.permutation(64).reshape(8, 8))
    assert_same(compare(truth, prediction), slow_scores(truth, prediction))


@pytest.mark.parametrize(
    ("truth", "prediction", "score"),
    [([[0, 0]], [[0, 0]], 1.0), ([[1, 0]], [[0, 0]], 0.0), ([[0, 0]], [[0, 7]], 0.0), ([[3]], [[9]], 1.0)],
)
def test_empty_maps_and_single_pixels(truth, prediction, score):
    scores = compare(np.array(truth), np.array(prediction))
    assert (scores.aji, scores.pq, scores.dq, scores.sq, scores.dice) == (score,) * 5


def test_disjoint_foregrounds_score_zero():
    scores = compare(np.array([[1, 1, 0, 0]]), np.array([[0, 0, 1, 1]]))
    assert (scores.aji, scores.pq, scores.sq, scores.dice) == (0.0, 0.0, 0.0, 0.0)


def test_prediction_may_serve_two_true_nuclei_in_aji():
    # Both true nuclei take the one prediction: (2 + 2) / (4 + 4); an IoU of exactly one half is no match.
    scores = compare(np.array([[1, 1, 2, 2]]), np.array([[5, 5, 5, 5]]))
    assert scores.aji == pytest.approx(0.5)
    assert scores.matched_nuclei == 0


def test_aji_takes_the_best_iou_not_the_largest_intersection():
    # The long prediction shares 3 pixels at IoU 3/12, the short one 2 at IoU 2/5; the long one is left over.
    truth = np.array([[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
    prediction = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]])
    assert compare(truth, prediction).aji == pytest.approx(2 / (5 + 10))


def test_missed_nuclei_add_to_the_union_of_aji():
    assert compare(np.array([[1, 0, 2, 2]]), np.array([[1, 0, 0, 0]])).aji == pytest.approx(1 / 3)


def test_overlap_table_by_hand():
    table = overlap(np.array([[4, 4, 9, 0]]), np.array([[0, 2, 2, 7]]))
    assert table.truth_areas.tolist() == [2, 1]
    assert table.prediction_areas.tolist() == [2, 1]
    assert table.truth_index.tolist() == [0, 1]
    assert table.prediction_index.tolist() == [0, 0]
    assert table.intersections.tolist() == [1, 1]
    assert table.unions.tolist() == [3, 2]


def test_overlap_without_background():
    table = overlap(np.array([[1, 2]]), np.array([[3, 3]]))
    assert (table.truth_areas.tolist(), table.prediction_areas.tolist()) == ([1, 1], [2])


@pytest.mark.parametrize(
    ("truth", "prediction", "words"),
    [
        (np.zeros((3, 4), int), np.zeros((4, 3), int), r"\(3, 4\).*\(4, 3\)"),
        (np.array([[0, -2]]), np.array([[0, 1]]), "true map holds the id -2"),
        (np.array([[0, 1]]), np.array([[0.0, 1.0]]), "predicted map holds float64"),
        (np.zeros((2, 2, 3), int), np.zeros((2, 2), int), r"\(2, 2, 3\)"),
        (np.array([[2**31]]), np.array([[1]]), "2147483648"),
    ],
)
def test_wrong_maps_are_refused(truth, prediction, words):
    with pytest.raises(InputError, match=words):
        compare(truth, prediction)


def test_mean_scores_average_images():
    images = [compare(np.array([[1, 1]]), np.array([[1, 1]])), compare(np.array([[1, 1]]), np.array([[0, 0]]))]
    assert mean_scores(images) == {"aji": 0.5, "pq": 0.5, "dq": 0.5, "sq": 0.5, "dice": 0.5}
    with pytest.raises(InputError, match="no images"):
        mean_scores([])


def test_time_for_a_large_tile():
    grid = np.arange(1, 23 * 22 + 1).reshape(23, 22)
    truth = np.kron(grid, np.ones((44, 46), dtype=np.int64))[:1000, :1000].astype(np.int32)
    truth[:, ::3] = 0
    prediction = np.roll(truth, 2, 0)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        compare(truth, prediction)
        best = min(best, time.perf_counter() - start)
    assert best < 0.045


@pytest.mark.skipif(not DATA, reason="NUCLEATE_DATA is not set")
@pytest.mark.parametrize(
    ("name", "nuclei", "aji", "dq", "sq", "pq"),
    [
        ("TCGA-18-5592", 480, 0.8454, 0.9896, 0.8211, 0.8126),
        ("TCGA-21-5784", 398, 0.7675, 0.9623, 0.7339, 0.7062),
    ],
)
def test_known_figures_of_a_shifted_real_map(name, nuclei, aji, dq, sq, pq):
    (path,) = Path(DATA, "nuclei/monuseg2018/labels").glob(f"*{name}*.png")
    truth = read_instances(path)
    scores = compare(truth, np.roll(truth, 2, 0))
    assert scores.true_nuclei == nuclei
    assert (scores.aji, scores.dq, scores.sq, scores.pq) == pytest.approx((aji, dq, sq, pq), abs=5.1e-5)
