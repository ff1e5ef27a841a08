"""What a run's generator is scored on: masks or tissue drawn by image index, and the real crops to set beside it.

Masks, fills, styles and crops are pure in (seed, index): the same images are scored whatever the batches, and a set of
`n` images is the beginning of a set of more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from histo.codec import encode
from histo.crops import crop
from histo.errors import InputError
from histo.randomness import draws
from histo.running.runs import RunFolder
from histo.running.settings import read_settings
from histo.sampling import Order
from histo.segmenters import Reader
from histo.tiles import Tile, Tiles
from histo.watershed import segment as segment_by_watershed
from translate.domains import DataSettings, Domains
from translate.exports import open_networks
from translate.methods import asked_kind
from translate.networks.comod import CoModGenerator
from translate.recipe import Recipe
from translate.stream import nucleated_crop

CONTENT_IMAGES = 256  # whose nuclei are compared: the watershed takes longest, and the mean over these has settled


@dataclass(frozen=True)
class FinishedRun:
    """What a run left: its folder and settings, the generator of target images with its card, and what finds nuclei in
    them, None where the method learns no such network."""

    folder: RunFolder
    recipe: Recipe
    generator: nn.Module
    reader: Reader | None
    card: dict[str, Any]


def open_run(path: Path, device: torch.device | str = "cpu") -> FinishedRun:
    """Read a run folder's settings and exports, these onto the device.

    Raises:
        InputError: no run folder, no exports yet, damaged ones, or none that draws target images.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise InputError(f"{path} is no run folder: it has no {folder.config.name}; name one of translate/train.py.")
    if not any(folder.export.glob("*.safetensors")):
        raise InputError(f"{path} has no exports yet; let its training end, then score it.")
    if not (folder.export / "generator.safetensors").is_file():
        raise InputError(
            f"{path} learned the way back to its source alone, expected a run that draws tissue to be compared with "
            "real tissue; name another."
        )
    config = ["--config", str(folder.config)]
    recipe = read_settings(asked_kind(config), "translate/score.py", "", config).settings
    networks = open_networks(folder.export, torch.device(device))
    assert networks.generator is not None
    return FinishedRun(folder, recipe, networks.generator, networks.reader, networks.card)


class MaskDraws:
    """Mask images by index, cut from the masks of a run as they are for its training.

    Args:
        mpp: µm/px of the tissue to be drawn of them; None where unknown.
    """

    TRUTH: ClassVar = "the masks"

    def __init__(self, masks: Tiles, settings: DataSettings, seed: int, mpp: float | None) -> None:
        self.masks, self.settings, self.seed, self.mpp = masks, settings, seed, mpp
        self.order = Order(seed, "score mask order", [len(masks)])

    def __call__(self, indices: Sequence[int]) -> list[Tile]:
        """Tiles whose image is the mask image of their instances."""
        tiles = []
        for index in indices:
            tile = self.masks[self.order(index)]
            cut = nucleated_crop(tile, self.settings, draws(self.seed, "score mask crop", index))
            assert cut.instances is not None
            drawn = encode(cut.instances, cut.types, draws(self.seed, "score fill", index), self.settings.mask_form)
            tiles.append(replace(cut, image=drawn, mpp=self.mpp))
        return tiles


class SourceDraws:
    """Tissue to translate by index, cut as for training, with the nuclei that its translation should keep.

    They are those of its labels, or else of the watershed; tiles of unknown µm/px without labels, and those beyond the
    first `CONTENT_IMAGES`, have none.
    """

    TRUTH: ClassVar = "labels of the source, or else its watershed"
    mpp: ClassVar = None  # of each crop its own

    def __init__(self, tiles: Tiles, settings: DataSettings, seed: int) -> None:
        self.tiles, self.settings, self.seed = tiles, settings, seed
        self.order = Order(seed, "score source order", [len(tiles)])

    def __call__(self, indices: Sequence[int]) -> list[Tile]:
        """Crops of tissue."""
        return [self._crop(index) for index in indices]

    def _crop(self, index: int) -> Tile:
        generator = draws(self.seed, "score source crop", index)
        tile = self.tiles[self.order(index)]
        cut = crop(tile, self.settings.tile_size, generator, smallest_side=self.settings.smallest_crop)
        if cut.instances is None and cut.mpp is not None and index < CONTENT_IMAGES:
            cut = replace(cut, instances=segment_by_watershed(cut.image, cut.mpp), types=None)
        return cut


def source_draws(domains: Domains, settings: DataSettings, seed: int, mpp: float | None) -> MaskDraws | SourceDraws:
    """What a run translates: its masks, or tissue that it never learned from where there is any."""
    if settings.between_tissues:
        return SourceDraws(domains.source.seen, settings, seed)
    return MaskDraws(domains.source.tiles, settings, seed, mpp)


class TissueDraws:
    """Crops of tissue tiles by index, cut as training cuts them; every tile gives one before any gives another."""

    def __init__(self, tiles: Tiles, settings: DataSettings, seed: int) -> None:
        self.tiles, self.settings, self.seed = tiles, settings, seed
        self.order = Order(seed, "score tissue order", [len(tiles)])

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """uint8 [N, 3, r, r]."""
        crops = [
            crop(
                self.tiles[self.order(index)],
                self.settings.tile_size,
                draws(self.seed, "score tissue crop", index),
                smallest_side=self.settings.smallest_crop,
            )
            for index in indices
        ]
        return torch.from_numpy(np.stack([tile.image for tile in crops]))


def has_styles(generator: nn.Module | None) -> bool:
    """Whether a generator draws one source in several styles."""
    return isinstance(generator, CoModGenerator)


@torch.no_grad()
def render(generator: nn.Module, sources: Tensor, seed: int, stream: str, indices: Sequence[int]) -> Tensor:
    """Translations of images, float [N, 3, r, r] in about [-1, 1], each in the style of its index, on G's device."""
    device = next(generator.parameters()).device
    if isinstance(generator, CoModGenerator):
        style = generator.style(seed, stream, list(indices), training=False).to(device)
        return generator(sources.to(device), style.z, style.keep, style.noise)
    return generator(sources.to(device))
