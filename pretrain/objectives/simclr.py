"""SimCLR (Chen et al. 2020), as Ciga et al. (arXiv 2011.13971) pretrain on pooled histology: two views of a tile
together, all other tiles apart."""

from dataclasses import dataclass

from torch import Tensor

from histo.errors import InputError
from pretrain.losses.nt_xent import nt_xent
from pretrain.objective import Batch, Context, Tensors
from pretrain.pairs import PairObjective


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


class Objective(PairObjective):
    """Two views of each tile by `view`, and NT-Xent between their projections."""

    def __init__(self, context: Context) -> None:
        self.settings = context.recipe.simclr
        super().__init__(context, [context.encoder.width, self.settings.width], self.settings.weight)

    def show(self, batch: Batch) -> Tensors:
        return {name: self.view(batch.tiles, f"simclr {name} view", batch) for name in ("first", "second")}

    def between(self, first: Tensor, second: Tensor) -> Tensors:
        return {"contrast": nt_xent(first, second, self.settings.temperature)}
