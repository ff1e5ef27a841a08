"""Encoder files: safetensors beside a JSON card and, for people, a model card in Markdown.

An *encoder file* is `NAME.safetensors` (the keys of the library the encoder comes from, without classifier) beside
`NAME.json`, its card: architecture, constructor arguments, key layout, input scaling, µm/px, and how it was trained.
`NAME.md` says the same to people.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from histo.encoders.architectures import GROUP_NORM, Architecture, build
from histo.encoders.cards import markdown
from histo.encoders.weights import fill
from histo.errors import InputError, writing
from histo.files import written_whole
from histo.revision import revision

CARD_FORMAT = 1
CHANNELS = 3  # of the images of this package, RGB
CARD_BYTES = 1_000_000  # a card has about 1 kB


def write_card(path: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write `path` (safetensors) and its card beside it (.json); each file appears whole or not at all.

    Raises:
        InputError: they cannot be written (disk full, read-only, folder gone).
    """
    card = {"format": CARD_FORMAT, **card, "libraries": libraries()}
    write_tensors(path, tensors)
    write_text(path.with_suffix(".json"), json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def write_encoder(path: Path, encoder: nn.Module | Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write an encoder file: weights, JSON card and model card (`NAME.md`).

    Args:
        path: ends in .safetensors.
        encoder: as `build` makes it, or its state dict.
        card: `Architecture.card` and what is known beyond it. Of the input: in_channels, tile_size in pixels, mpp in
            µm/px, mean and std of each channel on a scale of 0 to 1. Of the training: trained_by, objectives, data (as
            `data_sources` gives it), licences, images_seen, seed, parent (what it was started from), command, and probe
            (figure → value). What is unknown is None or left out, and the model card says so.

    Raises:
        InputError: they cannot be written.
    """
    tensors = encoder.state_dict() if isinstance(encoder, nn.Module) else dict(encoder)
    card = {"revision": revision(), **card}
    write_card(path, tensors, card)
    write_text(path.with_suffix(".md"), markdown({**card, "libraries": libraries()}, path.name))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path), written_whole(path) as file:
        file.write(save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}))


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path), written_whole(path) as file:
        file.write(text.encode("utf-8"))


def libraries() -> dict[str, str]:
    """Versions of the libraries that encoders are made with."""
    return {name: version(name) for name in ("torch", "timm")}


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors: of name, dtype, shape and bytes of each, in the order of the names.

    It is the same for the same weights, whatever file or library they come from, and however that file packs them.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_card(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_card` wrote; nothing is ever unpickled.

    Raises:
        InputError: no such file, no card beside it, a damaged file, or a card of another kind than asked for.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no encoder or instance file: expected a name ending in .safetensors.")
    if not path.is_file() or not path.with_suffix(".json").is_file():
        raise InputError(f"{path} needs both the .safetensors and the .json card beside it; one of them is missing.")
    card = _read_json(path)
    try:
        tensors = load_file(path)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise InputError(f"{path} or its card is damaged ({error}); export it again.") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise InputError(f"The card of {path} is not of format {CARD_FORMAT}; export it with this version of nucleate.")
    if card.get("kind") != kind:
        raise InputError(f"{path} holds {card.get('kind')!r}, expected {kind!r}: name the other file of the export.")
    return tensors, card


def card_beside(path: Path) -> dict[str, Any] | None:
    """The card of a file of ours; None beside weights of other programs, which have none.

    Raises:
        InputError: a damaged card.
    """
    file = path.with_suffix(".json")
    if path.suffix != ".safetensors" or not file.is_file():
        return None
    card = _read_json(path)
    return card if isinstance(card, dict) and "kind" in card else None


def _read_json(path: Path) -> Any:
    """What stands in the .json beside a file of weights."""
    file = path.with_suffix(".json")
    try:
        if file.stat().st_size > CARD_BYTES:
            raise ValueError(f"the card has more than {CARD_BYTES:,} bytes")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} or its card is damaged ({error}); export it again.") from error


def load(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """An encoder file as a timm (or smp) model without classifier, with its weights, and its card.

    The model maps float [N, 3, H, W], scaled by the card's mean and std, to pooled features (timm), or to its feature
    list (smp).

    Raises:
        InputError: no encoder file, a card that asks for anything but a known architecture, or weights that do not fit.
    """
    path = Path(path)
    tensors, card = read_card(path, "encoder")
    try:
        model = build(architecture_of(card))
    except InputError as error:
        raise InputError(f"The card of {path} cannot be followed: {error}") from error
    if card.get("in_channels", CHANNELS) != CHANNELS:
        raise InputError(
            f"{path} is an encoder for {str(card['in_channels'])[:20]} channels, expected {CHANNELS}; name an encoder "
            "of RGB tiles."
        )
    fill(model, tensors, path, card["architecture"], "was the card edited? Export it again.")
    return model, card


def architecture_of(card: dict[str, Any]) -> Architecture:
    """The card's architecture, refused unless it only names a known model: a card is data and may not steer timm."""
    library, name, arguments = (card.get(key) for key in ("library", "architecture", "arguments"))
    if library not in ("timm", "smp") or not isinstance(name, str) or arguments not in ({}, GROUP_NORM):
        raise InputError(
            f"it asks for {library!r} {name!r} with {arguments!r}, expected a timm or smp model with no arguments but "
            "GroupNorm; export the encoder again."
        )
    return Architecture(library, name, arguments)
