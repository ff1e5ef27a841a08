"""The encoder that a task begins with, and what the card of what it becomes says of it."""

from typing import Any

from downstream.labelled import TRAIN, Labelled
from downstream.recipe import Recipe
from histo import encoders
from histo.revision import revision


def open_start(recipe: Recipe, seed: int) -> encoders.Start:
    """The encoder that `--encoder.source` names.

    Raises:
        InputError: as `histo.encoders.start`.
    """
    asked = recipe.encoder
    name = asked.architecture or ("resnet18" if asked.source == "none" else None)
    return encoders.start(asked.source, asked.norm or "own", name, seed=seed)


def card_of(recipe: Recipe, labelled: Labelled, start: encoders.Start) -> dict[str, Any]:
    """What the card of an export says beyond the network: data, labels, and what it began from."""
    named = recipe.data.tiles
    data = encoders.data_sources([named] if isinstance(named, str) else named or [])
    scales = labelled.tiles.entries.facts("mpp").counts()
    return {
        "trained_by": "nucleate downstream/train.py",
        "task": recipe.task,
        "mpp": next(iter(scales)) if len(scales) == 1 else None,
        "tile_pixels": list(labelled.part(TRAIN)[0].image.shape[1:]),
        "in_channels": 3,
        "parent": start.facts["parent"],
        "data": [*start.facts["data"], *data],
        "labels": labelled.facts["labels used"],
        "split": labelled.facts["divided"],
        "revision": revision(),
    }
