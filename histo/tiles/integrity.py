"""Whether a published set is whole where it was unpacked: counts, classes, sizes, first and last tile."""

from collections import Counter
from collections.abc import Mapping, Sequence

from PIL import Image
from tqdm import tqdm

from histo.datasets import NamedSet
from histo.errors import InputError
from histo.tiles.entries import TileEntry
from histo.tiles.published import PublishedEntry


def integrity(known: NamedSet, *, progress: bool = False) -> tuple[list[str], list[str]]:
    """What is wrong with a set at its place, and what is worth knowing; a sentence each.

    A part of a set is fine, and is said to be a part.

    Raises:
        InputError: nothing of it can be opened.
    """
    facts, entries = known.facts, known.entries(known.name)
    wrong: list[str] = []
    notes: list[str] = []
    if not known.parts:  # the counts are of whole sets
        counts = [("tiles", facts.tiles, len(entries))]
        labels, splits = (Counter(getattr(entry, name) for entry in entries) for name in ("label", "split"))
        counts += [(f"tiles of class {name}", number, labels[name]) for name, number in facts.classes.items()]
        if not known.is_copy:  # which may be split otherwise
            counts += [(f"tiles of split {name}", number, splits[name]) for name, number in facts.splits.items()]
            wrong += _strangers("split", splits, facts.splits)
        wrong += _strangers("class", labels, facts.classes)
        fewer = [f"{found} of {number} {what}" for what, number, found in counts if number and found < number]
        fewer += [f"no {what}" for what, number, found in counts if number is None and not found and labels[None] == 0]
        if fewer:
            notes.append(f"a part of the set: {', '.join(fewer)}")
        for what, number, found in counts:
            if number is not None and found > number:
                line = f"{found} {what}, more than the {number} published"
                (notes if known.is_copy else wrong).append(line)  # images of a copy may have been cut
    if facts.nuclei and not any(entry.mask is not None for entry in entries):
        notes.append("no tile has a mask")
    wrong += _sizes(known, entries, progress)
    for name, entry in (("first", entries[0]), ("last", entries[-1])):
        try:
            entry.read()
        except InputError as error:
            wrong.append(f"the {name} tile cannot be read: {error}")
    notes += _patients(entries, facts.disjoint)
    return wrong, notes


def _strangers(what: str, found: Mapping[str | None, int], published: Mapping[str, object]) -> list[str]:
    """Names that a set of named classes or splits does not have."""
    strange = sorted(name for name in found if name is not None and published and name not in published)
    return [f"{found[name]} tiles of {what} {name!r}, which the set does not have" for name in strange]


def _sizes(known: NamedSet, entries: Sequence[TileEntry], progress: bool) -> list[str]:
    """Tiles that have not the size of the set, by the headers of their files; copies may have been resized."""
    if known.facts.size is None or known.is_copy:
        return []
    sizes: Counter[tuple[int, int]] = Counter()
    for entry in tqdm(entries, desc="sizes", unit="tile", disable=None if progress else True):
        if isinstance(entry, PublishedEntry) and entry.image_of is not None:
            continue  # rows of one array, of which the first and the last are read
        try:
            with Image.open(entry.path, formats=["PNG", "JPEG", "TIFF"]) as image:
                sizes[image.height, image.width] += 1
        except Exception as error:  # damaged files fail in many ways
            return [f"{entry.path} cannot be opened ({error})"]
    height, width = known.facts.size
    return [
        f"{number} tiles are {size[0]} x {size[1]} pixels (height x width), expected {height} x {width}"
        for size, number in sorted(sizes.items())
        if size != known.facts.size
    ]


def _patients(entries: Sequence[TileEntry], disjoint: bool | None) -> list[str]:
    """Whether the splits share patients, as far as can be told."""
    splits = shared_patients(entries)
    if splits:
        names = ", ".join(sorted(splits)[:3])
        return [f"{len(splits)} patients are in more than one split, first {names}: the split is not patient-disjoint"]
    if len({entry.split for entry in entries}) > 1 and not any(entry.patient for entry in entries):
        said = {True: "are said to share none", False: "are known to share some", None: "may share some"}[disjoint]
        return [f"patients are unknown here; the splits {said}"]
    return []


def shared_patients(entries: Sequence[TileEntry]) -> Mapping[str, set[str]]:
    """Patients that are in more than one split, with their splits."""
    splits: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        if entry.patient is not None and entry.split is not None:
            splits.setdefault((entry.source, entry.patient), set()).add(entry.split)
    return {patient: found for (_, patient), found in splits.items() if len(found) > 1}
