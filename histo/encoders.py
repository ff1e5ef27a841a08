"""Encoders and their files: built by name from timm or smp, written as safetensors with a JSON card, loaded anywhere.

An *encoder file* is `NAME.safetensors` (the keys of the library the encoder comes from, without classifier) beside
`NAME.json`, its card: architecture, constructor arguments, key layout, input scaling, µm/px, and how it was trained.
"""

import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import FeatureInfo
from torch import Tensor, nn

from histo.errors import InputError

STRIDES = [4, 8, 16, 32]
CARD_FORMAT = 1


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
    """
    library, _, bare = name.rpartition(":")
    library = library or "timm"
    if library not in ("timm", "smp"):
        raise InputError(f"Encoder {name!r} names the library {library!r}; expected timm:NAME or smp:NAME.")
    arguments = {"norm_layer": "groupnorm"} if norm == "group" and library == "timm" and "gn" not in bare else {}
    return Architecture(library, bare, arguments)


class SmpPyramid(nn.Module):
    """An smp encoder reduced to its features of strides 4 to 32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.encoder(x))[2:]


def build_pyramid(wanted: Architecture) -> tuple[nn.Module, list[int]]:
    """An untrained encoder that maps float [N, 3, H, W] to four feature maps of strides 4, 8, 16, 32, and their widths.

    Raises:
        InputError: unknown name (with near ones), arguments it does not take, or other strides than 4 to 32.
    """
    if wanted.library == "smp":
        import segmentation_models_pytorch as smp  # imported here: it takes seconds and few runs need it

        try:
            encoder = smp.encoders.get_encoder(wanted.name, weights=None)
        except KeyError as error:
            raise InputError(f"smp has no encoder named {wanted.name!r}; see segmentation_models_pytorch.") from error
        return SmpPyramid(encoder), list(encoder.out_channels)[2:]
    if not timm.is_model(wanted.name):
        near = timm.list_models(f"*{wanted.name[:6]}*")[:4]
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() has the names."
        raise InputError(f"timm has no model named {wanted.name!r}{hint}")
    try:
        network = timm.create_model(wanted.name, pretrained=False, features_only=True, **wanted.arguments)
        strides = _feature_info(network).reduction()
        kept = [strides.index(stride) for stride in STRIDES]
        network = timm.create_model(
            wanted.name, pretrained=False, features_only=True, out_indices=kept, **wanted.arguments
        )
    except TypeError as error:
        raise InputError(
            f"{wanted.name!r} cannot be built with {wanted.arguments}: use --segmenter.norm own."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{wanted.name!r} gives no features of strides 4, 8, 16 and 32; choose a convolutional pyramid such as "
            "resnet50_gn, convnext_tiny or regnety_032."
        ) from error
    return network, _feature_info(network).channels()


def _feature_info(network: nn.Module) -> FeatureInfo:
    return cast(FeatureInfo, network.feature_info)


def encoder_state(pyramid: nn.Module) -> dict[str, Tensor]:
    """Weights in the key layout of the library the encoder comes from (timm's or smp's), without classifier."""
    return (pyramid.encoder if isinstance(pyramid, SmpPyramid) else pyramid).state_dict()


def write_card(path: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write `path` (safetensors) and its card beside it (.json); each file appears whole or not at all."""
    card = {"format": CARD_FORMAT, **card, "libraries": {name: version(name) for name in ("torch", "timm")}}
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    aside = path.with_suffix(".tmp")
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, aside)
    os.replace(aside, path)
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path.with_suffix(".json"))


def read_card(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_card` wrote; nothing is ever unpickled.

    Raises:
        InputError: no such file, no card beside it, a damaged file, or a card of another kind than asked for.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no encoder or instance file: expected a name ending in .safetensors.")
    if not path.exists() or not path.with_suffix(".json").exists():
        raise InputError(f"{path} needs both the .safetensors and the .json card beside it; one of them is missing.")
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(path)
    except (json.JSONDecodeError, SafetensorError, UnicodeDecodeError) as error:
        raise InputError(f"{path} or its card is damaged ({error}); export it again.") from error
    if card.get("kind") != kind:
        raise InputError(f"{path} holds {card.get('kind')!r}, expected {kind!r}: name the other file of the export.")
    return tensors, card


def load(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """An encoder file as a timm (or smp) model without classifier, with its weights, and its card.

    The model maps float [N, 3, H, W], scaled by the card's mean and std, to pooled features (timm), or to its feature
    list (smp).
    """
    tensors, card = read_card(Path(path), "encoder")
    if card["library"] == "smp":
        pyramid, _ = build_pyramid(Architecture("smp", card["architecture"], {}))
        model = cast(nn.Module, pyramid.encoder)
    else:
        model = timm.create_model(card["architecture"], pretrained=False, num_classes=0, **card["arguments"])
    result = model.load_state_dict(tensors, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise InputError(
            f"{path} does not fit {card['architecture']}: {len(result.missing_keys)} keys missing "
            f"(first {result.missing_keys[:1]}), {len(result.unexpected_keys)} unexpected "
            f"(first {result.unexpected_keys[:1]}); was the card edited?"
        )
    return model, card
