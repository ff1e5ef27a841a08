"""One-to-one pairs of true and predicted nuclei."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def best_pairs(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], weights: NDArray[np.floating]
) -> NDArray[np.int64]:
    """Which of the possible pairs to keep, so that each nucleus has one partner at most and the weights add up to most.

    Solved by assignment (`scipy.optimize.linear_sum_assignment`) in every connected group of nuclei by itself: groups
    are small, where one table of all nuclei would grow with their square.

    Args:
        truth: integer [K], true nucleus of each possible pair, from 0.
        prediction: integer [K], predicted nucleus of the pair, from 0; no pair occurs twice.
        weights: float [K], above 0.

    Returns:
        int64 [M], positions of the pairs kept, ascending.
    """
    if not len(weights):
        return np.empty(0, dtype=np.int64)
    true_nuclei, nuclei = int(truth.max()) + 1, int(truth.max()) + int(prediction.max()) + 2
    graph = coo_array((np.ones(len(truth)), (truth, prediction + true_nuclei)), shape=(nuclei, nuclei))
    group = connected_components(graph, directed=False)[1][truth]
    by_group = np.argsort(group, kind="stable")
    kept = []
    for members in np.split(by_group, np.flatnonzero(np.diff(group[by_group])) + 1):
        if len(members) == 1:
            kept.append(members)
            continue
        rows, row = np.unique(truth[members], return_inverse=True)
        columns, column = np.unique(prediction[members], return_inverse=True)
        table, place = np.zeros((len(rows), len(columns))), np.full((len(rows), len(columns)), -1)
        table[row, column], place[row, column] = weights[members], members
        chosen = place[linear_sum_assignment(table, maximize=True)]
        kept.append(chosen[chosen >= 0])
    return np.sort(np.concatenate(kept))
