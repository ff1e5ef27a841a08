"""A trained task as notebooks and `downstream/predict.py` use it: an image in, classes, regions or nuclei out."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

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
from histo.segmenters import MPP_TOLERANCE, segment


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
        else:
            raise InputError(f"{path} is of kind {self.kind!r}, expected what downstream/train.py exports; name that.")
        self.network.requires_grad_(False).eval().to(self.device)
        self.reader: Any = self.network
        if isinstance(self.network, instance_networks.InstanceNetwork) and self.card.get("flips"):
            self.reader = instance_networks.Flipped(self.network)  # as it was scored

    @property
    def nuclei(self) -> bool:
        """Whether it finds nuclei."""
        return self.kind == instance_networks.KIND

    @property
    def classes_tiles(self) -> bool:
        """Whether it says of which class a tile is."""
        return self.kind == CLASSIFIER

    @property
    def mpp(self) -> float | None:
        """µm/px of what it learned from; None where that is unknown."""
        return self.card.get("mpp")

    def scale(self, mpp: float | None) -> float:
        """By what an image of this µm/px is resized before it is read; 1 within a tenth, and where one is unknown.

        Raises:
            InputError: an image coarser than what was learned from, in which there is not the detail to read.
        """
        if mpp is None or self.mpp is None or math.isclose(mpp, self.mpp, rel_tol=MPP_TOLERANCE):
            return 1.0
        if mpp > self.mpp:
            raise InputError(
                f"The image has {mpp:g} µm/px, coarser than the {self.mpp:g} that {self.path.name} learned at; give an "
                "image of that µm/px or a finer one, or correct --data.mpp."
            )
        return mpp / self.mpp

    @torch.no_grad()
    def predict(self, image: NDArray[Any], mpp: float | None = None) -> Prediction:
        """What the task says of an image.

        Args:
            image: uint8 RGB, [3, H, W] or [H, W, 3], of any size.
            mpp: its µm/px. An image more than a tenth finer than those of the training is resized to theirs, and maps
                of it are brought back to its own pixels. None: taken to be that of the training.

        Raises:
            InputError: another shape or dtype, or an image that is too coarse.
        """
        levels = channels_first(image)
        scale, size = self.scale(mpp), (levels.shape[1], levels.shape[2])
        if scale == 1:
            return self._read(levels)
        found = self._read(resized(levels, *(max(1, round(side * scale)) for side in size)))
        if found.instances is not None:
            maps = F.interpolate(torch.from_numpy(found.instances)[None, None].double(), size, mode="nearest-exact")
            found.instances = maps[0, 0].to(torch.int32).numpy()
        if found.regions is not None and found.probabilities is not None:
            maps = torch.from_numpy(found.probabilities)[None]
            found.probabilities = F.interpolate(maps, size, mode="bilinear", align_corners=False)[0].numpy()
            found.regions = found.probabilities.argmax(0).astype(np.uint8)
        return found

    def _read(self, levels: NDArray[np.uint8]) -> Prediction:
        side = int(self.card["tile_size"])
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
        return Prediction(instances=segment(self.reader, levels, side))


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
