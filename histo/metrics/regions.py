"""Scores of region maps, where every pixel has one class: Dice and IoU from one table of pixels.

Of a class with A true and B found pixels, Dice = 2 |A ∩ B| / (|A| + |B|) and IoU = |A ∩ B| / |A ∪ B|, which is
Dice / (2 - Dice). Both are 1 for a class that neither labels nor prediction have; what follows for means says
`ABSENT_CLASSES`, which reports print beside their figures. Tables of images add up.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError

IGNORED = -100  # torch's number of pixels that no loss and no score counts
ABSENT_CLASSES = (
    "Absent classes. Dice of one tile: 1 for a class that neither label nor prediction have, 0 where one of them alone "
    "has it; means over tiles hold both. Dice and IoU of all pixels together: a class that neither labels nor "
    "predictions of the whole set have has no score, and is left out of the mean IoU."
)


def class_numbers(
    values: NDArray[np.integer], classes: Sequence[str], ignore: int | None, name: object = "A mask"
) -> NDArray[np.int64]:
    """The class of each pixel of a mask, IGNORED where it has none.

    Args:
        values: integer, any shape; of two classes the second is every value above 0.
        classes: names of the values 0, 1, …
        ignore: value that has no class.
        name: what the error sentence calls the mask.

    Raises:
        InputError: a value beyond the classes.
    """
    found = values.astype(np.int64)
    if len(classes) == 2:
        found = (found > 0).astype(np.int64)
    if ignore is not None:
        found[values == ignore] = IGNORED
    if found.max(initial=0) >= len(classes):
        raise InputError(
            f"{name} has the value {int(found.max())}, expected 0 to {len(classes) - 1}, one for each of the classes "
            f"{', '.join(classes)}; add a name for it to the classes, or give it as the value to ignore."
        )
    return found


def pixel_table(truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """int64 [classes, classes], pixels by true class (row) and found class (column).

    Args:
        truth: integer, classes from 0; pixels that are IGNORED are left out.
        prediction: integer of the same shape.
    """
    counted = truth != IGNORED
    cells = truth[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def dice_of(table: NDArray[np.integer]) -> NDArray[np.float64]:
    """float64 [classes], Dice of each class of a table of pixels."""
    total = table.sum(0) + table.sum(1)
    return np.where(total > 0, 2 * np.diag(table) / np.maximum(total, 1), 1.0)


def iou_of(table: NDArray[np.integer]) -> NDArray[np.float64]:
    """float64 [classes], IoU of each class of a table of pixels."""
    dice = dice_of(table)
    return dice / (2 - dice)


def present(table: NDArray[np.integer]) -> NDArray[np.bool_]:
    """bool [classes], whether labels or predictions of a table of pixels have each class."""
    return table.sum(0) + table.sum(1) > 0


def mean_iou(table: NDArray[np.integer]) -> float | None:
    """IoU, the mean over those classes but the first that are present; None where none of them is."""
    there = present(table)[1:]
    return float(iou_of(table)[1:][there].mean()) if there.any() else None
