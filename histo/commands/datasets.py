"""`nucleate datasets`: the published sets that open by name, and whether one is whole where it was unpacked."""

import argparse
import json
import textwrap
from pathlib import Path

from histo.errors import InputError


def main(arguments: list[str]) -> int:
    """Run `nucleate datasets` or `nucleate datasets check NAME PATH`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate datasets",
        description="Published data sets that open by name, as NAME:PATH wherever a folder of tiles goes. Without "
        "arguments they are listed: licence, µm/px, what to download from where, the files that are read. Nothing is "
        "ever downloaded.",
    )
    parser.add_argument("--json", action="store_true", help="list them as JSON")
    verbs = parser.add_subparsers(dest="verb", metavar="check NAME PATH")
    check = verbs.add_parser(
        "check",
        help="compare a set with what was published",
        description="Compare counts, classes and sizes with those published, and read the first and the last tile. "
        "Exit code 0: nothing is wrong (a part of a set is fine), 1: something is, 2: it cannot be read.",
    )
    check.add_argument("name", metavar="NAME", help="a set, or NAME@PART for a part of it")
    check.add_argument("path", type=Path, metavar="PATH", help="the folder where it was unpacked")
    options = parser.parse_args(arguments)
    if options.verb == "check":
        return _check(options.name, options.path)
    print(_as_json() if options.json else _listing())
    return 0


def _check(name: str, path: Path) -> int:
    from histo.datasets import named_set
    from histo.tiles.integrity import integrity

    if not path.is_dir():
        raise InputError(f"{path} is no folder, expected the one where {name} was unpacked; check the path.")
    known = named_set(f"{name}:{path}")
    if known is None:
        raise InputError(f"{name!r} is no name of a set; `nucleate datasets` lists them.")
    wrong, notes = integrity(known, progress=True)
    for mark, lines in (("!!", wrong), (" ·", notes)):
        print("\n".join(f"{mark}  {line}" for line in lines), end="\n" if lines else "")
    facts = known.facts
    print(f"{facts.title}: {'something is wrong' if wrong else 'nothing is wrong'}. Licence: {facts.licence}.")
    return 1 if wrong else 0


def _listing() -> str:
    from histo.datasets import facts, names

    blocks = []
    for name in names():
        known = facts(name)
        terms = {True: " (non-commercial)", False: "", None: " (commercial use: unclear)"}[known.noncommercial]
        rows = {
            "licence": known.licence + terms,
            "µm/px": f"{'unknown or varying' if known.mpp is None else known.mpp}, {known.magnification}",
            "tiles": _tiles(known.tiles, known.splits),
            "patients": known.patients or "unknown",
            "get": known.get,
            "files": known.layout,
            "parts": "; ".join(f"@{part}: {what}" for part, what in known.parts.items()),
            "note": known.notes,
            "unsure": ", ".join(known.unconfirmed),
            "cite": known.citation,
        }
        lines = [
            textwrap.fill(text, 118, initial_indent=f"  {row:<9}", subsequent_indent=" " * 11)
            for row, text in rows.items()
            if text
        ]
        blocks.append("\n".join([f"{name}  {known.title}", *lines]))
    return "\n\n".join([*blocks, "Open one as NAME:PATH, for example --data.tissue pannuke:path/to/pannuke."])


def _tiles(number: int | None, splits: object) -> str:
    parts = ", ".join(f"{split} {count}" for split, count in splits.items()) if isinstance(splits, dict) else ""
    return f"{'' if number is None else number}{f' ({parts})' if parts else ''}"


def _as_json() -> str:
    from dataclasses import asdict

    from histo.datasets import facts, names

    return json.dumps({name: asdict(facts(name)) for name in names()}, indent=1, ensure_ascii=False)
