"""`nucleate pack`: a set of tiles into shards, and shards checked for damage."""

import argparse
import sys
from pathlib import Path
from typing import Any

from histo.errors import InputError


def main(arguments: list[str]) -> int:
    """Run `nucleate pack FOLDER --out DIR` or `nucleate pack --check DIR`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate pack",
        description="Pack a folder of tiles into shards: tar archives as WebDataset lays them out, with a manifest. "
        "Whatever takes a folder of tiles takes the folder of shards.",
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="images, with or without a tiles.csv")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the shards, new or empty")
    parser.add_argument("--shard_mb", type=float, default=64, metavar="MB", help="largest shard; MB, default: 64")
    parser.add_argument("--licence", metavar="TEXT", help="terms of the tiles, for the manifest; default: unknown")
    parser.add_argument(
        "--check", type=Path, metavar="DIR", help="read every byte of packed shards and name the damaged"
    )
    options = parser.parse_args(arguments)
    if options.check is not None:
        if options.folder is not None or options.out is not None:
            raise InputError("--check takes the folder of shards alone; leave FOLDER and --out out.")
        return _check(options.check)
    if options.folder is None or options.out is None:
        raise InputError("nothing to pack, expected FOLDER and --out DIR, or --check DIR; see `nucleate pack --help`.")
    return _pack(options.folder, options.out, options.shard_mb, options.licence)


def _pack(folder: Path, out: Path, shard_mb: float, licence: str | None) -> int:
    from histo.tiles.packing import leftovers, pack

    if left := leftovers(out):
        print(f"An earlier packing into {out} was interrupted; its {len(left)} files are replaced.", flush=True)
    try:
        manifest = pack(folder, out, shard_mb=shard_mb, licence=licence, progress=True)
    except KeyboardInterrupt:
        print(f"\nInterrupted; the same command starts afresh in {out}.", file=sys.stderr)
        return 130
    print(summary(manifest))
    print(f"The shards: {out}")
    return 0


def _check(out: Path) -> int:
    from histo.tiles.packing import damage

    found = damage(out, progress=True)
    print("\n".join(found) or f"{out}: every shard is as its manifest says.")
    return 1 if found else 0


def summary(manifest: dict[str, Any]) -> str:
    """What was packed, and what is unknown of it, for people."""
    tiles = manifest["tiles"]
    lowest, highest = manifest["mpp"] or (None, None)
    rows = {
        "tiles": f"{tiles}, {manifest['masks']} with masks",
        "shards": f"{len(manifest['shards'])} of together {manifest['bytes'] / 1e6:.1f} MB",
        "classes": _counts(manifest["classes"]),
        "patients": str(manifest["patients"]) if manifest["patients"] else "",
        "splits": _counts(manifest["splits"]),
        "µm/px": "" if lowest is None else f"{lowest:.4g}" if lowest == highest else f"{lowest:.4g} to {highest:.4g}",
        "licences": ", ".join(manifest["licences"]),
    }
    unknown = {"classes": "class", "patients": "patient", "splits": "split", "µm/px": "mpp"}
    lines = []
    for name, text in rows.items():
        missing = manifest["unknown"][unknown[name]] if name in unknown else 0
        gap = "unknown" if missing == tiles else f"{text}, unknown for {missing}"
        lines.append(f"{name:<9} {gap if missing else text}")
    return "\n".join(lines)


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())
