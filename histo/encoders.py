"""Encoders and their files: built by name from timm or smp, written as safetensors with a JSON card, loaded anywhere.

An *encoder file* is `NAME.safetensors` (the keys of the library the encoder comes from, without classifier) beside
`NAME.json`, its card: architecture, constructor arguments, key layout, input scaling, µm/px, and how it was trained.
"""

import difflib
import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from histo.errors import InputError, writing
from histo.files import written_whole

STRIDES = [4, 8, 16, 32]
CARD_FORMAT = 1
CARD_BYTES = 1_000_000  # a card has about 1 kB
GROUP_NORM = {"norm_layer": "groupnorm"}


@dataclass(frozen=True)
class Architecture:
    """What rebuilds an encoder: the library, the name it has there, and constructor arguments beyond the name."""

    library: str
    name: str
    arguments: dict[str, Any]


def architecture(name: str, norm: str) -> Architecture:
    """Read an encoder's name as users write it.

    Args:
        name: a timm model ("resnet50_gn", "timm:resnet18"), or "smp:" and the name of an smp encoder.
        norm: "group" asks timm for GroupNorm in every layer; "own" keeps what the model comes with.

    Raises:
        InputError: another library, or GroupNorm asked of smp, whose encoders cannot be built with it.
    """
    library, _, bare = name.rpartition(":")
    library = library or "timm"
    if library not in ("timm", "smp"):
        raise InputError(f"Encoder {name!r} names the library {library!r}; expected timm:NAME or smp:NAME.")
    if library == "smp" and norm == "group":
        raise InputError(f"{name!r} comes with its own normalisation layers: add --segmenter.norm own.")
    comes_with_it = re.search(r"(^|_)gn(_|\.|$)", bare)
    arguments = GROUP_NORM if norm == "group" and not comes_with_it else {}
    return Architecture(library, bare, arguments)


class TimmPyramid(nn.Module):
    """A timm model without classifier, read at strides 4 to 32; `encoder` keeps timm's own keys."""

    def __init__(self, encoder: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.encoder, self.indices = encoder, indices

    def forward(self, x: Tensor) -> list[Tensor]:
        """float [N, 3, H, W] → four maps of strides 4, 8, 16 and 32, each float [N, C, H/stride, W/stride]."""
        return self.encoder.forward_intermediates(x, indices=self.indices, intermediates_only=True)  # type: ignore[operator]


class SmpPyramid(nn.Module):
    """An smp encoder reduced to its features of strides 4 to 32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> list[Tensor]:
        """As `TimmPyramid`'s."""
        return list(self.encoder(x))[2:]


def build_pyramid(wanted: Architecture) -> tuple[TimmPyramid | SmpPyramid, list[int]]:
    """An untrained encoder that maps float [N, 3, H, W] to four feature maps of strides 4, 8, 16, 32, and their widths.

    Raises:
        InputError: unknown name (with near ones), arguments it does not take, or other strides than 4 to 32.
    """
    encoder = build(wanted)
    if wanted.library == "smp":
        return SmpPyramid(encoder), list(encoder.out_channels)[2:]  # type: ignore[arg-type]
    levels = list(getattr(encoder, "feature_info", []))
    strides = [level["reduction"] for level in levels]
    if not hasattr(encoder, "forward_intermediates") or any(strides.count(stride) != 1 for stride in STRIDES):
        raise InputError(
            f"{wanted.name!r} has features of strides {sorted(set(strides))}, expected one each of 4, 8, 16 and 32; "
            "choose a convolutional pyramid such as resnet50_gn, convnext_tiny or regnety_032."
        )
    indices = [strides.index(stride) for stride in STRIDES]
    return TimmPyramid(encoder, indices), [levels[index]["num_chs"] for index in indices]


def build(wanted: Architecture) -> nn.Module:
    """The untrained encoder itself, without classifier, as its library makes it.

    Raises:
        InputError: unknown name (with near ones), or normalisation it cannot be built with.
    """
    if wanted.library == "smp":
        import segmentation_models_pytorch as smp  # imported here: it takes seconds and few runs need it

        try:
            return smp.encoders.get_encoder(wanted.name, weights=None)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"smp has no encoder named {wanted.name!r}; segmentation_models_pytorch.encoders lists them."
            ) from error
    if not timm.is_model(wanted.name):
        near = difflib.get_close_matches(wanted.name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names."
        raise InputError(f"timm has no model named {wanted.name!r}; {hint}")
    try:
        return timm.create_model(wanted.name, pretrained=False, num_classes=0, **wanted.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{wanted.name!r} cannot be built with {wanted.arguments or 'its own layers'} ({error}): "
            "use --segmenter.norm own, or another encoder."
        ) from error


def write_card(path: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write `path` (safetensors) and its card beside it (.json); each file appears whole or not at all.

    Raises:
        InputError: they cannot be written (disk full, read-only, folder gone).
    """
    card = {"format": CARD_FORMAT, **card, "libraries": {name: version(name) for name in ("torch", "timm")}}
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    weights = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    for name, content in ((path, weights), (path.with_suffix(".json"), text.encode("utf-8"))):
        with writing(name), written_whole(name) as file:
            file.write(content)


def read_card(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_card` wrote; nothing is ever unpickled.

    Raises:
        InputError: no such file, no card beside it, a damaged file, or a card of another kind than asked for.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no encoder or instance file: expected a name ending in .safetensors.")
    if not path.is_file() or not path.with_suffix(".json").is_file():
        raise InputError(f"{path} needs both the .safetensors and the .json card beside it; one of them is missing.")
    try:
        if path.with_suffix(".json").stat().st_size > CARD_BYTES:
            raise ValueError(f"the card has more than {CARD_BYTES:,} bytes")
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(path)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise InputError(f"{path} or its card is damaged ({error}); export it again.") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise InputError(f"The card of {path} is not of format {CARD_FORMAT}; export it with this version of nucleate.")
    if card.get("kind") != kind:
        raise InputError(f"{path} holds {card.get('kind')!r}, expected {kind!r}: name the other file of the export.")
    return tensors, card


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
        model = build(_architecture_of(card))
    except InputError as error:
        raise InputError(f"The card of {path} cannot be followed: {error}") from error
    expected = model.state_dict().keys()
    missing, unexpected = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or unexpected:
        raise InputError(
            f"{path} does not fit {card['architecture']}: {len(missing)} keys missing (first {missing[:1]}), "
            f"{len(unexpected)} unexpected (first {unexpected[:1]}); was the card edited?"
        )
    try:
        # smp's encoders override load_state_dict; the module's own does the same for all.
        nn.Module.load_state_dict(model, tensors)
    except RuntimeError as error:
        raise InputError(f"{path} has weights of other shapes than {card['architecture']}; export it again.") from error
    return model, card


def _architecture_of(card: dict[str, Any]) -> Architecture:
    """The card's architecture, refused unless it only names a known model: a card is data and may not steer timm."""
    library, name, arguments = (card.get(key) for key in ("library", "architecture", "arguments"))
    if library not in ("timm", "smp") or not isinstance(name, str) or arguments not in ({}, GROUP_NORM):
        raise InputError(
            f"it asks for {library!r} {name!r} with {arguments!r}, expected a timm or smp model with no arguments but "
            "GroupNorm; export the encoder again."
        )
    return Architecture(library, name, arguments)
