"""What a look at a folder of tiles found: facts, and findings of named kinds with what to do about each."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SHOWN = 3  # names of each finding that people see; the JSON has all

# kind: (what is wrong, what to do)
KINDS = {
    "table": ("tiles.csv breaks a rule", "mend the line that is named; training stops at it"),
    "columns": ("tiles.csv has columns that are not read", "rename them if they were meant to be, else leave them"),
    "missing files": ("files that tiles.csv names are not there", "restore them, or remove their rows"),
    "repeated keys": ("tiles.csv names a tile twice", "remove one of the two rows"),
    "unlisted images": ("images of the folder are not in tiles.csv, so they are not used", "add rows, or remove them"),
    "links": ("links lead out of the folder", "copy what they lead to into the folder"),
    "empty files": ("files of 0 bytes", "restore them, or remove them"),
    "images": ("images cannot be read", "replace or remove them; --data.on_bad skip leaves them out"),
    "masks": ("instance maps cannot be read", "save them as 16-bit PNG with one id for each nucleus"),
    "images without mask": ("images have no mask although others have", "add the masks, or keep the images apart"),
    "masks without image": ("masks belong to no image", "name them as their images are named, or remove them"),
    "mask sizes": ("a mask has another size than its image", "pair each mask with its own image"),
    "empty masks": ("masks hold no nucleus", "look at them: is there none, or was the annotation lost?"),
    "binary masks": (
        "masks hold several nuclei under one id",
        "number the nuclei, else all of them count as one; scipy.ndimage.label does it where they do not touch",
    ),
    "sizes": ("a few tiles have another size than all others", "look whether they are whole"),
    "modes": ("a few images have other channels or bits than all others", "save all of them in one form"),
    "duplicates": ("tiles have the same pixels", "keep one of each, or they count twice"),
    "near-duplicates": (
        "tiles are alike but for compression, turning by quarters or mirroring",
        "keep one of each, or they count twice",
    ),
    "duplicates across splits": (
        "tiles of different splits have the same or nearly the same pixels",
        "move all copies into one split, or what is measured on the other is too good",
    ),
    "patients across splits": (
        "patients are on both sides of a split",
        "split by patient, or what is measured is too good",
    ),
    "pixel size": ("the µm/px do not fit the nuclei", "check the column mpp or --data.mpp against the scanner"),
    "mixed magnification": (
        "nuclei differ more in size from tile to tile than at one magnification",
        "give each tile its own µm/px, or keep the magnifications apart",
    ),
    "published set": ("the set is not as it was published", "download or unpack it again"),
}


@dataclass
class Report:
    """Facts and findings of one look.

    Attributes:
        what: what the path is, in words.
        facts: name → text, for people.
        findings: kind of `KINDS` → names and sentences, in the order they were met.
        notes: what is worth knowing and no fault.
    """

    what: str
    facts: dict[str, str] = field(default_factory=dict)
    findings: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, items: Iterable[str]) -> None:
        """Put items under a finding; without items there is none."""
        if items := list(items):
            assert kind in KINDS
            self.findings.setdefault(kind, []).extend(items)

    def as_json(self) -> dict[str, Any]:
        """The report for programs: every name of every finding."""
        findings = [
            {"kind": kind, "what": KINDS[kind][0], "do": KINDS[kind][1], "count": len(items), "items": items}
            for kind, items in self.findings.items()
        ]
        return {"what": self.what, "facts": self.facts, "notes": self.notes, "findings": findings}

    def text(self) -> str:
        """The report for people: the first names of each finding and their number."""
        width = max(map(len, self.facts), default=0)
        lines = [self.what, *(f"  {name:<{width}}  {text}" for name, text in self.facts.items())]
        lines += [f"  ·  {note}" for note in self.notes]
        for kind, items in self.findings.items():
            what, do = KINDS[kind]
            lines += ["", f"!!  {kind} ({len(items)}): {what}"]
            lines += [f"      {item}" for item in items[:SHOWN]]
            lines += [f"      … and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
            lines.append(f"    → {do}")
        kinds = len(self.findings)
        verdict = f"{kinds} kind{'' if kinds == 1 else 's'} of findings." if kinds else "Nothing is wrong."
        return "\n".join([*lines, "", verdict])
