"""What a task brings to the training loop: a network, what a crop must carry, losses, scores and pictures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from downstream.labelled import Labelled, Needs
from histo.encoders import Start
from histo.tiles import Tile, TileSet

if TYPE_CHECKING:
    from downstream.recipe import Recipe

Tensors = dict[str, Tensor]


@dataclass
class Evaluation:
    """How a network does on tiles.

    Attributes:
        scores: by name; higher is better for the one that the task chooses by.
        cases: the scores of every tile alone, by its key, in the order of the tiles.
        classes, confusion: names, and how many tiles or pixels of each true class (row) were given each one (column).
        pictures: as `Task.draw` makes them, of the worst and best tiles, where predicting a tile takes long.
    """

    scores: dict[str, float]
    cases: dict[str, dict[str, float]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


class Task(Protocol):
    """Something to learn from labelled tiles on top of an encoder."""

    NEEDS: Needs
    CHOSEN: str  # name of the score that says which network is best

    def __init__(self, recipe: "Recipe", start: Start, labelled: Labelled, seed: int) -> None: ...

    @property
    def network(self) -> nn.Module:
        """What learns."""
        ...

    @property
    def encoder(self) -> nn.Module:
        """The part of the network that the encoder's weights began."""
        ...

    def prepared(self, tile: Tile) -> Tile:
        """A tile as crops are to be cut from it."""
        ...

    def item(self, tile: Tile, index: int) -> Tensors:
        """What a crop of a tile gives to the loss beside its image; runs in a loader's worker."""
        ...

    def losses(self, images: Tensor, items: Tensors) -> Tensors:
        """Named terms of the loss of a batch.

        Args:
            images: float [N, 3, H, W], levels 0 to 255.
            items: what `item` gave, batched, and `index` int64 [N].
        """
        ...

    def evaluate(self, network: nn.Module, tiles: TileSet) -> Evaluation:
        """Scores of a network of this task, in evaluation mode, on whole tiles."""
        ...

    def draw(self, network: nn.Module, tile: Tile) -> NDArray[np.uint8]:
        """A picture for people, uint8 [H, W', 3]: the tile, its label, the prediction, and where they differ."""
        ...

    def export(self, network: nn.Module, card: dict[str, Any], folder: Path) -> Path:
        """Write what users load; returns the file."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """A task that says which tile an image index shows, as where a batch must hold several classes."""

    def tile(self, tiles: TileSet, index: int) -> Tile:
        """The tile from which the crop of a global image index is cut; pure in its arguments.

        Args:
            tiles: the training part.
        """
        ...
