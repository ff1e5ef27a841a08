"""A trained task as notebooks and `downstream/predict.py` use it: an image in, classes, regions or nuclei out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from downstream.bag_networks import KIND as BAGS
from downstream.bag_networks import BagNetwork, BagPrediction, TrainedBags, read_bag_network
from downstream.tasks.classify import KIND as CLASSIFIER
from downstream.tasks.classify import Classifier
from downstream.tasks.segment import KIND as REGIONS
from downstream.tasks.segment import Regions
from histo import instance_networks
from histo.dense import DenseNetwork
from histo.encoders import build, read_card
from histo.encoders.files import architecture_of, card_beside
from histo.errors import InputError
from histo.images import channels_first
from histo.overlap import Grid, blend
from histo.probes.embedding import resized
from histo.segmenters import segment


@dataclass
class Prediction:
    """What a task says of an image; what it does not tell is None.

    Attributes:
        label: the most probable class of the image.
        probabilities: float32 [C] of the image's classes, or [C, H, W] of every pixel's.
        regions: uint8 [H, W], the class of every pixel.
        instances: int32 [H, W], nuclei, 0 = background.
    """

    label: str | None = None
    probabilities: NDArray[np.float32] | None = None
    regions: NDArray[np.uint8] | None = None
    instances: NDArray[np.int32] | None = None


class TrainedTask:
    """What a downstream run learned.

    Attributes:
        card: facts of the network: `task`, `tile_size`, `mpp`, `classes` and others.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        self.path, self.device = path, device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        card = card_beside(path) or {}
        self.kind = card.get("kind")
        self.network: nn.Module
        if self.kind == instance_networks.KIND:
            self.network, self.card = instance_networks.load(path)
        elif self.kind in (CLASSIFIER, REGIONS):
            self.network, self.card = _rebuilt(path, str(self.kind))
        elif self.kind == BAGS:
            bags = read_bag_network(path)
            self.network, self.card = bags.network, bags.card
        else:
            raise InputError(f"{path} is of kind {self.kind!r}, expected what downstream/train.py exports; name that.")
        self.network.requires_grad_(False).eval().to(self.device)

    @torch.no_grad()
    def predict(self, image: NDArray[Any]) -> Prediction:
        """What the task says of an image.

        Args:
            image: uint8 RGB of the µm/px of the training, [3, H, W] or [H, W, 3], of any size.

        Raises:
            InputError: another shape or dtype.
        """
        levels, side = channels_first(image), int(self.card["tile_size"])
        if self.kind == BAGS:
            bag = self.bags.of_image(levels)
            return Prediction(bag.label, bag.probabilities)
        if self.kind == CLASSIFIER:
            tile = torch.from_numpy(resized(levels, side, side).copy())[None].to(self.device)
            found = self.network(tile).float().softmax(1)[0].cpu().numpy()
            return Prediction(self.card["classes"][int(found.argmax())], found)
        if self.kind == REGIONS:
            maps = np.empty((len(self.card["classes"]), *levels.shape[1:]), np.float32)
            for top, band in blend(
                lambda tiles, corners: self.network(tiles.to(self.device)).softmax(1), levels, Grid(side, side // 2)
            ):
                maps[:, top : top + band.shape[1]] = band
            return Prediction(probabilities=maps, regions=maps.argmax(0).astype(np.uint8))
        assert isinstance(self.network, instance_networks.InstanceNetwork)
        return Prediction(instances=segment(self.network, levels, side))

    @property
    def bags(self) -> TrainedBags:
        """What a classifier of bags says of them, their tiles and where it looked.

        Raises:
            InputError: another task.
        """
        if not isinstance(self.network, BagNetwork):
            raise InputError(f"{self.path} is of kind {self.kind!r}, expected {BAGS!r}, as --task mil exports it.")
        return TrainedBags(self.network, self.card)

    def predict_bag(self, tiles: Sequence[NDArray[Any]]) -> BagPrediction:
        """What task mil says of a bag of tiles, uint8 RGB each; see `downstream.bag_networks.TrainedBags.of_tiles`."""
        return self.bags.of_tiles(tiles)

    def predict_slide(self, path: str | Path, mpp: float | None = None) -> BagPrediction:
        """What task mil says of a slide; see `downstream.bag_networks.TrainedBags.of_slide`."""
        return self.bags.of_slide(Path(path), mpp)


def open_task(path: Path, device: torch.device | None = None) -> TrainedTask:
    """The network that a run, the folder of one of its seeds, or an exported file holds; see `downstream.load`.

    Raises:
        InputError: nothing exported there, or several networks of several seeds.
    """
    if path.is_file():
        return TrainedTask(path, device)
    found = sorted(path.glob("export/*.safetensors")) or sorted(path.glob("*/export/*.safetensors"))
    if len(found) == 1:
        return TrainedTask(found[0], device)
    if not found:
        raise InputError(f"{path} has no exported network; name a finished run of downstream/train.py.")
    names = ", ".join(sorted(file.parent.parent.name for file in found)[:6])
    raise InputError(f"{path} has networks of several trainings ({names}); name the folder of one of them.")


def _rebuilt(path: Path, kind: str) -> tuple[Classifier | Regions, dict[str, Any]]:
    tensors, card = read_card(path, kind)
    try:
        wanted, classes = architecture_of(card), len(card["classes"])
        mean, std = tuple(card["mean"]), tuple(card["std"])
        network: Classifier | Regions
        if kind == CLASSIFIER:
            network = Classifier(build(wanted), tensors["head.weight"].shape[1], classes, mean, std)
        else:
            network = Regions(DenseNetwork(wanted, card["decoder"], classes), mean, std)
        network.load_state_dict(tensors)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} does not fit its card ({str(error)[:120]}); export it again.") from error
    return network, card
