"""Published data sets by name: `NAME:PATH` opens one where its files lie as published. Nothing is ever downloaded.

A set is a module of this package with `FACTS`, what is known of it, and `entries`, its tiles; its name is the module's.
A copy in another layout opens too if it has a `tiles.csv`, which then says all that is known of its tiles.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import cast

from histo.errors import InputError
from histo.tiles.entries import TileEntry, of_split
from histo.tiles.published import Facts
from histo.tiles.tables import open_folder

_NAMED = re.compile(r"(?P<name>[a-z][a-z0-9_]+)(?P<parts>(@[a-z0-9]+)*):(?P<folder>.+)")


@dataclass(frozen=True)
class NamedSet:
    """A published set at a place.

    Attributes:
        name: one of `names`.
        parts: which parts of it are asked for, of those its facts list; empty for everything.
        folder: where it was unpacked.
    """

    name: str
    parts: tuple[str, ...]
    folder: Path

    @property
    def facts(self) -> Facts:
        """What is known of the set."""
        return facts(self.name)

    @property
    def is_copy(self) -> bool:
        """Whether the folder describes its tiles itself, by a `tiles.csv`."""
        return (self.folder / "tiles.csv").is_file()

    def entries(
        self, source: str, *, mpp: float | None = None, split: str | None = None, on_bad: str = "error"
    ) -> Sequence[TileEntry]:
        """Its tiles, with `source` as theirs; `mpp`, `split` and `on_bad` as in `histo.tiles.open_tiles`.

        Raises:
            InputError: nothing in the published layout at the folder, or files of it that break its rules.
        """
        if self.is_copy:
            if self.parts:
                raise InputError(
                    f"{self.folder} has a tiles.csv, where the parts of {self.name} are not known, but "
                    f"@{self.parts[0]} was asked for; leave it out, or point at the set as published."
                )
            return open_folder(self.folder, source, mpp=mpp, split=split, on_bad=on_bad)[0]
        found: list[TileEntry] = _module(self.name).entries(self.folder, source, self.parts)
        if not found:
            part = f" of {', '.join(self.parts)}" if self.parts else ""
            raise InputError(
                f"{self.folder} holds nothing{part} in the layout of {self.name}, expected {self.facts.layout}; check "
                f"the path, or see `nucleate datasets`."
            )
        if mpp is not None:
            found = [replace(entry, mpp=float(mpp)) for entry in found]
        return found if split is None else [found[k] for k in of_split(found, split, f"{self.name}:{self.folder}")]


def names() -> list[str]:
    """The sets there are."""
    return sorted(module.name for module in iter_modules(__path__))


def facts(name: str) -> Facts:
    """What is known of a set.

    Raises:
        InputError: no such set.
    """
    return cast(Facts, _module(name).FACTS)


def named_set(text: str | Path) -> NamedSet | None:
    """The set that `NAME:PATH` or `NAME@PART:PATH` means; None for a URL, a plain path, or one that exists.

    Raises:
        InputError: no such set, or no such part of it.
    """
    match = _NAMED.fullmatch(str(text))
    if match is None or "://" in str(text) or Path(text).exists():
        return None
    name, parts = match["name"], tuple(match["parts"].split("@")[1:])
    known = facts(name).parts
    for part in parts:
        if part not in known:
            raise InputError(
                f"{name} has no part {part!r}, expected {', '.join(known) or 'none, as it has no parts'}; correct "
                f"{str(text)!r}."
            )
    return NamedSet(name, parts, Path(match["folder"]))


def _module(name: str):  # type: ignore[no-untyped-def]  # a module of this package
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}."
        raise InputError(f"There is no data set {name!r}; {hint}")
    return import_module(f"{__name__}.{name}")
