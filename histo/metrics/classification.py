"""Scores of classes: from predicted classes, from their probabilities, by image and by patient."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from histo.errors import InputError

BINS = 15
_SUM_TOLERANCE = 0.01  # a softmax in bf16 is off by that much
_RANGE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ClassificationScores:
    """What of a classification was right, and how sure it was.

    Attributes:
        accuracy, balanced_accuracy, macro_f1: as in `scores`.
        auroc: with two classes the area under the ROC curve of the second; with more the mean over classes of that of
            each against the rest. Classes that no label has are left out; None where fewer than two are left.
        absent: the classes that no label has.
        ece: expected calibration error of the most probable class in 15 bins of equal width: the difference between
            accuracy and mean probability of each bin, weighted with its share (Guo et al., ICML 2017). Bins
            include their lower end, and a probability of exactly 1 has a bin of its own.
        confusion: number of images by true class and by predicted class.
        count: number of images (or patients).
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    auroc: float | None
    absent: tuple[str, ...]
    ece: float
    confusion: tuple[tuple[int, ...], ...]
    count: int


def scores(predicted: Tensor, truth: Tensor, classes: int) -> dict[str, float]:
    """What of a classification was right, from its confusion matrix.

    Balanced accuracy is the mean recall of the classes that occur in the truth. Macro-F1 is the mean over the classes
    that occur in the truth or the prediction of 2 TP / (2 TP + FP + FN).

    Args:
        predicted: int64 [N], classes from 0.
        truth: int64 [N], likewise.
        classes: how many there are.

    Returns:
        accuracy, balanced_accuracy and macro_f1, each in [0, 1].

    Raises:
        InputError: no tiles.
    """
    if not len(truth):
        raise InputError("There are no tiles to score, expected at least one; give the test part some.")
    table = confusion(predicted, truth, classes).double()
    hits, true, found = table.diagonal(), table.sum(dim=1), table.sum(dim=0)
    return {
        "accuracy": float(hits.sum() / table.sum()),
        "balanced_accuracy": float((hits / true)[true > 0].mean()),
        "macro_f1": float((2 * hits / (true + found))[true + found > 0].mean()),
    }


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """int64 [classes, classes], how many of each true class (row) were given each class (column).

    Args:
        predicted: int64 [N], classes from 0.
        truth: int64 [N], likewise.
        classes: how many there are.
    """
    return torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes)


def classification_scores(probabilities: Tensor, labels: Tensor, names: Sequence[str]) -> ClassificationScores:
    """Every score of a classification; the predicted class is the most probable one.

    Args:
        probabilities: float [N, C], of each class.
        labels: integer [N], classes from 0.
        names: of the C classes.

    Raises:
        InputError: no images, shapes that do not fit, labels that are not integers from 0 to C - 1, or rows that are
            no probabilities (not finite, outside 0 to 1, another sum than 1).
    """
    from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error  # takes seconds

    probabilities, labels = _checked(probabilities, labels)
    if len(names) != probabilities.shape[1]:
        raise InputError(
            f"There are probabilities of {probabilities.shape[1]} classes and {len(names)} names of classes "
            f"({', '.join(names)}); give the names that the classifier was trained with."
        )
    predicted, classes = probabilities.argmax(dim=1), len(names)
    present = labels.unique().tolist()
    auroc = None
    if len(present) > 1:
        curves = [1] if classes == 2 else present
        auroc = sum(float(binary_auroc(probabilities[:, k], (labels == k).long())) for k in curves) / len(curves)
    return ClassificationScores(
        **scores(predicted, labels, classes),
        auroc=auroc,
        absent=tuple(name for k, name in enumerate(names) if k not in present),
        ece=float(multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS, norm="l1")),
        confusion=tuple(map(tuple, confusion(predicted, labels, classes).tolist())),
        count=len(labels),
    )


def patient_means(
    probabilities: Tensor, labels: Tensor, patients: Sequence[Hashable]
) -> tuple[Tensor, Tensor, list[Hashable]]:
    """The mean probabilities of each patient's images: `classification_scores` of these are those by patient.

    Args:
        probabilities: float [N, C], of each image.
        labels: integer [N], classes from 0.
        patients: of each image, or something of its own where it is unknown.

    Returns:
        float64 [P, C], int64 [P], and the patients in the order of their first image.

    Raises:
        InputError: as `classification_scores`, another number of patients, or a patient with images of two classes.
    """
    probabilities, labels = _checked(probabilities, labels)
    owner, known = _numbered(patients, len(labels))
    first = torch.full((len(known),), len(owner)).scatter_reduce(0, owner, torch.arange(len(owner)), "amin")
    label = labels[first]
    mixed = (labels != label[owner]).nonzero()
    if len(mixed):
        image = int(mixed[0])
        raise InputError(
            f"Patient {patients[image]} has images of the classes {int(label[owner[image]])} and {int(labels[image])}, "
            "but scores by patient need one class for each; score by image, or give each class a patient of its own."
        )
    sums = torch.zeros(len(known), probabilities.shape[1], dtype=torch.float64).index_add(0, owner, probabilities)
    return sums / owner.bincount()[:, None], label, known


def recognition_rate(predicted: Tensor, labels: Tensor, patients: Sequence[Hashable]) -> float:
    """Patient-level recognition rate: the mean over patients of the share of their images that are right.

    Spanhol et al., IEEE Transactions on Biomedical Engineering 63, 2016 (BreakHis). A patient's images may be
    of several classes.

    Args:
        predicted: integer [N], classes from 0.
        labels: integer [N], likewise.
        patients: of each image, or something of its own where it is unknown.

    Raises:
        InputError: no images, or shapes that do not fit.
    """
    if predicted.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise InputError(
            f"There are predicted classes of shape {list(predicted.shape)} and labels of shape {list(labels.shape)}, "
            "expected one of each for every image, and at least one image."
        )
    owner, _ = _numbered(patients, len(labels))
    right = (predicted == labels).double().cpu()
    return float((owner.bincount(right) / owner.bincount()).mean())


def _numbered(patients: Sequence[Hashable], images: int) -> tuple[Tensor, list[Hashable]]:
    """The number of each image's patient, int64 [N], and the patients in the order of their first image."""
    if len(patients) != images:
        raise InputError(
            f"There are {images} images and patients for {len(patients)}; give the patient of every image."
        )
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(patient, len(numbers)) for patient in patients]), list(numbers)


def _checked(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the CPU, float64 [N, C] in [0, 1] and int64 [N]."""
    fits = probabilities.ndim == 2 and probabilities.shape[1] > 1 and labels.shape == probabilities.shape[:1]
    if not (fits and len(labels)):
        raise InputError(
            f"There are probabilities of shape {list(probabilities.shape)} and labels of shape {list(labels.shape)}, "
            "expected [images, classes] and [images], at least one image and two classes."
        )
    classes = probabilities.shape[1]
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.is_complex():
        raise InputError(f"The labels are {labels.dtype}, expected integers from 0 to {classes - 1}; convert them.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise InputError(
            f"A label is {wrong}, but the {classes} classes are 0 to {classes - 1}; leave such images out, or train "
            "with their class."
        )
    given = probabilities.detach().double().cpu()
    odd = ~((given >= -_RANGE_TOLERANCE) & (given <= 1 + _RANGE_TOLERANCE))  # NaN compares as odd
    if odd.any():
        raise InputError(
            f"A probability is {float(given[odd][0]):g}, expected 0 to 1; apply a softmax to logits first."
        )
    sums = given.sum(dim=1)
    worst = int((sums - 1).abs().argmax())
    if abs(float(sums[worst]) - 1) > _SUM_TOLERANCE:
        raise InputError(
            f"The probabilities of image {worst} add up to {float(sums[worst]):g}, expected 1; give one of each "
            "class, and each class once."
        )
    return given.clamp(0, 1), labels.long().cpu()
