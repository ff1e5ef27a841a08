"""Bags of tile features: what a slide or a patient is, read from its tiles without saying which of them matter.

Gated attention after Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning" (ICML 2018);
mean, max and top-k are the baselines it is to beat.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histo.errors import InputError
from histo.randomness import draws

Pooling = Literal["attention", "mean", "max", "top"]


@dataclass
class BagSettings:
    """Multiple-instance learning on cached features."""

    pooling: Pooling = "attention"
    """attention: a gated, learned mean; mean or max: of the tiles' logits; top: mean of the `top` highest of them"""
    width: int = 128
    """units of the attention"""
    top: int = 8
    """tiles of pooling top"""
    epochs: int = 60
    """times each bag is shown"""
    tiles: int = 2000
    """tiles of a bag in training, at most, drawn anew each time; all of them when it is scored"""
    learning_rate: float = 3e-4
    """of AdamW"""
    weight_decay: float = 0.01
    """of weights"""
    dropout: float = 0.25
    """share of features left out in training"""
    pictures: int = 4
    """scored bags whose attention is drawn, of each class in turn"""

    def __post_init__(self) -> None:
        for name in ("width", "top", "epochs", "tiles"):
            if getattr(self, name) < 1:
                raise InputError(f"mil.{name} is {getattr(self, name)}, expected 1 or more.")
        if self.pictures < 0:
            raise InputError(f"mil.pictures is {self.pictures}, expected 0 or more.")
        if not 0 < self.learning_rate < 10:
            raise InputError(f"mil.learning_rate is {self.learning_rate}, expected a number in (0, 10).")
        for name in ("weight_decay", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"mil.{name} is {getattr(self, name)}, expected a share from 0 to below 1.")


class BagClassifier(nn.Module):
    """Features of a bag's tiles → its logits, and how much each tile has to do with them.

    Args:
        features: of a tile.
        mean, std: float [features], by which features are shifted and scaled first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, classes: int, settings: BagSettings, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.drop = nn.Dropout(settings.dropout)
        if settings.pooling == "attention":
            self.what, self.gate = nn.Linear(features, settings.width), nn.Linear(features, settings.width)
            self.score = nn.Linear(settings.width, 1)
        self.head = nn.Linear(features, classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """float [T, features] → logits float [C], and weights float [T] that sum to 1."""
        x = self.drop((features - self.mean) / self.std)
        if self.settings.pooling == "attention":
            weights = self.score(torch.tanh(self.what(x)) * torch.sigmoid(self.gate(x)))[:, 0].softmax(0)
            return self.head(weights @ x), weights
        logits = self.head(x)
        if self.settings.pooling == "mean":
            return logits.mean(0), logits.new_full((len(x),), 1 / len(x))
        count = 1 if self.settings.pooling == "max" else min(self.settings.top, len(x))
        highest = logits.topk(count, dim=0)
        # A tile's share: in how many classes' top it is.
        weights = torch.bincount(highest.indices.ravel(), minlength=len(x)).to(logits) / highest.indices.numel()
        return highest.values.mean(0), weights

    def evidence(self, features: Tensor) -> Tensor:
        """float [T, features] → float [T, C], log odds of each class against the others by one tile alone."""
        chances = self.head((features - self.mean) / self.std).double().log_softmax(1)
        return chances - torch.log(-torch.expm1(chances.clamp_max(-1e-12)))


def fit(
    bags: Sequence[Tensor],
    numbers: Sequence[int],
    classes: int,
    settings: BagSettings,
    seed: int,
    validation: tuple[Sequence[Tensor], Sequence[int]] | None = None,
) -> BagClassifier:
    """Train a bag classifier by cross-entropy, one bag a step.

    With a validation part the network is that of the epoch in which the part's cross-entropy was lowest, else the last.

    Args:
        bags: of each, float32 [T, D] features of its tiles; numbers: their classes from 0.
        seed: of the initial weights, the order, the tiles of large bags, and dropout.
        validation: bags and their classes.

    Raises:
        InputError: a bag without tiles.
    """
    empty = [place for place, bag in enumerate(bags) if not len(bag)]
    if empty:
        raise InputError(f"{len(empty)} of {len(bags)} bags have no tile, expected one at least; leave them out.")
    together = torch.cat(list(bags))
    torch.manual_seed(seed)
    network = BagClassifier(
        together.shape[1], classes, settings, together.mean(0), together.std(0).clamp_min(1e-6)
    ).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    lowest, kept = math.inf, None
    for epoch in range(settings.epochs):
        order = draws(seed, "bags", epoch)
        for place in order.permutation(len(bags)).tolist():
            bag = bags[place]
            if len(bag) > settings.tiles:
                bag = bag[torch.from_numpy(order.permutation(len(bag))[: settings.tiles])]
            optimizer.zero_grad(set_to_none=True)
            logits, _ = network(bag)
            F.cross_entropy(logits[None], torch.tensor([numbers[place]])).backward()
            optimizer.step()
        if validation is not None:
            loss = _loss(network, *validation)
            if loss < lowest:
                lowest, kept = loss, {name: value.clone() for name, value in network.state_dict().items()}
    if kept is not None:
        network.load_state_dict(kept)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def _loss(network: BagClassifier, bags: Sequence[Tensor], numbers: Sequence[int]) -> float:
    """The mean cross-entropy of bags, without dropout."""
    network.eval()
    logits = torch.stack([network(bag)[0] for bag in bags])
    network.train()
    return float(F.cross_entropy(logits, torch.tensor(numbers)))
