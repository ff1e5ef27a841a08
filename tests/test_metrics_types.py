"""Typed nuclei, detection and AJI+ against loops over nuclei and hand-worked cases; regression against loops too."""

import itertools
import math
from functools import reduce
from operator import add

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from histo.errors import InputError
from histo.metrics import (
    DetectionCounts,
    PanopticCounts,
    aji_plus,
    compare,
    detection_counts,
    l1,
    mean_scores_by_empties,
    overlap,
    pannuke_scores,
    panoptic_counts,
    prediction_probability,
    scores_of,
)
from histo.metrics.pairing import best_pairs

TYPES = 3
NOTHING = np.zeros((4, 4), int)


def masks_of(instances):
    return {nucleus: instances == nucleus for nucleus in sorted(set(instances.ravel().tolist()) - {0})}


def iou_of(a, b):
    return (a & b).sum() / (a | b).sum()


def typed_pair(seed, unknown=True):
    """Random cells with noise, and types of which the last id's may be unknown; the prediction has most types right."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(6, 26, 2)
    truth = np.kron(rng.integers(0, 8, (6, 6)), np.ones((5, 5), int))[:height, :width]
    prediction = np.where(rng.random(truth.shape) < 0.35 * rng.random(), rng.integers(0, 8, truth.shape), truth)
    types = rng.integers(0 if unknown else 1, TYPES + 1, 8)
    found = np.where(rng.random(8) < 0.3, rng.integers(0 if unknown else 1, TYPES + 1, 8), types)
    return truth, prediction, types, found


def slow_panoptic(truth, prediction, types, found, kind):
    """TP, true, predicted nuclei and Σ IoU of a type (None: of all), nucleus by nucleus."""
    true_masks, masks = masks_of(truth), masks_of(prediction)
    ious = {(t, p): iou_of(a, b) for t, a in true_masks.items() for p, b in masks.items()}
    if kind is None:
        kept = [iou for iou in ious.values() if iou > 0.5]
        return len(kept), len(true_masks), len(masks), sum(kept)
    excused = {p for (t, p), iou in ious.items() if iou > 0.5 and types[t] == 0}
    true = [t for t in true_masks if types[t] == kind]
    predicted = [p for p in masks if found[p] == kind and p not in excused]
    kept = [ious[t, p] for t in true for p in predicted if ious[t, p] > 0.5]
    return len(kept), len(true), len(predicted), sum(kept)


def assert_counts(counts, expected):
    for k, name in enumerate(("matched", "true", "predicted", "iou")):
        assert getattr(counts, name).tolist() == pytest.approx([each[k] for each in expected]), name


@pytest.mark.parametrize("seed", range(40))
def test_counts_equal_a_loop_over_nuclei(seed):
    truth, prediction, types, found = typed_pair(seed)
    counts = panoptic_counts(overlap(truth, prediction), types, found, TYPES)
    kinds = [None, *range(1, TYPES + 1)]
    assert_counts(counts, [slow_panoptic(truth, prediction, types, found, kind) for kind in kinds])


@pytest.mark.parametrize("seed", range(10))
def test_a_type_scores_like_its_own_maps(seed):
    truth, prediction, types, found = typed_pair(seed, unknown=False)
    counts = panoptic_counts(overlap(truth, prediction), types, found, TYPES)
    for kind in range(1, TYPES + 1):
        alone = compare(np.where(types[truth] == kind, truth, 0), np.where(found[prediction] == kind, prediction, 0))
        if alone.true_nuclei + alone.predicted_nuclei:
            assert (counts.pq[kind], counts.dq[kind], counts.sq[kind]) == pytest.approx((alone.pq, alone.dq, alone.sq))
        else:
            assert np.isnan([counts.pq[kind], counts.dq[kind], counts.sq[kind]]).all()


def test_random_cases_reach_every_regime():
    every = [
        panoptic_counts(overlap(*maps), *types, TYPES)
        for *maps, a, b in map(typed_pair, range(40))
        for types in [(a, b)]
    ]
    total = reduce(add, every)
    assert all(0 < total.matched[k] < min(total.true[k], total.predicted[k]) for k in range(TYPES + 1))
    assert any((image.true == 0).any() for image in every)
    assert total.predicted[1:].sum() < total.predicted[0]


@pytest.mark.parametrize("names", [[0, 5, 3, 9, 1, 20, 8, 4], [0, 40_000, 3, 70_000, 2, 9, 1, 65]])
def test_names_of_nuclei_do_not_matter(names):
    names = np.array(names)
    truth, prediction, types, found = typed_pair(3)
    renamed_types = np.zeros(names.max() + 1, np.uint8)
    renamed_types[names] = types
    before = panoptic_counts(overlap(truth, prediction), types, found, TYPES)
    after = panoptic_counts(overlap(names[truth], prediction), renamed_types, found, TYPES)
    assert_counts(after, list(zip(before.matched, before.true, before.predicted, before.iou, strict=True)))
    assert aji_plus(overlap(names[truth], prediction)) == pytest.approx(aji_plus(overlap(truth, prediction)))
    before, after = (
        detection_counts(maps, prediction, 3, own, found, TYPES)
        for maps, own in ((truth, types), (names[truth], renamed_types))
    )
    assert after.paired.tolist() == before.paired.tolist()
    assert (after.missed.tolist(), after.false.tolist()) == (before.missed.tolist(), before.false.tolist())


def test_ids_of_the_table_are_those_of_the_maps():
    for scale in (1, 1_000_000):  # the larger ids do not fit a dense table
        table = overlap(np.array([[2, 2, 9]]) * scale, np.array([[0, 7, 3]]) * scale)
        assert (table.truth_ids.tolist(), table.prediction_ids.tolist()) == (
            [2 * scale, 9 * scale],
            [3 * scale, 7 * scale],
        )
        assert table.truth_areas.tolist() == [2, 1]


def test_counts_by_hand():
    # Four nuclei found exactly: right, wrong type, without a type, and of unknown type; and a false positive.
    truth, prediction = np.array([[1, 2, 3, 4, 0]]), np.array([[1, 2, 3, 4, 5]])
    counts = panoptic_counts(overlap(truth, prediction), np.array([0, 1, 1, 2, 0]), np.array([0, 1, 2, 0, 2, 2]), 2)
    assert counts.matched.tolist() == [4, 1, 0]
    assert counts.true.tolist() == [4, 2, 1]
    assert counts.predicted.tolist() == [5, 1, 2]  # the one of type 2 on the unknown nucleus is left out
    assert counts.pq.tolist() == pytest.approx([8 / 9, 2 / 3, 0])
    assert counts.mean_pq == pytest.approx(1 / 3)


def test_untyped_counts_give_the_pq_of_the_map():
    truth, prediction, _, _ = typed_pair(5)
    table = overlap(truth, prediction)
    counts = panoptic_counts(table)
    assert counts.pq.tolist() == pytest.approx([scores_of(table).pq])
    assert counts.mean_pq is None


def test_counts_add_up_in_any_order():
    images = [panoptic_counts(overlap(a, b), c, d, TYPES) for a, b, c, d in map(typed_pair, range(6))]
    whole = sum(images, PanopticCounts.none(TYPES))
    by_hand = [sum(image.matched for image in images), sum(image.iou for image in images)]
    assert whole.matched.tolist() == by_hand[0].tolist()
    parts = reduce(add, images[::-1][:2]) + reduce(add, images[::-1][2:])
    assert parts.pq.tolist() == pytest.approx(whole.pq.tolist())
    assert whole.pq[1] == pytest.approx(2 * by_hand[1][1] / (whole.true[1] + whole.predicted[1]))
    assert whole.mean_pq == pytest.approx(np.mean(whole.pq[1:]))
    with pytest.raises(InputError, match="3 types and of 2"):
        whole + PanopticCounts.none(2)


def exact(types, found):
    """Counts of nuclei that are all in their place, one pixel each; 0 in `types` is none there."""
    truth = np.arange(1, len(types) + 1) * (np.array(types) > 0)
    prediction = np.arange(1, len(types) + 1) * (np.array(found) > 0)
    return panoptic_counts(overlap(truth[None], prediction[None]), np.r_[0, types], np.r_[0, found], 2)


def test_pannuke_by_hand():
    images = [
        exact([1, 1, 2], [1, 1, 2]),  # Lung: binary 1; types 1, 1
        exact([1, 1], [1, 2]),  # Lung: binary 1; type 1: 1 / (1 + 1/2) = 2/3, and type 2 predicted alone
        exact([0, 0], [0, 1]),  # Lung: a false positive in an empty image
        exact([2, 2, 2], [0, 0, 2]),  # Liver: binary and type 2: 1 / (1 + 2/2) = 1/2
        exact([0], [0]),  # Skin: nothing at all
    ]
    found = pannuke_scores(images, ["Lung", "Lung", "Lung", "Liver", "Skin"])
    published, strict = found["published"], found["false_positives_counted"]
    lung = published.tissues["Lung"]
    assert (lung.images, lung.bpq, lung.mpq) == (3, pytest.approx(1), pytest.approx((1 + 2 / 3) / 2))
    assert published.tissues["Skin"].bpq is None
    assert published.tissues["Skin"].mpq is None
    assert published.bpq == pytest.approx((1 + 1 / 2) / 2)
    assert published.mpq == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert published.types == pytest.approx(((1 + 2 / 3) / 2, (1 + 1 / 2) / 2))
    assert strict.tissues["Lung"].bpq == pytest.approx((1 + 1 + 0) / 3)
    assert strict.tissues["Lung"].mpq == pytest.approx((1 + (2 / 3 + 0) / 2 + 0) / 3)
    assert strict.types == pytest.approx(((1 + 2 / 3 + 0) / 3, (1 + 0 + 1 / 2) / 3))
    assert strict.bpq == pytest.approx(((1 + 1 + 0) / 3 + 1 / 2) / 2)
    pooled = reduce(add, images)  # type 1: TP 3, true 4, predicted 4; type 2: TP 2, true 4, predicted 3
    assert pooled.mean_pq == pytest.approx((6 / 8 + 4 / 7) / 2)


def test_a_type_that_no_image_has_is_left_out():
    images = [exact([1], [1])]
    assert pannuke_scores(images, ["Lung"])["published"].types == (1.0, None)
    assert pannuke_scores(images, ["Lung"])["published"].mpq == 1
    assert images[0].mean_pq == 1
    nothing = pannuke_scores([exact([0], [0])], ["Lung"])["false_positives_counted"]
    assert (nothing.bpq, nothing.mpq, nothing.types) == (None, None, (None, None))


def test_pannuke_needs_a_tissue_of_every_image():
    with pytest.raises(InputError, match="1 images and 2 tissues"):
        pannuke_scores([exact([1], [1])], ["Lung", "Liver"])
    with pytest.raises(InputError, match="0 images"):
        pannuke_scores([], [])
    with pytest.raises(InputError, match=r"\[0, 2\] types"):
        pannuke_scores([exact([1], [1]), PanopticCounts.none(0)], ["Lung", "Liver"])


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (None, "predicted nuclei have no types"),
        (np.array([0, 4]), "predicted nucleus 1 has type 4, but types run from 1 to 3"),
        (np.array([0, -1]), "has type -1"),
        (np.array([0]), r"shape \(1,\), expected integers, one for each id .* 2 or more"),
        (np.array([0.0, 1.0]), "float64"),
        (np.array([[0, 1]]), r"shape \(1, 2\)"),
    ],
)
def test_wrong_types_are_refused(types, words):
    instances, right = np.array([[1, 0]]), np.array([0, 3])
    with pytest.raises(InputError, match=words):
        panoptic_counts(overlap(instances, instances), right, types, TYPES)
    with pytest.raises(InputError, match=words):
        detection_counts(instances, instances, 12, right, types, TYPES)


def test_types_of_ids_that_do_not_occur_are_not_looked_at():
    instances = np.array([[2, 0]])
    assert panoptic_counts(overlap(instances, instances), *[np.array([99, 77, 1, 88])] * 2, 3).matched[1] == 1


# AJI+


def slow_aji_plus(truth, prediction):
    """The best of all one-to-one assignments, tried one by one."""
    true_masks, masks = list(masks_of(truth).values()), list(masks_of(prediction).values())
    places = [*range(len(masks)), *[None] * len(true_masks)]
    best = (-1.0, 0.0)
    for chosen in set(itertools.permutations(places, len(true_masks))):
        pairs = [(a, masks[p]) for a, p in zip(true_masks, chosen, strict=True) if p is not None]
        pairs = [(a, b) for a, b in pairs if (a & b).any()]
        alone = sum(a.sum() for a in true_masks) + sum(b.sum() for b in masks)
        alone -= sum(a.sum() + b.sum() for a, b in pairs)
        union = alone + sum((a | b).sum() for a, b in pairs)
        best = max(best, (sum(iou_of(a, b) for a, b in pairs), sum((a & b).sum() for a, b in pairs) / union))
    return best[1]


@pytest.mark.parametrize("seed", range(25))
def test_aji_plus_is_the_best_assignment(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = (np.repeat(rng.integers(0, 5, 12), rng.integers(1, 4, 12))[None, :12] for _ in range(2))
    if truth.any() and prediction.any():
        assert aji_plus(overlap(truth, prediction)) == pytest.approx(slow_aji_plus(truth, prediction))


def test_aji_plus_by_hand():
    # AJI gives both true nuclei the one prediction, 4 / 8; AJI+ gives it to one: 2 / (4 + 2).
    table = overlap(np.array([[1, 1, 2, 2]]), np.array([[5, 5, 5, 5]]))
    assert aji_plus(table) == pytest.approx(2 / 6)
    assert scores_of(table).aji == pytest.approx(1 / 2)
    # The longer prediction shares 3 pixels at IoU 3/12, the shorter 2 at IoU 2/5.
    table = overlap(np.array([[0] * 7 + [1] * 5]), np.array([[1] * 10 + [2] * 2]))
    assert aji_plus(table) == pytest.approx(2 / (5 + 10))
    # Taking the best pair first (1 with 1, IoU 3/5) would leave the second true nucleus alone.
    truth, prediction = np.array([[1] * 4 + [2] * 3]), np.array([[2] * 2 + [1] * 4 + [0]])
    ious = overlap(truth, prediction).ious
    assert ious == pytest.approx([2 / 6, 2 / 4, 2 / 5])
    assert aji_plus(overlap(truth, prediction)) == pytest.approx((2 + 2) / (4 + 5))


@pytest.mark.parametrize(
    ("truth", "prediction", "score"), [([[0]], [[0]], 1), ([[1]], [[0]], 0), ([[0]], [[1]], 0), ([[1, 0]], [[0, 1]], 0)]
)
def test_aji_plus_of_empty_and_disjoint_maps(truth, prediction, score):
    assert aji_plus(overlap(np.array(truth), np.array(prediction))) == score


def test_groups_make_no_difference_to_pairs():
    rng = np.random.default_rng(0)
    for density in (0.02, 0.1, 0.5):
        truth, prediction = np.nonzero(rng.random((30, 25)) < density)
        weights = rng.random(len(truth)) + 0.01
        table = np.zeros((30, 25))
        table[truth, prediction] = weights
        kept = best_pairs(truth, prediction, weights)
        assert weights[kept].sum() == pytest.approx(table[linear_sum_assignment(table, maximize=True)].sum())
        assert len(set(truth[kept])) == len(set(prediction[kept])) == len(kept)


def test_means_of_instance_scores_with_and_without_empty_tiles():
    half = compare(np.array([[1, 1, 0, 2]]), np.array([[1, 1, 0, 0]]))
    missed, none = compare(np.array([[1]]), np.array([[0]])), compare(np.array([[0]]), np.array([[0]]))
    false = compare(np.array([[0]]), np.array([[1]]))
    found = mean_scores_by_empties([half, missed, none, false])
    assert found["all_tiles"]["pq"] == pytest.approx((2 / 3 + 0 + 1 + 0) / 4)
    assert found["tiles_with_nuclei"]["pq"] == pytest.approx((2 / 3 + 0) / 2)
    assert mean_scores_by_empties([none])["tiles_with_nuclei"] is None


# Detection


def slow_detection(truth, prediction, radius, types, found):
    """Best one-to-one pairs of centroids by trying all; most pairs first, then the smallest sum of distances."""
    centres = [{k: np.argwhere(m).mean(0) for k, m in masks_of(each).items()} for each in (truth, prediction)]
    true, ids = list(centres[0]), list(centres[1])
    best = (1, 0.0, ())
    for chosen in set(itertools.permutations([*ids, *[None] * len(true)], len(true))):
        pairs = [(t, p) for t, p in zip(true, chosen, strict=True) if p is not None]
        apart = [math.dist(centres[0][t], centres[1][p]) for t, p in pairs]
        if all(distance <= radius for distance in apart):
            best = min(best, (-len(pairs), sum(apart), tuple(pairs)))
    paired = np.zeros((TYPES + 1, TYPES + 1), int)
    for t, p in best[2]:
        paired[types[t], found[p]] += 1
    missed = np.bincount([types[t] for t in set(true) - {t for t, _ in best[2]}], minlength=TYPES + 1)
    return paired, missed, np.bincount([found[p] for p in set(ids) - {p for _, p in best[2]}], minlength=TYPES + 1)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("radius", [1.5, 6])
def test_detections_equal_trying_every_assignment(seed, radius):
    rng = np.random.default_rng(seed)
    truth, prediction = np.zeros((2, 16, 16), int)
    for instances in (truth, prediction):
        for nucleus, (row, column) in enumerate(rng.integers(0, 14, (rng.integers(0, 6), 2)), 1):
            instances[row : row + 2, column : column + rng.integers(1, 3)] = nucleus
    types, found = rng.integers(0, TYPES + 1, (2, 7))
    counts = detection_counts(truth, prediction, radius, types, found, TYPES)
    paired, missed, false = slow_detection(truth, prediction, radius, types, found)
    assert counts.paired.tolist() == paired.tolist()
    assert counts.missed.tolist() == missed.tolist()
    assert counts.false.tolist() == false.tolist()


def dots(*columns):
    line = np.zeros((1, 40), int)
    for nucleus, column in enumerate(columns, 1):
        line[0, column] = nucleus
    return line


def test_a_centroid_is_found_within_the_radius_alone():
    assert detection_counts(dots(5), dots(17), 12).f1 == 1
    assert detection_counts(dots(5), dots(18), 12).f1 == 0
    assert detection_counts(dots(5), dots(5), 12).f1 == 1


def test_pairs_are_as_many_as_possible():
    # 10 is nearest to 12 but is the only choice of 8, so that 12 takes 14.
    counts = detection_counts(dots(8, 12), dots(10, 14), 2)
    assert counts.paired.sum() == 2


def test_f1_by_hand():
    truth, prediction = dots(0, 2, 4, 6, 8, 10, 30), dots(0, 2, 4, 6, 8, 20, 22)
    types, found = np.array([0, 1, 1, 1, 2, 0, 2, 1]), np.array([0, 1, 1, 2, 2, 1, 1, 2])
    counts = detection_counts(truth, prediction, 1, types, found, 3)
    assert counts.f1 == pytest.approx(2 * 5 / (2 * 5 + 2 + 2))
    # Type 1: TP 2, FP 0, FN 1, FP_d 1, FN_d 1. Type 2: TP 1, FP 1, FN 0, FP_d 1, FN_d 1. The pair of the
    # nucleus of unknown type is in neither, and type 3 does not occur.
    expected = [2 * 2 / (2 * 2 + 2 * 0 + 2 * 1 + 1 + 1), 2 * 1 / (2 * 1 + 2 * 1 + 2 * 0 + 1 + 1)]
    assert counts.f1_by_type.tolist() == pytest.approx([*expected, np.nan], nan_ok=True)


@pytest.mark.parametrize("seed", range(10))
def test_f1_by_type_equals_its_equation(seed):
    rng = np.random.default_rng(seed)
    counts = DetectionCounts(rng.integers(0, 5, (4, 4)), rng.integers(0, 5, 4), rng.integers(0, 5, 4))
    pairs = [(a, b) for a in range(4) for b in range(4) for _ in range(counts.paired[a, b]) if a > 0]
    for kind in (1, 2, 3):
        tp = sum(a == b == kind for a, b in pairs)
        fp, fn = sum(a != kind == b for a, b in pairs), sum(a == kind != b for a, b in pairs)
        whole = 2 * tp + 2 * fp + 2 * fn + counts.false[kind] + counts.missed[kind]
        assert counts.f1_by_type[kind - 1] == pytest.approx(2 * tp / whole)


def test_detections_of_empty_maps():
    nothing = detection_counts(NOTHING, NOTHING, 12)
    assert (nothing.f1, len(nothing.f1_by_type)) == (None, 0)
    one = np.eye(4, dtype=int)
    assert detection_counts(NOTHING, one, 12).f1 == detection_counts(one, NOTHING, 12).f1 == 0
    both = sum([detection_counts(one, one, 12), detection_counts(NOTHING, one, 12)], DetectionCounts.none(0))
    assert both.f1 == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="0 types and of 1"):
        nothing + DetectionCounts.none(1)


@pytest.mark.parametrize(
    ("truth", "prediction", "radius", "words"),
    [
        (NOTHING, NOTHING, 0, "radius is 0"),
        (NOTHING, NOTHING, math.nan, "radius is nan"),
        (NOTHING, NOTHING[1:], 12, r"\(4, 4\).*\(3, 4\)"),
        (NOTHING, NOTHING * 1.0, 12, "predicted map holds float64"),
    ],
)
def test_wrong_maps_are_refused(truth, prediction, radius, words):
    with pytest.raises(InputError, match=words):
        detection_counts(truth, prediction, radius)


# Regression


@pytest.mark.parametrize("seed", range(10))
def test_prediction_probability_equals_a_loop_over_pairs(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, 5, 30), rng.integers(0, 8, 30) / 2
    above = [
        (p - q) * (t - u) for (t, p), (u, q) in itertools.combinations(zip(truth, prediction, strict=True), 2) if t != u
    ]
    expected = np.mean([1 if each > 0 else 0.5 if each == 0 else 0 for each in above])
    assert prediction_probability(prediction, truth) == pytest.approx(expected)


def test_regression_by_hand():
    truth = np.array([0.0, 0.5, 1.0])
    assert l1(np.array([0.25, 0.5, 0.25]), truth) == pytest.approx(1 / 3)
    assert prediction_probability(2 * truth + 1, truth) == pytest.approx(1)
    assert prediction_probability(-truth, truth) == pytest.approx(0)
    assert prediction_probability(np.ones(3), truth) == 0.5
    assert prediction_probability(np.array([0, 1, 1]), truth) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(
    ("prediction", "truth", "words"),
    [
        (np.zeros(2), np.zeros(3), r"\(2,\).*\(3,\)"),
        (np.zeros(0), np.zeros(0), "at least one image"),
        (np.array([np.nan]), np.zeros(1), "predicted number is not finite"),
        (np.zeros(2), np.array(["a", "b"]), "true number is not finite"),
    ],
)
def test_wrong_numbers_are_refused(prediction, truth, words):
    for score in (l1, prediction_probability):
        with pytest.raises(InputError, match=words):
            score(prediction, truth)


def test_no_order_without_different_truth():
    with pytest.raises(InputError, match=r"All 2 true numbers are 0\.5"):
        prediction_probability(np.array([0, 1]), np.array([0.5, 0.5]))
