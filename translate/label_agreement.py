"""Pseudo-masks against labels: AJI, PQ, Dice and the F1 of detection, with intervals, per set and kind of tissue.

The scores are those of `histo.metrics`, each the mean over tiles. Detection counts a nucleus as found where a
pseudo-nucleus overlaps it with IoU above 0.5, as PQ does, so its F1 is PQ's factor DQ.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo import bootstrap
from histo.errors import InputError
from histo.masks import mask_files, read_instances
from histo.metrics import InstanceScores, compare
from histo.tiles import is_described, open_tiles
from histo.tiles.entries import TileEntry
from translate.labelling import Labelling

OWN = "tissue"
SCORES = {"AJI": "aji", "PQ": "pq", "Dice": "dice", "F1": "dq"}  # as the report calls them
BASIS = {
    "scores": "means over tiles; F1 is that of detection, at IoU above 0.5 (PQ's factor DQ)",
    "interval": f"bootstrap of {bootstrap.SAMPLES} samples, central {bootstrap.CONFIDENCE:.0%}; whole patients are "
    "drawn where they are known, tiles where not",
}
Label = Callable[[tuple[int, int]], NDArray[np.int32]]
"""Reads the instance map of a tile of a size (height, width)."""


@dataclass(frozen=True)
class Compared:
    """One tile and its scores."""

    name: str
    entry: TileEntry
    scores: InstanceScores


def open_labels(named: str, labelling: Labelling) -> dict[int, Label]:
    """The labels of the tiles that have some, by the tiles' positions.

    Args:
        named: `tissue`, the masks that the tiles have themselves; a set of tiles with masks, or a folder of instance
            maps, whose names (paths in the set or folder without suffix, and without images/) are those of the tiles.

    Raises:
        InputError: no such folder, or none of its labels is that of a tile.
    """
    entries = labelling.tissue.entries
    if named == OWN:
        own: dict[int, Label] = {k: entry.read_mask for k, entry in enumerate(entries) if entry.mask is not None}
        if not own:
            raise InputError(
                f"--against is {OWN}, but none of the {len(entries)} tiles has a mask; name a folder of labels."
            )
        return own
    labels: dict[str, Label]
    folder = Path(named)
    if is_described(named):
        known = [entry for entry in open_tiles(named, cache_mb=0).entries if entry.mask is not None]
        labels = {labelling.name(entry.source, entry.key): entry.read_mask for entry in known}
    elif folder.is_dir():
        files = mask_files(folder)[0]
        labels = {file.relative_to(folder).with_suffix("").as_posix(): _reader(file) for file in files}
    else:
        raise InputError(f"--against {named!r} is no folder; expected a folder of labels, or {OWN}.")
    found = {k: labels[name] for k, name in enumerate(labelling.names) if name in labels}
    if not found:
        example = f"{next(iter(labels), 'none')!r} there, {labelling.names[0]!r} here"
        raise InputError(
            f"None of the {len(labels)} labels of {named} has the name of a tile ({example}); name them as the tiles."
        )
    return found


def _reader(file: Path) -> Label:
    return lambda size: read_instances(file, size)


def compare_all(labels: dict[int, Label], labelling: Labelling, folder: Path) -> list[Compared]:
    """Scores of all tiles that have both, kept or set aside.

    Raises:
        InputError: a label that cannot be read, or of another size than its tile.
    """
    compared = []
    for index, label in labels.items():
        mask = labelling.mask(index, folder)
        if mask is not None:
            found = read_instances(mask)
            scores = compare(label((found.shape[0], found.shape[1])), found)
            compared.append(Compared(labelling.names[index], labelling.tissue.entries[index], scores))
    return compared


def agreement(compared: Sequence[Compared], seed: int) -> dict[str, Any]:
    """The report as JSON: a group for all tiles, one for each set, and one for each label of tiles within a set."""
    groups: dict[tuple[str, str | None], list[Compared]] = {("all", None): list(compared)}
    sources = dict.fromkeys(one.entry.source for one in compared)
    for source in sources:
        own = [one for one in compared if one.entry.source == source]
        if len(sources) > 1:
            groups[(source, None)] = own
        for tissue in sorted({one.entry.label for one in own if one.entry.label is not None}):
            groups[(source, tissue)] = [one for one in own if one.entry.label == tissue]
    return {
        **BASIS,
        "seed": seed,
        "groups": [_group(source, tissue, members, seed) for (source, tissue), members in groups.items()],
        "tiles": [{"tile": one.name, "source": one.entry.source, **asdict(one.scores)} for one in compared],
    }


def _group(source: str, tissue: str | None, members: list[Compared], seed: int) -> dict[str, Any]:
    patients = [
        (one.entry.source, one.name if one.entry.patient is None else None, one.entry.patient) for one in members
    ]
    values = np.array([[getattr(one.scores, name) for name in SCORES.values()] for one in members])
    low, high = bootstrap.mean_interval(values, patients, seed)
    known = len(set(patients)) > 1  # of a single one nothing is known
    return {
        "set": source,
        "tissue": tissue,
        "tiles": len(members),
        "patients": len({patient for patient in patients if patient[2] is not None}),
        "tiles_of_unknown_patients": sum(patient[2] is None for patient in patients),
        "true_nuclei": sum(one.scores.true_nuclei for one in members),
        "found_nuclei": sum(one.scores.predicted_nuclei for one in members),
        **{
            name: {
                "mean": round(mean, 4),
                "low": round(least, 4) if known else None,
                "high": round(most, 4) if known else None,
            }
            for name, mean, least, most in zip(
                SCORES, values.mean(0).tolist(), low.tolist(), high.tolist(), strict=True
            )
        },
    }


def _in_words(score: dict[str, float | None]) -> str:
    interval = "–" if score["low"] is None else f"{score['low']:.3f}, {score['high']:.3f}"
    return f"{score['mean']:.3f} [{interval}]"


def as_table(report: dict[str, Any]) -> str:
    """The groups of a report as a Markdown table."""
    lines = [
        f"| set | tissue | tiles | patients | nuclei found / true | {' | '.join(SCORES)} |",
        f"|---|---|---|---|---|{'---|' * len(SCORES)}",
    ]
    for group in report["groups"]:
        scores = [_in_words(group[name]) for name in SCORES]
        facts = [group["set"], group["tissue"] or "", group["tiles"], group["patients"] or "unknown"]
        nuclei = f"{group['found_nuclei']} / {group['true_nuclei']}"
        lines.append(f"| {' | '.join(map(str, [*facts, nuclei, *scores]))} |")
    return "\n".join(lines)
