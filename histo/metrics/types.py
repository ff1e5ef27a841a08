"""Types of nuclei, by the rule of `Tile.classes`: an integer [K+1] by instance id, types from 1, 0 where unknown."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError


def types_of(
    ids: NDArray[np.int64], types: NDArray[Any] | None, count: int, whose: Literal["true", "predicted"]
) -> NDArray[np.int64]:
    """The type of each nucleus of a map.

    Args:
        ids: int64 [N], ids of the nuclei, ascending.
        types: integer [K+1], K being the largest id or more; entry 0 and those of ids that do not occur are not looked
            at. None where `count` is 0.
        count: how many types there are.
        whose: what the error sentence calls the nuclei.

    Returns:
        int64 [N], 0 to count.

    Raises:
        InputError: no types where there should be some, another shape, not integer, or a type out of range.
    """
    if types is None:
        if count:
            raise InputError(f"The {whose} nuclei have no types, expected one of 1 to {count} for each; give them.")
        return np.zeros(len(ids), dtype=np.int64)
    largest = int(ids.max(initial=0))
    if types.ndim != 1 or types.dtype.kind not in "ui" or len(types) <= largest:
        raise InputError(
            f"The types of the {whose} nuclei are {types.dtype} of shape {types.shape}, expected integers, one for "
            f"each id with the background's first, {largest + 1} or more; take them from the same tile as the map."
        )
    found = types[ids].astype(np.int64)
    wrong = (found < 0) | (found > count)
    if wrong.any():
        raise InputError(
            f"The {whose} nucleus {ids[wrong][0]} has type {found[wrong][0]}, but types run from 1 to {count} and 0 is "
            "unknown; map its type to one of these."
        )
    return found
