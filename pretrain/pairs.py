"""What objectives share that show two views of each tile and compare their projections."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from pretrain.objective import Batch, Context, Objective, Tensors
from pretrain.projector import projector
from pretrain.views import view


class PairObjective(Objective):
    """Two views of each tile, and a loss between their projections.

    The encoder gives features part by part; the projector, which is cheap, runs where the features of the whole batch
    are. So its batch norm sees all of them, however many parts and processes divide the batch.

    Args:
        widths: of the projector's layers, after the features.
        weight: of the loss.
    """

    def __init__(self, context: Context, widths: list[int], weight: float) -> None:
        self.context, self.weight = context, weight
        self.projector = projector([context.encoder.width, *widths])

    @abstractmethod
    def between(self, first: Tensor, second: Tensor) -> Tensors:
        """Loss terms, by name, of the projections of both views of the whole batch, float [N, D] each."""

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def view(self, tiles: Tensor, stream: str, batch: Batch) -> Tensor:
        """A view of the tiles of a batch, or of what was made of them; levels, float32 [N, 3, s, s]."""
        recipe = self.context.recipe
        return view(tiles, recipe.view, recipe.seed, stream, batch.indices, recipe.data.view_size)

    def embed(self, shown: Tensors) -> tuple[Tensors, Tensors]:
        first, second = self.context.seen(torch.cat([shown["first"], shown["second"]])).chunk(2)
        return {"first": first, "second": second}, {}

    def compare(self, embedded: Tensors) -> tuple[Tensors, Tensor]:
        first, second = self.projected(embedded)
        return self.between(first, second), first

    def projected(self, embedded: Tensors) -> tuple[Tensor, Tensor]:
        """The projections of both views."""
        first, second = self.projector(torch.cat([embedded["first"], embedded["second"]])).chunk(2)
        return first, second
