"""Hugging Face hub folders as timm reads them: `config.json` and `model.safetensors`, with a model card `README.md`.

`timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)` loads one, and so does `hf-hub:` once it is on
the hub. Nothing here talks to the hub.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from histo.encoders.architectures import GROUP_NORM, Architecture
from histo.encoders.cards import markdown
from histo.encoders.files import CARD_BYTES, CHANNELS, libraries, write_tensors, write_text
from histo.errors import InputError, writing

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OLDER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.pth", "model.pth")


def write_hub(folder: Path, encoder: nn.Module, wanted: Architecture, card: Mapping[str, Any]) -> str:
    """Write a hub folder of a timm encoder with its weights.

    Args:
        card: as of its encoder file; mean, std and tile_size must be known, since timm takes ImageNet's otherwise.

    Returns:
        Lines of Python that load it.

    Raises:
        InputError: they are not known, or the folder cannot be written.
    """
    lacking = [name for name in ("mean", "std", "tile_size") if card.get(name) is None]
    if lacking:
        raise InputError(
            f"A hub folder needs {', '.join(lacking)}, which the card does not say, as timm would take ImageNet's; "
            f"give {', '.join(f'--{name}' for name in lacking)}."
        )
    own: Any = encoder.pretrained_cfg
    config = {
        "architecture": wanted.name.partition(".")[0],
        "num_classes": 0,
        "num_features": encoder.num_features,
        "model_args": wanted.arguments,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [CHANNELS, card["tile_size"], card["tile_size"]],
            "fixed_input_size": bool(own.get("fixed_input_size", False)),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": card["mean"],
            "std": card["std"],
            "num_classes": 0,
            **{name: own[name] for name in ("first_conv", "classifier") if name in own},
        },
        "nucleate": card,
    }
    load = f'import timm\nencoder = timm.create_model("local-dir:{folder.name}", pretrained=True, num_classes=0)'
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, encoder.state_dict())
    write_text(folder / "README.md", markdown({**card, "loading": load, "libraries": libraries()}, WEIGHTS))
    write_text(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return load


def read_hub(folder: Path) -> tuple[Path, Architecture, dict[str, Any]]:
    """The file of weights of a hub folder, its architecture, and entries of a card: mean, std, tile_size and others.

    Raises:
        InputError: no timm model of known layers, or damaged.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > CARD_BYTES:
            raise ValueError(f"it has more than {CARD_BYTES:,} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        inner = config.get("pretrained_cfg", config)  # older folders have all entries side by side
        name, arguments = config.get("architecture"), dict(config.get("model_args") or {})
        size = list(inner.get("input_size") or [])
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); download the folder again.") from error
    channels = arguments.pop("in_chans", CHANNELS)
    arguments.pop("num_classes", None)  # of a classifier, which is left out
    pooling = arguments.pop("global_pool", None)
    if not isinstance(name, str) or not timm.is_model(name) or arguments not in ({}, GROUP_NORM):
        raise InputError(
            f"{path} asks for {str(name)[:60]!r} with {str(arguments)[:60]}, expected a model of timm with no "
            "arguments but GroupNorm; convert its weights with --architecture."
        )
    if channels != CHANNELS:
        raise InputError(
            f"{path} is of an encoder for {str(channels)[:20]} channels, expected {CHANNELS}; name another."
        )
    if pooling not in (None, _pooling(name)):
        raise InputError(
            f"{path} pools features by {str(pooling)[:20]!r}, expected {_pooling(name)!r}, as {name} does by itself; "
            "convert its weights with --architecture."
        )
    weights = next((folder / file for file in (WEIGHTS, *OLDER_WEIGHTS) if (folder / file).is_file()), None)
    if weights is None:
        raise InputError(f"{folder} has a {CONFIG} but no {WEIGHTS}; download the folder again.")
    card = config.get("nucleate")
    facts: dict[str, Any] = dict(card) if isinstance(card, dict) else {"weights_licence": inner.get("license")}
    facts |= {name: _numbers(inner.get(name)) for name in ("mean", "std")}
    facts["tile_size"] = size[-1] if size and type(size[-1]) is int else None
    return weights, Architecture("timm", name, arguments), facts


def _pooling(name: str) -> str | None:
    """How a timm model pools features unless told otherwise."""
    with torch.device("meta"):
        pool: Any = getattr(timm.create_model(name, num_classes=0), "global_pool", None)
    return pool if isinstance(pool, str) else getattr(pool, "pool_type", None)


def _numbers(values: Any) -> list[float] | None:
    fits = isinstance(values, list) and len(values) == CHANNELS and all(type(one) in (int, float) for one in values)
    return values if fits else None
