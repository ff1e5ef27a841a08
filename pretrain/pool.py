"""The pool of tiles that an encoder learns from: crops of all sources by global image index, sources in even turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from histo.crops import crop
from histo.errors import InputError
from histo.layouts import LayoutSettings
from histo.randomness import draws
from histo.sampling import Order
from histo.tiles import TileSet
from translate.domains import PHANTOM_MPP, Domain, TissueSettings, open_tissue


@dataclass
class DataSettings(TissueSettings):
    """Where the tiles come from, and what is cut from them."""

    balance: Literal["sources", "tiles"] = "sources"
    """sources: each source is shown equally often, however many tiles it has; tiles: each tile is"""
    masks: str | None = None
    """nuclei for objective instance. tissue: the masks that the tissue's own tiles bring, which are labels where people
    drew them; watershed: made of the tissue; and for the generator alone layout: drawn from data.layout, or a folder of
    instance maps"""
    layout: LayoutSettings = field(default_factory=LayoutSettings)
    """what masks: layout draws; `nucleate layout fit` writes it; left as it is: the data.layout of the translator"""
    tile_size: int = 256
    """side of the square crops that views are taken from; pixels"""
    view_size: int = 224
    """side of the views that the encoder sees; pixels, a multiple of 32"""
    holdout: str = "test"
    """split never learned from, which panels and label-free probes look at"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 32 <= self.tile_size <= 1024:
            raise InputError(f"data.tile_size is {self.tile_size}, expected 32 to 1024 pixels.")
        if not 32 <= self.view_size <= 1024 or self.view_size % 32:
            raise InputError(f"data.view_size is {self.view_size}, expected a multiple of 32 from 32 to 1024 pixels.")


@dataclass
class Pool:
    """What a run learns from.

    tissue: its tiles, and those held out; names: of its sources; numbers: of the source of each tile, int64.
    mpp: µm/px of all tiles; None where it is unknown or differs.
    facts: what it is, by name, for people and cards.
    skipped: unreadable files that on_bad=skip left out, with the reason.
    """

    tissue: Domain
    names: list[str]
    numbers: NDArray[np.int64]
    mpp: float | None
    facts: dict[str, str]
    skipped: list[tuple[Path, str]]


def open_pool(settings: DataSettings, seed: int, batch: int) -> Pool:
    """Open the tiles as the settings name them.

    Args:
        batch: tiles of a step, of which there must be as many.

    Raises:
        InputError: a path that does not exist or holds nothing usable, a source without a tile to learn from, or fewer
            tiles than a batch.
    """
    tissue, bad = open_tissue(settings.tissue, settings, seed)
    tiles = tissue.tiles
    if isinstance(tiles, TileSet):
        sources = tiles.entries.facts("source")
        names, numbers = [str(value) for value in sources.values], sources.codes.astype(np.int64)
        known = list(tiles.entries.facts("mpp").counts())
        mpp = known[0] if len(known) == 1 else None
        if empty := sorted(set(sources.values) - sources.counts().keys()):
            raise InputError(
                f"The source {empty[0]} of --data.tissue has no tile of --data.split {settings.split!r}, expected one "
                "at least of each source; leave it out, or correct its tiles.csv."
            )
    else:
        mpp = settings.mpp or PHANTOM_MPP
        names, numbers = ["phantom"], np.zeros(len(tiles), dtype=np.int64)
    if len(tiles) < batch:
        raise InputError(
            f"There are {len(tiles)} tiles of --data.split {settings.split!r} and train.batch_size is {batch}, "
            "expected as many tiles at least, since those of a batch are told apart; lower --train.batch_size."
        )
    if settings.balance == "sources" and len(tissue.sizes) > 1:
        tissue.weights = [1.0] * len(tissue.sizes)
    turns = f"{len(names)}, " + ("in even turns" if tissue.weights else "by their number of tiles")
    smallest = min(tissue.sizes)
    if tissue.weights and smallest * len(tissue.sizes) < batch:
        turns += f"; the smallest has {smallest}, so a batch shows some of its tiles several times"
    held_out = tissue.holdout
    facts = {
        "tissue": tiles.describe(),
        "sources": turns,
        "held out": held_out.describe() if len(held_out) else "none",
    }
    if bad:
        facts["skipped"] = f"{len(bad)} unreadable files, listed at the end"
    return Pool(tissue, names, numbers, mpp, facts, bad)


class PooledCrops(Dataset[dict[str, Any]]):
    """Crops of the pool by global image index.

    An item is a dict: `tile` uint8 [3, t, t], `index` int, `source` int, the number of its source; and what objectives
    ask for by `Objective.items`.
    """

    def __init__(
        self, pool: Pool, settings: DataSettings, seed: int, more: Sequence[Callable[[int], dict[str, Any]]] = ()
    ) -> None:
        self.pool, self.settings, self.seed, self.more = pool, settings, seed, more
        self.order = Order(seed, "pool order", pool.tissue.sizes, pool.tissue.weights)

    def __getitem__(self, index: int) -> dict[str, Any]:
        position = int(self.pool.tissue.shown[self.order(index)])
        tile = self.pool.tissue.tiles[position]
        taken = crop(tile, self.settings.tile_size, draws(self.seed, "pool crop", index), turn=False)
        item = {"tile": torch.from_numpy(taken.image), "index": index, "source": int(self.pool.numbers[position])}
        for own in self.more:
            item |= own(index)
        return item
