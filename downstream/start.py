"""The encoder that a task begins with, and what the card of what it becomes says of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.labelled import Labelled
from downstream.recipe import Recipe
from downstream.tasks import ON_FEATURES
from histo import encoders
from histo.probes import feature_width
from histo.revision import revision
from histo.segmenters import MPP_TOLERANCE

MEASURED = 16  # tiles whose levels are looked at
FARTHEST, WIDEST = 3.0, 12.0  # of a scaled tile's mean from 0, in deviations; of its deviation from 1, as a factor


def open_start(recipe: Recipe, seed: int) -> encoders.Start:
    """The encoder that `--encoder.source` names.

    Raises:
        InputError: as `histo.encoders.start`, or of a frozen encoder as `histo.probes.feature_width`.
    """
    asked = recipe.encoder
    name = asked.architecture or ("resnet18" if asked.source == "none" else None)
    start = encoders.start(asked.source, asked.norm or "own", name, seed=seed)
    if recipe.task in ON_FEATURES:  # refused before the tiles are read
        feature_width(start.encoder, start.architecture, recipe.crop.size, "crop.size")
    return start


def disagreements(recipe: Recipe, labelled: Labelled, start: encoders.Start) -> list[str]:
    """Where an encoder's µm/px, mean and std do not fit the tiles to learn from, one sentence with the numbers each.

    An encoder's mean and std need not be the tiles' own; they only must bring levels to the range that it knows. So
    they disagree where scaled tiles have a mean far from 0 or a deviation far from 1.
    """
    if start.facts["mean"] is None and start.facts["std"] is None and recipe.encoder.source == "none":
        return []  # random weights know no range and no scale
    some = [
        tiles.image(int(k))
        for tiles, _ in labelled.learned()
        for k in np.linspace(0, len(tiles) - 1, MEASURED).astype(int)
    ]
    return _scaling(recipe, start, some) + _magnification(recipe, labelled, start, some[0].shape[1])


def _scaling(recipe: Recipe, start: encoders.Start, images: list[NDArray[np.uint8]]) -> list[str]:
    lacking = [name for name in ("mean", "std") if start.facts[name] is None]
    if lacking:
        return [
            f"{recipe.encoder.source} does not say the {' and '.join(lacking)} of its input, so 0.5 is used; give what "
            "its authors state by `nucleate encoder convert`."
        ]
    levels = np.concatenate([image.reshape(3, -1) for image in images], 1) / 255
    own = levels.mean(1), levels.std(1)
    mean, std = (np.array(start.facts[name]) for name in ("mean", "std"))
    shift, spread = (own[0] - mean) / std, own[1] / std
    if (np.abs(shift) <= FARTHEST).all() and (spread >= 1 / WIDEST).all() and (spread <= WIDEST).all():
        return []
    return [
        f"Scaled by mean {_three(mean)} and std {_three(std)} of {recipe.encoder.source}, the tiles (mean "
        f"{_three(own[0])}, std {_three(own[1])}) have a mean of {_three(shift)} and a deviation of {_three(spread)}, "
        "expected about 0 and 1; check whether its card means levels of 0 to 1."
    ]


def _magnification(recipe: Recipe, labelled: Labelled, start: encoders.Start, height: int) -> list[str]:
    learned = start.facts["mpp"]
    known = [mpp for mpp in _scales(labelled) if mpp is not None]
    if recipe.crop.mpp is not None:
        known = [recipe.crop.mpp]
    elif recipe.task == "smse" and recipe.smse.mpp:
        known = recipe.smse.mpp
    if learned is None or not known:
        return []
    whole = recipe.task in ON_FEATURES or (recipe.task == "classify" and recipe.classify.whole)
    factor = height / recipe.crop.size if whole else 1.0
    low, high = min(known) * factor, max(known) * factor
    if learned * (1 - MPP_TOLERANCE) <= low and high <= learned * (1 + MPP_TOLERANCE):
        return []
    shown = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    resized = f" (resized from {height} to {recipe.crop.size} px)" if factor != 1 else ""
    return [
        f"{recipe.encoder.source} learned at {learned:g} µm/px, but sees these tiles at {shown} µm/px{resized}; "
        "features of other magnifications may not carry over."
    ]


def _scales(labelled: Labelled) -> set[float | None]:
    """µm/px of the tiles that are learned from, None where unknown."""
    return {mpp for tiles, _ in labelled.learned() for mpp in tiles.entries.facts("mpp").counts()}


def _three(values: NDArray[np.floating]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def card_of(recipe: Recipe, labelled: Labelled, start: encoders.Start) -> dict[str, Any]:
    """What the card of an export says beyond the network: data, labels, and what it began from."""
    data = [
        source
        for named in (recipe.data.tiles, recipe.data.extra)
        for source in encoders.data_sources([named] if isinstance(named, str) else named or [])
    ]
    scales = _scales(labelled)
    return {
        "trained_by": "nucleate downstream/train.py",
        "task": recipe.task,
        "mpp": recipe.crop.mpp or (scales.pop() if len(scales) == 1 else None),
        "tile_pixels": list(labelled.learned()[0][0][0].image.shape[1:]),
        "in_channels": 3,
        "precision": recipe.train.precision,
        "parent": start.facts["parent"],
        "data": [*start.facts["data"], *data],
        "labels": labelled.facts["labels used"],
        "split": labelled.facts["divided"],
        **({"warning": labelled.facts["warning"]} if "warning" in labelled.facts else {}),
        "revision": revision(),
    }
