"""A look at any folder of tiles: what it is, what is wrong with it, and what to do."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from histo.inspection.likeness import MOST_COMPARED, alike
from histo.inspection.looks import Look, look
from histo.inspection.magnification import judge
from histo.inspection.openings import opened
from histo.inspection.report import Report
from histo.tiles.entries import TileEntry
from histo.tiles.integrity import shared_patients

_ODD = 0.05  # a size or form that fewer tiles have is odd where one other has all the rest


def inspect(path: str, *, progress: bool = False) -> Report:
    """Look at every tile of a set.

    Args:
        path: a folder with or without `tiles.csv`, shards, or `NAME:PATH`.
        progress: show a bar.

    Raises:
        InputError: there is nothing that can be read as tiles.
    """
    report, entries = opened(path, progress=progress)
    with ThreadPoolExecutor(2) as pool:
        bar = tqdm(total=len(entries), desc="looking", unit="tile", disable=None if progress else True)
        looks = []
        for seen in pool.map(look, entries):
            looks.append(seen)
            bar.update()
        bar.close()
    for seen in looks:
        for kind, sentence in seen.faults:
            report.add(kind, [sentence])
    _describe(entries, looks, report)
    _forms(entries, looks, report)
    _copies(entries, looks, report)
    shared = shared_patients(entries)
    report.add(
        "patients across splits", [f"{name}: {', '.join(sorted(splits))}" for name, splits in sorted(shared.items())]
    )
    judge(entries, looks, report)
    return report


def _describe(entries: Sequence[TileEntry], looks: Sequence[Look], report: Report) -> None:
    """The facts, in the order of people's questions."""
    masks = sum(entry.mask is not None for entry in entries)
    nuclei = sum(len(seen.diameters) for seen in looks if seen.diameters is not None)
    facts = {
        "tiles": str(len(entries)),
        "sizes": _counts(Counter(f"{seen.size[0]} x {seen.size[1]}" for seen in looks if seen.size)),
        "forms": _counts(Counter(seen.mode for seen in looks if seen.mode)),
        "masks": f"{masks}, {nuclei} whole nuclei" if masks else "none",
        "classes": _counts(Counter(entry.label for entry in entries if entry.label)) or "none",
        "splits": _counts(Counter(entry.split for entry in entries if entry.split)) or "none",
        "patients": str(len({(e.source, e.patient) for e in entries if e.patient}) or "unknown"),
        "µm/px": _counts(Counter("unknown" if e.mpp is None else f"{e.mpp:.4g}" for e in entries)),
    }
    report.facts = {**facts, **report.facts}


def _forms(entries: Sequence[TileEntry], looks: Sequence[Look], report: Report) -> None:
    """Tiles whose size or form a few have where all others share one."""
    for kind, values in (
        ("sizes", [f"{seen.size[0]} x {seen.size[1]}" if seen.size else None for seen in looks]),
        ("modes", [seen.mode for seen in looks]),
    ):
        numbers = Counter(value for value in values if value is not None)
        if not numbers:
            continue
        usual, number = numbers.most_common(1)[0]
        others = [k for k, value in enumerate(values) if value not in (usual, None)]
        if len(others) == numbers.total() - number and len(others) <= max(1, _ODD * numbers.total()) < number:
            report.add(kind, [f"{entries[k].key}: {values[k]}, not {usual}" for k in others])


def _copies(entries: Sequence[TileEntry], looks: Sequence[Look], report: Report) -> None:
    """Pairs of tiles that are the same or alike, within a split and across splits."""
    groups: dict[bytes, list[int]] = {}
    for k, seen in enumerate(looks):
        if seen.digest:
            groups.setdefault(seen.digest, []).append(k)
    same = {(group[0], copy) for group in groups.values() for copy in group[1:]}  # not all pairs of many blank tiles
    first = [group[0] for group in groups.values() if looks[group[0]].spectrum is not None]
    if len(first) > MOST_COMPARED:
        report.notes.append(f"near-duplicates were looked for among the first {MOST_COMPARED} tiles alone.")
        first = first[:MOST_COMPARED]
    spectra = [spectrum for k in first if (spectrum := looks[k].spectrum) is not None]
    near = {(first[i], first[j]) for i, j in alike(np.stack(spectra))} if len(spectra) > 1 else set()
    for kind, pairs in (("duplicates", same), ("near-duplicates", near)):
        across = [pair for pair in sorted(pairs) if len({entries[k].split for k in pair}) > 1]
        within = sorted(pairs - set(across))
        report.add(kind, [_pair(entries, pair) for pair in within])
        how = "same pixels" if kind == "duplicates" else "alike"
        report.add(
            "duplicates across splits",
            [f"{_pair(entries, pair)} ({how}; {entries[pair[0]].split}, {entries[pair[1]].split})" for pair in across],
        )


def _pair(entries: Sequence[TileEntry], pair: tuple[int, int]) -> str:
    return f"{entries[pair[0]].key} = {entries[pair[1]].key}"


def _counts(numbers: Counter[str | None] | Counter[str]) -> str:
    """The most common with their numbers, at most eight."""
    shown = ", ".join(f"{name} ({number})" for name, number in numbers.most_common(8))
    return f"{shown} and {len(numbers) - 8} others" if len(numbers) > 8 else shown
