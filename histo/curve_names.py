"""Short names of the curves of a comparison: an encoder, and what of the settings tells its runs apart."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import PurePath
from typing import Any

Encoder = tuple[str, str | None, bool | None]
"""Source, architecture, and whether it was frozen; None where results of old do not say."""


def curve_names(encoders: Sequence[Encoder], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of each run's curve; runs share one if they have the same encoder and settings.

    Args:
        encoders: of each run.
        settings: of each run, flat names with values, without those that make no other curve. One that a run of the
            same encoder does not know, as runs of old, makes none either.

    Returns:
        The encoder's name, and behind it as few settings as tell its curves apart: "dino, head flows".
    """
    of_encoder = encoder_names(encoders)
    names = [of_encoder[encoder] for encoder in encoders]
    for encoder in of_encoder:
        places = [place for place, one in enumerate(encoders) if one == encoder]
        for place, end in zip(places, _ends([settings[place] for place in places]), strict=True):
            names[place] += end
    return names


def encoder_names(encoders: Sequence[Encoder]) -> dict[Encoder, str]:
    """The shortest names that tell encoders apart: the ends of their paths, then architecture and whether frozen."""
    different = list(dict.fromkeys(encoders))
    bare = {one: _parts(one[0]) for one in different}
    shortest = _shortest(set(bare.values()))
    names = {}
    for one in different:
        _, architecture, frozen = one
        name = f"random {architecture or ''}".strip() if one[0] == "none" else shortest[bare[one]]
        alike = [other for other in different if bare[other] == bare[one] and other != one]
        if one[0] != "none" and any(other[1] != architecture for other in alike):
            name += f" ({architecture})"
        if any(other[2] != frozen for other in alike):
            name += " frozen" if frozen else " fine-tuned"
        names[one] = name
    return names


def _ends(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What follows the encoder in the name of each of its runs."""
    known = [name for name in settings[0] if all(name in one for one in settings)]
    differing = [name for name in known if any(one[name] != settings[0][name] for one in settings)]
    if not differing:
        return [""] * len(settings)

    def apart(names: Sequence[str]) -> int:
        return len({tuple(repr(one[name]) for name in names) for one in settings})

    told = next(
        some
        for count in range(1, len(differing) + 1)
        for some in combinations(differing, count)
        if apart(some) == apart(differing)
    )
    leaves = [name.rpartition(".")[2] for name in told]
    titles = [leaf if leaves.count(leaf) == 1 else name for leaf, name in zip(leaves, told, strict=True)]
    said = {name: _values([one[name] for one in settings]) for name in told}
    return [
        "".join(
            f", no {title}" if one[name] is None else f", {title} {said[name][place]}"
            for title, name in zip(titles, told, strict=True)
        )
        for place, one in enumerate(settings)
    ]


def _values(values: Sequence[Any]) -> list[str]:
    """Values as people read them; of paths the ends that tell them apart."""
    listed = [value if isinstance(value, list) else [value] for value in values]
    shortest = _shortest({PurePath(one).parts for some in listed for one in some if isinstance(one, str)})
    return ["+".join(_value(one, shortest) for one in some) or "none" for some in listed]


def _value(value: Any, shortest: Mapping[tuple[str, ...], str]) -> str:
    if isinstance(value, str):
        return shortest[PurePath(value).parts]
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shortest(paths: set[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The shortest end of each path that no other one has."""

    def end(parts: tuple[str, ...]) -> str:
        for length in range(1, len(parts) + 1):
            if sum(other[-length:] == parts[-length:] for other in paths) == 1:
                return "/".join(parts[-length:])
        return "/".join(parts)

    return {parts: end(parts) for parts in paths}


def _parts(source: str) -> tuple[str, ...]:
    """A source's path without what all runs have in common."""
    parts = PurePath(source).parts
    if parts[-1:] == ("encoder.safetensors",):
        parts = parts[:-1]
    return (parts[:-1] if parts[-1:] == ("export",) else parts) or (source,)
