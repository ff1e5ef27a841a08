"""Scores of predictions beside labels: of nuclei, of regions, of classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from downstream.cases import NUCLEI_LEGEND, REGIONS_LEGEND, class_picture, nuclei_picture, regions_picture
from downstream.predictions import TYPES
from downstream.tasks.classify import NAMED, patient_scores
from downstream.truths import Truth, read_predictions, read_types, refuse_gaps
from downstream.typed import TypedScores
from histo.bootstrap import mean_interval
from histo.errors import InputError
from histo.masks import read_instances
from histo.metrics import (
    RADIUS_MICRONS,
    DetectionCounts,
    PanopticCounts,
    aji_plus,
    detection_counts,
    mean_scores_by_empties,
    overlap,
    pannuke_scores,
    panoptic_counts,
    scores_of,
)
from histo.metrics.classification import classification_scores, recognition_rate
from histo.metrics.regions import class_numbers, dice_of, iou_of, mean_iou, pixel_table, present
from histo.tiles import TileSet
from histo.tiles.classes import grouped, read_groups, resolved
from histo.tiles.owners import owner_of


@dataclass
class Scored:
    """What predictions came to.

    Attributes:
        scores: by name, None where a score has nothing to rest on.
        intervals: 95 % bootstrap intervals of the scores that are means over tiles, by patient.
        cases: the scores of every tile; chosen: the one by which the worst and the best are shown.
        facts: what the scores rest on, for people; notes: what they must know besides.
        draw: a picture of a case, None where there is no tile to draw.
        legend: of the pictures.
        names, confusion: true (row) and found class (column), of classes.
    """

    scores: dict[str, float | None]
    cases: dict[str, dict[str, float]]
    chosen: str
    facts: dict[str, Any]
    draw: Callable[[str], NDArray[np.uint8] | None]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    legend: str = ""
    notes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)


def score_nuclei(truths: Sequence[Truth], files: dict[str, Path], types: Sequence[str] = ()) -> Scored:
    """AJI, AJI+, PQ and its factors, Dice, bPQ, and F1 of detection where µm/px are known; mPQ of typed nuclei.

    Args:
        types: names of the predicted types, from 1; PRED/types has that of every nucleus.

    Raises:
        InputError: a map that cannot be read, or of another size than its label's.
    """
    found, cases, counts, detections = [], {}, [], DetectionCounts.none(0)
    unknown, typed = sum(truth.mpp is None for truth in truths), TypedScores(list(types))
    for truth in truths:
        true, guess = _pair(truth, files[truth.name])
        table = overlap(true, guess)
        found.append(scores_of(table))
        counts.append(panoptic_counts(table))
        cases[truth.name] = {name: getattr(found[-1], name) for name in ("aji", "pq", "dq", "sq", "dice")}
        cases[truth.name]["aji_plus"] = aji_plus(table)
        if types and (tile := truth.tile() if truth.tile else None) is not None and tile.classes is not None:
            labels = files[truth.name].parents[truth.name.count("/")]
            own = read_types(labels.parent / TYPES / f"{truth.name}.csv", types, guess)
            typed.add(tile, table, tile.classes, guess, own)
        if not unknown:
            assert truth.mpp is not None
            detections += detection_counts(true, guess, RADIUS_MICRONS / truth.mpp)
    pooled = sum(counts, PanopticCounts.none(0))
    tissues = [truth.label or "unknown" for truth in truths]
    by_tissue = pannuke_scores(counts, tissues)
    means = {name: float(np.mean([case[name] for case in cases.values()])) for name in next(iter(cases.values()))}
    with_nuclei = mean_scores_by_empties(found)["tiles_with_nuclei"] or {}
    scores: dict[str, float | None] = {
        **means,
        **{f"{name}_tiles_with_nuclei": value for name, value in with_nuclei.items()},
        "pq_pooled": None if np.isnan(pooled.pq[0]) else float(pooled.pq[0]),
        "bpq": by_tissue["published"].bpq,
        "bpq_false_positives_counted": by_tissue["false_positives_counted"].bpq,
        "detection_f1": detections.f1 if not unknown else None,
    }
    scores |= {name: value for name, value in typed.scores().items() if name not in ("bpq", "detection_f1")}
    facts = {
        "true nuclei": sum(one.true_nuclei for one in found),
        "predicted nuclei": sum(one.predicted_nuclei for one in found),
        "tiles without true nuclei": sum(not one.true_nuclei for one in found),
        "bpq over": f"{len(set(tissues))} tissue(s): {', '.join(sorted(set(tissues)))[:200]}",
        "detection_f1 within": f"{RADIUS_MICRONS:g} µm",
    }
    notes = []
    if types and len(typed.panoptic) < len(truths):
        notes.append(f"Types are scored on {len(typed.panoptic)} of {len(truths)} tiles, whose labels have types.")
    if unknown:
        notes.append(f"detection_f1 is left out: {unknown} of {len(truths)} tiles have no known µm/px; give --mpp.")

    def draw(name: str) -> NDArray[np.uint8] | None:
        truth = next(one for one in truths if one.name == name)
        if truth.image is None:
            return None
        return nuclei_picture(truth.image(), *_pair(truth, files[name]))

    return Scored(scores, cases, "aji", facts, draw, _intervals(truths, cases), NUCLEI_LEGEND, notes)


def score_regions(truths: Sequence[Truth], files: dict[str, Path], classes: list[str], ignore: int | None) -> Scored:
    """Dice and IoU of each class over all pixels, and the mean Dice of tiles; see `ABSENT_CLASSES`.

    Raises:
        InputError: as `score_nuclei`, or a value beyond the classes.
    """

    def pair(truth: Truth) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        true, guess = _pair(truth, files[truth.name])
        return (
            class_numbers(true, classes, ignore, f"The label of {truth.name}"),
            class_numbers(guess, classes, None, f"The prediction {files[truth.name]}"),
        )

    total, cases = np.zeros((len(classes),) * 2, np.int64), {}
    for truth in truths:
        table = pixel_table(*pair(truth), len(classes))
        total += table
        cases[truth.name] = {"dice": float(dice_of(table)[1:].mean())}
    there = present(total)
    found = [one for one in zip(classes, dice_of(total), iou_of(total), there, strict=True) if one[-1]]
    scores: dict[str, float | None] = {
        "dice": float(np.mean([case["dice"] for case in cases.values()])),
        "iou": mean_iou(total),
        "accuracy": float(np.trace(total) / total.sum()) if total.sum() else None,
        **{f"dice_{name}": float(dice) for name, dice, _, _ in found},
        **{f"iou_{name}": float(iou) for name, _, iou, _ in found},
    }
    absent = ", ".join(name for name, some in zip(classes, there, strict=True) if not some)
    notes = [f"Neither labels nor predictions have {absent}; scores over all pixels leave it out."] if absent else []
    facts = {
        "classes": ", ".join(classes),
        "dice": f"mean over tiles of the mean over {', '.join(classes[1:])}",
        "iou": "of all pixels together, mean over the same classes; so are those of single classes",
        "ignored": "nothing" if ignore is None else f"pixels of value {ignore}",
        "pixels": int(total.sum()),
    }

    def draw(name: str) -> NDArray[np.uint8] | None:
        truth = next(one for one in truths if one.name == name)
        return None if truth.image is None else regions_picture(truth.image(), *pair(truth))

    return Scored(
        scores,
        cases,
        "dice",
        facts,
        draw,
        _intervals(truths, cases),
        REGIONS_LEGEND,
        notes,
        names=classes,
        confusion=total.tolist(),
    )


def score_classes(table: Path, tiles: TileSet, split: str | None, group: list[str], labels: str) -> Scored:
    """Every score of predicted classes, by image and by patient.

    Args:
        table: predictions.csv.
        group: labels joined to classes, as `--data.group` of the training.

    Raises:
        InputError: a damaged table, a tile without a row, a row without a tile, or a label outside the classes.
    """
    classes, rows = read_predictions(table)
    entries = tiles.entries
    chosen = list(range(len(entries))) if split is None else entries.facts("split").among(split).tolist()
    if not chosen:
        raise InputError(f"No tile of {labels} is of the split {split!r}: {tiles.describe()}; name one of these.")
    keys = [entries[k].key for k in chosen]
    others = {entry.key for entry in entries} - set(keys)
    refuse_gaps(str(table), labels, keys, list(rows), others)
    truth = [entries[k].label for k in chosen]
    if None in truth:
        raise InputError(
            f"The tile {keys[truth.index(None)]} of {labels} has no label; fill the column of its tiles.csv."
        )
    if group:
        groups = resolved(read_groups(group), {entry.label for entry in entries if entry.label is not None})
        truth = list(grouped([str(one) for one in truth], groups, labels))
    strange = sorted({str(one) for one in truth} - set(classes))
    if strange:
        raise InputError(
            f"{labels} has the label {strange[0]!r}, which is none of the predicted classes {', '.join(classes)}; join "
            "labels by --group, or leave these tiles out by --split."
        )
    numbers = torch.tensor([classes.index(str(one)) for one in truth])
    probabilities = torch.tensor([rows[key] for key in keys], dtype=torch.float64)
    owners = [entries[k].patient for k in chosen]
    patients = [f"tile {key}" if one is None else str(one) for key, one in zip(keys, owners, strict=True)]
    by_image = classification_scores(probabilities, numbers, classes)
    scores: dict[str, float | None] = {name: getattr(by_image, name) for name in NAMED}
    scores["patient_rate"] = recognition_rate(probabilities.argmax(1), numbers, patients)
    notes = [f"No tile is of the classes {', '.join(by_image.absent)}."] if by_image.absent else []
    known = len(owners) - owners.count(None)
    if not known:
        notes.append("No patient is known, so that scores by patient are those by image.")
    try:
        scores |= patient_scores(probabilities, numbers, classes, patients)
    except InputError as error:
        notes.append(f"Scores by patient are left out: {error}")
    cases = {
        key: {"accuracy": float(one.argmax() == number), "p_true": float(one[number])}
        for key, one, number in zip(keys, probabilities, numbers.tolist(), strict=True)
    }
    place = dict(zip(keys, chosen, strict=True))

    def draw(key: str) -> NDArray[np.uint8] | None:
        entry = entries[place[key]]
        return class_picture(entry.read_image(), str(truth[keys.index(key)]), classes, rows[key])

    facts = {
        "classes": ", ".join(classes),
        "patients": f"{len(set(patients))}, of {len(chosen) - known} tiles unknown and each counted as one of its own",
        "auroc": f"of {classes[1]}" if len(classes) == 2 else "mean over classes of each against the rest",
        "ece": "of the most probable class in 15 bins",
        "patient_rate": "recognition rate, the mean over patients of the share of their images that are right",
    }
    units = [owner_of(entries[k]) for k in chosen]
    truths = [
        Truth(key, None, patient=None if unit is None else str(unit)) for key, unit in zip(keys, units, strict=True)
    ]
    intervals = {k: v for k, v in _intervals(truths, cases).items() if k == "accuracy"}
    confusion = [list(row) for row in by_image.confusion]
    return Scored(scores, cases, "p_true", facts, draw, intervals, "", notes, classes, confusion)


def _pair(truth: Truth, file: Path) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    assert truth.mask is not None
    true = truth.mask()
    return true, read_instances(file, (true.shape[0], true.shape[1]))


def _intervals(truths: Sequence[Truth], cases: dict[str, dict[str, float]]) -> dict[str, tuple[float, float]]:
    names = list(next(iter(cases.values())))
    values = np.array([[cases[truth.name][name] for name in names] for truth in truths])
    low, high = mean_interval(values, [truth.patient or f"tile {truth.name}" for truth in truths])
    return {name: (float(low[k]), float(high[k])) for k, name in enumerate(names)}
