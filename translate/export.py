"""What a translation run hands on: generator, segmenter and encoder files with their cards."""

import subprocess
from pathlib import Path
from typing import Any

from histo.encoders import write_card
from histo.segmenters import Segmenter
from translate.engine import Translator


def export(
    translator: Translator, mpp: float | None, facts: dict[str, str], folder: Path, scores: dict[str, Any] | None = None
) -> None:
    """Write the averaged networks to `folder`: generators, a segmenter (an instance file) and its encoder (an encoder
    file), as far as the method has them.

    Args:
        mpp: µm/px of the tissue, None where unknown.
        facts: where the two domains came from, as the run printed it.
        scores: of these networks, as their checkpoint has them.
    """
    recipe = translator.recipe
    inputs: dict[str, Any] = {"tile_size": recipe.data.tile_size, "mpp": mpp, "in_channels": 3}
    if not recipe.data.between_tissues:
        inputs["mask_form"] = recipe.data.mask_form
    made: dict[str, Any] = {
        "trained_by": "nucleate translate/train.py",
        "method": recipe.method,
        "images_seen": translator.images,
        **{name: facts[name] for name in facts.keys() & {"tissue", "masks", "source", "target"}},
        "licences": "as the data's; nucleate does not know them",
        "revision": revision(),
        "seed": recipe.seed,
    }
    if scores is not None:
        made["scores"] = scores
    scaling = {"mean": [0.5] * 3, "std": [0.5] * 3}
    for one in translator.exports():
        card: dict[str, Any] = {"kind": one.kind, "settings": one.settings, **inputs, **made}
        if one.kind == "segmenter":
            card |= scaling
        write_card(folder / f"{one.name}.safetensors", one.network.state_dict(), card)
        if isinstance(one.network, Segmenter):
            shape = one.network.architecture
            card = {
                "kind": "encoder",
                "library": shape.library,
                "architecture": shape.name,
                "arguments": shape.arguments,
                "keys": f"{shape.library}, without classifier",
            }
            encoder = one.network.encoder.encoder
            write_card(folder / "encoder.safetensors", encoder.state_dict(), {**card, **inputs, **scaling, **made})


def revision() -> str | None:
    """The git revision nucleate runs from, None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
