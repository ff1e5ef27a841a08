"""Parts of a set that share no patient and have its classes in like shares."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.randomness import draws


def folds(patients: Sequence[Hashable], labels: Sequence[str], k: int, seed: int) -> NDArray[np.int64]:
    """Deal patients into k folds, the largest first, each to the fold that most lacks its classes.

    A fold's lack is measured by the sum over classes of the squared shares (of the class's tiles) that folds hold,
    which the next patient is to raise least. Patients of like size come in an order drawn from the seed.

    Args:
        patients: of each tile; None where unknown, and then the tile counts as a patient of its own.
        labels: of each tile.
        k: 2 or more.
        seed: of the order.

    Returns:
        int64 [N], the fold of each tile, 0 to k - 1; every fold has tiles of every class.

    Raises:
        InputError: fewer than 2 folds, or a class of fewer patients than folds.
    """
    if k < 2:
        raise InputError(f"{k} folds were asked for, expected 2 or more.")
    names = sorted(set(labels))
    own = [("tile", position) if patient is None else patient for position, patient in enumerate(patients)]
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(own))}
    of_tile = np.array([numbers[patient] for patient in own])
    counts = np.zeros((len(numbers), len(names)))
    np.add.at(counts, (of_tile, np.array([names.index(label) for label in labels])), 1)
    for name, having in zip(names, (counts > 0).sum(axis=0), strict=True):
        if having < k:
            raise InputError(
                f"The class {name} has {having} patient{'s' if having != 1 else ''}, but {k} folds without a common "
                f"patient need {k}: take fewer folds, or join the class with another (--data.group)."
            )
    shares = counts / counts.sum(axis=0)
    held = np.zeros((k, len(names)))
    fold_of = np.zeros(len(numbers), dtype=np.int64)
    order = draws(seed, "folds", 0).permutation(len(numbers))
    for patient in order[np.argsort(-counts.sum(axis=1)[order], kind="stable")]:
        # (h + s)² - h²: what the sum of squares would grow by in each fold
        growth = (2 * held * shares[patient] + shares[patient] ** 2).sum(axis=1)
        fold_of[patient] = np.lexsort((held.sum(axis=1), growth.round(12)))[0]
        held[fold_of[patient]] += shares[patient]
    if not (held > 0).all():
        lacking = names[int(np.argwhere(held == 0)[0, 1])]
        raise InputError(
            f"{k} folds without a common patient cannot all have tiles of {lacking}, as its patients have several "
            "classes; take fewer folds, or another seed."
        )
    return fold_of[of_tile]
