"""Accuracy, balanced accuracy and macro-F1 of predicted classes."""

import torch
from torch import Tensor

from histo.errors import InputError


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
    table = torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes).double()
    hits, true, found = table.diagonal(), table.sum(dim=1), table.sum(dim=0)
    return {
        "accuracy": float(hits.sum() / table.sum()),
        "balanced_accuracy": float((hits / true)[true > 0].mean()),
        "macro_f1": float((2 * hits / (true + found))[true + found > 0].mean()),
    }
