"""Published encoders whose files are known by their layout, with what their authors say of them."""

from typing import Any

from histo.encoders.weights import Weights

# Ciga, Xu and Martel, "Self supervised contrastive learning for digital histopathology" (arXiv 2011.13971): ResNet-18
# in `_ckpt_epoch_9.ckpt`, `tenpercent_resnet18.ckpt` and `pytorchnative_tenpercent_resnet18.ckpt` of
# github.com/ozanciga/self-supervised-histopathology. Key layout and side of tiles: its README; scaling: its issue 2.
CIGA: dict[str, Any] = {
    "architecture": "resnet18",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "tile_size": 224,
    "trained_by": "Ciga, Xu and Martel, arXiv 2011.13971",
    "objectives": ["SimCLR"],
    "weights_licence": "MIT, as github.com/ozanciga/self-supervised-histopathology states",
}
CIGA_DICTIONARY, CIGA_PREFIX = ("state_dict",), "model.resnet."
CIGA_HEAD = ("fc.1.weight", "fc.1.bias", "fc.3.weight", "fc.3.bias")


def known(weights: Weights) -> dict[str, Any]:
    """Entries of the card of a published encoder, with the name of its architecture; empty for any other."""
    tensors = weights.dictionaries.get(CIGA_DICTIONARY, {})
    return dict(CIGA) if all(CIGA_PREFIX + key in tensors for key in CIGA_HEAD) else {}
