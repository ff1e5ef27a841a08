"""What encoders are probed on: tiles with a class and a patient each, and tiles with instance maps."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from histo.datasets import facts, named_set, names
from histo.errors import InputError
from histo.inspection.likeness import MOST_COMPARED, alike, spectrum
from histo.probes import fitted
from histo.randomness import draws
from histo.tiles import TileSet, open_tiles
from histo.tiles.classes import Groups, grouped, resolved

Target = Literal["label", "source"]


@dataclass
class Problem:
    """One set of tiles, or several joined, with what is to be told apart in it.

    Attributes:
        name: for tables.
        tiles: of which those at `positions` are used.
        labels: class of each used tile; None where the tiles have none.
        patients: (source, patient) of each used tile, None where unknown.
        notes: known flaws of the set, for people.
    """

    name: str
    tiles: TileSet
    positions: list[int]
    labels: list[str] | None
    patients: list[Hashable | None]
    mpp: float | None
    notes: list[str] = field(default_factory=list)

    def images(self, side: int) -> Tensor:
        """uint8 [N, 3, side, side]; see `histo.probes.fitted`."""
        return torch.from_numpy(np.stack([fitted(self.tiles[k], side, self.mpp) for k in self.positions]))

    @property
    def masked(self) -> list[int]:
        """Which of the used tiles have an instance map: places among `positions`."""
        return [place for place, k in enumerate(self.positions) if self.tiles.entries[k].mask is not None]

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of it, as JSON can hold it."""
        entries = [self.tiles.entries[k] for k in self.positions]
        known = {patient for patient in self.patients if patient is not None}
        classes = {name: self.labels.count(name) for name in sorted(set(self.labels))} if self.labels else None
        return {
            "set": self.name,
            "tiles": len(entries),
            "described": self.tiles.describe(),
            "classes": classes,
            "patients": len(known),
            "tiles_of_unknown_patient": self.patients.count(None),
            "mpp": sorted({entry.mpp for entry in entries if entry.mpp is not None}),
            "resized": "whole tile, whatever its µm/px" if self.mpp is None else f"to {self.mpp:g} µm/px, centre",
            "notes": self.notes,
        }

    def near_duplicates(self) -> list[tuple[int, int]] | None:
        """Pairs of used tiles that look alike, by `histo.inspection.likeness`; None where there are too many tiles."""
        if len(self.positions) > MOST_COMPARED:
            return None
        found = [(place, spectrum(self.tiles[k].image)) for place, k in enumerate(self.positions)]
        places = [place for place, each in found if each is not None]
        spectra = [each for _, each in found if each is not None]
        return [(places[i], places[j]) for i, j in alike(np.stack(spectra))] if spectra else []


def open_problems(
    paths: Sequence[str], target: Target, groups: Groups, mpp: float | None, most: int, seed: int
) -> list[Problem]:
    """One problem for each set where the target is its labels, or one of all sets where it is where a tile comes from.

    Args:
        groups: class → labels that make it up; sets with none of these labels keep their own.
        mpp: bring tiles to it; None leaves their scale.
        most: tiles of a problem; more are drawn from by the seed.

    Raises:
        InputError: tiles that cannot be opened, groups of labels that no set has or that leave out some of a set, a set
            with neither labels nor instance maps, or a single source.
    """
    if target == "source":
        tiles = open_tiles(list(paths))
        labels = [entry.source for entry in tiles.entries]
        if len(set(labels)) < 2:
            raise InputError(f"All tiles come from {labels[0]}, expected two sets or more for --data.target source.")
        notes = [note for path in paths for note in _notes(path)]
        problems = [_problem("source of " + ", ".join(sorted(set(labels))), tiles, labels, mpp, most, seed, notes)]
    else:
        sets = [open_tiles(path) for path in paths]
        if groups:
            groups = resolved(
                groups, {label for tiles in sets for label in tiles.entries.facts("label").values if label}
            )
        problems = []
        for path, tiles in zip(paths, sets, strict=True):
            name = tiles.entries[0].source
            problems.append(_problem(name, tiles, _labels(name, tiles, groups), mpp, most, seed, _notes(path)))
    if mpp is not None:
        for problem in problems:
            problem.tiles.require_mpp("--data.mpp")
    return problems


def _labels(name: str, tiles: TileSet, groups: Groups) -> list[str] | None:
    labels = [entry.label for entry in tiles.entries]
    if None in labels:
        if all(entry.mask is None for entry in tiles.entries):
            raise InputError(
                f"{name} has {labels.count(None)} tiles without a label and no instance maps, so there is nothing to "
                "probe; fill the column label of tiles.csv, or give --data.target source."
            )
        return None
    return grouped([str(label) for label in labels], groups, name)


def _problem(
    name: str,
    tiles: TileSet,
    labels: list[str] | None,
    mpp: float | None,
    most: int,
    seed: int,
    notes: list[str],
) -> Problem:
    positions = sorted(draws(seed, "probe tiles", 0).permutation(len(tiles))[:most].tolist())
    entries = [tiles.entries[k] for k in positions]
    patients: list[Hashable | None] = [e.patient and (e.source, e.patient) for e in entries]
    return Problem(name, tiles, positions, labels and [labels[k] for k in positions], patients, mpp, notes)


def _notes(path: str) -> list[str]:
    """What is known against a set: for certain where it is NAME:PATH, else as far as its folder's name says."""
    known = named_set(path)
    if known is not None:
        return [f"{known.facts.title}: {known.facts.notes}"] if known.facts.notes else []
    folder = Path(path).name
    return [
        f"If {folder} is a copy of {facts(name).title}, as its name suggests: {facts(name).notes}"
        for name in names()
        if folder.startswith(name) and facts(name).notes
    ]
