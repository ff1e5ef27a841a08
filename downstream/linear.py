"""What reads cached features: nearest neighbours, and a linear layer trained as kaiko's eva trains it.

The same protocol, so that figures stand beside its tables.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from downstream.losses import Loss, class_loss
from histo.errors import InputError
from histo.randomness import draws


@dataclass
class LinearSettings:
    """Linear probe; the defaults are eva's protocol (kaiko-ai/eva: patch-level classification)."""

    steps: int = 12_500
    """batches, at most"""
    batch_size: int = 256
    """tiles a batch"""
    learning_rate: float = 3e-4
    """of AdamW, without weight decay"""
    patience: float = 0.2
    """stop when the validation part has not improved for this share of the steps; without one all steps are made"""
    look_every: int = 100
    """steps between looks at the validation part"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "look_every"):
            if getattr(self, name) < 1:
                raise InputError(f"linear.{name} is {getattr(self, name)}, expected 1 or more.")
        if not 0 < self.learning_rate < 10:
            raise InputError(f"linear.learning_rate is {self.learning_rate}, expected a number in (0, 10).")
        if not 0 < self.patience <= 1:
            raise InputError(f"linear.patience is {self.patience}, expected a share above 0, at most 1.")


@dataclass
class KnnSettings:
    """Nearest neighbours."""

    k: int = 20
    """neighbours that vote"""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"knn.k is {self.k}, expected 1 or more.")


@dataclass(frozen=True)
class Fitted:
    """A trained layer.

    Attributes:
        layer: of the step that was best on the validation part, or the last one.
        steps: made; best: the step of the layer.
        course: (step, validation accuracy) of every look.
    """

    layer: nn.Linear
    steps: int
    best: int
    course: list[tuple[int, float]]


def fit(
    features: Tensor,
    numbers: Tensor,
    classes: int,
    settings: LinearSettings,
    seed: int,
    validation: tuple[Tensor, Tensor] | None = None,
    loss: Loss = "cross_entropy",
    weights: Tensor | None = None,
    gamma: float = 2.0,
) -> Fitted:
    """Train a linear layer by cross-entropy, or by the focal loss.

    Args:
        features: float32 [N, D]; numbers: int64 [N], their classes from 0.
        seed: of the initial weights and of the batches, which are drawn epoch by epoch.
        validation: features and classes that say when to stop.
        loss, weights, gamma: as in `downstream.losses.class_loss`.
    """
    torch.manual_seed(seed)
    layer = nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    count, size = len(features), min(settings.batch_size, len(features))
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    course: list[tuple[int, float]] = []
    best, best_accuracy, order, place, epoch = 0, -1.0, torch.empty(0, dtype=torch.int64), 0, 0
    step = 0
    while step < settings.steps:
        if place + size > len(order):
            order, place, epoch = torch.from_numpy(draws(seed, "linear", epoch).permutation(count)), 0, epoch + 1
        chosen = order[place : place + size]
        place += size
        optimizer.zero_grad(set_to_none=True)
        class_loss(layer(features[chosen]), numbers[chosen], loss, weights, gamma).backward()
        optimizer.step()
        step += 1
        if validation is not None and (step % settings.look_every == 0 or step == settings.steps):
            with torch.no_grad():
                accuracy = float((layer(validation[0]).argmax(1) == validation[1]).float().mean())
            course.append((step, accuracy))
            if accuracy > best_accuracy:
                best, best_accuracy = step, accuracy
                kept = {name: value.clone() for name, value in layer.state_dict().items()}
            elif step - best >= settings.patience * settings.steps:
                break
    if validation is None:
        best = step
    else:
        layer.load_state_dict(kept)
    return Fitted(layer.requires_grad_(False), step, best, course)
