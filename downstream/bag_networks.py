"""An encoder with a bag classifier on its features, as a file and as what predicts bags, images and slides."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from downstream.bags import BagClassifier, BagSettings
from histo.encoders import Architecture, build, read_card, write_card
from histo.encoders.files import architecture_of
from histo.errors import InputError
from histo.images import channels_first
from histo.probes.embedding import embed, resized
from histo.slides.grids import Tiling, grid_of
from histo.slides.readers import Slide
from histo.slides.resampling import read_grid

KIND = "bag classifier"
FILE = "bags.safetensors"
_AT_ONCE = 256  # tiles of a bag that are read before the encoder sees them


class BagPrediction(NamedTuple):
    """What is said of a bag.

    Attributes:
        label: its most probable class.
        probabilities: float32 [C].
        attention: float32 [T], of each tile, sum 1.
        boxes: int64 [T, 4], left, top, right and bottom of each tile, pixels of the image or of the slide's finest
            level; None where tiles were given.
    """

    label: str
    probabilities: NDArray[np.float32]
    attention: NDArray[np.float32]
    boxes: NDArray[np.int64] | None = None


class BagNetwork(nn.Module):
    """Tiles of a bag → its logits and their attention.

    Args:
        encoder: without classifier.
        head: on its pooled features.
        mean, std: of each channel, of levels scaled to [0, 1].
        bf16: arithmetic of the encoder, instead of fp32.
    """

    def __init__(
        self, encoder: nn.Module, head: BagClassifier, mean: Sequence[float], std: Sequence[float], bf16: bool
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.mean, self.std, self.bf16 = encoder, head, tuple(mean), tuple(std), bf16

    def features(self, tiles: Tensor) -> Tensor:
        """uint8 [T, 3, H, W], levels → float32 [T, D] on the CPU."""
        device = next(self.encoder.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            return embed(self.encoder, tiles, self.mean, self.std, device)

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [T, 3, H, W], levels → logits float [C], attention float [T]."""
        logits, weights = self.head(self.features(tiles).to(self.head.mean))
        return logits, weights


class TrainedBags:
    """A trained bag classifier.

    Attributes:
        card: facts of it: `classes`, `tile_size`, `mpp` and others.
    """

    def __init__(self, network: BagNetwork, card: dict[str, Any]) -> None:
        self.network, self.card = network, card
        self.side = int(card["tile_size"])

    def of_tiles(self, tiles: Iterable[NDArray[Any]]) -> BagPrediction:
        """Predict a bag of tiles, of which no more than some hundred are held at a time.

        Args:
            tiles: uint8 RGB, [3, H, W] or [H, W, 3] each, resized to the tile size.

        Raises:
            InputError: no tile, or one of another shape or dtype.
        """
        parts, left = [], iter(tiles)
        while some := list(islice(left, _AT_ONCE)):
            levels = [resized(channels_first(tile), self.side, self.side) for tile in some]
            parts.append(self.network.features(torch.from_numpy(np.stack(levels))))
        if not parts:
            raise InputError("The bag has no tile, expected one at least.")
        return self._said(parts, None)

    def of_image(self, image: NDArray[Any]) -> BagPrediction:
        """Predict an image as the bag of its tiles, which cover all of it; the last ones reach back over others.

        Args:
            image: uint8 RGB of the µm/px of the training, [3, H, W] or [H, W, 3]; enlarged where it is smaller than a
                tile.

        Raises:
            InputError: another shape or dtype.
        """
        levels = channels_first(image)
        height, width = (max(side, self.side) for side in levels.shape[1:])
        if (height, width) != levels.shape[1:]:
            levels = resized(levels, height, width)
        places = [(left, top) for top in _starts(height, self.side) for left in _starts(width, self.side)]
        tiles = np.stack([levels[:, top : top + self.side, left : left + self.side] for left, top in places])
        corners = np.array(places, dtype=np.int64)
        return self._said([self.network.features(torch.from_numpy(tiles))], np.hstack([corners, corners + self.side]))

    def of_slide(self, path: Path, mpp: float | None = None, slide_mpp: float | None = None) -> BagPrediction:
        """Predict a slide as the bag of its tiles that hold tissue, cut as those of the training were.

        Args:
            path: the slide.
            mpp: µm/px of the tiles; None: that of the training.
            slide_mpp: µm/px of the slide's finest level, before what the file says; None takes it from the file.

        Raises:
            InputError: an unknown µm/px, a slide that cannot be read, or one without tissue.
        """
        wanted = mpp or self.card["mpp"]
        if wanted is None:
            raise InputError(
                f"The µm/px of what the classifier was trained on is not known, so {path} cannot be cut; give mpp."
            )
        parts = []
        with Slide(path, slide_mpp) as slide:
            grid, _ = grid_of(slide, Tiling(wanted, self.side))
            kept = [grid.box(row, column) for row, column in grid.kept.tolist()]
            if not kept:
                raise InputError(f"{path} has no tile with enough tissue; look at it with `nucleate tile`.")
            for first in range(0, len(kept), _AT_ONCE):
                some = kept[first : first + _AT_ONCE]
                tiles = np.stack([read_grid(slide, grid.sampling, *place, self.side, self.side) for place in some])
                parts.append(self.network.features(torch.from_numpy(tiles)))
            scale = grid.sampling.step * slide.downsamples[grid.sampling.level]
        corners = np.array(kept, dtype=float)
        return self._said(parts, np.rint(np.hstack([corners, corners + self.side]) * scale).astype(np.int64))

    def _said(self, features: list[Tensor], boxes: NDArray[np.int64] | None) -> BagPrediction:
        with torch.no_grad():
            logits, weights = self.network.head(torch.cat(features).to(self.network.head.mean))
        found = logits.softmax(0).cpu().numpy()
        return BagPrediction(self.card["classes"][int(found.argmax())], found, weights.cpu().numpy(), boxes)


def write_bag_network(
    network: BagNetwork, wanted: Architecture, classes: list[str], side: int, card: dict[str, Any], folder: Path
) -> Path:
    """Write an encoder with its bag classifier; returns the file.

    Raises:
        InputError: it cannot be written.
    """
    settings = network.head.settings
    own = {
        **wanted.card,
        "kind": KIND,
        "classes": classes,
        "tile_size": side,
        "mean": list(network.mean),
        "std": list(network.std),
        "bf16": network.bf16,
        "bag": {"pooling": settings.pooling, "width": settings.width, "top": settings.top},
    }
    write_card(folder / FILE, network.state_dict(), {**card, **own})
    return folder / FILE


def read_bag_network(path: Path) -> TrainedBags:
    """Read what `write_bag_network` wrote, ready to predict.

    Raises:
        InputError: no such file, one of another kind, or a damaged one.
    """
    tensors, card = read_card(path, KIND)
    try:
        classes, settings = len(card["classes"]), BagSettings(**card["bag"])
        mean, std = tensors["head.mean"], tensors["head.std"]
        head = BagClassifier(len(mean), classes, settings, mean, std)
        network = BagNetwork(build(architecture_of(card)), head, card["mean"], card["std"], bool(card["bf16"]))
        network.load_state_dict(tensors)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} does not fit its card ({str(error)[:120]}); export it again.") from error
    return TrainedBags(network.requires_grad_(False).eval(), card)


def _starts(length: int, side: int) -> list[int]:
    """Where squares begin that cover a length."""
    return [*range(0, length - side, side), length - side]
