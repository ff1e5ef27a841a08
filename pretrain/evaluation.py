"""One encoder on one problem: features once, then every fold of every seed on them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histo.errors import InputError
from histo.metrics.classification import scores
from histo.probes import (
    PixelProbe,
    centred,
    effective_rank,
    fit_chosen,
    folds,
    knn,
    pyramid_of,
    spread,
    stain_sensitivity,
    uniformity,
)
from histo.probes.pixels import count, iou
from pretrain.candidates import Candidate
from pretrain.features import Features, features_of
from pretrain.problems import Problem
from pretrain.restaining import Restaining

STRIDE = 32  # pixels; a crop for the per-pixel head has a side of a multiple of it


@dataclass
class Result:
    """What an encoder reached.

    Attributes:
        values: every measured value of a figure, of each fold of each seed in turn, or one.
        left_out: figures that could not be had, with the reason.
        split: how the folds were made, as JSON can hold it.
        seconds: by stage.
    """

    encoder: str
    problem: str
    values: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """Mean, standard deviation (of a sample; None of a single value) and values of each figure."""
        return {
            name: {
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "values": values,
            }
            for name, values in self.values.items()
        }


def evaluate(
    candidate: Candidate,
    name: str,
    problem: Problem,
    restaining: Restaining,
    k: int,
    seeds: Sequence[int],
    neighbours: int,
    pixel_crop: int | None,
    cache: Path | None,
) -> Result:
    """Every figure that the problem allows.

    Args:
        name: of the encoder, for tables.
        k, seeds: folds, and the draws of them.
        neighbours: of kNN.
        pixel_crop: pixels a side, at most, of the centre of a tile that the per-pixel head sees; None leaves it out.
        cache: folder of features, see `features_of`.
    """
    result = Result(name, problem.name)
    start = time.perf_counter()
    images = problem.images(candidate.side)
    result.seconds["tiles"] = time.perf_counter() - start
    start = time.perf_counter()
    features = features_of(candidate, images, restaining, cache)
    result.seconds["features"] = time.perf_counter() - start
    plain, usable = features.plain, features.usable
    result.values |= {
        "uniformity": [uniformity(centred(plain, plain))],
        "spread_share": [spread(plain) * plain.shape[1] ** 0.5],
        "effective_rank": [effective_rank(centred(plain, plain))],
    }
    if int(usable.sum()) >= 2:
        sensitivity = stain_sensitivity(centred(features.stained[:, usable], plain))
        result.values |= {"stain_cosine": [sensitivity.cosine], "stain_ratio": [sensitivity.ratio]}
    else:
        result.left_out["stain_cosine"] = f"{int(usable.sum())} tiles have H&E stains"
    result.split["tiles_without_stains"] = int((~usable).sum())
    start = time.perf_counter()
    _classify(result, problem, features, k, seeds, neighbours)
    result.seconds["classification"] = time.perf_counter() - start
    start = time.perf_counter()
    _find_nuclei(result, candidate, problem, k, seeds, pixel_crop)
    result.seconds["nuclei"] = time.perf_counter() - start
    return result


def _classify(
    result: Result,
    problem: Problem,
    features: Features,
    k: int,
    seeds: Sequence[int],
    neighbours: int,
) -> None:
    """kNN and linear probe over all folds; the layer learned on the tiles as they are also reads restained ones."""
    if problem.labels is None or len(set(problem.labels)) < 2:
        result.left_out["knn_accuracy"] = "tiles have no labels" if problem.labels is None else "a single class"
        return
    plain, classes = features.plain, sorted(set(problem.labels))
    truth = torch.tensor([classes.index(label) for label in problem.labels])
    pairs = problem.near_duplicates()
    split: dict[str, Any] = {"folds": k, "seeds": list(seeds), "test_tiles": [], "penalties": []}
    split["disjoint_by"] = "patient" if None not in problem.patients else "tile, where the patient is unknown"
    crossing = []
    for seed in seeds:
        fold = folds(problem.patients, problem.labels, k, seed)
        if pairs is not None:
            parted = {place for pair in pairs if fold[pair[0]] != fold[pair[1]] for place in pair}
            crossing.append(len(parted) / len(fold))
        for number in range(k):
            test = torch.from_numpy(fold == number)
            split["test_tiles"].append(int(test.sum()))
            known, asked = (centred(plain[rows], plain[~test]) for rows in (~test, test))
            guesses = {"knn": knn(known, truth[~test], asked, len(classes), neighbours)}
            patients = [patient for patient, held in zip(problem.patients, test.tolist(), strict=True) if not held]
            layer = fit_chosen(plain[~test], truth[~test], len(classes), patients, seed)
            split["penalties"].append(layer.penalty)
            guesses["linear"] = layer(plain[test]).argmax(dim=1)
            found = {
                f"{kind}_{name}": value
                for kind, guess in guesses.items()
                for name, value in scores(guess, truth[test], len(classes)).items()
            }
            again = [scores(layer(each[test]).argmax(dim=1), truth[test], len(classes)) for each in features.stained]
            for name in ("accuracy", "balanced_accuracy"):
                found[f"restained_{name}"] = float(np.mean([each[name] for each in again]))
            for name, value in found.items():
                result.values.setdefault(name, []).append(value)
    if pairs is not None:
        split["near_duplicates"] = {"pairs": len(pairs), "share_of_tiles_parted_by_folds": float(np.mean(crossing))}
    result.split["classification"] = split


def _find_nuclei(
    result: Result,
    candidate: Candidate,
    problem: Problem,
    k: int,
    seeds: Sequence[int],
    pixel_crop: int | None,
) -> None:
    """IoU of nuclei of the per-pixel head on held-out patients, over all folds."""
    masked = problem.masked
    pyramid = pyramid_of(candidate.network)
    if pixel_crop is None or not masked or pyramid is None:
        result.left_out["nuclei_iou"] = (
            "not asked for"
            if pixel_crop is None
            else "no instance maps"
            if not masked
            else "the encoder has no maps of strides 4 to 32"
        )
        return
    patients = [problem.patients[place] for place in masked]
    try:
        parts = [folds(patients, ["tile"] * len(masked), k, seed) for seed in seeds]
    except InputError:
        result.left_out["nuclei_iou"] = f"{len(set(patients))} patients are too few for {k} folds"
        return
    crops = [_crop(problem, place, pixel_crop) for place in masked]
    probe = PixelProbe(pyramid, candidate.mean, candidate.std, candidate.device, seed=0)
    samples = [probe.sample(image, nuclei, index) for index, (image, nuclei) in enumerate(crops)]
    for fold in parts:
        for number in range(k):
            head = probe.fit([samples[index] for index in np.flatnonzero(fold != number)])
            held = [crops[index] for index in np.flatnonzero(fold == number)]
            value = iou([count(probe.find(image, head), nuclei) for image, nuclei in held])
            result.values.setdefault("nuclei_iou", []).append(value)
    result.split["nuclei"] = {
        "folds": k,
        "seeds": list(seeds),
        "tiles": len(masked),
        "patients": len(set(patients) - {None}),
        "crop": f"centre of at most {pixel_crop} px, at the tile's own µm/px",
    }


def _crop(problem: Problem, place: int, most: int) -> tuple[Tensor, NDArray[np.bool_]]:
    """The centre of a tile, uint8 [3, s, s], and where its nuclei are, bool [s, s]."""
    tile = problem.tiles[problem.positions[place]]
    assert tile.instances is not None
    height, width = tile.instances.shape
    side = min(height, width, most) // STRIDE * STRIDE
    if side == 0:
        raise InputError(f"tile {tile.key} of {tile.source} has {height} x {width} px, expected {STRIDE} or more.")
    top, left = (height - side) // 2, (width - side) // 2
    window = (slice(top, top + side), slice(left, left + side))
    return torch.from_numpy(tile.image[:, *window].copy()), tile.instances[window] > 0
