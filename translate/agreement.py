"""Does translation keep the content? Agreement of what was drawn with what is found again, on fixed inputs.

Unpaired translation can swap nuclei and background, or hide the mask in faint noise that only S can read. So the
nuclei of a mask x are compared with those that S finds in G(x), and with those that a watershed without weights finds
in G(x); and where labels exist, S is compared with them on tiles never trained on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histo.codec import encode
from histo.crops import crop
from histo.metrics import InstanceScores, compare, mean_scores
from histo.randomness import draws
from histo.segmenters import instances_of
from histo.segmenters import segment as segment_by_network
from histo.tiles import Tile, Tiles
from histo.watershed import segment as segment_by_watershed
from translate.domains import DataSettings, Domains
from translate.engine import Translator
from translate.stream import MaskCrops

METRICS = ("dice", "aji", "pq")
INPUTS = 16
HELD_OUT = 24


@dataclass
class Probe:
    """The fixed inputs of panels and checks.

    source: float [K, 3, r, r] in [-1, 1], mask images or tissue; nuclei: the instance maps int32 [r, r] they show, of
        tissue its labels or else those of the watershed, None where neither is to be had.
    target: float [K, 3, r, r] in [-1, 1], tissue, of tiles never trained on where there are any.
    held_out: crops of labelled target tiles never trained on, twice the tile size.
    mpp: µm/px of what is drawn from the source, None where unknown.
    """

    source: Tensor
    nuclei: list[NDArray[np.int32]] | None
    target: Tensor
    held_out: list[Tile]
    mpp: float | None

    @classmethod
    def draw(cls, domains: Domains, settings: DataSettings, seed: int) -> "Probe":
        """Choose inputs that stay the same for the whole run and all of its lives."""
        size, holdout = settings.tile_size, domains.target.holdout

        def crops(tiles: Tiles, stream: str) -> list[Tile]:
            chosen = enumerate(tiles[k] for k in _spread(len(tiles), INPUTS))
            return [crop(tile, size, draws(seed, stream, k), turn=False) for k, tile in chosen]

        target = crops(domains.target.seen, "probe tissue")
        held_out = [
            crop(holdout[k], 2 * size, draws(seed, "probe held out", k), turn=False)
            for k in _spread(len(holdout), HELD_OUT)
        ]
        nuclei: list[NDArray[np.int32]] | None
        if settings.between_tissues:
            source = crops(domains.source.seen, "probe source")
            drawn, nuclei, mpp = [tile.image for tile in source], _known_nuclei(source), source[0].mpp
        else:
            tiles = domains.source.tiles
            masks = MaskCrops(tiles, settings, seed)
            source = [masks.draw(k, "probe mask", k) for k in _spread(len(tiles), INPUTS)]
            nuclei, mpp = [_nuclei(tile) for tile in source], target[0].mpp
            drawn = [
                encode(_nuclei(tile), tile.types, draws(seed, "probe fill", k), settings.mask_form)
                for k, tile in enumerate(source)
            ]
        return cls(
            to_unit(np.stack(drawn)),
            nuclei,
            to_unit(np.stack([tile.image for tile in target])),
            [tile for tile in held_out if tile.instances is not None],
            mpp,
        )


@torch.no_grad()
def measure(probe: Probe, translator: Translator) -> dict[str, float]:
    """Agreement of content by the averaged networks, as scalars for the log.

    `content/segmenter_*`: nuclei of the source x against those S reads in G(x); `content/watershed_*`: against the
    watershed on G(x), where the µm/px is known; `holdout/*`: S against labels. Each as Dice, AJI and PQ in [0, 1];
    those that a method has no network for are left out.
    """
    device = translator.accelerator.device
    values: dict[str, float] = {}
    with translator.accelerator.autocast():
        drawn = translator.to_target(probe.source.to(device), "probe style", list(range(len(probe.source))))
        reading = translator.reader(drawn) if translator.reader and drawn is not None else None
    if drawn is not None and probe.nuclei is not None:
        if reading is not None:
            found = [instances_of(reading, k) for k in range(len(drawn))]
            values |= means("content/segmenter", _compare(probe.nuclei, found))
        if probe.mpp is not None:
            found = [segment_by_watershed(image, probe.mpp) for image in to_bytes(drawn)]
            values |= means("content/watershed", _compare(probe.nuclei, found))
    if probe.held_out and translator.reader:
        values |= means("holdout", score_segmenter(probe.held_out, translator))
    return values


@torch.no_grad()
def score_segmenter(tiles: list[Tile], translator: Translator) -> list[InstanceScores]:
    """The averaged S against the labels of whole tiles."""
    assert translator.reader
    with translator.accelerator.autocast():
        found = [segment_by_network(translator.reader, tile.image, translator.tile_size) for tile in tiles]
    return _compare([_nuclei(tile) for tile in tiles], found)


def score_watershed(tiles: list[Tile]) -> list[InstanceScores]:
    """The watershed, S's teacher, against the labels of whole tiles of known µm/px."""
    found = [segment_by_watershed(tile.image, tile.mpp) for tile in tiles]
    return _compare([_nuclei(tile) for tile in tiles], found)


def means(name: str, scores: list[InstanceScores]) -> dict[str, float]:
    """Dice, AJI and PQ averaged over tiles, as scalars NAME_dice, NAME_aji, NAME_pq."""
    average = mean_scores(scores)
    return {f"{name}_{metric}": round(average[metric], 4) for metric in METRICS}


def to_unit(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, 3, H, W] → float in [-1, 1]."""
    return torch.from_numpy(images).float() / 127.5 - 1


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """float [N, 3, H, W] in about [-1, 1] → uint8, clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _nuclei(tile: Tile) -> NDArray[np.int32]:
    if tile.instances is None:
        raise ValueError(f"{tile.key} has no instance map")
    return tile.instances


def _known_nuclei(tiles: list[Tile]) -> list[NDArray[np.int32]] | None:
    """Labels of tissue, or else what the watershed finds in it; None for tissue of unknown µm/px without labels."""
    if all(tile.instances is not None for tile in tiles):
        return [_nuclei(tile) for tile in tiles]
    if any(tile.mpp is None for tile in tiles):
        return None
    return [segment_by_watershed(tile.image, tile.mpp) for tile in tiles]


def _compare(truths: list[NDArray[np.int32]], found: list[NDArray[np.int32]]) -> list[InstanceScores]:
    return [compare(truth, prediction) for truth, prediction in zip(truths, found, strict=True)]


def _spread(available: int, wanted: int) -> list[int]:
    """Up to `wanted` positions, evenly spread."""
    count = min(available, wanted)
    return [k * available // count for k in range(count)]
