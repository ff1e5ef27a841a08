"""Crops of labelled tiles by global image index: the same in every process, worker and life of a run."""

from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset

from downstream.recipe import CropSettings
from downstream.task import Ordered, Task
from histo.crops import crop
from histo.magnification import step_to
from histo.probes.embedding import fitted
from histo.randomness import draws
from histo.sampling import Order
from histo.tiles import Tile, TileSet


class LabelledCrops(Dataset[dict[str, Any]]):
    """Crops, or whole tiles resized to the size of a crop, turned and mirrored.

    An item is a dict: `image` uint8 [3, s, s], `index` int, and what the task's `item` gives of the crop.
    """

    def __init__(
        self,
        tiles: TileSet,
        task: Task,
        settings: CropSettings,
        seed: int,
        whole: bool = False,
        extra: TileSet | None = None,
        extra_share: float = 0.0,
    ) -> None:
        """`extra_share` of the crops are cut from `extra`."""
        self.task, self.settings, self.seed, self.whole = task, settings, seed, whole
        turns = [(tiles, 1.0)] if extra is None else [(tiles, 1 - extra_share), (extra, extra_share)]
        self.sets = [some for some, share in turns if share > 0]
        shares = [share for _, share in turns if share > 0]
        self.order = Order(seed, "labelled order", [len(some) for some in self.sets], shares)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tile = self.task.prepared(self._tile(index))
        generator = draws(self.seed, "labelled crop", index)
        if self.whole:
            tile = replace(tile, image=fitted(tile, self.settings.size), instances=None)
        step = step_to(self.settings.mpp, tile.mpp, tile.key)
        smallest = 1 if self.whole else self.settings.smallest
        cut = crop(tile, self.settings.size, generator, smallest_side=smallest, step=step)
        return {"image": torch.from_numpy(cut.image), "index": index, **self.task.item(cut, index)}

    def _tile(self, index: int) -> Tile:
        """That of the task's own order, or of the one that goes through the sets, whose positions count on."""
        if isinstance(self.task, Ordered):
            return self.task.tile(self.sets[0], index)
        position = self.order(index)
        for tiles in self.sets:
            if position < len(tiles):
                return tiles[position]
            position -= len(tiles)
        raise IndexError(position)
