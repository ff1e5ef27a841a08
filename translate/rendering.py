"""Tissue rendered by a generator on masks drawn by image index, and the real crops to set beside it.

Masks, fills, styles and crops are pure in (seed, index): the same images are scored whatever the batches, and a set of
`n` images is the beginning of a set of more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from histo import segmenters
from histo.codec import encode
from histo.crops import crop
from histo.errors import InputError
from histo.randomness import draws
from histo.running.runs import RunFolder
from histo.running.settings import read_settings
from histo.sampling import Order
from histo.segmenters import Segmenter
from histo.tiles import Tiles
from translate.agreement import to_unit
from translate.domains import DataSettings
from translate.methods import asked_kind
from translate.networks import generators
from translate.networks.comod import CoModGenerator
from translate.recipe import Recipe
from translate.stream import nucleated_crop


@dataclass(frozen=True)
class FinishedRun:
    """What a run left: its folder and settings, and the networks it exported with the generator's card."""

    folder: RunFolder
    recipe: Recipe
    generator: nn.Module
    segmenter: Segmenter
    card: dict[str, Any]


def open_run(path: Path) -> FinishedRun:
    """Read a run folder's settings and exports.

    Raises:
        InputError: no run folder, no exports yet, or damaged ones.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise InputError(f"{path} is no run folder: it has no {folder.config.name}; name one of translate/train.py.")
    if not (folder.export / "generator.safetensors").is_file():
        raise InputError(f"{path} has no exports yet; let its training end, then score it.")
    config = ["--config", str(folder.config)]
    recipe = read_settings(asked_kind(config), "translate/score.py", "", config).settings
    generator, card = generators.load(folder.export / "generator.safetensors")
    segmenter, _ = segmenters.load(folder.export / "segmenter.safetensors")
    return FinishedRun(folder, recipe, generator, segmenter.requires_grad_(False), card)


class MaskDraws:
    """Mask images by index, cut from the masks of a run as they are for its training."""

    def __init__(self, masks: Tiles, settings: DataSettings, seed: int) -> None:
        self.masks, self.settings, self.seed = masks, settings, seed
        self.order = Order(seed, "score mask order", [len(masks)])

    def __call__(self, indices: Sequence[int]) -> tuple[list[NDArray[np.int32]], Tensor]:
        """Instance maps int32 [r, r], and the mask images drawn from them, float [N, 3, r, r] in [-1, 1]."""
        nuclei, drawn = [], []
        for index in indices:
            tile = self.masks[self.order(index)]
            cut = nucleated_crop(tile, self.settings, draws(self.seed, "score mask crop", index))
            assert cut.instances is not None
            nuclei.append(cut.instances)
            drawn.append(encode(cut.instances, cut.types, draws(self.seed, "score fill", index)))
        return nuclei, to_unit(np.stack(drawn))


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


@torch.no_grad()
def render(generator: nn.Module, masks: Tensor, seed: int, stream: str, indices: Sequence[int]) -> Tensor:
    """Tissue of mask images, float [N, 3, r, r] in about [-1, 1], each in the style of its index, on G's device."""
    device = next(generator.parameters()).device
    if isinstance(generator, CoModGenerator):
        style = generator.style(seed, stream, list(indices), training=False).to(device)
        return generator(masks.to(device), style.z, style.keep, style.noise)
    return generator(masks.to(device))
