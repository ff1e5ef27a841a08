"""Encoders as other libraries load them: timm, torchvision, segmentation_models_pytorch (smp), the Hugging Face hub."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from histo.encoders.architectures import Architecture, build
from histo.encoders.cards import loading
from histo.encoders.files import write_encoder
from histo.encoders.hub import write_hub
from histo.encoders.layouts import match, renamed
from histo.encoders.sources import STATE_DICT, Opened
from histo.encoders.weights import Weights
from histo.errors import InputError

To = Literal["timm", "torchvision", "smp", "hub"]
# ResNets that timm, torchvision and (most of them) smp build alike and name alike, tensors and all.
SHARED = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
GROUPS = 32  # of timm's GroupNorm
_IMPORTS = "import safetensors.torch, {}\n"
_FILE = 'safetensors.torch.load_file("FILE")'


def write_for(to: To, out: Path, opened: Opened) -> str:
    """Write an encoder for a library, with its cards.

    Args:
        to: timm: an encoder file, which timm loads. torchvision, smp: safetensors with their keys. hub: a folder.
        out: name ending in .safetensors, or the folder.

    Returns:
        Lines of Python that load it.

    Raises:
        InputError: the library has no such network, or it cannot be written.
    """
    if (out.suffix == ".safetensors") is (to == "hub"):
        raise InputError(
            f"{out} is to hold an encoder for {to}, expected {'a folder' if to == 'hub' else 'a name ending in '}"
            f"{'' if to == 'hub' else '.safetensors'}; rename it."
        )
    if to == "smp" and opened.architecture.library == "smp":
        card = {**opened.card, **opened.architecture.card}
        write_encoder(out, opened.encoder, card)
        return loading(card, out.name)
    encoder, wanted, untrained = as_timm(opened.encoder, opened.architecture)
    card = {**opened.card, "untrained": [*(opened.card.get("untrained") or []), *untrained], **wanted.card}
    tensors = encoder.state_dict()
    if to == "hub":
        return write_hub(out, encoder, wanted, card)
    if to == "torchvision":
        tensors, lines = for_torchvision(tensors, wanted)
    elif to == "smp":
        tensors, lines = for_smp(tensors, wanted)
    if to != "timm":
        card |= {"kind": STATE_DICT, "keys": f"{to}, without classifier", "loading": lines}
    write_encoder(out, tensors, card)
    return loading(card, out.name)


def as_timm(encoder: nn.Module, wanted: Architecture) -> tuple[nn.Module, Architecture, list[str]]:
    """An encoder as timm's model of the same weights, and the tensors that have none.

    Raises:
        InputError: an encoder of smp that timm has not.
    """
    if wanted.library == "timm":
        return encoder, wanted, []
    name = wanted.name.removeprefix("tu-")
    if name == wanted.name and name not in SHARED:
        raise InputError(f"{wanted} is a network of smp's own, which timm has not; use --to smp.")
    twin = Architecture("timm", name, {})
    network = build(twin, "encoder")
    weights = Weights({(): encoder.state_dict()}, [])
    found = match(weights, network.state_dict(), None, f"{wanted} as {twin}")
    network.load_state_dict({**network.state_dict(), **found.tensors})
    return network, twin, found.missing


def for_torchvision(tensors: Mapping[str, Tensor], wanted: Architecture) -> tuple[dict[str, Tensor], str]:
    """A timm encoder's tensors under torchvision's keys, and the lines that load them.

    Raises:
        InputError: torchvision has no such network.
    """
    from torchvision import models

    name = _shared_name(wanted)
    if name is None:
        raise InputError(f"torchvision has no network with the layers of {wanted}; use --to timm or --to hub.")
    # Its keys are the same for both kinds of layers; which are meant is said where the network is made.
    norm = {"norm_layer": partial(nn.GroupNorm, GROUPS)} if _has_group_norm(wanted) else {}
    with torch.device("meta"):
        network = models.get_model(name, weights=None, **norm)
    reference = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    argument = f"norm_layer=functools.partial(torch.nn.GroupNorm, {GROUPS})" if norm else ""
    imports = _IMPORTS.format("functools, torch, torchvision" if norm else "torchvision")
    lines = (
        f"{imports}net = torchvision.models.{name}({argument})\n"
        f"net.load_state_dict({_FILE}, strict=False)  # all but its classifier, fc"
    )
    return renamed(tensors, reference, "", f"{wanted} for torchvision"), lines


def for_smp(tensors: Mapping[str, Tensor], wanted: Architecture) -> tuple[dict[str, Tensor], str]:
    """A timm encoder's tensors under the keys of smp's own encoder, or else of its tu- encoder, and the lines that load
    them. smp's own encoders have batch norm and cannot be had with GroupNorm.

    Raises:
        InputError: smp cannot build such an encoder.
    """
    import segmentation_models_pytorch as smp  # imported here: it takes seconds and few runs need it

    own = None if _has_group_norm(wanted) else _shared_name(wanted)
    own = own if own in smp.encoders.encoders else None
    name, arguments = own or f"tu-{wanted.name}", {} if own else wanted.arguments
    try:
        reference = smp.encoders.get_encoder(name, weights=None, **arguments).state_dict()
    except Exception as error:  # smp and timm raise whatever comes up where a model cannot give features
        raise InputError(f"smp cannot build {name} ({error}); use --to timm or --to hub.") from error
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    lines = (
        f"{_IMPORTS.format('segmentation_models_pytorch as smp')}"
        f'net = smp.create_model("unet", "{name}", encoder_weights=None{given})\n'
        f"net.encoder.load_state_dict({_FILE})"
    )
    return renamed(tensors, reference, "" if own else "model.", f"{wanted} for smp"), lines


def _shared_name(wanted: Architecture) -> str | None:
    """What torchvision calls a timm ResNet; None for other networks."""
    name = wanted.name.partition(".")[0].removesuffix("_gn")
    return name if name in SHARED else None


def _has_group_norm(wanted: Architecture) -> bool:
    return bool(wanted.arguments) or wanted.name.partition(".")[0].endswith("_gn")
