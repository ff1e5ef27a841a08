"""Which labels a training may use: nested, stratified subsets that grow patient by patient.

Label efficiency is a curve of a metric against labelled tiles. Its points compare only if the smaller sets lie inside
the larger ones, hold the classes in like shares, and are as few patients as they would be for someone who begins to
label: a random tenth of all tiles shows nearly every patient, which nobody would have labelled.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.randomness import draws


def growing_order(patients: Sequence[Hashable | None], labels: Sequence[str] | None, seed: int) -> NDArray[np.int64]:
    """An order of tiles of which every beginning is a stratified set of few patients.

    Patients come in an order drawn from the seed, the tiles of each together in an order of their own. With labels
    every class keeps such an order; each class comes once first, and then the class comes next that most lacks its
    share of what is taken.

    Args:
        patients: of each tile, or its slide; None where unknown, and then the tile counts as a patient of its own.
        labels: class of each tile; None where tiles have none.
        seed: of the order.

    Returns:
        int64 [N], positions of all tiles.
    """
    own = [("tile", place) if patient is None else patient for place, patient in enumerate(patients)]
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(own))}
    turn = draws(seed, "labelled patients", 0).permutation(len(numbers))
    place = draws(seed, "labelled tiles", 0).permutation(len(own))
    order = np.lexsort((place, turn[[numbers[patient] for patient in own]]))
    if labels is None:
        return order
    names = sorted(set(labels))
    classes = np.array([names.index(label) for label in labels])
    queues = [order[classes[order] == number] for number in range(len(names))]
    shares = np.array([len(queue) for queue in queues]) / len(own)
    taken = np.zeros(len(names), dtype=np.int64)
    found = np.empty(len(own), dtype=np.int64)
    for count in range(len(own)):
        if count < len(names):
            number = count
        else:
            # Shares of the count reached with this tile; a class whose tiles are all taken lacks nothing.
            lack = np.where(taken < [len(queue) for queue in queues], shares * (count + 1) - taken, -np.inf)
            number = int(lack.argmax())
        found[count] = queues[number][taken[number]]
        taken[number] += 1
    return found


def labelled_subset(
    patients: Sequence[Hashable | None],
    labels: Sequence[str] | None,
    *,
    fraction: float = 1.0,
    images: int | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Positions of the tiles whose labels may be used; for one seed the smaller set lies inside the larger one.

    Args:
        patients, labels: of each tile, see `growing_order`.
        fraction: of the tiles, rounded to at least one tile.
        images: that many instead.

    Returns:
        int64 [n], ascending.

    Raises:
        InputError: more images than there are, or fewer than classes.
    """
    total = len(patients)
    if images is not None and images > total:
        raise InputError(
            f"data.label_images is {images}, expected at most {total}, as many as there are labelled tiles to train "
            "on; lower it."
        )
    count = max(1, round(fraction * total)) if images is None else images
    classes = len(set(labels)) if labels is not None else 1
    if count < classes:
        setting = f"data.label_fraction {fraction:g}" if images is None else f"data.label_images {images}"
        least = f"{-(-classes * 1000 // total) / 1000:g}" if images is None else str(classes)
        raise InputError(
            f"{setting} of {total} tiles leaves {count} for {classes} classes, so that a class has none; give {least} "
            "or more."
        )
    return np.sort(growing_order(patients, labels, seed)[:count])
