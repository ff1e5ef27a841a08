"""What a pretraining hands on: an encoder file with its cards."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from histo.encoders import card_beside, data_sources, write_encoder
from pretrain.learner import Learner

MADE_MASKS = ("tissue", "watershed", "layout")  # choices of data.masks that are no files of their own


def export(learner: Learner, records: list[dict[str, Any]], basis: str | None, folder: Path) -> Path:
    """Write the encoder to FOLDER/encoder.safetensors with its cards; returns that path.

    Args:
        records: of the run's log, whose last probe results the cards repeat.
        basis: what these rest on; None where there was no probe.
    """
    recipe, pool = learner.recipe, learner.pool
    probed = [record for record in records if any(name.startswith("probe/") for name in record)]
    results = probed[-1] if probed else {}
    data = _data(learner)
    card = {
        **learner.encoder.architecture.card,
        "in_channels": 3,
        "tile_size": recipe.data.view_size,
        "mpp": None if pool.mpp is None else round(pool.mpp * recipe.data.tile_size / recipe.data.view_size, 4),
        "mpp_of_views": learner.scales,
        "mean": list(learner.encoder.mean),
        "std": list(learner.encoder.std),
        "trained_by": "nucleate pretrain/train.py",
        "objectives": recipe.objectives,
        "data": data,
        "licences": "; ".join(dict.fromkeys(one["licence"] for one in data)),
        "tissue": pool.facts["tissue"],
        "images_seen": learner.images,
        "seed": recipe.seed,
        "parent": learner.parent,
        "probe": {name.partition("/")[2]: value for name, value in results.items() if name.startswith("probe/")},
        "probe_basis": None if basis is None else _without_folders(basis),
        "command": shlex.join(["python", *map(_without_folders, sys.argv)]),
    }
    for objective in learner.objectives.values():  # masks may be labels
        card |= {name: _without_folders(text) for name, text in objective.facts().items()}
    path = folder / "encoder.safetensors"
    write_encoder(path, learner.encoder.model, card)
    return path


def _data(learner: Learner) -> list[dict[str, Any]]:
    """All data whose terms the encoder bears: its tissue and masks, and those of its start and of its generator."""
    recipe = learner.recipe
    masks = recipe.data.masks
    named = [recipe.data.tissue] if isinstance(recipe.data.tissue, str) else list(recipe.data.tissue)
    named += [masks] if masks is not None and masks not in MADE_MASKS else []
    found = data_sources(named) + learner.inherited
    if recipe.translator is not None:
        card = card_beside(Path(recipe.translator) / "export" / "generator.safetensors") or {}
        found += card.get("data", [])
    return list({str(one.get("source")): one for one in reversed(found)}.values())[::-1]


def _without_folders(argument: str) -> str:
    """Absolute paths by their last name alone: a card is public, and where somebody keeps data is not."""
    return re.sub(r"(^|[\[\s,:=])/(?:[^\s,\]]*/)", r"\1", argument)
