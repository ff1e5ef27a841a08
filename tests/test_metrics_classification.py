"""Scores of classes against loops, torchmetrics and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from histo.bootstrap import mean_interval
from histo.errors import InputError
from histo.metrics.classification import classification_scores, confusion, patient_means, recognition_rate, scores

NAMES = ("normal", "benign", "in situ", "invasive")


def drawn(seed, count=60, classes=4, grain=20):
    """Probabilities with ties, and labels that they know something of; each class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    votes = rng.multinomial(grain, 0.15 * np.eye(classes)[labels] + 0.85 / classes)
    return torch.from_numpy(votes / grain), torch.from_numpy(labels)


def slow_auroc(probabilities, labels, kind):
    """How often an image of the class has more of it than another image, ties half."""
    own = [float(p) for p, label in zip(probabilities[:, kind], labels, strict=True) if label == kind]
    rest = [float(p) for p, label in zip(probabilities[:, kind], labels, strict=True) if label != kind]
    return np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(own, rest)])


def slow_ece(probabilities, labels):
    sure, right = probabilities.max(1).values.tolist(), (probabilities.argmax(1) == labels).tolist()
    bins = {}
    for p, hit in zip(sure, right, strict=True):
        bins.setdefault(int(np.float32(p) * np.float32(15)), []).append((p, hit))
    gaps = [abs(sum(hit for _, hit in own) - sum(p for p, _ in own)) for own in bins.values()]
    return sum(gaps) / len(sure)


def test_scores_are_those_of_torchmetrics() -> None:
    probabilities, truth = drawn(0, 200)
    guess = probabilities.argmax(1)
    found = scores(guess, truth, 4)
    assert 0.3 < found["accuracy"] < 0.95
    assert found["accuracy"] == pytest.approx(float((guess == truth).float().mean()))
    assert found["balanced_accuracy"] == pytest.approx(float(multiclass_accuracy(guess, truth, 4, average="macro")))
    assert found["macro_f1"] == pytest.approx(float(multiclass_f1_score(guess, truth, 4, average="macro")))


def test_scores_count_the_classes_that_occur() -> None:
    found = scores(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1]), 5)
    assert found["accuracy"] == 0.5
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 0 + 0) / 3)  # 2 was guessed, 3 and 4 never occur
    with pytest.raises(InputError, match="no tiles"):
        scores(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long), 2)


def test_rows_of_the_confusion_are_true_classes() -> None:
    table = confusion(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 2]), 3)
    assert table.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_score_like_slow_references(seed) -> None:
    probabilities, labels = drawn(seed, grain=17)  # of 17ths none lies on the border of a bin but 0 and 1
    found = classification_scores(probabilities, labels, NAMES)
    predicted = probabilities.argmax(1)
    expected = scores(predicted, labels, 4)
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.auroc == pytest.approx(np.mean([slow_auroc(probabilities, labels, k) for k in range(4)]), abs=1e-6)
    assert found.ece == pytest.approx(slow_ece(probabilities, labels), abs=1e-6)
    assert sum(map(sum, found.confusion)) == found.count == 60
    assert found.confusion[1][2] == sum((predicted == 2) & (labels == 1))
    assert found.absent == ()


def test_two_classes_have_one_curve() -> None:
    probabilities, labels = drawn(1, 40, classes=2)
    found = classification_scores(probabilities.float(), labels, ("benign", "malignant"))
    assert found.auroc == pytest.approx(slow_auroc(probabilities, labels, 1), abs=1e-6)


def test_absent_classes_are_left_out_and_named() -> None:
    probabilities, labels = drawn(2)
    kept = labels != 1
    found = classification_scores(probabilities[kept], labels[kept], NAMES)
    curves = [slow_auroc(probabilities[kept], labels[kept], k) for k in (0, 2, 3)]
    assert found.absent == ("benign",)
    assert found.auroc == pytest.approx(np.mean(curves), abs=1e-6)
    alone = classification_scores(probabilities[labels == 3], labels[labels == 3], NAMES)
    assert alone.auroc is None
    assert alone.absent == NAMES[:3]


def test_calibration_by_hand() -> None:
    # 0.9 twice, right once: |0.5 - 0.9|; 0.6 twice, right twice: |1 - 0.6|.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    found = classification_scores(probabilities, torch.tensor([0, 1, 0, 0]), ("a", "b"))
    assert found.ece == pytest.approx(0.4, abs=1e-6)
    # Of 15 bins 0.89 and 0.91 share one, where being wrong and right once is off by 0.4; 0.85 and 0.88 have two.
    for p, q, expected in ((0.89, 0.91, 0.4), (0.85, 0.88, (0.85 + 0.12) / 2)):
        pair = torch.tensor([[p, 1 - p], [q, 1 - q]])
        assert classification_scores(pair, torch.tensor([1, 0]), ("a", "b")).ece == pytest.approx(expected, abs=1e-6)
    sure = classification_scores(torch.eye(2), torch.tensor([0, 1]), ("a", "b"))
    assert (sure.ece, sure.auroc, sure.accuracy) == (0, 1, 1)


def test_order_does_not_matter() -> None:
    probabilities, labels = drawn(3)
    order = torch.from_numpy(np.random.default_rng(0).permutation(60))
    a, b = (classification_scores(probabilities[o], labels[o], NAMES) for o in (torch.arange(60), order))
    assert (a.confusion, a.accuracy) == (b.confusion, b.accuracy)
    assert (a.auroc, a.ece) == pytest.approx((b.auroc, b.ece), abs=1e-6)


def test_patients_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.6, 0.4]])
    labels, patients = torch.tensor([0, 1, 0, 0]), ["P7", "P2", "P7", "P7"]
    means, classes, known = patient_means(probabilities, labels, patients)
    assert known == ["P7", "P2"]
    assert classes.tolist() == [0, 1]
    assert means.numpy() == pytest.approx(np.array([[1.7 / 3, 1.3 / 3], [0.2, 0.8]]))
    assert classification_scores(means, classes, ("benign", "malignant")).accuracy == 1
    assert recognition_rate(probabilities.argmax(1), labels, patients) == pytest.approx((2 / 3 + 1) / 2)
    assert classification_scores(probabilities, labels, ("benign", "malignant")).accuracy == 3 / 4


def test_patients_equal_a_loop() -> None:
    probabilities, labels = drawn(4)
    patients = [f"P{label}{k % 5}" for k, label in enumerate(labels.tolist())]
    means, classes, known = patient_means(probabilities, labels, patients)
    shares = []
    for mean, label, patient in zip(means, classes, known, strict=True):
        own = [k for k, other in enumerate(patients) if other == patient]
        assert mean.tolist() == pytest.approx(np.mean([probabilities[k].tolist() for k in own], axis=0).tolist())
        assert {int(labels[k]) for k in own} == {int(label)}
        shares.append(np.mean([float(probabilities[k].argmax() == labels[k]) for k in own]))
    assert recognition_rate(probabilities.argmax(1), labels, patients) == pytest.approx(np.mean(shares))


def test_accuracy_has_an_interval_by_patient() -> None:
    # One patient all right, the other all wrong: whole patients are drawn, so the interval is everything.
    probabilities = torch.tensor([[0.9, 0.1]] * 8)
    labels, patients = torch.tensor([0] * 4 + [1] * 4), ["a"] * 4 + ["b"] * 4
    right = (probabilities.argmax(1) == labels).double().numpy()[:, None]
    low, high = mean_interval(right, patients)
    assert (low.tolist(), high.tolist()) == ([0], [1])
    assert classification_scores(probabilities, labels, ("x", "y")).accuracy == right.mean()
    low, high = mean_interval(right, range(8))
    assert 0 < low[0] < 0.5 < high[0] < 1


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [
        (torch.tensor([[0.5, 0.5]]), torch.tensor([2]), "label is 2, but the 2 classes are 0 to 1"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([-1]), "label is -1"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([1.0]), "labels are torch.float32"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([0, 1]), r"shape \[1, 2\] and labels of shape \[2\]"),
        (torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), r"shape \[2\]"),
        (torch.ones(2, 1), torch.tensor([0, 0]), "two classes"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), "at least one image"),
        (torch.tensor([[3.0, -2.0]]), torch.tensor([1]), "probability is 3, expected 0 to 1; apply a softmax"),
        (torch.tensor([[float("nan"), 1]]), torch.tensor([1]), "probability is nan"),
        (torch.tensor([[0.5, 0.5], [0.5, 0.1]]), torch.tensor([0, 1]), r"image 1 add up to 0\.6"),
    ],
)
def test_wrong_input_is_refused(probabilities, labels, words) -> None:
    with pytest.raises(InputError, match=words):
        classification_scores(probabilities, labels, ("a", "b"))
    with pytest.raises(InputError, match=words):
        patient_means(probabilities, labels, ["p"] * len(labels))


def test_names_and_patients_must_fit() -> None:
    probabilities, labels = torch.tensor([[0.5, 0.5], [0.1, 0.9]]), torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"2 classes and 3 names of classes \(a, b, c\)"):
        classification_scores(probabilities, labels, ("a", "b", "c"))
    with pytest.raises(InputError, match="2 images and patients for 1"):
        recognition_rate(labels, labels, ["p"])
    with pytest.raises(InputError, match=r"shape \[1\] and labels of shape \[2\]"):
        recognition_rate(labels[:1], labels, ["p", "q"])
    with pytest.raises(InputError, match="Patient p has images of the classes 0 and 1"):
        patient_means(probabilities, labels, ["p", "p"])
    assert recognition_rate(torch.tensor([0, 0]), labels, ["p", "p"]) == 0.5


def test_half_precision_and_rounding_pass() -> None:
    half = torch.softmax(torch.linspace(-2, 2, 12).view(3, 4), 1).bfloat16()
    assert classification_scores(half, torch.tensor([0, 1, 3]), NAMES).count == 3
    over = torch.tensor([[1.0000001, 0.0], [0.0, 1.0]])
    assert classification_scores(over, torch.tensor([0, 1]), ("a", "b")).ece == 0  # not taken for logits
