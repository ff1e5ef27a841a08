"""Barlow Twins (Zbontar et al. 2021): two views of a tile agree in every number, and no two numbers say the same.

It has no negatives, so it bears small batches and tiles that are alike.
"""

from dataclasses import dataclass

from torch import Tensor

from histo.errors import InputError
from pretrain.losses.barlow import barlow
from pretrain.objective import Batch, Context, Tensors
from pretrain.pairs import PairObjective


@dataclass
class BarlowSettings:
    """Settings of objective barlow."""

    weight: float = 1.0
    """of the loss, where several objectives are combined"""
    redundancy: float = 0.005
    """λ: weight of correlations between different numbers"""
    width: int = 2048
    """numbers of an embedding, and of the projector's two hidden layers; the paper has 8192"""

    def __post_init__(self) -> None:
        for name in ("weight", "redundancy"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"barlow.{name} is {getattr(self, name)}, expected a finite number above 0.")
        if self.width < 2:
            raise InputError(f"barlow.width is {self.width}, expected 2 or more numbers.")


class Objective(PairObjective):
    """Two views of each tile by `view`, and the cross-correlation of their projections."""

    def __init__(self, context: Context) -> None:
        self.settings = context.recipe.barlow
        super().__init__(context, [self.settings.width] * 3, self.settings.weight)

    def show(self, batch: Batch) -> Tensors:
        return {name: self.view(batch.tiles, f"barlow {name} view", batch) for name in ("first", "second")}

    def between(self, first: Tensor, second: Tensor) -> Tensors:
        invariance, redundancy = barlow(first, second, self.settings.redundancy)
        return {"invariance": invariance, "redundancy": redundancy}
