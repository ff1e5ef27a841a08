"""Crops of labelled tiles by global image index: the same in every process, worker and life of a run."""

from typing import Any

import torch
from torch.utils.data import Dataset

from downstream.recipe import CropSettings
from downstream.task import Task
from histo.crops import crop
from histo.randomness import draws
from histo.sampling import Order
from histo.tiles import TileSet


class LabelledCrops(Dataset[dict[str, Any]]):
    """An item is a dict: `image` uint8 [3, s, s], `index` int, and what the task's `item` gives of the crop."""

    def __init__(self, tiles: TileSet, task: Task, settings: CropSettings, seed: int) -> None:
        self.tiles, self.task, self.settings, self.seed = tiles, task, settings, seed
        self.order = Order(seed, "labelled order", [len(tiles)])

    def __getitem__(self, index: int) -> dict[str, Any]:
        tile = self.tiles[self.order(index)]
        generator = draws(self.seed, "labelled crop", index)
        cut = crop(tile, self.settings.size, generator, smallest_side=self.settings.smallest)
        return {"image": torch.from_numpy(cut.image), "index": index, **self.task.item(cut, index)}
