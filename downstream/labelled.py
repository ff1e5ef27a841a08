"""Labelled tiles in parts that share no patient: what is learned from, what says when to stop, what is scored."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from downstream.overlaps import alike_patients, common_patients, owners_of_both
from downstream.subsets import labelled_subset
from histo.errors import InputError
from histo.probes.splits import folds
from histo.randomness import draws
from histo.tiles import TileEntry, TileSet, open_tiles
from histo.tiles.classes import grouped, read_groups, resolved
from histo.tiles.owners import Owner, count_owners, owner_of

TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")
Needs = Literal["label", "mask"]


@dataclass
class DataSettings:
    """Labelled tiles, and which of their labels may be used."""

    tiles: list[str] | str | None = None
    """folder of tiles or of shards, NAME:PATH of a published set, or a slides.csv; several as [a, b]"""
    group: list[str] = field(default_factory=list)
    """labels joined to classes: CLASS=LABEL,LABEL …"""
    split: str = "train"
    """split to learn from, where data.folds is 0"""
    extra: list[str] | str | None = None
    """further labelled tiles to learn from, such as what translate/generate.py or pseudomask.py wrote"""
    extra_split: str | None = None
    """split of data.extra to learn from; null: all of them"""
    extra_share: float = 0.5
    """share of the crops that is cut from data.extra; 1: no label of data.tiles is learned from"""
    validation: str | None = None
    """split that says which network counts; null: data.validation_share of the patients of the training part"""
    validation_share: float = 0.0
    """share of the labelled training tiles, by patients, that says which network counts; 0: the last one"""
    holdout: str = "test"
    """split that is scored, where data.folds is 0"""
    folds: int = 0
    """parts without a common patient, each of which is scored once; 0: splits as the tiles name them"""
    label_fraction: float = 1.0
    """share of the training tiles whose labels are used; smaller shares lie inside larger ones for a seed"""
    label_images: int | None = None
    """that many training tiles instead"""
    common_patients: bool = False
    """train although a patient is in two parts; every result then says so"""
    mpp: float | None = None
    """µm/px of all tiles, before what tiles.csv, shards or image files say; slides are cut at it; null: as these say"""
    on_bad: Literal["error", "skip"] = "error"
    """broken files: stop, or leave them out and list them"""
    workers: int = 1
    """loader processes; 0 loads in the training process"""
    cache_mb: int = 512
    """decoded tiles kept in memory by each loader process; MB"""

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0.01 <= self.mpp <= 100:
            raise InputError(f"data.mpp is {self.mpp}, expected µm/px between 0.01 and 100.")
        if not 0 < self.label_fraction <= 1:
            raise InputError(f"data.label_fraction is {self.label_fraction}, expected a share above 0, at most 1.")
        if self.label_images is not None and self.label_images < 1:
            raise InputError(f"data.label_images is {self.label_images}, expected 1 tile or more.")
        if self.label_images is not None and self.label_fraction != 1:
            raise InputError(
                f"data.label_images {self.label_images} and data.label_fraction {self.label_fraction:g} both say how "
                "many labels are used; give one of them."
            )
        if not 0 < self.extra_share <= 1:
            raise InputError(f"data.extra_share is {self.extra_share}, expected a share above 0, at most 1.")
        if not 0 <= self.validation_share < 1:
            raise InputError(f"data.validation_share is {self.validation_share}, expected a share from 0 to below 1.")
        if self.validation is not None and (self.validation_share or self.folds):
            other = f"data.folds {self.folds}" if self.folds else f"data.validation_share {self.validation_share:g}"
            raise InputError(f"data.validation {self.validation!r} and {other} exclude each other; give one of them.")
        if self.folds < 0 or self.folds == 1:
            raise InputError(f"data.folds is {self.folds}, expected 0 or 2 and more.")
        if not 0 <= self.workers <= 64:
            raise InputError(f"data.workers is {self.workers}, expected 0 to 64 processes.")


@dataclass
class Labelled:
    """Tiles of one seed and fold.

    Attributes:
        tiles: all of them; parts: positions of those learned from, validated and scored on, int64 each.
        classes: names, in order; numbers: int64 [N], the class of each tile; empty where the task needs masks.
        number_of: the class of each label of tiles.
        extra: further tiles to learn from; None without any; extra_share: the share of crops that is cut from them.
        patients: of each tile, or the slide that it was cut from; None where both are unknown.
        used: number of training tiles whose labels are used, to learn from or to say which network counts.
        facts: what they are, by name, for people and results.
    """

    tiles: TileSet
    parts: dict[str, NDArray[np.int64]]
    classes: list[str]
    numbers: NDArray[np.int64]
    number_of: dict[str, int]
    extra: TileSet | None
    patients: list[Owner | None]
    used: int
    facts: dict[str, Any]
    extra_share: float = 0.0

    def part(self, name: str) -> TileSet:
        """The tiles of one part."""
        return self.tiles.subset(self.parts[name])

    def learned(self) -> list[tuple[TileSet, float]]:
        """What is learned from, and its share of the crops."""
        both = [(self.part(TRAIN), 1 - self.extra_share), (self.extra, self.extra_share)]
        return [(tiles, share) for tiles, share in both if tiles is not None and share > 0]


def open_labelled(settings: DataSettings, needs: Needs, seed: int, fold: int = 0) -> Labelled:
    """Open tiles, divide them by patient, and keep the labels that may be used.

    Args:
        needs: what a tile must have to be learned from or scored: a label, or a mask.
        seed: of folds, of the validation part, and of the labels that are used.
        fold: the one that is scored, where there are folds.

    Raises:
        InputError: as `open_needed` and `divided`.
    """
    tiles, labels = open_needed(settings, needs)
    return divided(settings, tiles, labels, seed, fold, extra=_open_extra(settings, needs))


def open_needed(settings: DataSettings, needs: Needs, size: int = 256) -> tuple[TileSet, list[str] | None]:
    """Open tiles that have what is needed.

    Args:
        needs: what each must have: a label, or a mask.
        size: side of the tiles that slides are cut into; pixels.

    Returns:
        The tiles, and the class of each; None where masks are needed.

    Raises:
        InputError: no tiles, some without a label or a mask, or groups that do not fit the labels.
    """
    if settings.tiles is None:
        raise InputError("data.tiles is not given, expected labelled tiles; name a folder, or NAME:PATH of a set.")
    tiles = open_tiles(settings.tiles, mpp=settings.mpp, on_bad=settings.on_bad, cache_mb=settings.cache_mb, size=size)
    entries = list(tiles.entries)
    _refuse_bare(entries, needs)
    if needs == "mask":
        return tiles, None
    labels = [str(entry.label) for entry in entries]
    return tiles, grouped(labels, resolved(read_groups(settings.group), labels), str(settings.tiles))


def divided(
    settings: DataSettings,
    tiles: TileSet,
    labels: list[str] | None,
    seed: int,
    fold: int,
    noun: str = "tile",
    extra: TileSet | None = None,
) -> Labelled:
    """Divide tiles by patient, where unknown by slide, and keep the labels that may be used.

    Args:
        tiles: or whatever has the same facts, such as one entry for each slide.
        labels: class of each; None where masks are needed.
        seed: of folds, of the validation part, and of the labels that are used.
        fold: the one that is scored, where there are folds.
        noun: what one of them is called.
        extra: further ones to learn from.

    Raises:
        InputError: a split without tiles; a patient in two parts; a class that a part lacks.
    """
    entries = list(tiles.entries)
    patients = [owner_of(entry) for entry in entries]
    splits = [entry.split for entry in entries]
    parts = _folded(settings, patients, labels, seed, fold) if settings.folds else _named(settings, splits)
    common = common_patients(parts, patients)
    if common and not settings.common_patients:
        (one, other, patient), whose = common[0], count_owners(owner for _, _, owner in common)
        raise InputError(
            f"{whose} are in two parts, first {patient.name} in {one} and {other}; correct the column split of "
            "tiles.csv, or give --data.common_patients true, which every result will then say."
        )
    allowed = parts[TRAIN]
    used = allowed[_chosen(settings, allowed, patients, labels, seed)]
    parts[TRAIN] = used
    if settings.validation_share:
        parts[TRAIN], parts[VALIDATION] = _set_aside(used, patients, labels, settings.validation_share, seed)
    classes = sorted(set(labels)) if labels is not None else []
    numbers = np.array([classes.index(label) for label in labels] if labels is not None else [], dtype=np.int64)
    for name in (TRAIN, VALIDATION, TEST) if len(parts[VALIDATION]) else (TRAIN, TEST):
        for number, label in enumerate(classes):
            if not (numbers[parts[name]] == number).any():
                share = ", or give another data.validation_share" if settings.validation_share else ""
                raise InputError(
                    f"The class {label} has no {noun} in the {name} part, expected some of each class; correct the "
                    f"splits, join classes (--data.group), or use more labels{share if name == VALIDATION else ''}."
                )
    if len(classes) == 1:
        raise InputError(f"The tiles have the class {classes[0]} alone, expected two or more; add tiles of others.")
    number_of = {str(entry.label): int(number) for entry, number in zip(entries, numbers, strict=False)}
    alone = extra is not None and settings.extra_share == 1
    aside = len(parts[VALIDATION]) if settings.validation_share else 0
    learned = (0 if alone else len(parts[TRAIN])) + aside
    chosen_by = f" and {len(parts[VALIDATION])} of the validation part" if settings.validation else ""
    facts = {
        "tiles": tiles.describe(),
        "divided": f"fold {fold + 1} of {settings.folds} is scored, patients dealt by seed {seed}"
        if settings.folds
        else f"splits of the tiles: {settings.split} learned from, {settings.holdout} scored",
        "labels used": f"{learned} of {len(allowed)} training {noun}s{chosen_by}",
        **{name: f"{len(parts[name])} {noun}s · {count_owners(patients[k] for k in parts[name])}" for name in PARTS},
        "patients": _known(patients, noun),
    }
    if extra is not None:
        judged = {name: [(entries[k], patients[k]) for k in parts[name]] for name in (TEST, VALIDATION)}
        shared = owners_of_both(extra, number_of, judged, settings.common_patients)
        facts["extra"] = f"{extra.describe()}, {settings.extra_share:.0%} of the crops"
        common = common or shared
        present = {number_of.get(str(entry.label)) for entry in extra.entries}
        lacking = [name for number, name in enumerate(classes) if alone and number not in present]
        if lacking:
            raise InputError(
                f"data.extra has no tile of the class {lacking[0]}, expected some of each as data.extra_share is 1; "
                "add such tiles, or lower the share."
            )
    warnings = alike_patients(parts, patients)
    if common:
        whose = count_owners(owner for _, _, owner in common)
        warnings = [f"{whose} are in two parts, so that scores are too high", *warnings]
    if warnings:
        facts["warning"] = "; ".join(warnings)
    of_extra = 0.0 if extra is None else settings.extra_share
    return Labelled(
        tiles,
        parts,
        classes,
        numbers,
        number_of,
        extra,
        patients,
        learned + len(parts[VALIDATION]) - aside,
        facts,
        of_extra,
    )


def _refuse_bare(entries: Sequence[TileEntry], needs: Needs) -> None:
    bare = [entry for entry in entries if getattr(entry, needs) is None]
    if bare:
        raise InputError(
            f"{len(bare)} of {len(entries)} tiles have no {needs}, first {bare[0].path}; fill the column {needs} of "
            "tiles.csv, or leave them out."
        )


def _open_extra(settings: DataSettings, needs: Needs) -> TileSet | None:
    if settings.extra is None:
        return None
    extra = open_tiles(settings.extra, mpp=settings.mpp, on_bad=settings.on_bad, cache_mb=settings.cache_mb)
    if settings.extra_split is not None:
        chosen = [k for k, entry in enumerate(extra.entries) if entry.split == settings.extra_split]
        if not chosen:
            present = ", ".join(sorted({str(entry.split) for entry in extra.entries}))
            raise InputError(
                f"No tile of data.extra is of the split {settings.extra_split!r}; they have {present}: name one of "
                "these as data.extra_split, or leave it out."
            )
        extra = extra.subset(np.array(chosen))
    _refuse_bare(list(extra.entries), needs)
    return extra


def _named(settings: DataSettings, splits: Sequence[str | None]) -> dict[str, NDArray[np.int64]]:
    """Parts by the splits that the tiles name."""
    wanted = {TRAIN: settings.split, VALIDATION: settings.validation, TEST: settings.holdout}
    for one, other in combinations(("split", "validation", "holdout"), 2):
        name = getattr(settings, one)
        if name is not None and name == getattr(settings, other):
            raise InputError(
                f"data.{one} and data.{other} are both {name!r}, but tiles that are learned from, that choose the "
                "network and that are scored must be different ones; name another split, or give --data.folds 5."
            )
    parts = {
        part: np.array([k for k, split in enumerate(splits) if name is not None and split == name], dtype=np.int64)
        for part, name in wanted.items()
    }
    for part, name in wanted.items():
        if name is not None and not len(parts[part]):
            present = ", ".join(sorted({str(split) for split in splits}))
            raise InputError(
                f"No tile is of the split {name!r}, which is to be the {part} part; the tiles have {present}: fill the "
                "column split of tiles.csv, name another split, or give --data.folds 5."
            )
    return parts


def _folded(
    settings: DataSettings, patients: Sequence[Owner | None], labels: Sequence[str] | None, seed: int, fold: int
) -> dict[str, NDArray[np.int64]]:
    """One fold is scored, the others are learned from."""
    of_tile = folds(patients, labels if labels is not None else ["nuclei"] * len(patients), settings.folds, seed)
    learned, scored = np.flatnonzero(of_tile != fold), np.flatnonzero(of_tile == fold)
    return {TRAIN: learned, VALIDATION: np.empty(0, np.int64), TEST: scored}


def _known(patients: Sequence[Owner | None], noun: str) -> str:
    """What is known of the patients, for people."""
    known = {one for one in patients if one is not None}
    slides = {one for one in known if one.kind == "slide"}
    unknown = sum(one is None or one in slides for one in patients)
    apart = f", each of their {len(slides)} slides counted as one" if slides else ""
    return f"{len(known - slides)} known, {unknown} {noun}s of unknown patient{apart}"


def _chosen(
    settings: DataSettings,
    allowed: NDArray[np.int64],
    patients: Sequence[Owner | None],
    labels: Sequence[str] | None,
    seed: int,
) -> NDArray[np.int64]:
    return labelled_subset(
        [patients[k] for k in allowed],
        None if labels is None else [labels[k] for k in allowed],
        fraction=settings.label_fraction,
        images=settings.label_images,
        seed=seed,
    )


def _set_aside(
    used: NDArray[np.int64],
    patients: Sequence[Owner | None],
    labels: Sequence[str] | None,
    share: float,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole patients of the labelled tiles for validation, as long as every class keeps patients to learn from.

    Patients come in an order drawn from the seed, first those that bring a class, so that the part has every class
    where its share allows.
    """
    own = [("tile", int(k)) if patients[k] is None else patients[k] for k in used]
    sizes, classes_of = Counter(own), defaultdict(set)
    for patient, k in zip(own, used, strict=True):
        classes_of[patient].add(labels[k] if labels is not None else "nuclei")
    left = Counter(name for names in classes_of.values() for name in names)
    known = list(classes_of)
    order = [known[place] for place in draws(seed, "validation patients", 0).permutation(len(known))]
    aside: set[Hashable] = set()
    held, shown = 0, set[str]()
    for only_new in (True, False):
        for patient in order:
            names = classes_of[patient]
            if patient in aside or (only_new and names <= shown):
                continue
            if held + sizes[patient] <= share * len(own) and all(left[name] > 1 for name in names):
                aside.add(patient)
                held += sizes[patient]
                shown |= names
                left.subtract(names)
    if not aside:
        raise InputError(
            f"data.validation_share {share:g} of {len(used)} labelled tiles is less than a patient, or would leave a "
            "class without one to learn from; give 0, or use more labels."
        )
    held_out = np.array([patient in aside for patient in own])
    return used[~held_out], used[held_out]
