"""Regions: the class of every pixel by an encoder and any decoder of smp, such as glands or tissue."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.absence import refuse_absent_classes
from downstream.cases import Showcase, regions_picture
from downstream.labelled import PARTS, Labelled
from downstream.task import Evaluation, Tensors
from histo.dense import PIXELS, SHARED, Decoder, DenseNetwork
from histo.encoders import Start, write_card
from histo.errors import InputError
from histo.magnification import step_to
from histo.metrics.regions import IGNORED, class_numbers, dice_of, mean_iou, pixel_table, present
from histo.overlap import Corner, Grid, at_side, blend, window_of
from histo.tiles import Tile, TileSet

if TYPE_CHECKING:
    from downstream.recipe import Recipe

KIND = "regions"


@dataclass
class SegmentSettings:
    """Which regions there are, and how they are learned."""

    classes: list[str] = field(default_factory=lambda: ["background", "foreground"])
    """names of the mask's values 0, 1, …; of two the second is every value above 0"""
    ignore: int | None = None
    """value of the mask that is neither learned nor scored"""
    decoder: Decoder = "unet"
    """of segmentation_models_pytorch"""
    dice: float = 1.0
    """weight of the Dice loss beside cross-entropy of weight 1"""
    weights: list[float] | None = None
    """of the classes in the cross-entropy; null: all alike"""

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= 255 or len(set(self.classes)) < len(self.classes):
            raise InputError(f"segment.classes is {self.classes}, expected 2 to 255 different names.")
        if self.dice < 0:
            raise InputError(f"segment.dice is {self.dice}, expected 0 or more.")
        if self.weights is not None and (len(self.weights) != len(self.classes) or min(self.weights) <= 0):
            raise InputError(
                f"segment.weights is {self.weights}, expected a number above 0 for each of the {len(self.classes)} "
                "classes."
            )


class Regions(nn.Module):
    """Tile → logits of every pixel; height and width must be multiples of 32."""

    def __init__(self, dense: DenseNetwork, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.dense, self.mean, self.std = dense, mean, std

    def forward(self, image: Tensor) -> Tensor:
        """float [N, 3, H, W] in [-1, 1] → float32 [N, classes, H, W]."""
        mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return self.dense(((image + 1) / 2 - mean) / std)


class Segment:
    """Regions of tiles with masks."""

    NEEDS: Literal["mask"] = "mask"
    CHOSEN = "dice"

    def __init__(self, recipe: "Recipe", start: Start, labelled: Labelled, seed: int) -> None:
        self.settings, self.tile_size, self.mpp, self.start = recipe.segment, recipe.crop.size, recipe.crop.mpp, start
        mean, std = (tuple(start.facts[key] or (0.5,) * 3) for key in ("mean", "std"))
        dense = DenseNetwork(start.architecture, self.settings.decoder, len(self.settings.classes))
        dense.take(start.encoder.state_dict())
        self.network = Regions(dense, mean, std)
        names = dict(enumerate(self.settings.classes))
        ignored = self.settings.ignore
        if ignored in names and (ignored == 0 or len(names) > 2):  # of two classes the second has other values as well
            del names[ignored]
        refuse_absent_classes(labelled, recipe.data, PARTS, names, self._values)

    def _values(self, tile: Tile) -> NDArray[np.int64]:
        assert tile.instances is not None
        return self.numbers(tile.instances)

    @property
    def encoder(self) -> nn.Module:
        return self.network.dense.encoder

    def numbers(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """The class of each pixel of a mask, IGNORED where it has none.

        Raises:
            InputError: a value beyond the classes.
        """
        return class_numbers(values, self.settings.classes, self.settings.ignore)

    def prepared(self, tile: Tile) -> Tile:
        """The tile as crops are to be cut from it: values stay what they are, though instances are renumbered."""
        assert tile.instances is not None
        numbers = self.numbers(tile.instances)
        kinds = np.arange(len(self.settings.classes) + 1, dtype=np.uint8)  # the last one is ignored
        values = np.where(numbers == IGNORED, len(self.settings.classes), numbers).astype(np.int32)
        return replace(tile, instances=values, types=kinds)

    def item(self, tile: Tile, index: int) -> Tensors:
        assert tile.instances is not None
        assert tile.types is not None
        values = torch.from_numpy(tile.types[tile.instances].astype(np.int64))
        return {"numbers": torch.where(values == len(self.settings.classes), IGNORED, values)}

    def losses(self, images: Tensor, items: Tensors) -> Tensors:
        logits, numbers = self.network(images / 127.5 - 1), items["numbers"]
        weights = logits.new_tensor(self.settings.weights or [1.0] * logits.shape[1])
        total = F.cross_entropy(logits, numbers, weights, ignore_index=IGNORED, reduction="sum")
        known = numbers != IGNORED
        counted = (weights[numbers * known] * known).sum()  # 0 in a batch where nothing is labelled
        terms = {"cross_entropy": total / counted.clamp(min=torch.finfo(counted.dtype).tiny)}
        if self.settings.dice:
            from segmentation_models_pytorch.losses import DiceLoss  # imported here, as in histo.dense

            terms["dice"] = self.settings.dice * DiceLoss("multiclass", ignore_index=IGNORED)(logits, numbers)
        return terms

    def find(self, network: nn.Module, tile: Tile) -> NDArray[np.float32]:
        """Probabilities of the classes at every pixel of a tile of any size, float32 [classes, H, W]."""
        assert isinstance(network, Regions)
        return find_regions(network, tile.image, self.tile_size, step_to(self.mpp, tile.mpp, tile.key))

    def evaluate(self, network: nn.Module, tiles: TileSet) -> Evaluation:
        total = np.zeros((len(self.settings.classes),) * 2, np.int64)
        cases, showcase = {}, Showcase()
        for entry, tile in zip(tiles.entries, tiles, strict=True):
            assert tile.instances is not None
            truth, guess = self.numbers(tile.instances), self.find(network, tile).argmax(0)
            table = pixel_table(truth, guess, len(total))
            total += table
            key, dice = f"{entry.source}/{entry.key}", float(dice_of(table)[1:].mean())
            cases[key] = {"dice": dice}
            if showcase.takes(key, dice):
                showcase.pictures[key] = regions_picture(tile.image, truth, guess)
        scores = {
            f"dice_{name}": float(value)
            for name, value, there in zip(self.settings.classes, dice_of(total), present(total), strict=True)
            if there
        }
        iou = mean_iou(total)
        return Evaluation(
            {
                "dice": float(np.mean([one["dice"] for one in cases.values()])),
                **({} if iou is None else {"iou": iou}),
                "accuracy": float(np.trace(total) / total.sum()),
                **scores,
            },
            cases,
            self.settings.classes,
            total.tolist(),
            showcase.pictures,
        )

    def draw(self, network: nn.Module, tile: Tile) -> NDArray[np.uint8]:
        assert tile.instances is not None
        truth, guess = self.numbers(tile.instances), self.find(network, tile).argmax(0)
        return regions_picture(tile.image, truth, guess)

    def export(self, network: nn.Module, card: dict[str, Any], folder: Path) -> Path:
        assert isinstance(network, Regions)
        path = folder / "regions.safetensors"
        own = {
            **self.start.architecture.card,
            "kind": KIND,
            "classes": self.settings.classes,
            "ignore": self.settings.ignore,
            "decoder": self.settings.decoder,
            "tile_size": self.tile_size,
            "mean": list(network.mean),
            "std": list(network.std),
        }
        write_card(path, network.state_dict(), {**card, **own})
        return path


def find_regions(network: Regions, image: NDArray[np.uint8], tile: int, step: float = 1.0) -> NDArray[np.float32]:
    """Probabilities of the classes at every pixel of an image of any size.

    Args:
        image: uint8 [3, H, W] RGB.
        tile: side of the tiles that the network was trained on; pixels, a multiple of 32.
        step: pixels of the image from one pixel of a window to the next.

    Returns:
        float32 [classes, H, W].
    """
    device = next(network.parameters()).device

    def look(tiles: Tensor, corners: list[Corner]) -> Tensor:
        return network(tiles.to(device)).softmax(1)

    window = window_of(tile, step)
    grid = Grid(window, window - round(tile // SHARED * step))
    bands = list(blend(at_side(look, tile), image, grid, max(1, PIXELS // tile**2)))
    return np.concatenate([band for _, band in bands], 1)
