"""What a pretraining hands on: an encoder file with its card."""

import shlex
import sys
from pathlib import Path
from typing import Any

from histo.encoders import write_card
from pretrain.learner import Learner


def export(learner: Learner, records: list[dict[str, Any]], folder: Path) -> Path:
    """Write the encoder to FOLDER/encoder.safetensors; returns that path.

    Args:
        records: of the run's log, whose last probe results the card repeats.
    """
    recipe, shape = learner.recipe, learner.encoder.architecture
    probed = [record for record in records if any(name.startswith("probe/") for name in record)]
    results = {name: value for name, value in probed[-1].items() if name.startswith("probe/")} if probed else {}
    card: dict[str, Any] = {
        "kind": "encoder",
        "library": shape.library,
        "architecture": shape.name,
        "arguments": shape.arguments,
        "keys": f"{shape.library}, without classifier",
        "in_channels": 3,
        "tile_size": recipe.data.view_size,
        "mpp": learner.pool.mpp,
        "mean": list(learner.encoder.mean),
        "std": list(learner.encoder.std),
        "trained_by": "nucleate pretrain/train.py",
        "objective": recipe.objectives,
        "images_seen": learner.images,
        "parent": learner.origin,
        "tissue": learner.pool.facts["tissue"],
        "sources": learner.pool.names,
        "probe": results,
        "seed": recipe.seed,
        "command": shlex.join(["python", *sys.argv]),
    }
    path = folder / "encoder.safetensors"
    write_card(path, learner.encoder.model.state_dict(), card)
    return path
