"""The linear probe: multinomial logistic regression on frozen features, solved to its one optimum.

Features are standardised by the training part. What is minimised is the mean cross-entropy plus penalty / 2 · |W|²,
the bias free; that is convex, and L-BFGS goes on until the gradient is gone, so neither a seed nor a learning rate has
a say. kaiko's eva trains the same layer by 12 500 steps of AdamW without weight decay and stops early on held-out
tiles; here the penalty does what stopping early does there, chosen by patients held out of the training part, never by
the test part.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from histo.errors import InputError
from histo.probes.splits import folds

PENALTIES = (1.0, 0.1, 0.01, 0.001)
PENALTY = 0.01  # where there is nobody to choose by
INNER_FOLDS = 3
_GRADIENT = 5e-5  # largest entry at which the solver stops, in directions of curvature 1
_STEPS = 500
_ENOUGH = 8  # tiles for each feature show the curvature


@dataclass(frozen=True)
class Linear:
    """A fitted layer, which takes features as they are.

    Attributes:
        weight: float32 [classes, D].
        bias: float32 [classes].
        penalty: it was fitted with.
        passes: over the training part that fitting took.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    passes: int

    def __call__(self, features: Tensor) -> Tensor:
        """float [N, D] → logits float32 [N, classes]."""
        return features.float() @ self.weight.T + self.bias


def fit_linear(features: Tensor, labels: Tensor, classes: int, penalty: float = PENALTY) -> Linear:
    """Fit the layer.

    Args:
        features: float [N, D] of the training part; the fit runs on their device.
        labels: int64 [N], classes from 0.
        classes: how many there are.
        penalty: above 0.

    Raises:
        InputError: features that are not finite.
    """
    if not features.isfinite().all():
        raise InputError("Some features are not finite, expected numbers; was the encoder's training diverging?")
    from scipy.optimize import minimize

    features = features.float()
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    deviation = torch.where(deviation > 1e-6 * mean.abs() + 1e-12, deviation, torch.inf)  # a constant tells nothing
    x = (features - mean) / deviation
    basis = _even_basis(x, classes, penalty)
    rank, device = basis.shape[1], x.device
    price = penalty * basis.square().sum(dim=0)  # the basis is orthogonal: |W|² is a sum over its directions
    rows = torch.arange(len(x), device=device)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layer = torch.from_numpy(flat).to(device, torch.float32).view(classes, rank + 1)
        amounts = layer[:, :rank]
        log_shares = torch.addmm(layer[:, rank], x, basis @ amounts.T).log_softmax(dim=1)
        total = (price * amounts.square()).double().sum() / 2 - log_shares[rows, labels].double().mean()
        error = log_shares.exp()
        error[rows, labels] -= 1
        error /= len(x)
        gradient = torch.cat([error.T @ x @ basis + price * amounts, error.sum(dim=0)[:, None]], dim=1)
        return float(total), gradient.double().flatten().cpu().numpy()

    start = np.zeros(classes * (rank + 1))
    options = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "gtol": _GRADIENT, "ftol": 1e-9}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    layer = torch.from_numpy(found.x).float().view(classes, rank + 1).to(device)
    weight = (layer[:, :rank] @ basis.T) / deviation
    return Linear(weight, layer[:, rank] - weight @ mean, penalty, int(found.nfev))


def _even_basis(x: Tensor, classes: int, penalty: float) -> Tensor:
    """Orthogonal directions [D, R] in which the curvature of the objective at W = 0 is the same all over.

    There it is XᵀX / (N · classes) + penalty, for which a part of many tiles stands. The optimum is the same in any
    basis; L-BFGS needs tens of passes in this one and hundreds without.
    """
    if len(x) < x.shape[1]:
        _, values, rows = torch.linalg.svd(x, full_matrices=False)  # the optimum lies in the span of the tiles
        curvature, directions = values.square() / len(x), rows.T
    else:
        some = x[:: max(1, len(x) // (_ENOUGH * x.shape[1]))]
        curvature, directions = torch.linalg.eigh(some.T @ some / len(some))
    return directions / (curvature.clamp(min=0) / classes + penalty).sqrt()


def choose_penalty(
    features: Tensor, labels: Tensor, classes: int, patients: Sequence[Hashable], seed: int
) -> float | None:
    """The penalty of `PENALTIES` with the least cross-entropy on patients held out of the training part.

    Args:
        features, labels, classes: the training part, as for `fit_linear`.
        patients: of each of its tiles, None where unknown.
        seed: of the inner folds.

    Returns:
        None where a class has fewer than `INNER_FOLDS` patients, so that none can be held out.
    """
    try:
        fold = folds(patients, [str(label) for label in labels.tolist()], INNER_FOLDS, seed)
    except InputError:
        return None
    losses = dict.fromkeys(PENALTIES, 0.0)
    for number in range(INNER_FOLDS):
        held = torch.from_numpy(fold == number).to(features.device)
        for penalty in PENALTIES:
            layer = fit_linear(features[~held], labels[~held], classes, penalty)
            losses[penalty] += float(cross_entropy(layer(features[held]), labels[held], reduction="sum"))
    return min(PENALTIES, key=lambda penalty: losses[penalty])


def fit_chosen(features: Tensor, labels: Tensor, classes: int, patients: Sequence[Hashable], seed: int) -> Linear:
    """`fit_linear` with the penalty of `choose_penalty`, or `PENALTY` where there is none."""
    return fit_linear(features, labels, classes, choose_penalty(features, labels, classes, patients, seed) or PENALTY)
