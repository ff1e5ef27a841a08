"""What a translation run hands on: generator, segmenter and encoder files with their cards."""

import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from histo.encoders import write_card
from translate.engine import Translator
from translate.recipe import Recipe


def export(translator: Translator, recipe: Recipe, mpp: float | None, facts: dict[str, str], folder: Path) -> None:
    """Write the averaged networks to `folder`: generator, segmenter (an instance file), encoder (an encoder file).

    Args:
        mpp: µm/px of the tissue, None where unknown.
        facts: where tissue and masks came from, as the run printed it.
    """
    segmenter = translator.segmenter_average
    made = {
        "trained_by": "nucleate translate/train.py",
        "images_seen": translator.images,
        "tissue": facts["tissue"],
        "masks": facts["masks"],
        "licences": "as the data's; nucleate does not know them",
        "revision": revision(),
        "seed": recipe.seed,
    }
    inputs = {"tile_size": recipe.data.tile_size, "mpp": mpp, "in_channels": 3}
    scaling = {"mean": [0.5] * 3, "std": [0.5] * 3}
    write_card(
        folder / "generator.safetensors",
        translator.generator_average.state_dict(),
        {"kind": "generator", "settings": asdict(recipe.generator), **inputs, **made},
    )
    write_card(
        folder / "segmenter.safetensors",
        segmenter.state_dict(),
        {"kind": "segmenter", "settings": asdict(recipe.segmenter), **inputs, **scaling, **made},
    )
    shape = segmenter.architecture
    card: dict[str, Any] = {
        "kind": "encoder",
        "library": shape.library,
        "architecture": shape.name,
        "arguments": shape.arguments,
        "keys": f"{shape.library}, without classifier",
    }
    write_card(
        folder / "encoder.safetensors", segmenter.encoder.encoder.state_dict(), {**card, **inputs, **scaling, **made}
    )


def revision() -> str | None:
    """The git revision nucleate runs from, None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
