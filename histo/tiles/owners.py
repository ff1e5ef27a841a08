"""Whose a tile is: tiles of one patient, or of one slide, are alike, and stay together wherever tiles are parted."""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from histo.slides.streaming import SlideEntry
from histo.tiles.entries import TileEntry

_PLACED = re.compile(r"(.+)/x\d{6,}_y\d{6,}(?:\.\w+)?")  # the key of a cut tile, behind that of its slide


class Owner(NamedTuple):
    """A patient, or a slide whose patient is unknown."""

    source: str
    name: str
    kind: Literal["patient", "slide"] = "patient"

    def __str__(self) -> str:
        return f"{self.source}/{'slide ' if self.kind == 'slide' else ''}{self.name}"


def slide_of(entry: TileEntry) -> str | None:
    """The key of the slide that a tile was cut from; None where it comes from none."""
    if isinstance(entry, SlideEntry):
        return entry.row.key
    placed = _PLACED.fullmatch(entry.key)
    return None if placed is None else placed[1]


def owner_of(entry: TileEntry) -> Owner | None:
    """The patient of a tile, where unknown its slide; None where it has neither."""
    if entry.patient:
        return Owner(entry.source, entry.patient)
    slide = slide_of(entry)
    return None if slide is None else Owner(entry.source, slide, "slide")


def count_owners(owners: Iterable[Owner | None]) -> str:
    """For people: "3 patients", and slides of unknown patient where there are any."""
    different = set(owners) - {None}
    slides = sum(owner is not None and owner.kind == "slide" for owner in different)
    patients = len(different) - slides
    said = [f"{patients} patients"] if patients or not slides else []
    return " · ".join([*said, *([f"{slides} slides of unknown patient"] if slides else [])])
