"""Classes of bags: a frozen encoder's features of their tiles are made once, and a bag classifier reads them."""

import sys
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from downstream.attention import draw_bag, write_picture
from downstream.bag_networks import BagNetwork, write_bag_network
from downstream.bagging import Bags
from downstream.bags import BagClassifier, fit
from downstream.features import features_of
from downstream.labelled import TEST, TRAIN, VALIDATION
from downstream.localisation import localisation, marked_shares
from downstream.recipe import Recipe
from downstream.results import Result, write_result
from downstream.start import card_of, disagreements, open_start
from downstream.task import Evaluation
from downstream.tasks.classify import class_scores
from histo.encoders import Architecture
from histo.running.runs import RunFolder
from histo.running.settings import as_yaml
from histo.slides.streaming import SlideEntry
from histo.tiles import TileSet

PICTURES = "attention"
ATTENTION, EVIDENCE = "attention_auroc", "evidence_auroc"


def aggregate(recipe: Recipe, run: RunFolder, bags: Bags, seed: int, fold: int, accelerator: Accelerator) -> Result:
    """Fit and score one seed and fold; writes RUN/metrics.json, an export, and pictures of attention.

    Raises:
        InputError: an encoder that cannot be opened, tiles that cannot be read, or a folder that cannot be written.
    """
    run.refuse_other_settings(asdict(recipe), recipe.FIXED)
    run.create(as_yaml(recipe))
    start, labelled = open_start(recipe, seed), bags.labelled
    mean, std = (tuple(start.facts[key] or (0.5,) * 3) for key in ("mean", "std"))
    encoder = start.encoder.requires_grad_(False).eval().to(accelerator.device)
    bf16 = recipe.train.precision == "bf16"
    folder = Path(recipe.features) if recipe.features else run.path.parent / "features"
    kind, side, device = start.architecture, recipe.crop.size, accelerator.device
    found = bag_features(encoder, kind, bags, side, mean, std, device, folder, bf16)

    def part(name: str) -> tuple[list[Tensor], list[int]]:
        places = labelled.parts[name].tolist()
        return [found[k] for k in places], labelled.numbers[places].tolist()

    kept = part(VALIDATION) if len(labelled.parts[VALIDATION]) else None
    head = fit(*part(TRAIN), len(labelled.classes), recipe.mil, seed, kept)
    scored = evaluate(head, found, bags)
    network = BagNetwork(encoder.cpu(), head, mean, std, bf16)
    seen = recipe.mil.epochs * len(labelled.parts[TRAIN])
    card = {"images_seen": seen, "seed": seed, **card_of(recipe, bags.of_tiles(), start)}
    if bags.tiles[0].image.shape[1:] != (recipe.crop.size,) * 2:
        card["mpp"] = None  # of tiles that were resized it is another
    file = write_bag_network(network, start.architecture, labelled.classes, recipe.crop.size, card, run.export)
    _draw(recipe.mil.pictures, head, found, bags, run.path / PICTURES)
    warnings = disagreements(recipe, bags.of_tiles(), start)
    for sentence in warnings:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)
    result = Result.of(recipe, labelled, seen, scored, seed, fold, file, start, warnings=warnings)
    write_result(run.path, result)
    return result


def bag_features(
    encoder: nn.Module,
    architecture: Architecture,
    bags: Bags,
    side: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    folder: Path,
    bf16: bool,
) -> list[Tensor]:
    """Features of each bag's tiles, float32 [T, D]; a file for each slide, and one for all that is no slide.

    Raises:
        InputError: as `downstream.features.features_of`.
    """

    def features(tiles: TileSet) -> Tensor:
        return features_of(encoder, architecture, tiles, side, mean, std, device=device, folder=folder, bf16=bf16)

    of_slides = [isinstance(bags.tiles.entries[int(members[0])], SlideEntry) for members in bags.members]
    others = [k for k, of_slide in enumerate(of_slides) if not of_slide]
    found: list[Tensor] = [torch.empty(0)] * len(of_slides)
    for k, of_slide in enumerate(of_slides):
        if of_slide:
            found[k] = features(bags.of(k))
    if others:
        tiles = TileSet(bags.tiles.entries.take(np.concatenate([bags.members[k] for k in others])))
        for k, own in zip(others, features(tiles).split([len(bags.members[k]) for k in others]), strict=True):
            found[k] = own
    return found


@torch.no_grad()
def evaluate(head: BagClassifier, features: list[Tensor], bags: Bags) -> Evaluation:
    """Scores of the bags of the test part, and of each one.

    On slides with masks also, as means over slides, the area under the ROC curve of attention for the marked tiles
    (`attention_auroc`), and that of what each tile by itself says for the slide's class (`evidence_auroc`).

    Raises:
        InputError: a mask that cannot be read.
    """
    labelled = bags.labelled
    places, entries = labelled.parts[TEST].tolist(), labelled.part(TEST).entries
    answers = [head(features[k]) for k in places]
    probabilities = torch.stack([logits for logits, _ in answers]).softmax(1)
    scored = class_scores(probabilities, torch.from_numpy(labelled.numbers[places]), labelled.classes, entries)
    for k, entry, (_, weights) in zip(places, entries, answers, strict=True):
        shares = marked_shares(list(bags.of(k).entries))
        if shares is None:
            continue
        evidence = head.evidence(features[k])[:, labelled.numbers[k]]
        for name, values in ((ATTENTION, weights), (EVIDENCE, evidence)):
            area = localisation(values.double().numpy(), shares)
            if area is not None:
                scored.cases[f"{entry.source}/{entry.key}"][name] = area
    for name in (ATTENTION, EVIDENCE):
        areas = [case[name] for case in scored.cases.values() if name in case]
        if areas:
            scored.scores[name] = float(np.mean(areas))
    return scored


@torch.no_grad()
def _draw(count: int, head: BagClassifier, features: list[Tensor], bags: Bags, folder: Path) -> None:
    """Pictures of some test bags, of each class in turn."""
    labelled = bags.labelled
    places = labelled.parts[TEST]
    by_class = [places[labelled.numbers[places] == number].tolist() for number in range(len(labelled.classes))]
    turns = [k for k in chain.from_iterable(zip_longest(*by_class)) if k is not None]
    for turn, k in enumerate(turns[:count], 1):
        logits, weights = head(features[k])
        found, entry = logits.softmax(0), labelled.tiles.entries[k]
        best, truth = labelled.classes[int(found.argmax())], labelled.classes[labelled.numbers[k]]
        title = f"{entry.key}: {truth}, predicted {best} {float(found.max()):.2f}"
        picture = draw_bag(bags.of(k), weights.numpy(), title)
        write_picture(folder / f"{turn:02d}.png", picture)
