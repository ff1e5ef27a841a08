"""A trained task as notebooks and `downstream/predict.py` use it: an image in, classes, regions or nuclei out."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from downstream.bag_networks import KIND as BAGS
from downstream.bag_networks import BagNetwork, BagPrediction, TrainedBags, read_bag_network
from downstream.embedder import KIND as SIMILARITY
from downstream.embedder import Embedder, looked
from downstream.tasks.classify import KIND as CLASSIFIER
from downstream.tasks.classify import Classifier
from downstream.tasks.segment import KIND as REGIONS
from downstream.tasks.segment import Regions, find_regions
from histo import instance_networks
from histo.dense import DenseNetwork
from histo.encoders import build, memory_layout, read_card
from histo.encoders.files import architecture_of, card_beside
from histo.errors import InputError
from histo.images import channels_first
from histo.magnification import FINEST, step_to
from histo.probes.embedding import resized
from histo.running.configs import read_config
from histo.running.runs import RunFolder


@dataclass
class Prediction:
    """What a task says of an image; what it does not tell is None.

    Attributes:
        label: the most probable class of the image.
        probabilities: float32 [C] of the image's classes, or [C, H, W] of every pixel's.
        regions: uint8 [H, W], the class of every pixel.
        instances: int32 [H, W], nuclei, 0 = background.
        types: uint8 [n + 1], types of nuclei by id, from 1 in the order of the card's `types`; entry 0 unused.
        nucleus_probabilities: float32 [n + 1] in [0, 1], by id, that it is a nucleus: the mean over its pixels, or the
            score of head maskrcnn; entry 0 unused.
        type_probabilities: float32 [n + 1, T], by id, of the card's `types`: the mean over the nucleus's pixels, while
            `types` has what most of them are of; row 0 unused, the others add up to 1.
    """

    label: str | None = None
    probabilities: NDArray[np.float32] | None = None
    regions: NDArray[np.uint8] | None = None
    instances: NDArray[np.int32] | None = None
    types: NDArray[np.uint8] | None = None
    nucleus_probabilities: NDArray[np.float32] | None = None
    type_probabilities: NDArray[np.float32] | None = None


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
        elif self.kind in (CLASSIFIER, REGIONS, SIMILARITY):
            self.network, self.card = _rebuilt(path, str(self.kind))
        elif self.kind == BAGS:
            bags = read_bag_network(path)
            self.network, self.card = bags.network, bags.card
        else:
            raise InputError(f"{path} is of kind {self.kind!r}, expected what downstream/train.py exports; name that.")
        layout = memory_layout(self.network, self.device)
        self.network.requires_grad_(False).eval().to(self.device).to(memory_format=layout)

    @property
    def nuclei(self) -> bool:
        """Whether it finds nuclei."""
        return self.kind == instance_networks.KIND

    @property
    def classes_tiles(self) -> bool:
        """Whether it says of which class a tile is."""
        return self.kind in (CLASSIFIER, SIMILARITY)

    @property
    def judges_bags(self) -> bool:
        """Whether it says of which class a bag of tiles is."""
        return self.kind == BAGS

    @property
    def types(self) -> list[str]:
        """Names of the types of nuclei that it tells, from 1; empty where it tells none."""
        return list(self.card.get("types") or []) if self.nuclei else []

    @property
    def mpp(self) -> float | None:
        """µm/px of what it learned from; None where that is unknown."""
        return self.card.get("mpp")

    def predict(self, image: NDArray[Any], mpp: float | None = None) -> Prediction:
        """What the task says of an image.

        Args:
            image: uint8 RGB, [3, H, W] or [H, W, 3], of any size.
            mpp: its µm/px, from which it is brought to that of the training (of task smse: to the finest of the card's
                `magnifications` that is no finer than the image); None: it has that of the training. Of no effect on
                classes of whole tiles, which are resized to the training's pixels.

        Raises:
            InputError: another shape or dtype, an image coarser than the training's, or of task smse one smaller than
                its crops.
        """
        if self.kind == BAGS:
            levels = channels_first(image)
            if mpp is not None:
                step = step_to(self.card.get("mpp"), mpp, "The image")
                levels = resized(levels, *(max(1, round(side / step)) for side in levels.shape[1:]))
            bag = self.bags.of_image(levels)
            return Prediction(bag.label, bag.probabilities)
        bf16 = self.card.get("precision") == "bf16"
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):  # as it was scored
            return self._predicted(channels_first(image), mpp)

    def _predicted(self, levels: NDArray[np.uint8], mpp: float | None) -> Prediction:
        side = int(self.card["tile_size"])
        if isinstance(self.network, Embedder):
            likely = looked(self.network, [_at_best(levels, mpp, self.card["magnifications"])], side)[1][0].numpy()
            return Prediction(self.card["classes"][int(likely.argmax())], likely)
        if self.kind == CLASSIFIER:
            tile = torch.from_numpy(resized(levels, side, side).copy())[None].to(self.device)
            found = self.network(tile).float().softmax(1)[0].cpu().numpy()
            return Prediction(self.card["classes"][int(found.argmax())], found)
        step = step_to(self.card.get("mpp"), mpp, "The image") if mpp is not None else 1.0
        if self.kind == REGIONS:
            assert isinstance(self.network, Regions)
            maps = find_regions(self.network, levels, side, step)
            return Prediction(probabilities=maps, regions=maps.argmax(0).astype(np.uint8))
        assert isinstance(self.network, instance_networks.InstanceNetwork)
        flips = bool(self.card.get("flips"))
        found = instance_networks.find_nuclei(self.network, levels, side, flips=flips, step=step)
        return Prediction(
            instances=found.instances,
            types=found.types,
            nucleus_probabilities=found.probabilities,
            type_probabilities=found.type_probabilities,
        )

    @property
    def bags(self) -> TrainedBags:
        """What a classifier of bags says of them, their tiles and where it looked.

        Raises:
            InputError: another task.
        """
        if not isinstance(self.network, BagNetwork):
            raise InputError(f"{self.path} is of kind {self.kind!r}, expected {BAGS!r}, as --task mil exports it.")
        return TrainedBags(self.network, self.card)

    def predict_bag(self, tiles: Iterable[NDArray[Any]]) -> BagPrediction:
        """What task mil says of a bag of tiles, uint8 RGB each; see `downstream.bag_networks.TrainedBags.of_tiles`."""
        return self.bags.of_tiles(tiles)

    def predict_slide(
        self, path: str | Path, mpp: float | None = None, slide_mpp: float | None = None
    ) -> BagPrediction:
        """What task mil says of a slide; see `downstream.bag_networks.TrainedBags.of_slide`."""
        return self.bags.of_slide(Path(path), mpp, slide_mpp)


def _at_best(levels: NDArray[np.uint8], mpp: float | None, learned: list[float]) -> NDArray[np.uint8]:
    """An image at the finest µm/px of a training that is no finer than its own; without one, as it is."""
    if mpp is None:
        return levels
    step = step_to(min([one for one in learned if one * FINEST >= mpp], default=max(learned)), mpp, "The image")
    height, width = (max(1, round(length / step)) for length in levels.shape[1:])
    return levels if step == 1 else resized(levels, height, width)


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
        config = RunFolder(path).config
        settings = read_config(config) if config.is_file() else None
        if isinstance(settings, dict) and settings.get("task") == "knn":
            raise InputError(
                f"{path} is a run of task knn, which scores an encoder by nearest neighbours and exports no network; "
                "train with --task linear on the same encoder to predict."
            )
        raise InputError(f"{path} has no exported network; name a finished run of downstream/train.py.")
    names = ", ".join(sorted(file.parent.parent.name for file in found)[:6])
    raise InputError(f"{path} has networks of several trainings ({names}); name the folder of one of them.")


def _rebuilt(path: Path, kind: str) -> tuple[Classifier | Embedder | Regions, dict[str, Any]]:
    tensors, card = read_card(path, kind)
    try:
        wanted, classes = architecture_of(card), len(card["classes"])
        mean, std = tuple(card["mean"]), tuple(card["std"])
        network: Classifier | Embedder | Regions
        if kind == CLASSIFIER:
            network = Classifier(build(wanted), tensors["head.weight"].shape[1], classes, mean, std)
        elif kind == SIMILARITY:
            width = tensors["project.weight"].shape[1]
            network = Embedder(build(wanted), width, card["embedding"], classes, mean, std)
        else:
            network = Regions(DenseNetwork(wanted, card["decoder"], classes), mean, std)
        network.load_state_dict(tensors)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} does not fit its card ({str(error)[:120]}); export it again.") from error
    return network, card
