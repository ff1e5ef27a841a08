"""Classes of tiles by a whole encoder that is fine-tuned, with a linear layer on its pooled features."""

from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from downstream.cases import class_picture
from downstream.labelled import Labelled
from downstream.losses import Loss, Weights, class_loss, class_weights
from downstream.task import Evaluation, Tensors
from histo.encoders import Architecture, Start, pooled, write_card
from histo.errors import InputError
from histo.metrics.classification import classification_scores, patient_means, recognition_rate
from histo.probes.embedding import feature_width, fitted, scaled
from histo.tiles import Tile, TileEntry, TileSet

if TYPE_CHECKING:
    from downstream.recipe import Recipe

BATCH = 64
NAMED = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece")
KIND = "classifier"


@dataclass
class ClassifySettings:
    """How classes are learned; of task linear its loss and weights."""

    loss: Loss = "cross_entropy"
    """cross_entropy, or focal: less of what is right already"""
    gamma: float = 2.0
    """of the focal loss"""
    weights: Weights = "none"
    """inverse: every class counts alike, however many tiles it has"""
    whole: bool = True
    """learn from whole tiles, resized to crop.size, as they are scored; false: from crops of that size"""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 10:
            raise InputError(f"classify.gamma is {self.gamma}, expected 0 to 10.")


class Classifier(nn.Module):
    """Tile → logits of its classes.

    Args:
        encoder: without classifier.
        width: of its pooled features.
        mean, std: of each channel, of levels scaled to [0, 1].
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.encoder, self.mean, self.std = encoder, mean, std
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """float or uint8 [N, 3, H, W], levels 0 to 255 → float [N, classes]."""
        return self.head(pooled(self.encoder(scaled(images, self.mean, self.std))))


class Classify:
    """Classes of tiles with labels."""

    NEEDS: Literal["label"] = "label"
    CHOSEN = "balanced_accuracy"

    def __init__(self, recipe: "Recipe", start: Start, labelled: Labelled, seed: int) -> None:
        self.settings, self.side, self.labelled = recipe.classify, recipe.crop.size, labelled
        mean, std = (tuple(start.facts[key] or (0.5,) * 3) for key in ("mean", "std"))
        width = feature_width(start.encoder, start.architecture, self.side, "crop.size")
        self.start = start
        self.network = Classifier(start.encoder, width, len(labelled.classes), mean, std)
        self.weights = class_weights(class_shares(labelled), self.settings.weights)

    @property
    def encoder(self) -> nn.Module:
        return self.network.encoder

    def prepared(self, tile: Tile) -> Tile:
        return tile

    def item(self, tile: Tile, index: int) -> Tensors:
        return {"number": torch.tensor(self.labelled.number_of[str(tile.label)])}

    def losses(self, images: Tensor, items: Tensors) -> Tensors:
        weights = None if self.weights is None else self.weights.to(images.device)
        logits = self.network(images)
        return {"class": class_loss(logits, items["number"], self.settings.loss, weights, self.settings.gamma)}

    def probabilities(self, network: nn.Module, tiles: TileSet) -> Tensor:
        """float32 [N, C] of whole tiles."""
        device = next(network.parameters()).device
        found = []
        for first in range(0, len(tiles), BATCH):
            some = [fitted(tiles[k], self.side) for k in range(first, min(first + BATCH, len(tiles)))]
            found.append(network(torch.from_numpy(np.stack(some)).to(device)).float().softmax(1).cpu())
        return torch.cat(found)

    def evaluate(self, network: nn.Module, tiles: TileSet) -> Evaluation:
        found = self.probabilities(network, tiles)
        truth = torch.tensor([self.labelled.number_of[str(entry.label)] for entry in tiles.entries])
        return class_scores(found, truth, self.labelled.classes, tiles.entries)

    def draw(self, network: nn.Module, tile: Tile) -> NDArray[np.uint8]:
        device = next(network.parameters()).device
        image = torch.from_numpy(fitted(tile, self.side).copy())[None].to(device)
        found = network(image).float().softmax(1)[0].cpu()
        names = self.labelled.classes
        truth = names[self.labelled.number_of[str(tile.label)]]
        return class_picture(fitted(tile, self.side), truth, names, found.tolist())

    def export(self, network: nn.Module, card: dict[str, Any], folder: Path) -> Path:
        assert isinstance(network, Classifier)
        return write_classifier(network, self.start.architecture, self.labelled.classes, self.side, card, folder)


def patient_scores(
    probabilities: Tensor, numbers: Tensor, classes: list[str], patients: Sequence[Hashable]
) -> dict[str, float | None]:
    """Scores of patients, each by the mean of its tiles' probabilities; as in `class_scores`, named NAME_by_patient.

    Raises:
        InputError: a patient of several classes.
    """
    means, own, _ = patient_means(probabilities, numbers, patients)
    of_patients = classification_scores(means / means.sum(1, keepdim=True), own, classes)
    return {f"{name}_by_patient": getattr(of_patients, name) for name in NAMED}


def class_shares(labelled: Labelled) -> Tensor:
    """The share of each class in the crops that are learned from, float [classes]."""
    total = torch.zeros(len(labelled.classes))
    for tiles, share in labelled.learned():
        numbers = torch.tensor([labelled.number_of[str(entry.label)] for entry in tiles.entries])
        total += share * numbers.bincount(minlength=len(total)) / len(numbers)
    return total


def class_scores(
    probabilities: Tensor, numbers: Tensor, classes: list[str], entries: Sequence[TileEntry]
) -> Evaluation:
    """Scores of all tiles together, of their patients where some are known, and of each tile.

    Args:
        probabilities: float [N, C]; numbers: int64 [N], true classes; entries: of the tiles.
    """
    scores = classification_scores(probabilities, numbers, classes)
    named = {name: getattr(scores, name) for name in NAMED}
    if any(entry.patient is not None for entry in entries):
        patients = [entry.patient or f"tile {entry.source}/{entry.key}" for entry in entries]
        named["patient_rate"] = recognition_rate(probabilities.argmax(1), numbers, patients)
        with suppress(InputError):  # patients of several classes have the rate alone
            named |= patient_scores(probabilities, numbers, classes, patients)
    of_class = numbers.bincount(minlength=len(classes))
    present = int((of_class > 0).sum())
    cases = {}
    for entry, one, label in zip(entries, probabilities, numbers.tolist(), strict=True):
        right = float(one.argmax() == label)
        share = right * len(entries) / (present * int(of_class[label]))
        cases[f"{entry.source}/{entry.key}"] = {
            "accuracy": right,
            "balanced_accuracy": share,  # whose mean over these tiles is that score, as paired tests need it
            "p_true": float(one[label]),
        }
    named = {name: value for name, value in named.items() if value is not None}
    return Evaluation(named, cases, classes, [list(row) for row in scores.confusion])


def write_classifier(
    network: Classifier, wanted: Architecture, classes: list[str], side: int, card: dict[str, Any], folder: Path
) -> Path:
    """Write an encoder with its classifier; returns the file.

    Raises:
        InputError: it cannot be written.
    """
    path = folder / "classifier.safetensors"
    own = {
        **wanted.card,
        "kind": KIND,
        "classes": classes,
        "tile_size": side,
        "mean": list(network.mean),
        "std": list(network.std),
    }
    write_card(path, network.state_dict(), {**card, **own})
    return path
