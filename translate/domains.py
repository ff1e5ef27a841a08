"""The two unpaired domains: nucleus masks and tissue, or tissue and other tissue.

Where they come from, and that no pair is among them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from histo.codec import Form
from histo.errors import InputError, writing
from histo.finders import open_finder
from histo.finders.cellpose_sam import LICENCE, CellposeSettings, weights_file
from histo.finders.network import NetworkSettings
from histo.layouts import Layouts, LayoutSettings
from histo.masks import mask_files, read_instances, write_instances
from histo.phantom import PhantomTissue
from histo.randomness import draws
from histo.running import processes
from histo.tiles import Tile, TileCache, Tiles, TileSet, is_described, local_place, open_tiles
from histo.tiles.entries import Entries

PHANTOM_MPP = 0.5
PseudoMask = Literal["watershed", "cellpose"]
LAYOUTS = 100_000  # drawn on the fly, so that many cost nothing


@dataclass
class TissueSettings:
    """Where tissue comes from, in translation and in pretraining."""

    tissue: list[str] | str = "phantom"
    """folder of tiles or of shards, URL of packed shards, NAME:PATH of a published set, or a slides.csv; several as
    [a, b]; phantom: procedural tissue made on the fly"""
    mpp: float | None = None
    """µm/px of tissue, before what tiles.csv, shards or image files say; null: as these say; slides are cut at it"""
    tile_size: int = 256
    """side of the square tiles; pixels"""
    split: str = "train"
    """split to learn from, where the tiles name splits"""
    holdout: str = "test"
    """split never learned from"""
    on_bad: Literal["error", "skip"] = "error"
    """broken files: stop, or leave them out and list them"""
    workers: int = 1
    """loader processes; 0 loads in the training process"""
    cache_mb: int = 512
    """decoded tiles kept in memory by each loader process; MB"""

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0.01 <= self.mpp <= 100:
            raise InputError(f"data.mpp is {self.mpp}, expected µm/px between 0.01 and 100.")
        if not 0 <= self.workers <= 64:
            raise InputError(f"data.workers is {self.workers}, expected 0 to 64 processes.")


@dataclass
class DataSettings(TissueSettings):
    """Where tissue and masks come from, and the tiles cut from them."""

    target: list[str] | str | None = None
    """folder of tiles or of shards: translate the tissue into tissue like this instead of to and from masks"""
    tissue_weights: list[float] | None = None
    """share of each folder of tissue in what is shown, [1, 1] for evenly; null shows every tile equally often"""
    masks: str = "watershed"
    """folder of instance maps, or tiles with masks, named as tissue is; watershed or cellpose: pseudo-masks of other
    tiles of the tissue; layout: drawn from data.layout; phantom"""
    cellpose: CellposeSettings = field(default_factory=CellposeSettings)
    """how masks: cellpose are found"""
    mask_form: Form = "paper"
    """how masks are drawn. paper: outline red, nuclei filled green and blue by type; two_channel: no outline; grey: no
    types either; binary: no texture either"""
    layout: LayoutSettings = field(default_factory=LayoutSettings)
    """what masks: layout draws; `nucleate layout fit` writes it"""
    tile_size: int = 256
    """side of the square tiles; pixels, a power of two"""
    smallest_crop: float = 0.8
    """crops have a side of this share to 1 of the tile size before they are resized"""
    holdout: str = "test"
    """split never learned from, on which S is compared with labels where there are any"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile_size not in (64, 128, 256, 512):
            raise InputError(f"data.tile_size is {self.tile_size}, expected 64, 128, 256 or 512 pixels.")
        if not 0.1 <= self.smallest_crop <= 1:
            raise InputError(f"data.smallest_crop is {self.smallest_crop}, expected a share between 0.1 and 1.")

    @property
    def between_tissues(self) -> bool:
        """Whether both domains are tissue, and there are no masks."""
        return self.target is not None


class MaskSet:
    """Instance maps from files, as tiles of no tissue."""

    def __init__(self, files: list[Path], cache_mb: float) -> None:
        self.files = files
        self._cache = TileCache(cache_mb)

    def __len__(self) -> int:
        return len(self.files)

    def describe(self) -> str:
        """One line for people."""
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
class Domain:
    """One side of a translation.

    tiles: tissue, or instance maps as tiles of no tissue; shown: the positions in them that are learned from; sizes:
    how many of those each source has.
    holdout: tiles never learned from, with instance maps where labels exist; empty for masks.
    weights: share of each source in what is shown; None: every tile equally often.
    """

    tiles: Tiles
    shown: NDArray[np.int64]
    sizes: list[int]
    holdout: Tiles
    weights: list[float] | None = None

    @property
    def seen(self) -> Tiles:
        """What to look at: tiles never learned from where there are any."""
        return self.holdout if len(self.holdout) else self.tiles


@dataclass
class Domains:
    """What a run learns from and is checked on; source and target share no tile.

    source: masks, or tissue to translate; target: tissue.
    origin: one sentence on where the source comes from.
    facts: what the domains are, by name, for people.
    skipped: unreadable files that on_bad=skip left out, with the reason.
    """

    source: Domain
    target: Domain
    origin: str
    facts: dict[str, str]
    skipped: list[tuple[Path, str]]


def open_domains(settings: DataSettings, seed: int, folder: Path | None, progress: bool) -> Domains:
    """Open the two domains and held-out tiles as the settings name them.

    Args:
        folder: where pseudo-masks are kept; they are made once, and found again by a resumed run. None: none are made,
            as for a dry run.
        progress: show a bar while pseudo-masks are made.

    Raises:
        InputError: a path that does not exist or holds nothing usable, unknown µm/px where it is needed, masks without
            a single nucleus.
    """
    tissue, bad = open_tissue(settings.tissue, settings, seed)
    tissue.weights = settings.tissue_weights
    if settings.target is not None:
        _refuse_same(settings.tissue, settings.target)
        target, bad_target = open_tissue(settings.target, settings, seed)
        origin = f"{tissue.tiles.describe()}; never paired with the target"
        domains = Domains(tissue, target, origin, {"source": tissue.tiles.describe()}, bad)
        domains.facts["target"] = target.tiles.describe()
        bad_masks = bad_target
    else:
        masks, origin, bad_masks = _open_masks(settings, seed, tissue, folder, progress)
        if folder is not None:
            refuse_useless(masks, settings.masks)
        source = Domain(masks, np.arange(len(masks)), [len(masks)], MaskSet([], 0))
        domains = Domains(source, tissue, origin, {"tissue": tissue.tiles.describe()}, bad)
        domains.facts["masks"] = origin
    held_out = domains.target.holdout
    domains.facts["held out"] = held_out.describe() if len(held_out) else "none"
    if settings.tissue_weights is not None:
        domains.facts["tissue" if domains.target is tissue else "source"] += (
            f" · shown in shares {settings.tissue_weights}"
        )
    domains.skipped = bad + [item for item in bad_masks if item not in bad]
    if domains.skipped:
        domains.facts["skipped"] = f"{len(domains.skipped)} unreadable files, listed at the end"
    return domains


def _refuse_same(tissue: list[str] | str, target: list[str] | str) -> None:
    sources, targets = ([paths] if isinstance(paths, str) else paths for paths in (tissue, target))
    for path in targets:
        if (local_place(path) or path) in [local_place(other) or other for other in sources]:
            raise InputError(
                f"{path} is both in --data.tissue and in --data.target, expected two kinds of tissue; name another."
            )


def _open_masks(
    settings: DataSettings, seed: int, tissue: Domain, folder: Path | None, progress: bool
) -> tuple[Tiles, str, list[tuple[Path, str]]]:
    """Masks, where they come from, and unreadable ones; `tissue` no longer shows the tiles that give masks."""
    tiles = tissue.tiles
    order = draws(seed, "donors", 0).permutation(len(tiles))
    donors, others = np.sort(order[::2]), np.sort(order[1::2])
    if settings.masks in get_args(PseudoMask):
        method: PseudoMask = "cellpose" if settings.masks == "cellpose" else "watershed"
        if not len(others):
            raise InputError(
                f"{settings.masks} pseudo-masks need two tissue tiles or more: some to show, some to read masks from."
            )
        _show(tissue, others)
        masks = MaskSet(pseudo_masks(method, settings.cellpose, tiles, donors, folder, progress), settings.cache_mb)
        origin = f"{settings.masks} pseudo-masks of {_apart(donors, others)}"
        if settings.masks == "cellpose":
            origin += f". {settings.cellpose.model}: {LICENCE}"
        return masks, origin, []
    if settings.masks == "phantom":
        return _phantom(settings, seed + 1, "train"), "exact masks of phantom tissue of another seed", []
    if settings.masks == "layout":
        origin = "layouts drawn from data.layout without any tissue; all tissue tiles are shown, and no pair exists"
        return _layouts(settings, seed, tiles), origin, []
    if is_described(settings.masks):
        labelled, bad = labelled_tiles(settings.masks, settings.split, settings.on_bad)
        images = {entry.path.resolve() for entry in tiles.entries} if isinstance(tiles, TileSet) else set()
        origin = f"{len(labelled)} instance maps of the tiles of {settings.masks}"
        if not images.isdisjoint(entry.path.resolve() for entry in labelled):
            # the tissue's own labels: half of the tiles give masks, the other half are shown
            assert isinstance(tiles, TileSet)
            giving = {tiles.entries[k].path.resolve() for k in donors}
            labelled = labelled.take([k for k, entry in enumerate(labelled) if entry.path.resolve() in giving])
            _show(tissue, others)
            origin = f"labels of {_apart(donors, others)}"
        return TileSet(labelled, cache_mb=settings.cache_mb), origin, bad
    if not Path(settings.masks).is_dir():
        raise InputError(
            f"--data.masks {settings.masks!r} is no folder; expected a folder of masks, watershed, cellpose, layout or "
            "phantom."
        )
    files, bad = mask_files(Path(settings.masks), settings.on_bad)
    return MaskSet(files, settings.cache_mb), f"{len(files)} instance maps of {settings.masks}", bad


def _show(domain: Domain, positions: NDArray[np.int64]) -> None:
    domain.shown, domain.sizes = positions, _sizes(domain.tiles, positions)


def open_tissue(paths: list[str] | str, settings: TissueSettings, seed: int) -> tuple[Domain, list[tuple[Path, str]]]:
    """Tissue to learn from and to hold out, all of it shown, and the unreadable files.

    Raises:
        InputError: a path that does not exist or holds nothing usable, or no tile of the split to learn from.
    """
    if paths == "phantom":
        tiles: Tiles = _phantom(settings, seed, "train")
        return Domain(tiles, np.arange(len(tiles)), [len(tiles)], _phantom(settings, seed, "test")), []
    everything = open_tiles(
        paths, mpp=settings.mpp, on_bad=settings.on_bad, cache_mb=settings.cache_mb, size=settings.tile_size
    )
    splits = everything.entries.facts("split")
    learned = everything.entries.take(splits.among(settings.split, None))
    apart = everything.entries.take(splits.among(settings.holdout))
    if not learned:
        present = ", ".join(sorted(map(str, splits.counts())))
        raise InputError(f"No tissue tile is of --data.split {settings.split!r}; {paths} has {present}.")
    tiles, holdout = (TileSet(part, cache_mb=settings.cache_mb) for part in (learned, apart))
    shown = np.arange(len(tiles))
    return Domain(tiles, shown, _sizes(tiles, shown), holdout), everything.bad


def _phantom(settings: TissueSettings, seed: int, split: Literal["train", "test"]) -> PhantomTissue:
    """Phantom tissue twice as wide as a tile, so that crops vary; 0.5 µm/px unless told otherwise."""
    size, mpp = 2 * settings.tile_size, settings.mpp or PHANTOM_MPP
    return PhantomTissue(seed, size=size, mpp=mpp, split=split, cache_mb=settings.cache_mb)


def _layouts(settings: DataSettings, seed: int, tissue: Tiles) -> Layouts:
    """Layouts of the tissue's µm/px; where tiles have several, layouts have them in the same shares."""
    if isinstance(tissue, TileSet):
        tissue.require_mpp("the layout prior")
        known = tissue.entries.facts("mpp")
        mpp = np.array(known.values, dtype=np.float64)[known.codes].tolist()
    else:
        mpp = [settings.mpp or PHANTOM_MPP]
    return Layouts(settings.layout, seed, size=settings.tile_size, mpp=mpp, count=LAYOUTS)


def _sizes(tissue: Tiles, shown: NDArray[np.int64]) -> list[int]:
    """How many of the tiles shown each source has, in the order of the sources."""
    if not isinstance(tissue, TileSet):
        return [len(shown)]
    return list(tissue.entries.take(shown).facts("source").counts().values())


def _apart(donors: NDArray[np.int64], others: NDArray[np.int64]) -> str:
    return (
        f"{len(donors)} tissue tiles that are never shown; the other {len(others)} are shown and give no masks, "
        "so no pair exists"
    )


def labelled_tiles(masks: str, split: str, on_bad: Literal["error", "skip"]) -> tuple[Entries, list[tuple[Path, str]]]:
    """Tiles with masks of shards or of a folder with tiles.csv, of the split to learn from only, and the skipped.

    Raises:
        InputError: there is none.
    """
    tiles = open_tiles(masks, on_bad=on_bad)
    wanted = (split, None)
    found = [k for k, entry in enumerate(tiles.entries) if entry.mask is not None and entry.split in wanted]
    if not found:
        raise InputError(
            f"{masks} names no masks of split {split!r}; fill the column mask of its tiles.csv, or "
            "name a folder of masks."
        )
    return tiles.entries.take(found), tiles.bad


def pseudo_masks(
    method: PseudoMask,
    cellpose: CellposeSettings,
    tissue: Tiles,
    donors: NDArray[np.int64],
    folder: Path | None,
    progress: bool,
) -> list[Path]:
    """Files of the masks, one for each donor, those made that are not there yet.

    Args:
        donors: positions in the tissue.
        folder, progress: as in `open_domains`; None: no file.

    Raises:
        InputError: unknown µm/px where the method needs it, or a folder that cannot be written.
    """
    if isinstance(tissue, TileSet) and not (method == "cellpose" and cellpose.diameter is not None):
        tissue.require_mpp(f"{method} pseudo-masks")
    if folder is None:
        if method == "cellpose":
            weights_file(cellpose)
        return []
    with writing(folder, "name another --run.dir"):
        folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{donor:06d}.png" for donor in donors]
    missing = [(donor, file) for donor, file in zip(donors, files, strict=True) if not file.exists()]
    if not missing:
        return files
    finder = open_finder(method, cellpose, NetworkSettings(), processes.state().device)
    with tqdm(total=len(missing), desc=f"{method} pseudo-masks", unit="tile", disable=not progress) as bar:
        for start in range(0, len(missing), finder.batch):
            some = missing[start : start + finder.batch]
            tiles = [tissue[donor] for donor, _ in some]
            found = finder([tile.image for tile in tiles], [tile.mpp for tile in tiles])
            for (_, file), nuclei in zip(some, found, strict=True):
                write_instances(file, nuclei, {"finder": finder.facts})
            bar.update(len(some))
    return files


def refuse_useless(masks: Tiles, named: str) -> None:
    """Refuse masks that show a translator nothing: no nucleus anywhere, or nothing but nucleus.

    Raises:
        InputError: they are such masks.
    """
    nuclei = False
    for index in range(len(masks)):
        instances = masks[index].instances
        if instances is not None and instances.any():
            nuclei = True
            if not instances.all():
                return
    if nuclei:
        raise InputError(
            f"The masks of {named!r} are nucleus from edge to edge, expected background between nuclei; 0 is "
            "background."
        )
    raise InputError(f"None of the {len(masks)} masks of {named!r} holds a nucleus; check the masks or the µm/px.")
