"""Classes of tiles at mixed magnifications, by embeddings in which images of one class are near each other.

SMSE (Sun et al., arXiv 2107.01063) as far as its abstract says; `downstream.similarity` has the losses.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from downstream.embedder import Embedder, looked, write_embedder
from downstream.labelled import TEST, TRAIN, VALIDATION, Labelled
from downstream.magnifications import Magnifications
from downstream.similarity import (
    ClassOrder,
    contrastive_loss,
    draw_triplets,
    nearest_prototype,
    pair_loss,
    punishment,
    root_weights,
    triplet_loss,
)
from downstream.task import Evaluation, Tensors
from histo.encoders import Start
from histo.errors import InputError
from histo.metrics.classification import classification_scores, confusion, recognition_rate
from histo.probes import feature_width, knn
from histo.running.processes import state
from histo.tiles import Tile, TileCache, TileSet

if TYPE_CHECKING:
    from downstream.recipe import Recipe

NEIGHBOURS = 15  # of the k nearest neighbours


@dataclass
class SmseSettings:
    """How classes at mixed magnifications are learned."""

    mpp: list[float] | None = None
    """µm/px at which tiles are shown, finer ones resampled; null: each tile as it is, at its own"""
    held_out: list[float] | None = None
    """of these, those that are scored but not learned from"""
    classes: int | None = None
    """classes in a batch, each with as many crops at every µm/px; null: all"""
    embedding: int = 128
    """numbers that an image becomes, a vector of length 1"""
    focal: Literal["rfl", "focal", "cross_entropy"] = "rfl"
    """of classes and pairs. rfl: more of what is wrong and less of what is right; focal: less of what is right"""
    theta: float = 0.5
    """of rfl: the probability of the true answer at which it counts as in cross-entropy"""
    gamma: float = 2.0
    """of rfl and focal: how much what is right counts less"""
    weights: Literal["root", "none"] = "root"
    """root: the rarer a class, the more it counts, by one over the root of its tiles"""
    pair: Literal["rfl", "contrastive", "none"] = "rfl"
    """rfl: learned probability that two images are of one class, with the loss of smse.focal; contrastive: distances"""
    triplet: float = 0.5
    """weight of the triplet loss; 0: without"""

    def __post_init__(self) -> None:
        for name in ("mpp", "held_out"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values) or not all(0.01 <= value <= 100 for value in values):
                raise InputError(f"smse.{name} is {values}, expected different µm/px between 0.01 and 100.")
        if self.classes is not None and self.classes < 2:
            raise InputError(f"smse.classes is {self.classes}, expected 2 or more.")
        if not 2 <= self.embedding <= 4096:
            raise InputError(f"smse.embedding is {self.embedding}, expected 2 to 4096 numbers.")
        if not 0 <= self.theta < 1:
            raise InputError(f"smse.theta is {self.theta}, expected a probability from 0 to below 1.")
        if not 0 <= self.gamma <= 10:
            raise InputError(f"smse.gamma is {self.gamma}, expected 0 to 10.")
        if not 0 <= self.triplet <= 100:
            raise InputError(f"smse.triplet is {self.triplet}, expected a weight from 0 to 100.")


class Smse:
    """Classes of tiles at mixed magnifications."""

    NEEDS: Literal["label"] = "label"
    CHOSEN = "balanced_accuracy"

    def __init__(self, recipe: "Recipe", start: Start, labelled: Labelled, seed: int) -> None:
        self.settings, self.side, self.labelled, self.seed = recipe.smse, recipe.crop.size, labelled, seed
        self.start = start
        if labelled.extra is not None:
            raise InputError("data.extra is given, but task smse learns from data.tiles alone; leave it out.")
        if recipe.crop.mpp is not None:
            raise InputError(f"crop.mpp is {recipe.crop.mpp:g}, but task smse has several; give smse.mpp instead.")
        self.known = Magnifications.of(labelled.tiles, self.settings.mpp, self.settings.held_out or ())
        self.allowed = self.known.allowed(labelled.tiles, self.side)
        _refuse_empty(labelled, self.known, self.allowed, self.side)
        self.order = self._order(recipe.train.batch_size)
        self.cache = TileCache(recipe.data.cache_mb)
        self.place = {(entry.source, entry.key): place for place, entry in enumerate(labelled.tiles.entries)}
        owners: list[Any] = [k if patient is None else patient for k, patient in enumerate(labelled.patients)]
        self.owners = owners
        number_of = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
        self.owner_numbers = [number_of[owner] for owner in owners]

        mean, std = (tuple(start.facts[key] or (0.5,) * 3) for key in ("mean", "std"))
        width = feature_width(start.encoder, start.architecture, self.side, "crop.size")
        classes = len(labelled.classes)
        self.network = Embedder(start.encoder, width, self.settings.embedding, classes, mean, std)
        chosen = self.settings
        self.loss_name, self.punished = punishment(chosen.focal, chosen.theta, chosen.gamma)
        counts = torch.bincount(torch.from_numpy(labelled.numbers[labelled.parts[TRAIN]]), minlength=classes)
        self.weights = root_weights(counts) if chosen.weights == "root" else torch.ones(classes)
        labelled.facts.update(self._facts())

    @property
    def encoder(self) -> nn.Module:
        return self.network.encoder

    def _order(self, batch: int) -> ClassOrder:
        learned, places = self.known.learned, self.labelled.parts[TRAIN]
        classes = self.settings.classes or len(self.labelled.classes)
        if classes > len(self.labelled.classes):
            names = ", ".join(self.labelled.classes)
            raise InputError(f"smse.classes is {classes}, but the tiles have the classes {names}; lower it.")
        cell = classes * len(learned)
        processes = state().num_processes  # each of which makes pairs of its own images
        if processes > 1 and (batch % (cell * processes) or batch < 2 * classes * processes):
            raise InputError(
                f"train.batch_size is {batch}, which {processes} processes share, expected a multiple of "
                f"{cell * processes} with 2 images of a class or more in each; change it, or start fewer processes."
            )
        if batch % cell or batch < 2 * classes:
            raise InputError(
                f"train.batch_size is {batch}, expected a multiple of {cell}, of {classes} classes at {len(learned)} "
                f"µm/px, with 2 images of a class or more; give {max(cell, 2 * classes, round(batch / cell) * cell)}."
            )
        allowed = self.allowed[places][:, list(learned)]
        return ClassOrder(self.labelled.numbers[places], allowed, classes, len(learned), batch // cell, self.seed)

    def _facts(self) -> dict[str, Any]:
        """What results say of the loss and of the magnifications."""
        pairs = {"rfl": f"pairs by {self.loss_name}", "contrastive": "pairs by contrastive loss", "none": "no pairs"}
        triplets = f"triplets x {self.settings.triplet:g}" if self.settings.triplet else "no triplets"
        scored = self.allowed[self.labelled.parts[TEST]].sum(0)
        return {
            "loss": f"{self.loss_name}; {pairs[self.settings.pair]}; {triplets}; weights {self.settings.weights}",
            "µm/px": self.known.describe(),
            "scored": ", ".join(
                f"{count} of {len(self.labelled.parts[TEST])} at {value:.4g} µm/px"
                for value, count in zip(self.known.values, scored, strict=True)
            ),
        }

    def tile(self, tiles: TileSet, index: int) -> Tile:
        position, learned = self.order(index)
        place = self.known.learned[learned]
        slot = position * len(self.known.values) + place
        found = self.cache.get(slot)
        if found is None:
            entry = tiles.entries[position]
            # Past the cache of the tiles, since what is kept is the tile as it is shown.
            facts = (entry.key, entry.source, entry.patient, entry.mpp, entry.label, entry.split)
            found = self.known.shown(Tile(tiles.image(position), *facts), place)
            self.cache.put(slot, found)
        return found

    def prepared(self, tile: Tile) -> Tile:
        return tile

    def item(self, tile: Tile, index: int) -> Tensors:
        place = self.place[tile.source, tile.key]
        found = (int(self.labelled.numbers[place]), self.order(index)[1], self.owner_numbers[place])
        return dict(zip(("number", "scale", "patient"), map(torch.tensor, found), strict=True))

    def losses(self, images: Tensor, items: Tensors) -> Tensors:
        embeddings, numbers = self.network.embed(images), items["number"]
        with torch.autocast(images.device.type, enabled=False):
            true = self.network.classes(embeddings).softmax(1).gather(1, numbers[:, None])[:, 0]
            terms = {"class": (self.weights.to(images.device)[numbers] * self.punished(true)).mean()}
            if self.settings.pair == "rfl":
                similarity = self.network.slope * (embeddings @ embeddings.T) + self.network.offset
                terms["pair"] = pair_loss(similarity, numbers, self.punished)
            elif self.settings.pair == "contrastive":
                terms["pair"] = contrastive_loss(embeddings, numbers)
            if self.settings.triplet:
                drawn = draw_triplets(
                    numbers.cpu().numpy(),
                    items["scale"].cpu().numpy(),
                    items["patient"].tolist(),
                    self.seed,
                    int(items["index"][0]),
                )
                triplets = torch.from_numpy(drawn).to(images.device)
                terms["triplet"] = self.settings.triplet * triplet_loss(embeddings, triplets)
        return terms

    def evaluate(self, network: nn.Module, tiles: TileSet) -> Evaluation:
        """Scores of the linear layer, and of the test part also those of neighbours and prototypes.

        The latter two read embeddings of all training tiles at the magnifications that were learned from, which takes
        too long for every look at the validation part. That part, by which a network is chosen, knows no magnification
        that is held out.
        """
        assert isinstance(network, Embedder)
        places = [self.place[entry.source, entry.key] for entry in tiles.entries]
        validating = set(places) == set(self.labelled.parts[VALIDATION].tolist())
        values = self.known.learned if validating else range(len(self.known.values))
        embeddings, probabilities, rows = self._looked(network, tiles, places, values)
        numbers = torch.from_numpy(self.labelled.numbers)
        truth = numbers[[places[row] for row, _ in rows]]
        answers = {"": probabilities.argmax(1)}
        if not validating:
            learned = self.labelled.part(TRAIN)
            positions = self.labelled.parts[TRAIN].tolist()
            train, _, known = self._looked(network, learned, positions, self.known.learned)
            labels, classes = numbers[[positions[row] for row, _ in known]], len(self.labelled.classes)
            answers["knn_"] = knn(train, labels, embeddings, classes, NEIGHBOURS)
            answers["prototype_"] = nearest_prototype(train, labels, embeddings, classes)
        return self._scores(probabilities, answers, truth, rows, tiles, [self.owners[place] for place in places])

    def _looked(
        self, network: Embedder, tiles: TileSet, places: list[int], values: Iterable[int]
    ) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Embeddings and probabilities of tiles at each of some magnifications, with (tile, magnification) of each."""
        rows = [(row, k) for row, place in enumerate(places) for k in values if self.allowed[place, k]]
        images = (self.known.shown(tiles[row], k).image for row, k in rows)
        return *looked(network, images, self.side), rows

    def _scores(
        self,
        probabilities: Tensor,
        answers: dict[str, Tensor],
        truth: Tensor,
        rows: list[tuple[int, int]],
        tiles: TileSet,
        owners: list[Any],
    ) -> Evaluation:
        """Scores over all magnifications and at each, of every read-out, whose name begins its scores."""
        patients = [owners[row] for row, _ in rows]
        at = np.array([place for _, place in rows])
        scores: dict[str, float] = {}
        for place in (None, *sorted(set(at.tolist()))):
            chosen = np.flatnonzero(np.ones(len(at), bool) if place is None else at == place)
            end = "" if place is None else f"_at_{self.known.name(place)}"
            for begin, found in answers.items():
                scores[f"{begin}accuracy{end}"] = float((found[chosen] == truth[chosen]).double().mean())
                rate = recognition_rate(found[chosen], truth[chosen], [patients[k] for k in chosen])
                scores[f"{begin}patient_rate{end}"] = rate
            of_linear = classification_scores(probabilities[chosen], truth[chosen], self.labelled.classes)
            for name in ("balanced_accuracy", "macro_f1", "auroc", "ece") if place is None else ("macro_f1", "auroc"):
                value = getattr(of_linear, name)
                if value is not None:
                    scores[f"{name}{end}"] = value
        cases: dict[str, dict[str, float]] = {}
        rows_of: dict[int, list[int]] = defaultdict(list)
        for k, (row, _) in enumerate(rows):
            rows_of[row].append(k)
        right_of = (answers[""] == truth).double()
        of_class = truth.bincount(minlength=len(self.labelled.classes))
        share = len(rows_of) / (int((of_class > 0).sum()) * of_class[truth])
        for row, entry in enumerate(tiles.entries):
            mine = rows_of.get(row, [])
            case = cases[f"{entry.source}/{entry.key}"] = {}
            if not mine:
                continue
            for begin, found in answers.items():
                right = (found[mine] == truth[mine]).double()
                case[f"{begin}accuracy"] = float(right.mean())
                for k, value in zip(mine, right.tolist(), strict=True):
                    case[f"{begin}accuracy_at_{self.known.name(rows[k][1])}"] = value
            # Whose mean over the tiles that are shown somewhere is that score.
            case["balanced_accuracy"] = float((share * right_of)[mine].sum())
            case["p_true"] = float(probabilities[mine, truth[mine]].mean())
        table = confusion(answers[""], truth, len(self.labelled.classes)).tolist()
        return Evaluation(scores, cases, self.labelled.classes, table)

    def draw(self, network: nn.Module, tile: Tile) -> NDArray[np.uint8]:
        """The tile at each of its magnifications, with the class that is found there."""
        assert isinstance(network, Embedder)
        place, names = self.place[tile.source, tile.key], self.labelled.classes
        shown = [k for k in range(len(self.known.values)) if self.allowed[place, k]]
        truth = names[int(self.labelled.numbers[place])]
        page = Image.new("RGB", (max(1, len(shown)) * self.side, self.side + 32), "white")
        pen = ImageDraw.Draw(page)
        for column, k in enumerate(shown):
            image = self.known.shown(tile, k).image
            _, found = looked(network, [image], self.side)
            best, left = int(found[0].argmax()), column * self.side
            middle = [(length - self.side) // 2 for length in image.shape[1:]]
            cut = image[:, middle[0] : middle[0] + self.side, middle[1] : middle[1] + self.side]
            page.paste(Image.fromarray(np.ascontiguousarray(cut.transpose(1, 2, 0))), (left, 32))
            pen.text((left + 2, 2), f"{truth} {self.known.values[k]:.4g} um/px", fill="black")  # the font has no µ
            colour = "green" if names[best] == truth else "red"
            pen.text((left + 2, 16), f"{names[best]} {found[0, best]:.2f}", fill=colour)
        return np.asarray(page)

    def export(self, network: nn.Module, card: dict[str, Any], folder: Path) -> Path:
        assert isinstance(network, Embedder)
        learned = [self.known.values[place] for place in self.known.learned]
        own = {
            "classes": self.labelled.classes,
            "tile_size": self.side,
            "magnifications": learned,
            "mpp": learned[0] if len(learned) == 1 else None,
            "loss": self.loss_name,
        }
        return write_embedder(network, self.start.architecture, {**card, **own}, folder)


def _refuse_empty(labelled: Labelled, known: Magnifications, allowed: NDArray[np.bool_], side: int) -> None:
    """Every class must be shown somewhere: where it is learned from, and wherever it is scored.

    Raises:
        InputError: a class without a tile at a magnification.
    """
    for part, values in ((TRAIN, known.learned), (TEST, range(len(known.values)))):
        numbers, shown = labelled.numbers[labelled.parts[part]], allowed[labelled.parts[part]]
        for (number, name), place in product(enumerate(labelled.classes), values):
            if not shown[numbers == number, place].any():
                raise InputError(
                    f"The class {name} has no tile in the {part} part that can be shown at "
                    f"{known.values[place]:.4g} µm/px in {side} px or more a side, expected some of each class; leave "
                    "that µm/px or class out, lower crop.size, or add larger or finer tiles."
                )
    validated = allowed[labelled.parts[VALIDATION]][:, list(known.learned)]
    if len(validated) and not validated.any():
        raise InputError(
            f"No tile of the validation part can be shown at a µm/px that is learned from in {side} px or more a side; "
            "lower crop.size."
        )
