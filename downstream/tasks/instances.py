"""Nuclei as instances: flows, hills or boxes on an encoder, scored by AJI and PQ against labelled maps."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from downstream.cases import nuclei_picture
from downstream.labelled import Labelled
from downstream.task import Evaluation, Tensors
from histo.dense import Decoder
from histo.distances import distance_loss, distances_of
from histo.encoders import Start
from histo.flows import flow_loss, flows_of
from histo.instance_networks import Flipped, InstanceNetwork, InstanceSettings, write_network
from histo.maskrcnn import MaskRCNNSettings
from histo.metrics import compare, mean_scores
from histo.segmenters import segment
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


class Instances:
    """Nuclei of tiles with instance maps."""

    NEEDS: Literal["mask"] = "mask"
    CHOSEN = "aji"

    def __init__(self, recipe: "Recipe", start: Start, labelled: Labelled, seed: int) -> None:
        settings = recipe.instances
        self.settings, self.tile_size, self.seed = settings, recipe.crop.size, seed
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
            ),
            mean,
            std,
        )
        self.network.take(start.encoder.state_dict())

    @property
    def encoder(self) -> nn.Module:
        return self.network.encoder

    def prepared(self, tile: Tile) -> Tile:
        return tile

    def item(self, tile: Tile, index: int) -> Tensors:
        assert tile.instances is not None
        known = {"instances": torch.from_numpy(tile.instances)}
        if self.settings.head == "flows":
            known["flows"] = torch.from_numpy(flows_of(tile.instances))
        elif self.settings.head == "distance":
            known["distances"] = torch.from_numpy(distances_of(tile.instances))
        return known

    def losses(self, images: Tensor, items: Tensors) -> Tensors:
        seen = self.network(images / 127.5 - 1)
        if self.settings.head == "maskrcnn":
            assert seen.pyramid is not None
            return self.network.detector.losses(seen.pyramid, items["instances"], self.seed, items["index"].tolist())
        assert seen.dense is not None
        foreground = items["instances"][:, None] > 0
        if self.settings.head == "flows":
            return {"flows": flow_loss(seen.dense, items["flows"], foreground)}
        return {"distance": distance_loss(seen.dense, items["distances"], foreground)}

    def find(self, network: InstanceNetwork, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The nuclei of an image of any size, int32 [H, W]."""
        flipped = self.settings.flips and self.settings.head != "maskrcnn"
        return segment(Flipped(network) if flipped else network, image, self.tile_size)

    def evaluate(self, network: nn.Module, tiles: TileSet) -> Evaluation:
        assert isinstance(network, InstanceNetwork)
        found = []
        for tile in tiles:
            assert tile.instances is not None
            found.append(compare(tile.instances, self.find(network, tile.image)))
        cases = {
            f"{entry.source}/{entry.key}": {name: getattr(one, name) for name in ("aji", "pq", "dq", "sq", "dice")}
            for entry, one in zip(tiles.entries, found, strict=True)
        }
        return Evaluation(mean_scores(found), cases)

    def draw(self, network: nn.Module, tile: Tile) -> NDArray[np.uint8]:
        assert isinstance(network, InstanceNetwork)
        assert tile.instances is not None
        return nuclei_picture(tile.image, tile.instances, self.find(network, tile.image))

    def export(self, network: nn.Module, card: dict[str, Any], folder: Path) -> Path:
        assert isinstance(network, InstanceNetwork)
        path = folder / "instances.safetensors"
        flips = self.settings.flips and self.settings.head != "maskrcnn"
        write_network(path, network, {**card, "tile_size": self.tile_size, "flips": flips})
        return path
