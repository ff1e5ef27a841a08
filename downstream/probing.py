"""Classes by a frozen encoder: its features are made once, and a linear layer or nearest neighbours read them."""

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from downstream.cases import class_picture, save_pictures
from downstream.features import features_of
from downstream.labelled import TEST, TRAIN, VALIDATION, Labelled
from downstream.linear import fit
from downstream.losses import class_weights
from downstream.recipe import Recipe
from downstream.results import Result, write_result
from downstream.start import card_of, disagreements, open_start
from downstream.tasks.classify import Classifier, class_scores, write_classifier
from histo.probes import knn
from histo.probes.embedding import fitted as as_square
from histo.running.runs import RunFolder
from histo.running.settings import as_yaml
from histo.running.tracking import Tracker
from histo.tiles import Tile


def probe(recipe: Recipe, run: RunFolder, labelled: Labelled, seed: int, fold: int, accelerator: Accelerator) -> Result:
    """Fit and score one seed and fold; writes RUN/metrics.json, and of task linear an export.

    Raises:
        InputError: an encoder that cannot be opened, tiles that cannot be read, or a folder that cannot be written.
    """
    run.refuse_other_settings(asdict(recipe), recipe.FIXED)
    run.create(as_yaml(recipe))
    start = open_start(recipe, seed)
    device = accelerator.device
    mean, std = (tuple(start.facts[key] or (0.5,) * 3) for key in ("mean", "std"))
    encoder = start.encoder.requires_grad_(False).eval().to(device)
    folder = Path(recipe.features) if recipe.features else run.path.parent / "features"
    bf16 = recipe.train.precision == "bf16"
    kind, size = start.architecture, recipe.crop.size
    found = features_of(encoder, kind, labelled.tiles, size, mean, std, device=device, folder=folder, bf16=bf16)
    numbers = torch.from_numpy(labelled.numbers)
    parts = {name: torch.from_numpy(places) for name, places in labelled.parts.items()}
    classes = len(labelled.classes)
    train, test = found[parts[TRAIN]], found[parts[TEST]]
    seen, file = 0, Path()
    course: list[tuple[int, float]] = []
    if recipe.task == "knn":
        voted = knn(train, numbers[parts[TRAIN]], test, classes, recipe.knn.k)
        probabilities = F.one_hot(voted, classes).float()
    else:
        kept = (found[parts[VALIDATION]], numbers[parts[VALIDATION]]) if len(parts[VALIDATION]) else None
        wanted, own = recipe.classify, numbers[parts[TRAIN]]
        weights = class_weights(own.bincount(minlength=classes) / len(own), wanted.weights)
        fitted = fit(train, own, classes, recipe.linear, seed, kept, wanted.loss, weights, wanted.gamma)
        probabilities = fitted.layer(test).softmax(1)
        batch = min(recipe.linear.batch_size, len(train))
        seen, course = fitted.steps * batch, [(step * batch, accuracy) for step, accuracy in fitted.course]
        network = Classifier(encoder.cpu(), found.shape[1], classes, mean, std)
        network.head = nn.Linear(found.shape[1], classes)
        network.head.load_state_dict(fitted.layer.state_dict())
        card = {"images_seen": seen, "seed": seed, **card_of(recipe, labelled, start)}
        file = write_classifier(network, start.architecture, labelled.classes, recipe.crop.size, card, run.export)
    scored = class_scores(probabilities, numbers[parts[TEST]], labelled.classes, labelled.part(TEST).entries)
    if recipe.task == "knn":  # votes of one class are no probabilities
        for name in ("auroc", "ece"):
            scored.scores.pop(name, None)
            scored.scores.pop(f"{name}_by_patient", None)
    tracker = Tracker(run.path, 0, enabled=True)
    for images, accuracy in course:
        tracker.scalars(images, {"validation/accuracy": accuracy})
    tracker.scalars(seen, {f"test/{name}": value for name, value in scored.scores.items()})
    tracker.close()
    warnings = disagreements(recipe, labelled, start)
    for sentence in warnings:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)
    tiles, classes_of = labelled.part(TEST), labelled.classes
    said = {
        (entry.source, entry.key): (classes_of[int(number)], found.tolist())
        for entry, number, found in zip(tiles.entries, numbers[parts[TEST]], probabilities, strict=True)
    }

    def draw(tile: Tile) -> NDArray[np.uint8]:
        truth, found = said[tile.source, tile.key]
        return class_picture(as_square(tile, recipe.crop.size), truth, classes_of, found)

    pictures = save_pictures(run.path, tiles, scored.cases, "accuracy", draw, {})
    result = Result.of(recipe, labelled, seen, scored, seed, fold, file, start, pictures, warnings)
    write_result(run.path, result)
    return result
