"""Encoders from wherever users name them: encoder files, run folders, foreign files, hub folders, timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from histo.encoders.architectures import Architecture, architecture, build, refuse_unknown
from histo.encoders.cards import UNKNOWN, refuse_wrong
from histo.encoders.files import CHANNELS, architecture_of, card_beside, digest, load
from histo.encoders.hub import CONFIG, read_hub
from histo.encoders.layouts import match
from histo.encoders.published import known
from histo.encoders.weights import Weights, read_weights
from histo.errors import InputError

STATE_DICT = "state dict"  # kind of a card beside weights for another library
IN_A_RUN = ("export/encoder.safetensors", "encoder.safetensors")


class Opened(NamedTuple):
    """An encoder with its weights.

    Attributes:
        encoder: without classifier, in training mode.
        architecture: what rebuilds it.
        card: what is known of it, as `write_encoder` takes it.
        report: how the tensors of a foreign file were found, lines for people; empty for other sources.
    """

    encoder: nn.Module
    architecture: Architecture
    card: dict[str, Any]
    report: str


class Start(NamedTuple):
    """What a training starts from.

    Attributes:
        encoder: without classifier, in training mode.
        architecture: what rebuilds it.
        facts: mean, std, mpp and tile_size of its former training (None where unknown, or where it has none), and
            `parent` and `data` (what it learned from, as `data_sources` gives it) for the card of what is trained from
            it: its terms go on to that.
        report: as `Opened`'s.
    """

    encoder: nn.Module
    architecture: Architecture
    facts: dict[str, Any]
    report: str


def start(source: str, norm: str, name: str | None = None, *, take: str | None = None, seed: int = 0) -> Start:
    """The encoder that a training starts from, as `--encoder.source` names it.

    Args:
        source: an encoder file, the folder of a run that exported one, a foreign file of weights, a hub folder,
            "timm:NAME" for timm's own weights, the one source that is downloaded, or "none" for random weights.
        norm: layers that "none" and foreign files are built with, see `architecture`; encoder files name theirs.
        name: the architecture. "none" and foreign files need it; for the others it must be theirs or None.
        take: where in a foreign file the encoder is, see `histo.encoders.layouts.match`.
        seed: of random weights.

    Raises:
        InputError: nothing of that kind, an encoder of another architecture or for other channels, weights that do not
            fit, or a failed download.
    """
    if source == "none":
        if name is None:
            raise InputError("--encoder.source none needs an architecture; give --encoder.architecture timm:NAME.")
        wanted = architecture(name, norm, "encoder")
        facts = dict.fromkeys(("mean", "std", "mpp", "tile_size"))
        facts |= {"parent": f"random weights, seed {seed}", "data": []}
        return Start(_initial(wanted, seed), wanted, facts, "")
    encoder, found, card, report = open_encoder(source, name, norm, take=take, seed=seed)
    given = source if source.startswith("timm:") else Path(source).name
    parent = {"source": given, "architecture": str(found), "sha256": digest(encoder.state_dict())}
    parent |= {key: card[key] for key in ("trained_by", "objectives", "method", "images_seen") if card.get(key)}
    facts = {key: card.get(key) for key in ("mean", "std", "mpp", "tile_size")}
    unsaid = {"source": f"of {given}", "title": None, "noncommercial": None}
    facts["data"] = card.get("data") or [{**unsaid, "licence": card.get("weights_licence", UNKNOWN)}]
    return Start(encoder, found, {**facts, "parent": parent}, report)


def open_encoder(
    source: str, name: str | None = None, norm: str = "own", *, take: str | None = None, seed: int = 0
) -> Opened:
    """The encoder that a source holds, see `start`; `seed` is of tensors that a foreign file lacks.

    Raises:
        InputError: as `start`.
    """
    if source.startswith("timm:") and not Path(source).exists():
        opened = _from_timm(source, norm)
    else:
        path = _located(Path(source))
        if path.is_dir():
            file, wanted, card = read_hub(path)
            opened = _filled(file, read_weights(file), wanted, card, take, seed)
        else:
            opened = _from_file(path, name, norm, take, seed)
    refuse_wrong(opened.card, source)
    if name is not None and not _same_name(architecture(name, "own", "encoder"), opened.architecture):
        raise InputError(f"{source} is {opened.architecture}, but {name} was asked for; leave the architecture out.")
    return opened


def _located(path: Path) -> Path:
    """The encoder file or hub folder that a path means."""
    if path.is_dir() and not (path / CONFIG).is_file():
        inside = next((path / file for file in IN_A_RUN if (path / file).is_file()), None)
        if inside is None:
            raise InputError(
                f"{path} is a folder with neither {' nor '.join((*IN_A_RUN, CONFIG))}; name the folder of a run that "
                "exported an encoder, a hub folder, or a file."
            )
        return inside
    if not path.exists():
        raise InputError(
            f"There is no {path}; expected an encoder file, the folder of a run, a file of weights, a hub folder, "
            "timm:NAME or none."
        )
    return path


def _from_file(path: Path, name: str | None, norm: str, take: str | None, seed: int) -> Opened:
    card = card_beside(path)
    if card is not None and card.get("kind") != STATE_DICT:
        encoder, card = load(path)
        return Opened(encoder, architecture_of(card), card, "")
    weights = read_weights(path)
    if card is not None:
        return _filled(path, weights, architecture_of(card), card, take, seed)
    card = known(weights)
    name = name or card.get("architecture")
    if name is None:
        raise InputError(
            f"{path} does not say what network its weights are of; give the architecture, such as timm:resnet18."
        )
    return _filled(path, weights, architecture(name, norm, "encoder"), card, take, seed)


def _filled(
    path: Path, weights: Weights, wanted: Architecture, card: Mapping[str, Any], take: str | None, seed: int
) -> Opened:
    """An encoder with what a foreign file holds of it."""
    encoder = _initial(wanted, seed)
    expected: dict[str, Tensor] = encoder.state_dict()
    found = match(weights, expected, take, f"{path} as {wanted}")
    # smp's encoders override load_state_dict; the module's own does the same for all.
    nn.Module.load_state_dict(encoder, {**expected, **found.tensors})
    facts: dict[str, Any] = {"in_channels": CHANNELS, "mpp": None, "mean": None, "std": None, "tile_size": None}
    refuse_wrong(card, str(path))
    facts |= {"converted_from": path.name, **card, "untrained": [*(card.get("untrained") or []), *found.missing]}
    unread = ", ".join(weights.left_unread) or "nothing"
    return Opened(encoder, wanted, facts | wanted.card, f"{path} as {wanted}\n{found.report()}\n  left unread {unread}")


def _from_timm(source: str, norm: str) -> Opened:
    wanted = architecture(source, "own", "encoder")
    refuse_unknown(wanted.name)
    if architecture(source, norm, "encoder").arguments:
        raise InputError(
            f"timm's weights of {wanted.name} are of its own normalisation layers, and GroupNorm was asked for; use "
            "--encoder.norm own, or a name with _gn."
        )
    try:
        encoder = timm.create_model(wanted.name, pretrained=True, num_classes=0)
    except Exception as error:  # timm, the hub's client, and each of its network layers raise their own
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:160]
        raise InputError(
            f"timm's weights of {wanted.name} cannot be had ({reason}); connect this machine once, or name a file of "
            "weights."
        ) from error
    own: Any = encoder.pretrained_cfg
    tag = f".{own['tag']}" if own.get("tag") and "." not in wanted.name else ""
    card = {
        **wanted.card,
        "in_channels": CHANNELS,
        "tile_size": int(own["input_size"][-1]),
        "mpp": None,
        "mean": list(own["mean"]),
        "std": list(own["std"]),
        "trained_by": f"timm {wanted.name}{tag}",
        "weights_licence": own.get("license"),
    }
    return Opened(encoder, wanted, card, "")


def _initial(wanted: Architecture, seed: int) -> nn.Module:
    """The encoder with random weights of `seed`; the global generator, which its library draws from, is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(wanted, "encoder")


def _same_name(asked: Architecture, found: Architecture) -> bool:
    return (asked.library, asked.name.partition(".")[0]) == (found.library, found.name.partition(".")[0])
