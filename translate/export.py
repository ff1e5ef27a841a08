"""What a translation run hands on: generator, segmenter and encoder files with their cards."""

from pathlib import Path
from typing import Any

from histo.encoders import data_sources, write_card, write_encoder
from histo.revision import revision
from histo.segmenters import Segmenter
from translate.engine import Translator

MADE_MASKS = ("watershed", "cellpose", "layout", "phantom")  # choices of data.masks that are no files of their own


def export(
    translator: Translator, mpp: float | None, facts: dict[str, str], folder: Path, scores: dict[str, Any] | None = None
) -> None:
    """Write the averaged networks to `folder`: generators, a segmenter (an instance file) and its encoder (an encoder
    file with a model card), as far as the method has them.

    Args:
        mpp: µm/px of the tissue, None where unknown.
        facts: where the two domains came from, as the run printed it.
        scores: of these networks, as their checkpoint has them.
    """
    recipe = translator.recipe
    inputs: dict[str, Any] = {"tile_size": recipe.data.tile_size, "mpp": mpp, "in_channels": 3}
    if not recipe.data.between_tissues:
        inputs["mask_form"] = recipe.data.mask_form
    sources = [recipe.data.tissue, recipe.data.target, recipe.data.masks]
    named = [[one] if isinstance(one, str) else one or [] for one in sources]
    if recipe.data.between_tissues or recipe.data.masks in MADE_MASKS:
        named.pop()
    data = data_sources([name for one in named for name in one])
    made: dict[str, Any] = {
        "trained_by": "nucleate translate/train.py",
        "method": recipe.method,
        "images_seen": translator.images,
        **{name: facts[name] for name in facts.keys() & {"tissue", "masks", "source", "target"}},
        "data": data,
        "licences": "; ".join(dict.fromkeys(one["licence"] for one in data)),
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
            card = {**one.network.architecture.card, **inputs, **scaling, **made}
            write_encoder(folder / "encoder.safetensors", one.network.encoder.encoder, card)
