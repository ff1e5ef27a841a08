"""Patients and tiles in two parts: what is learned from may not be scored, nor be of a patient who is."""

import hashlib
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.slides.streaming import SlideEntry
from histo.tiles import TileEntry, TileSet
from histo.tiles.owners import Owner, count_owners, owner_of


def common_patients(
    parts: dict[str, NDArray[np.int64]], patients: Sequence[Owner | None]
) -> list[tuple[str, str, Owner]]:
    """(one part, other part, patient) of those in two."""
    of_part = {name: {patient for k in places if (patient := patients[k])} for name, places in parts.items()}
    return [
        (one, other, patient)
        for one, other in combinations(parts, 2)
        for patient in sorted(of_part[one] & of_part[other], key=str)
    ]


def alike_patients(parts: dict[str, NDArray[np.int64]], patients: Sequence[Owner | None]) -> list[str]:
    """A sentence on patients of one name in two parts and of two sources, who may be one person or not."""
    of_part = {
        name: {one.name: one for k in places if (one := patients[k]) and one.kind == "patient"}
        for name, places in parts.items()
    }
    twice = sorted(
        (name, of_part[one][name].source, one, of_part[other][name].source, other)
        for one, other in combinations(parts, 2)
        for name in of_part[one].keys() & of_part[other].keys()
        if of_part[one][name] != of_part[other][name]
    )
    if not twice:
        return []
    name, source, one, other_source, other = twice[0]
    return [
        f"{len({first for first, *_ in twice})} names of patients stand in two parts from different sources, first "
        f"{name} in {one} of {source} and {other} of {other_source}: if they are the same people, scores are too high"
    ]


def owners_of_both(
    extra: TileSet,
    number_of: dict[str, int],
    judged: dict[str, list[tuple[TileEntry, Owner | None]]],
    allowed: bool,
) -> list[tuple[str, str, Owner]]:
    """Patients of further tiles who are validated or scored: ("extra", the part, patient) of each.

    Args:
        extra: the further tiles.
        number_of: the class of each label of the labelled tiles; empty where these have masks.
        judged: tiles of the parts that choose the network or are scored, and whose they are; a patient is found again
            by name, whatever the source, also as SOURCE/NAME, which sets made of several sets say.
        allowed: whether there may be some.

    Raises:
        InputError: there are some and may not be, a tile of these parts itself, or a label that no tile of
            data.tiles has.
    """
    unknown = sorted({str(entry.label) for entry in extra.entries} - number_of.keys()) if number_of else []
    if unknown:
        raise InputError(
            f"data.extra has the label {unknown[0]!r}, expected one of {', '.join(sorted(number_of))} as in "
            "data.tiles; correct the column label of its tiles.csv."
        )
    common: list[tuple[str, str, Owner]] = []
    owners = sorted({one for entry in extra.entries if (one := owner_of(entry))})
    contents = [(entry, _content(entry)) for entry in extra.entries]
    for part, tiles in judged.items():
        known = {_content(entry) for entry, _ in tiles}
        same = next((entry for entry, content in contents if content in known), None)
        if same is not None:
            raise InputError(
                f"The tile {same.key} of data.extra is in the {part} part of data.tiles too, expected other tiles to "
                "learn from; leave such tiles out of data.extra, or name its split by --data.extra_split."
            )
        names = set().union(*(_names(one) for _, one in tiles if one))
        common += [("extra", part, one) for one in owners if _names(one) & names]
    if common and not allowed:
        _, part, owner = common[0]
        whose = count_owners(one for _, _, one in common)
        raise InputError(
            f"{whose} of data.extra are in the parts that choose the network or are scored, first {owner.name} in "
            f"{part}; leave them out of data.extra, or give --data.common_patients true, which every result will then "
            "say."
        )
    return common


def _names(owner: Owner) -> set[tuple[str, str]]:
    """What an owner may be called in another set: kind and name."""
    bare = owner.name.partition("/")[2] if owner.kind == "patient" else ""
    return {(owner.kind, owner.name), (owner.kind, bare or owner.name)}


def _content(entry: TileEntry) -> bytes | str:
    """What entries of one tile have in common, whatever it is called: the image's file, or its place on a slide."""
    if isinstance(entry, SlideEntry):
        return f"{entry.row.path.resolve()} {entry.sampling} {entry.box}"
    return hashlib.sha256(entry.image_file()).digest()
