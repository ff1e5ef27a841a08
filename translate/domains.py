"""The two unpaired domains, tissue tiles and mask images, by global image index.

Everything drawn here (order, crop, flips, fill of the nuclei) is keyed by (seed, image index): the item at an index is
the same in every process, worker and life of a run, which is what makes resuming exact.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from histo.codec import encode
from histo.crops import crop
from histo.errors import InputError
from histo.masks import read_instances, write_instances
from histo.phantom import PhantomTissue
from histo.randomness import draws
from histo.tiles import Tile, TileCache, Tiles, TileSet, open_tiles
from histo.watershed import segment

PHANTOM_MPP = 0.5
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
ATTEMPTS = 8


@dataclass
class DataSettings:
    """Where tissue and masks come from, and the tiles cut from them."""

    tissue: list[str] | str = "phantom"
    """folder of tiles, several as [a, b], or phantom: procedural tissue made on the fly"""
    masks: str = "watershed"
    """folder of instance maps or of tiles with masks; watershed: pseudo-masks of other tiles of the tissue; phantom"""
    mpp: float | None = None
    """µm/px of the tissue where its files do not say"""
    tile_size: int = 256
    """side of the square tiles; pixels, a power of two"""
    smallest_crop: float = 0.8
    """crops have a side of this share to 1 of the tile size before they are resized"""
    split: str = "train"
    """split to learn from, where tiles.csv names splits"""
    holdout: str = "test"
    """split never learned from, on which S is compared with labels where there are any"""
    on_bad: Literal["error", "skip"] = "error"
    """broken files: stop, or leave them out and list them"""
    workers: int = 1
    """loader processes; 0 loads in the training process"""
    cache_mb: int = 512
    """decoded tiles kept in memory by each loader process; MB"""

    def __post_init__(self) -> None:
        if self.tile_size not in (64, 128, 256, 512):
            raise InputError(f"data.tile_size is {self.tile_size}, expected 64, 128, 256 or 512 pixels.")
        if self.mpp is not None and not 0.01 <= self.mpp <= 100:
            raise InputError(f"data.mpp is {self.mpp}, expected µm/px between 0.01 and 100.")
        if not 0.1 <= self.smallest_crop <= 1:
            raise InputError(f"data.smallest_crop is {self.smallest_crop}, expected a share between 0.1 and 1.")
        if not 0 <= self.workers <= 64:
            raise InputError(f"data.workers is {self.workers}, expected 0 to 64 processes.")


class MaskSet:
    """Instance maps from files, as tiles of no tissue."""

    def __init__(self, files: list[Path], cache_mb: float) -> None:
        self.files = files
        self._cache = TileCache(cache_mb)

    def __len__(self) -> int:
        return len(self.files)

    def describe(self) -> str:
        return f"{len(self)} instance maps"

    def __getitem__(self, index: int, /) -> Tile:
        tile = self._cache.get(index)
        if tile is None:
            file = self.files[index]
            instances = read_instances(file)
            no_tissue = np.broadcast_to(np.uint8(0), (3, *instances.shape))  # takes no memory
            tile = Tile(no_tissue, file.name, file.parent.name, None, None, None, None, instances)
            self._cache.put(index, tile)
        return tile


@dataclass
class Domains:
    """What a run learns from and is checked on; `tissue` and `masks` share no tile.

    tissue: tiles and the positions in them that are shown.
    masks: instance maps of other origin.
    holdout: tiles never learned from, with instance maps where labels exist.
    origin: one sentence on where the masks come from.
    """

    tissue: Tiles
    shown: list[int]
    masks: Tiles
    holdout: Tiles
    origin: str
    facts: dict[str, str]


def open_domains(settings: DataSettings, seed: int, folder: Path | None, progress: bool) -> Domains:
    """Open tissue, masks and held-out tiles as the settings name them.

    Args:
        folder: where pseudo-masks are kept; they are made once, and found again by a resumed run. None: none are made,
            as for a dry run.
        progress: show a bar while pseudo-masks are made.

    Raises:
        InputError: a path that does not exist or holds nothing usable, unknown µm/px where it is needed, masks without
            a single nucleus.
    """
    tissue, holdout = _open_tissue(settings, seed)
    shown = list(range(len(tissue)))
    if settings.masks == "watershed":
        order = draws(seed, "donors", 0).permutation(len(tissue)).tolist()
        donors, shown = sorted(order[::2]), sorted(order[1::2])
        if not shown:
            raise InputError(
                "Watershed pseudo-masks need at least two tissue tiles: one to show, one to read masks from."
            )
        masks: Tiles = MaskSet(_watershed_masks(tissue, donors, folder, progress), settings.cache_mb)
        origin = (
            f"watershed pseudo-masks of {len(donors)} tissue tiles that are never shown; "
            f"the other {len(shown)} are shown and give no masks, so no pair exists"
        )
    elif settings.masks == "phantom":
        masks = _phantom(settings, seed + 1, "train")
        origin = "exact masks of phantom tissue of another seed"
    else:
        masks, origin = _open_masks(Path(settings.masks), settings.cache_mb)
    if folder is not None:
        _refuse_empty(masks, settings.masks)
    facts = {"tissue": tissue.describe(), "held out": holdout.describe() if len(holdout) else "none", "masks": origin}
    return Domains(tissue, shown, masks, holdout, origin, facts)


def _open_tissue(settings: DataSettings, seed: int) -> tuple[Tiles, Tiles]:
    if settings.tissue == "phantom":
        return _phantom(settings, seed, "train"), _phantom(settings, seed, "test")
    everything = open_tiles(settings.tissue, mpp=settings.mpp, on_bad=settings.on_bad, cache_mb=settings.cache_mb)
    learned = [entry for entry in everything.entries if entry.split in (settings.split, None)]
    apart = [entry for entry in everything.entries if entry.split == settings.holdout]
    if not learned:
        splits = sorted({str(entry.split) for entry in everything.entries})
        raise InputError(
            f"No tissue tile is of --data.split {settings.split!r}; {settings.tissue} has {', '.join(splits)}."
        )
    return (
        TileSet(learned, bad=everything.bad, cache_mb=settings.cache_mb),
        TileSet(apart, cache_mb=settings.cache_mb),
    )


def _phantom(settings: DataSettings, seed: int, split: Literal["train", "test"]) -> PhantomTissue:
    """Phantom tissue twice as wide as a tile, so that crops vary; 0.5 µm/px unless told otherwise."""
    size, mpp = 2 * settings.tile_size, settings.mpp or PHANTOM_MPP
    return PhantomTissue(seed, size=size, mpp=mpp, split=split, cache_mb=settings.cache_mb)


def _open_masks(path: Path, cache_mb: float) -> tuple[Tiles, str]:
    if path.is_dir() and (path / "tiles.csv").is_file():
        tiles = open_tiles(path)
        files = [entry.mask for entry in tiles.entries if entry.mask is not None]
        if not files:
            raise InputError(f"{path / 'tiles.csv'} names no masks; fill its column mask, or name a folder of masks.")
        return MaskSet(files, cache_mb), f"{len(files)} instance maps named by {path / 'tiles.csv'}"
    if not path.is_dir():
        raise InputError(f"--data.masks {str(path)!r} is no folder; expected a folder of masks, watershed or phantom.")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in MASK_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise InputError(f"{path} holds no instance maps; expected files ending in {', '.join(MASK_SUFFIXES)}.")
    return MaskSet(files, cache_mb), f"{len(files)} instance maps of {path}"


def _watershed_masks(tissue: Tiles, donors: list[int], folder: Path | None, progress: bool) -> list[Path]:
    if isinstance(tissue, TileSet):
        tissue.require_mpp("watershed pseudo-masks")
    if folder is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{donor:06d}.png" for donor in donors]
    missing = [(donor, file) for donor, file in zip(donors, files, strict=True) if not file.exists()]
    for donor, file in tqdm(missing, desc="watershed pseudo-masks", unit="tile", disable=not (progress and missing)):
        tile = tissue[donor]
        write_instances(file, segment(torch.tensor(tile.image), tile.mpp))
    return files


def _refuse_empty(masks: Tiles, named: str) -> None:
    for index in range(len(masks)):
        instances = masks[index].instances
        if instances is not None and instances.any():
            return
    raise InputError(f"None of the {len(masks)} masks of {named!r} holds a nucleus; check the masks or the µm/px.")


class UnpairedCrops(Dataset):
    """Crops of tissue and of masks by global image index: the two orders are shuffled apart.

    An item is a dict: `tissue` uint8 [3, r, r], `mask` uint8 [3, r, r], `foreground` bool [1, r, r], `index` int.
    """

    def __init__(self, domains: Domains, settings: DataSettings, seed: int) -> None:
        self.domains, self.settings, self.seed = domains, settings, seed

    def __getitem__(self, index: int) -> dict[str, Any]:
        shown = self.domains.shown[shuffled(self.seed, "tissue order", index, len(self.domains.shown))]
        tissue = self._crop(self.domains.tissue[shown], draws(self.seed, "tissue crop", index))
        donor = self.domains.masks[shuffled(self.seed, "mask order", index, len(self.domains.masks))]
        mask = nucleated_crop(donor, self.settings, draws(self.seed, "mask crop", index))
        assert mask.instances is not None
        image = encode(mask.instances, mask.types, draws(self.seed, "fill", index))
        return {
            "tissue": torch.from_numpy(tissue.image),
            "mask": torch.from_numpy(image),
            "foreground": torch.from_numpy(mask.instances > 0)[None],
            "index": index,
        }

    def _crop(self, tile: Tile, generator: np.random.Generator) -> Tile:
        bare = replace(tile, instances=None, types=None)
        return crop(bare, self.settings.tile_size, generator, smallest_side=self.settings.smallest_crop)


def nucleated_crop(tile: Tile, settings: DataSettings, generator: np.random.Generator) -> Tile:
    """A crop of a mask with nuclei and background; after a few tries without, the last one is taken as it is."""
    for _ in range(ATTEMPTS):
        taken = crop(tile, settings.tile_size, generator, smallest_side=settings.smallest_crop)
        assert taken.instances is not None
        nuclei = taken.instances > 0
        if nuclei.any() and not nuclei.all():
            break
    return taken


def shuffled(seed: int, stream: str, index: int, count: int) -> int:
    """Which of `count` items the global index falls on: each once an epoch, in an order of that epoch's own."""
    epoch, place = divmod(index, count)
    return int(_epoch_order(seed, stream, epoch, count)[place])


@lru_cache(maxsize=8)
def _epoch_order(seed: int, stream: str, epoch: int, count: int) -> NDArray[np.int64]:
    return draws(seed, stream, epoch).permutation(count)


class ImageClock(Sampler[list[int]]):
    """Global image indices of this process, batch by batch, from `start` to `stop`: a pure function of images seen.

    A batch of all processes is a run of `batch` indices; process `rank` takes its share of neighbours.
    """

    def __init__(self, start: int, stop: int, batch: int, rank: int, processes: int) -> None:
        if batch % processes:
            raise InputError(f"train.batch_size is {batch}, expected a multiple of the {processes} processes.")
        self.start, self.stop, self.batch = start, stop, batch
        self.rank, self.share = rank, batch // processes

    def __len__(self) -> int:
        return max(0, -(-(self.stop - self.start) // self.batch))

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, self.stop, self.batch):
            mine = first + self.rank * self.share
            yield list(range(mine, mine + self.share))


def _leave_signals_to_the_parent(worker: int) -> None:
    """A Ctrl-C or a SIGTERM to the whole group must not kill a worker under a parent that is about to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


def loader(crops: UnpairedCrops, clock: ImageClock, workers: int) -> DataLoader:
    """Batches in the clock's order, decoded by `workers` processes."""
    return DataLoader(
        crops,
        batch_sampler=clock,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_parent if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
