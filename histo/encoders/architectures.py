"""Encoders by name: built from timm or smp, without weights and without classifier."""

import difflib
import re
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from histo.errors import InputError

STRIDES = [4, 8, 16, 32]
GROUP_NORM = {"norm_layer": "groupnorm"}


@dataclass(frozen=True)
class Architecture:
    """What rebuilds an encoder: the library, the name it has there, and constructor arguments beyond the name."""

    library: str
    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.library}:{self.name}" + (" with GroupNorm" if self.arguments else "")

    @property
    def card(self) -> dict[str, Any]:
        """What the card of its encoder files says of it."""
        return {
            "kind": "encoder",
            "library": self.library,
            "architecture": self.name,
            "arguments": self.arguments,
            "keys": f"{self.library}, without classifier",
        }


def architecture(name: str, norm: str, setting: str = "segmenter") -> Architecture:
    """Read an encoder's name as users write it.

    Args:
        name: a timm model ("resnet50_gn", "timm:resnet18"), or "smp:" and the name of an smp encoder.
        norm: "group" asks timm for GroupNorm in every layer; "own" keeps what the model comes with.
        setting: the group of settings in which users write `norm`, for messages.

    Raises:
        InputError: another library, or GroupNorm asked of smp, whose encoders cannot be built with it.
    """
    library, _, bare = name.rpartition(":")
    library = library or "timm"
    if library not in ("timm", "smp"):
        raise InputError(f"Encoder {name!r} names the library {library!r}; expected timm:NAME or smp:NAME.")
    if library == "smp" and norm == "group":
        raise InputError(f"{name!r} comes with its own normalisation layers: add --{setting}.norm own.")
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


def build(wanted: Architecture, setting: str = "segmenter") -> nn.Module:
    """The untrained encoder itself, without classifier, as its library makes it; `setting` as in `architecture`.

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
    refuse_unknown(wanted.name)
    try:
        return timm.create_model(wanted.name, pretrained=False, num_classes=0, **wanted.arguments)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{wanted.name!r} cannot be built with {wanted.arguments or 'its own layers'} ({error}): "
            f"use --{setting}.norm own, or another encoder."
        ) from error


def refuse_unknown(name: str) -> None:
    """Refuse what is no model of timm.

    Raises:
        InputError: unknown name, with near ones.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names."
        raise InputError(f"timm has no model named {name!r}; {hint}")


def pooled(output: Any) -> Tensor:
    """Features [N, D] from what an encoder gives: timm's are pooled, the last map of smp's is averaged over space.

    Raises:
        InputError: anything else than one vector of features for each tile.
    """
    last: Tensor = output[-1] if isinstance(output, (list, tuple)) else output
    vectors = last.mean((2, 3)) if last.ndim == 4 else last
    if vectors.ndim != 2:
        raise InputError(
            f"The encoder gives features of shape {list(last.shape)}, expected one vector a tile; name another."
        )
    return vectors


def memory_layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Order of the axes in memory in which a network is quickest.

    Convolutions like channels last, but on the CPU PyTorch's group normalisation then takes up to 15 times as long.
    """
    grouped = any(isinstance(module, nn.GroupNorm) for module in network.modules())
    return torch.contiguous_format if device.type == "cpu" and grouped else torch.channels_last
