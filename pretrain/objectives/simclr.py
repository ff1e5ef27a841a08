"""SimCLR (Chen et al. 2020), as Ciga et al. (arXiv 2011.13971) pretrain on pooled histology: two views of a tile
together, all other tiles apart."""

from dataclasses import dataclass

from torch import Tensor, nn

from histo.errors import InputError
from pretrain import objective
from pretrain.losses.nt_xent import nt_xent
from pretrain.objective import Batch, Context, Tensors
from pretrain.projector import projector
from pretrain.views import view


@dataclass
class SimCLRSettings:
    """Settings of objective simclr."""

    weight: float = 1.0
    """of the loss, where several objectives are combined"""
    temperature: float = 0.5
    """τ of NT-Xent; 0.1 for large sets"""
    width: int = 128
    """numbers of an embedding"""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise InputError(f"simclr.weight is {self.weight}, expected a finite number above 0.")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"simclr.temperature is {self.temperature}, expected a finite number above 0.")
        if self.width < 1:
            raise InputError(f"simclr.width is {self.width}, expected 1 or more numbers.")


class Objective(objective.Objective):
    """Two views of each tile by `view`, and NT-Xent between their projections."""

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.recipe.simclr
        self.weight = self.settings.weight
        width = context.encoder.width
        self.projector = projector([width, width, self.settings.width])

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def show(self, batch: Batch) -> Tensors:
        recipe = self.context.recipe

        def seen(stream: str) -> Tensor:
            return view(batch.tiles, recipe.view, recipe.seed, stream, batch.indices, recipe.data.view_size)

        return {"first": seen("simclr first view"), "second": seen("simclr second view")}

    def embed(self, shown: Tensors) -> tuple[Tensors, Tensors]:
        return self.context.pair(shown, self.projector), {}

    def compare(self, embedded: Tensors) -> Tensors:
        return {"contrast": nt_xent(embedded["first"], embedded["second"], self.settings.temperature)}
