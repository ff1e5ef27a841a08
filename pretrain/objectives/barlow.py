"""Barlow Twins (Zbontar et al. 2021): two views of a tile agree in every number, and no two numbers say the same.

It has no negatives, so it bears small batches and tiles that are alike.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from histo.errors import InputError
from pretrain import objective
from pretrain.losses.barlow import barlow
from pretrain.objective import Batch, Context, Tensors
from pretrain.projector import projector
from pretrain.views import view


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


class Objective(objective.Objective):
    """Two views of each tile by `view`, and the cross-correlation of their projections."""

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.recipe.barlow
        self.weight = self.settings.weight
        width = self.settings.width
        self.projector = projector([context.encoder.width, width, width, width])

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def show(self, batch: Batch) -> Tensors:
        recipe = self.context.recipe

        def seen(stream: str) -> Tensor:
            return view(batch.tiles, recipe.view, recipe.seed, stream, batch.indices, recipe.data.view_size)

        return {"first": seen("barlow first view"), "second": seen("barlow second view")}

    def embed(self, shown: Tensors) -> tuple[Tensors, Tensors]:
        return self.context.pair(shown, self.projector), {}

    def compare(self, embedded: Tensors) -> Tensors:
        invariance, redundancy = barlow(embedded["first"], embedded["second"], self.settings.redundancy)
        return {"invariance": invariance, "redundancy": redundancy}
