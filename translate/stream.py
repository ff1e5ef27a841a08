"""Batches of unpaired crops by global image index.

Everything drawn here (order, crop, flips, fill of the nuclei) is keyed by (seed, image index): the item at an index is
the same in every process, worker and life of a run, which is what makes resuming exact.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from histo.codec import encode
from histo.crops import crop
from histo.flows import flows_of
from histo.randomness import draws
from histo.sampling import Order
from histo.tiles import Tile, Tiles
from translate.domains import DataSettings, Domain, Domains

ATTEMPTS = 8  # crops of a mask tried for one with nuclei and background


class UnpairedCrops(Dataset):
    """Crops of source and target by global image index: the two orders are shuffled apart.

    An item is a dict: `source` and `target` uint8 [3, r, r], `index` int; of masks also `instances` int32 [r, r], and
    with `flows` those of the instances, float32 [2, r, r].
    """

    def __init__(self, domains: Domains, settings: DataSettings, seed: int, flows: bool = False) -> None:
        self.domains, self.settings, self.seed, self.flows = domains, settings, seed, flows
        source, target = domains.source, domains.target
        self.source_order = Order(seed, "mask order", source.sizes, source.weights)
        self.target_order = Order(seed, "tissue order", target.sizes, target.weights)
        self.masks = MaskCrops(source.tiles, settings, seed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        target = self._tissue(self.domains.target, self.target_order(index), "tissue crop", index)
        item = {"target": torch.from_numpy(target), "index": index}
        if self.settings.between_tissues:
            source = self._tissue(self.domains.source, self.source_order(index), "source crop", index)
            return item | {"source": torch.from_numpy(source)}
        mask = self.masks.draw(self.source_order(index), "mask crop", index)
        assert mask.instances is not None
        form = self.settings.mask_form
        drawn = encode(mask.instances, mask.types, draws(self.seed, "fill", index), form)
        item |= {"source": torch.from_numpy(drawn), "instances": torch.from_numpy(mask.instances)}
        if self.flows:
            item["flows"] = torch.from_numpy(flows_of(mask.instances))
        return item

    def _tissue(self, domain: Domain, position: int, stream: str, index: int) -> NDArray[np.uint8]:
        tile = replace(domain.tiles[int(domain.shown[position])], instances=None, types=None)
        generator = draws(self.seed, stream, index)
        return crop(tile, self.settings.tile_size, generator, smallest_side=self.settings.smallest_crop).image


class MaskCrops:
    """Crops of masks that show nuclei and background, pure in their key."""

    def __init__(self, tiles: Tiles, settings: DataSettings, seed: int) -> None:
        self.tiles, self.settings, self.seed = tiles, settings, seed
        self._useless: set[int] = set()  # masks found to be all background or all nucleus: never opened again

    def draw(self, position: int, stream: str, index: int) -> Tile:
        """A crop of the mask at a position; where it gives none, the others take its place in a random order.

        Only if no mask gives one within `ATTEMPTS` crops, the last crop is taken as it is.
        """
        taken = nucleated_crop(self.tiles[position], self.settings, draws(self.seed, stream, index))
        if _is_telling(taken):
            return taken
        others = draws(self.seed, f"{stream} of another", index)
        for other in map(int, others.permutation(len(self.tiles))):
            if other in self._useless:
                continue
            tile = self.tiles[other]
            if not _is_telling(tile):
                self._useless.add(other)  # before a crop is drawn, so that draws do not depend on what is known
                continue
            taken = nucleated_crop(tile, self.settings, others)
            if _is_telling(taken):
                break
        return taken


def nucleated_crop(tile: Tile, settings: DataSettings, generator: np.random.Generator) -> Tile:
    """A crop of a mask with nuclei and background; after a few tries without, the last one is taken as it is."""
    for _ in range(ATTEMPTS):
        taken = crop(tile, settings.tile_size, generator, smallest_side=settings.smallest_crop)
        if _is_telling(taken):
            break
    return taken


def _is_telling(tile: Tile) -> bool:
    assert tile.instances is not None
    nuclei = tile.instances > 0
    return bool(nuclei.any() and not nuclei.all())
