"""What an objective of pretraining gives, and what all of them share; see pretrain/objectives/."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pretrain.backbone import Backbone

if TYPE_CHECKING:
    from pretrain.pool import Pool
    from pretrain.recipe import Recipe

Tensors = dict[str, Tensor]


@dataclass
class Context:
    """What objectives are made from.

    encoder: the network that learns; seen: the same, and maps: its `maps`, compiled where that was asked for.
    pool: the tiles learned from.
    pseudo_masks: folder where pseudo-masks of them are kept; None: none are made, as for a dry run.
    """

    recipe: "Recipe"
    encoder: Backbone
    seen: Callable[[Tensor], Tensor]
    maps: Callable[[Tensor], list[Tensor]]
    pool: "Pool"
    accelerator: Accelerator
    pseudo_masks: Path | None = None


@dataclass
class Batch:
    """This process's tiles of one step, on the device.

    tiles: uint8 [N, 3, t, t] RGB; indices: global image index of each; sources: int64 [N], number of its source.
    pairs: what else objectives asked the loader for, by name, first dimension N.
    """

    tiles: Tensor
    indices: list[int]
    sources: Tensor
    pairs: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, items: dict[str, Any], device: torch.device) -> "Batch":
        """From what the loader collates (see `pretrain.pool.PooledCrops`)."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in items.items() if isinstance(value, Tensor)
        }
        indices = moved.pop("index").tolist()
        return cls(moved.pop("tile"), indices, moved.pop("source"), moved)


class Objective(ABC):
    """One way to learn an encoder from a batch.

    A step goes: `show` draws what the encoder sees; `embed` runs it through encoder and heads, in parts where memory
    is short; `compare` gives the loss of the embeddings of all parts and processes. So negatives are those of the whole
    batch, however it is divided.

    Attributes:
        weight: of its terms in the sum.
    """

    weight: float

    def heads(self) -> dict[str, nn.Module]:
        """Networks that are trained along with the encoder, by name."""
        return {}

    def items(self) -> Callable[[int], dict[str, Any]] | None:
        """What the loader's workers make of a global image index beside its tile, for `Batch.pairs`; None: nothing."""
        return None

    @abstractmethod
    def show(self, batch: Batch) -> Tensors:
        """What the encoder is shown, by name, first dimension N; every draw is keyed by image index. No gradients."""

    @abstractmethod
    def embed(self, shown: Tensors) -> tuple[Tensors, Tensors]:
        """Embeddings of (a part of) what is shown, first dimension its tiles; and loss terms of the part by itself.

        What is not of floats goes to `compare` with the embeddings, and has no gradient: say, which of them count.
        """

    @abstractmethod
    def compare(self, embedded: Tensors) -> tuple[Tensors, Tensor]:
        """Loss terms, by name, of the embeddings of the whole batch; and vectors, float [R, D], whose spread tells of a
        collapse. float32, outside autocast; the same in all processes."""

    def sheets(self, batch: Batch, shown: Tensors) -> dict[str, dict[str, Tensor]]:
        """Pictures of what is shown, by the name of a sheet and of its columns: RGB levels [N, 3, s, s]."""
        views = {name: value for name, value in shown.items() if value.ndim == 4 and value.shape[1] == 3}
        return {"views": {"tile": batch.tiles, **views}}

    def facts(self) -> dict[str, str]:
        """What it learns from beside the pool, by name, for people."""
        return {}

    def weights(self) -> dict[str, float]:
        """Weights of terms whose weight is not 1."""
        return {}

    def scalars(self) -> dict[str, float]:
        """What else to log; counters begin anew with every reading."""
        return {}
