"""Nuclei as instances: flows, hills or boxes on an encoder, scored by AJI and PQ against labelled maps."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from downstream.absence import refuse_absent_types
from downstream.cases import Showcase, nuclei_picture
from downstream.labelled import Labelled
from downstream.losses import type_loss
from downstream.task import Evaluation, Tensors
from downstream.type_names import refuse_other_types
from downstream.typed import TypedScores
from histo.dense import Decoder
from histo.distances import distance_loss, distances_of
from histo.encoders import Start
from histo.errors import InputError
from histo.flows import flow_loss, flows_of
from histo.instance_networks import InstanceNetwork, InstanceSettings, find_nuclei, write_network
from histo.magnification import step_to
from histo.maskrcnn import MaskRCNNSettings
from histo.metrics import mean_scores, overlap, scores_of
from histo.tiles import Tile, TileSet

if TYPE_CHECKING:
    from downstream.recipe import Recipe


@dataclass
class InstancesSettings:
    """How nuclei are found and learned."""

    head: Literal["flows", "distance", "maskrcnn"] = "flows"
    """flows: Cellpose's flows; distance: hills and a watershed (DIST); maskrcnn: boxes and masks"""
    decoder: Decoder = "unet"
    """of segmentation_models_pytorch, for flows and distance"""
    pyramid_width: int = 256
    """channels of the feature pyramid, for maskrcnn; a multiple of 32"""
    maskrcnn: MaskRCNNSettings = field(default_factory=MaskRCNNSettings)
    flips: bool = True
    """predict tiles in four mirrorings and take the mean; not for maskrcnn"""
    types: list[str] = field(default_factory=list)
    """names of the types of nuclei, as the tiles number them from 1; empty: types are not learned"""


class Instances:
    """Nuclei of tiles with instance maps."""

    NEEDS: Literal["mask"] = "mask"
    CHOSEN = "aji"

    def __init__(self, recipe: "Recipe", start: Start, labelled: Labelled, seed: int) -> None:
        settings = recipe.instances
        self.settings, self.tile_size, self.mpp, self.seed = settings, recipe.crop.size, recipe.crop.mpp, seed
        if settings.types:
            refuse_other_types(settings.types, recipe.data.tiles, recipe.data.extra)
        found = start.architecture
        mean, std = (start.facts[key] or (0.5,) * 3 for key in ("mean", "std"))
        name = f"smp:{found.name}" if found.library == "smp" else found.name
        self.network = InstanceNetwork(
            InstanceSettings(
                name,
                "group" if found.arguments else "own",
                settings.head,
                settings.decoder,
                settings.pyramid_width,
                settings.maskrcnn,
                len(settings.types),
            ),
            mean,
            std,
        )
        self.network.take(start.encoder.state_dict())
        if settings.types:
            refuse_absent_types(labelled, dict(enumerate(settings.types, start=1)), self._values)

    @property
    def encoder(self) -> nn.Module:
        return self.network.encoder

    def prepared(self, tile: Tile) -> Tile:
        return replace(tile, types=self._types(tile)) if self.settings.types else tile

    def _types(self, tile: Tile) -> NDArray[np.uint8]:
        """The type of each nucleus of a tile by its id, 0 unknown, uint8 [K + 1].

        Raises:
            InputError: it has none, or one beyond the names.
        """
        if tile.classes is None:
            raise InputError(
                f"{tile.key} has no types of nuclei, expected some as instances.types names them; name a set that has "
                "them, such as pannuke:PATH, or leave instances.types out."
            )
        if tile.classes.max(initial=0) > len(self.settings.types):
            raise InputError(
                f"{tile.key} has a nucleus of type {tile.classes.max()}, but instances.types names "
                f"{len(self.settings.types)}: {', '.join(self.settings.types)}; name all types of the tiles."
            )
        return tile.classes

    def _values(self, tile: Tile) -> NDArray[np.uint8]:
        """The type at each pixel of a tile, 0 where there is none, uint8 [H, W]."""
        assert tile.instances is not None
        return self._types(tile)[tile.instances]

    def item(self, tile: Tile, index: int) -> Tensors:
        assert tile.instances is not None
        known = {"instances": torch.from_numpy(tile.instances)}
        if self.settings.head == "flows":
            known["flows"] = torch.from_numpy(flows_of(tile.instances))
        elif self.settings.head == "distance":
            known["distances"] = torch.from_numpy(distances_of(tile.instances))
        if self.settings.types:
            assert tile.types is not None
            known["types"] = torch.from_numpy(tile.types[tile.instances].astype(np.int64))
        return known

    def losses(self, images: Tensor, items: Tensors) -> Tensors:
        seen = self.network(images / 127.5 - 1)
        if self.settings.head == "maskrcnn":
            assert seen.pyramid is not None
            return self.network.detector.losses(seen.pyramid, items["instances"], self.seed, items["index"].tolist())
        assert seen.dense is not None
        foreground = items["instances"][:, None] > 0
        if self.settings.head == "flows":
            terms = {"flows": flow_loss(seen.dense, items["flows"], foreground)}
        else:
            terms = {"distance": distance_loss(seen.dense, items["distances"], foreground)}
        if seen.types is not None:
            terms["types"] = type_loss(seen.types, items["types"])
        return terms

    def find(self, network: InstanceNetwork, tile: Tile) -> tuple[NDArray[np.int32], NDArray[np.uint8] | None]:
        """The nuclei of a tile of any size, int32 [H, W], and their types by id, uint8 [n + 1]."""
        step = step_to(self.mpp, tile.mpp, tile.key)
        found = find_nuclei(network, tile.image, self.tile_size, flips=self.settings.flips, step=step)
        return found.instances, found.types

    def evaluate(self, network: nn.Module, tiles: TileSet) -> Evaluation:
        assert isinstance(network, InstanceNetwork)
        found, typed, showcase = {}, TypedScores(self.settings.types), Showcase()
        for entry, tile in zip(tiles.entries, tiles, strict=True):
            assert tile.instances is not None
            instances, types = self.find(network, tile)
            table = overlap(tile.instances, instances)
            key = f"{entry.source}/{entry.key}"
            found[key] = scores_of(table)
            if showcase.takes(key, getattr(found[key], self.CHOSEN)):
                showcase.pictures[key] = nuclei_picture(tile.image, tile.instances, instances)
            if types is not None:
                typed.add(tile, table, self._types(tile), instances, types)
        cases = {
            key: {name: getattr(one, name) for name in ("aji", "pq", "dq", "sq", "dice")} for key, one in found.items()
        }
        scores = {**mean_scores(list(found.values())), **typed.scores()}
        return Evaluation(scores, cases, pictures=showcase.pictures)

    def draw(self, network: nn.Module, tile: Tile) -> NDArray[np.uint8]:
        assert isinstance(network, InstanceNetwork)
        assert tile.instances is not None
        return nuclei_picture(tile.image, tile.instances, self.find(network, tile)[0])

    def export(self, network: nn.Module, card: dict[str, Any], folder: Path) -> Path:
        assert isinstance(network, InstanceNetwork)
        path = folder / "instances.safetensors"
        own = {"tile_size": self.tile_size, "flips": self.settings.flips, "types": self.settings.types}
        write_network(path, network, {**card, **own})
        return path
