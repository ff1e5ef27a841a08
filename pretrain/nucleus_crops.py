"""Nuclei for objective instance, by global image index: masks to draw tissue of, and tissue with its own masks."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from histo.codec import Form, encode
from histo.crops import crop
from histo.errors import InputError
from histo.finders.cellpose_sam import CellposeSettings
from histo.flows import flows_of
from histo.layouts import Layouts, LayoutSettings
from histo.masks import mask_files, read_instances
from histo.randomness import draws
from histo.sampling import Order
from histo.segmenters import MPP_TOLERANCE
from histo.tiles import Tile, Tiles, TileSet, is_described
from pretrain.pool import DataSettings, Pool
from translate import domains
from translate.domains import LAYOUTS, MaskSet, labelled_tiles, pseudo_masks, refuse_useless
from translate.inference import TrainedTranslator
from translate.stream import MaskCrops

WITH_TISSUE = ("tissue", "watershed")


@dataclass(frozen=True)
class Drawing:
    """How masks look from which a run's generator draws tissue.

    path: of the run's exports; tile_size: side in pixels; mpp: µm/px, None where unknown; form: see `histo.codec`.
    typed: whether nuclei have two types; layout: what masks the run drew with `--data.masks layout`.
    """

    path: Path
    tile_size: int
    mpp: float | None
    form: Form
    typed: bool
    layout: LayoutSettings

    @classmethod
    def of(cls, translator: TrainedTranslator) -> "Drawing":
        """That of a run.

        Raises:
            InputError: it has no generator of tissue from masks.
        """
        translator.require_generator()
        form = translator.card.get("mask_form", "paper")
        return cls(translator.path, translator.tile_size, translator.mpp, form, translator.typed, translator.layout)


@dataclass
class Masks:
    """Instance maps, and where they come from.

    tiles: with instance maps; of tissue where `sources` is not None, else of none.
    sources: int64 [N], the number of each tile's source.
    origin: one sentence for people.
    """

    tiles: Tiles
    sources: NDArray[np.int64] | None
    origin: str


class MaskedTissue:
    """Tissue with instance maps from files, one for each tile."""

    def __init__(self, tissue: Tiles, files: list[Path]) -> None:
        self.tissue, self.files = tissue, files

    def __len__(self) -> int:
        return len(self.files)

    def describe(self) -> str:
        """One line for people."""
        return self.tissue.describe()

    def __getitem__(self, index: int, /) -> Tile:
        tile = self.tissue[index]
        size = (tile.image.shape[1], tile.image.shape[2])
        return replace(tile, instances=read_instances(self.files[index], size), types=None, classes=None)


def open_masks(
    settings: DataSettings, pool: Pool, drawing: Drawing | None, seed: int, folder: Path | None, progress: bool
) -> Masks:
    """The masks that `settings.masks` names.

    Args:
        drawing: of the generator that draws of them, if one does.
        folder: where pseudo-masks are kept; None: none are made, as for a dry run.
        progress: show a bar while pseudo-masks are made.

    Raises:
        InputError: no masks, or none with a nucleus, or µm/px other than the generator's.
    """
    if settings.masks is None:
        raise InputError(
            "Objective instance needs nuclei and --data.masks names none; expected tissue, watershed, layout or a "
            "folder of instance maps."
        )
    if settings.masks in WITH_TISSUE:
        tissue, numbers = _with_nuclei(pool, settings, drawing)
        origin = f"those that {_share(tissue, pool)} bring"
        if settings.masks == "watershed":
            files = pseudo_masks("watershed", CellposeSettings(), tissue, np.arange(len(tissue)), folder, progress)
            tissue, origin = MaskedTissue(tissue, files), f"watershed pseudo-masks of {_share(tissue, pool)}"
        masks = Masks(tissue, numbers, origin)
    elif drawing is None:
        raise InputError(
            f"--data.masks {settings.masks} shows no tissue and instance.generated is 0, expected tissue or watershed "
            "where nothing is drawn; or give instance.generated a weight."
        )
    elif settings.masks == "layout":
        masks = _layouts(settings.layout, drawing, seed)
    else:
        masks = _of_folder(settings, drawing)
    if folder is not None or settings.masks != "watershed":
        refuse_useless(masks.tiles, settings.masks)
    return masks


def _with_nuclei(pool: Pool, settings: DataSettings, drawing: Drawing | None) -> tuple[Tiles, NDArray[np.int64]]:
    """The pool's tiles that can teach nuclei, and the number of each one's source.

    With masks tissue they are those that have masks, with watershed those of known µm/px; beside a generator those of
    its µm/px. In a mixed pool the rest teaches other objectives.
    """
    tissue = pool.tissue.tiles
    if not isinstance(tissue, TileSet):
        _refuse_scales([pool.mpp], "tissue", drawing)
        return tissue, pool.numbers
    if settings.masks == "tissue":
        found = np.array([k for k, entry in enumerate(tissue.entries) if entry.mask is not None], dtype=np.int64)
        if not len(found):
            raise InputError(
                f"None of the {len(tissue)} tiles of --data.tissue has a mask, expected masks for --data.masks tissue; "
                "fill the column mask of tiles.csv, label them with translate/pseudomask.py, or use --data.masks "
                "watershed."
            )
    else:
        known = tissue.entries.facts("mpp")
        found = known.among(*(mpp for mpp in known.values if mpp is not None))
        if not len(found):
            tissue.require_mpp("watershed pseudo-masks")
    scales = tissue.entries.take(found).facts("mpp")
    fitting = scales.among(*(mpp for mpp in scales.values if _fits(mpp, drawing)))
    if not len(fitting):
        _refuse_scales(list(scales.counts()), "tissue", drawing)
    return TileSet(tissue.entries.take(found[fitting]), cache_mb=settings.cache_mb), pool.numbers[found[fitting]]


def _share(tissue: Tiles, pool: Pool) -> str:
    some, everything = len(tissue), len(pool.tissue.tiles)
    return f"{some} tiles" if some == everything else f"{some} of the {everything} tiles"


def _layouts(own: LayoutSettings, drawing: Drawing, seed: int) -> Masks:
    if drawing.mpp is None:
        raise InputError(
            f"The generator of {drawing.path} does not say its µm/px, which --data.masks layout draws at; name a "
            "folder of instance maps instead."
        )
    given = own != LayoutSettings()
    origin = f"layouts drawn from {'data.layout' if given else 'the data.layout of the translator'}"
    settings = own if given else drawing.layout
    tiles = Layouts(settings, seed, size=drawing.tile_size, mpp=drawing.mpp, count=LAYOUTS)
    return Masks(tiles, None, origin)


def _of_folder(settings: DataSettings, drawing: Drawing) -> Masks:
    assert settings.masks is not None
    if is_described(settings.masks):
        found, _ = labelled_tiles(settings.masks, settings.split, settings.on_bad)
        _refuse_scales(list(found.facts("mpp").counts()), "masks", drawing)
        tiles = TileSet(found, cache_mb=settings.cache_mb)
        return Masks(tiles, None, f"{len(found)} instance maps of the tiles of {settings.masks}")
    if not Path(settings.masks).is_dir():
        raise InputError(
            f"--data.masks {settings.masks!r} is no folder; expected a folder of masks, tissue, watershed or layout."
        )
    files, _ = mask_files(Path(settings.masks), settings.on_bad)
    scale = "unknown" if drawing.mpp is None else f"{drawing.mpp:g}"
    origin = f"{len(files)} instance maps of {settings.masks}, taken to be at the generator's µm/px ({scale})"
    return Masks(MaskSet(files, settings.cache_mb), None, origin)


def _fits(mpp: float | None, drawing: Drawing | None) -> bool:
    """Whether a µm/px is the generator's; what is unknown on either side cannot be told."""
    if mpp is None or drawing is None or drawing.mpp is None:
        return True
    return math.isclose(mpp, drawing.mpp, rel_tol=MPP_TOLERANCE)


def _refuse_scales(known: list[float | None], name: str, drawing: Drawing | None) -> None:
    """Refuse masks at a µm/px that is not the generator's."""
    for mpp in known:
        if not _fits(mpp, drawing):
            assert drawing is not None
            raise InputError(
                f"--data.{name} has masks at {mpp:g} µm/px, but the generator of {drawing.path} learned at "
                f"{drawing.mpp:g}, expected the same within {MPP_TOLERANCE:.0%}; resize the tiles, or name another run."
            )


class NucleusCrops:
    """What the loader gives objective instance beside a tile, pure in (seed, image index).

    An item is a dict. With a drawing: `drawn` uint8 [3, T, T], the mask image to draw tissue of, and `drawn_instances`
    int32 [T, T], which it shows. With `real`: `real` uint8 [3, t, t], tissue, and `real_instances` int32 [t, t], of an
    order of its own. With `flows` those of both maps, `drawn_flows` and `real_flows`, float32 [2, …].

    Args:
        side: t, of the real tiles.
        evenly: sources with masks take even turns, else every tile is shown equally often.
    """

    def __init__(
        self,
        masks: Masks,
        drawing: Drawing | None,
        side: int,
        seed: int,
        *,
        real: bool,
        flows: bool,
        evenly: bool = False,
    ) -> None:
        self.masks, self.drawing, self.side, self.seed = masks, drawing, side, seed
        self.real, self.flows = real, flows
        if masks.sources is None:
            positions, sizes = np.arange(len(masks.tiles)), [len(masks.tiles)]
        else:
            positions = np.argsort(masks.sources, kind="stable")
            sizes = [number for number in np.bincount(masks.sources).tolist() if number]
        self.positions = positions
        weights = [1.0] * len(sizes) if evenly else None
        self.drawn_order = Order(seed, "drawn order", sizes, weights)
        self.real_order = Order(seed, "real order", sizes, weights)
        if drawing is not None:
            self.crops = MaskCrops(masks.tiles, domains.DataSettings(tile_size=drawing.tile_size), seed)

    def __call__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {}
        if self.drawing is not None:
            mask = self.crops.draw(int(self.positions[self.drawn_order(index)]), "drawn crop", index)
            assert mask.instances is not None
            types = mask.types if self.drawing.typed else None
            drawn = encode(mask.instances, types, draws(self.seed, "drawn fill", index), self.drawing.form)
            item |= {"drawn": torch.from_numpy(drawn), **self._nuclei("drawn", mask.instances)}
        if self.real:
            tile = self.masks.tiles[int(self.positions[self.real_order(index)])]
            taken = crop(tile, self.side, draws(self.seed, "real crop", index), turn=False)
            assert taken.instances is not None
            item |= {"real": torch.from_numpy(taken.image), **self._nuclei("real", taken.instances)}
        return item

    def _nuclei(self, name: str, instances: NDArray[np.int32]) -> dict[str, Any]:
        found = {f"{name}_instances": torch.from_numpy(instances)}
        return found | ({f"{name}_flows": torch.from_numpy(flows_of(instances))} if self.flows else {})
