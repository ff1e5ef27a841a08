"""Model cards: what an encoder file is, in Markdown for people, from the facts of its JSON card.

The headings follow Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019, arXiv 1810.03993), as far as they
apply. What is not known is said to be unknown.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from histo.datasets import named_set
from histo.errors import InputError
from histo.tiles.manifests import read_manifest

UNKNOWN = "unknown"
# row of the card: how people read it
TRAINING = {
    "trained_by": "trained by",
    "method": "method",
    "objectives": "objectives",
    "tissue": "tissue",
    "masks": "masks",
    "images_seen": "images seen",
    "seed": "seed",
    "parent": "started from",
    "command": "command",
}


def data_sources(names: str | Sequence[str]) -> list[dict[str, Any]]:
    """What is known of the data that users name, for the entry `data` of a card.

    Args:
        names: as `--data.tissue` takes them: NAME:PATH of published sets, folders, shards, URLs, "phantom".

    Returns:
        For each: source (its name, without the path to it), title, licence, and noncommercial (None where unclear).
    """
    return [_data_source(name) for name in ([names] if isinstance(names, str) else names)]


def _data_source(name: str) -> dict[str, Any]:
    if name == "phantom":
        title = "tissue drawn by nucleate's own code"
        return {"source": name, "title": title, "licence": "none needed", "noncommercial": False}
    known = named_set(name)
    if known is not None:
        facts = known.facts
        unsure = ", to be checked" if "licence" in facts.unconfirmed else ""
        source = "@".join([known.name, *known.parts])
        return {
            "source": source,
            "title": facts.title,
            "licence": facts.licence + unsure,
            "noncommercial": facts.noncommercial,
        }
    folder = Path(name)
    try:
        manifest = None if "://" in name else read_manifest(folder)
    except InputError:  # damaged since it was opened, which must not cost what was learned from it
        manifest = None
    licence = ", ".join(map(str, (manifest or {}).get("licences", []))) or UNKNOWN
    return {"source": folder.name, "title": None, "licence": licence, "noncommercial": None}


def refuse_wrong(card: Mapping[str, Any], source: str) -> None:
    """Refuse a card whose entries are not of the kinds that `histo.encoders.write_encoder` writes; None is unknown.

    Raises:
        InputError: naming the first.
    """
    for name, (fits, expected) in _KINDS.items():
        value = card.get(name)
        if value is not None and not fits(value):
            raise InputError(
                f"The card of {source} has {name} {str(value)[:60]!r}, expected {expected}; correct it or export the "
                "encoder again."
            )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6


def _are_three(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(map(_is_number, values))


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "mean": (_are_three, "3 numbers"),
    "std": (lambda value: _are_three(value) and min(value) > 0, "3 numbers above 0"),
    "tile_size": (lambda value: type(value) is int and value > 0, "pixels"),
    "mpp": (lambda value: _is_number(value) and value > 0, "µm/px"),
    "untrained": (lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value), "names"),
}


def markdown(card: Mapping[str, Any], file: str) -> str:
    """The model card of an encoder file, of weights for another library, or of a hub folder.

    Args:
        card: as `histo.encoders.write_encoder` takes it.
        file: the name of the file of weights, for the lines that load it.
    """
    named = card.get("data")
    data = [one for one in named if isinstance(one, Mapping)] if isinstance(named, list) else []
    mean, std = _said(card.get("mean")), _said(card.get("std"))
    parts = [
        f"# {card.get('architecture')}: an encoder for histology tiles",
        "Maps an H&E tile to features. It has no classifier.",
        "## Input",
        _table(
            {
                "channels": card.get("in_channels"),
                "scaling": f"levels / 255, then minus mean {mean}, over std {std}",
                "tile side, pixels": card.get("tile_size"),
                "µm/px": card.get("mpp"),
                **({"µm/px of views": card["mpp_of_views"]} if card.get("mpp_of_views") else {}),
            }
        ),
        "## Training",
        _table({label: card[key] for key, label in TRAINING.items() if card.get(key) is not None})
        or f"How it was trained is {UNKNOWN}.",
        "## Data and licences",
        _data_table(data) or f"Sources of the data: {UNKNOWN}. Licences: {UNKNOWN}. State them before you pass it on.",
        *(
            [f"Licence of the weights themselves: {_said(card['weights_licence'])}."]
            if card.get("weights_licence")
            else []
        ),
        "## Probes",
        _table(dict(_figures(card))) or "None was run: how good its features are is not known.",
        *([f"They rest on {card['probe_basis']}."] if card.get("probe_basis") else []),
        "## Intended use",
        "Features of H&E tiles for research: a starting point for classifiers, segmenters and retrieval that are "
        "validated on their own data. It is no medical device and not meant for diagnosis.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(card, data)),
        "## Environment",
        _table({**_entries(card, "libraries"), "nucleate revision": card.get("revision")}),
        "## Load it",
        f"```python\n{loading(card, file)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def loading(card: Mapping[str, Any], file: str) -> str:
    """Lines of Python that load the weights with the library they are for."""
    if card.get("loading"):
        return str(card["loading"]).replace("FILE", file)
    arguments = "".join(f", {key}={value!r}" for key, value in (card.get("arguments") or {}).items())
    if card.get("library") == "smp":
        build = f'smp.encoders.get_encoder("{card.get("architecture")}", weights=None{arguments})'
        imports = "import safetensors.torch, segmentation_models_pytorch as smp"
    else:
        build = f'timm.create_model("{card.get("architecture")}", num_classes=0{arguments})'
        imports = "import safetensors.torch, timm"
    return f'{imports}\nencoder = {build}\nencoder.load_state_dict(safetensors.torch.load_file("{file}"))'


def _limits(card: Mapping[str, Any], data: Sequence[Mapping[str, Any]]) -> list[str]:
    limits = []
    if card.get("mpp") is None:
        limits.append("The µm/px it was trained at is unknown: try more than one before you compare it with others.")
    else:
        limits.append(f"It was trained at {card['mpp']} µm/px; features of other magnifications are not tested.")
    if any(one.get("noncommercial") for one in data):
        names = ", ".join(str(one.get("source")) for one in data if one.get("noncommercial"))
        limits.append(f"Learned from data whose terms exclude commercial use: {names}.")
    if not data or any(one.get("licence") in (None, UNKNOWN) for one in data):
        limits.append("The terms of some of its data are unknown, and with them what it may be used for.")
    if fresh := card.get("untrained"):
        limits.append(f"These tensors were not in the file it comes from and have initial values: {_said(fresh)}.")
    limits.append("Stains, scanners, organs and species that its data lack are not tested.")
    return limits


def _data_table(data: Sequence[Mapping[str, Any]]) -> str:
    terms: dict[Any, str] = {True: "excluded", False: "not excluded"}
    rows = [
        f"| {_said(one.get('source'))} | {_said(one.get('title'))} | {_said(one.get('licence'))} "
        f"| {terms.get(one.get('noncommercial'), 'unclear')} |"
        for one in data
    ]
    return "\n".join(["| source | what | licence | commercial use |", "|---|---|---|---|", *rows]) if rows else ""


def _figures(card: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Probe results, and what a translator reached."""
    return [pair for name in ("probe", "scores") for pair in _entries(card, name).items()]


def _entries(card: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = card.get(name)
    return dict(value) if isinstance(value, Mapping) else {}


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {_said(key)} | {_said(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def _said(value: Any) -> str:
    """A value in a cell of a table."""
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(part)}" for key, part in value.items())
    return " ".join(str(value).replace("|", "\\|").split())
