"""`nucleate check`: what a folder of tiles is, what is wrong with it, and what to do."""

import argparse
import json
from pathlib import Path

from histo.errors import InputError, writing
from histo.files import written_whole


def main(arguments: list[str]) -> int:
    """Run `nucleate check PATH`; returns the exit code: 0 nothing is wrong, 1 findings."""
    parser = argparse.ArgumentParser(
        prog="nucleate check",
        description="Look at every tile of a set: damaged and empty files, masks that do not fit, duplicates and near-"
        "duplicates, patients and copies on both sides of a split, µm/px that do not fit the nuclei. Nothing is "
        "changed. Exit code 0: nothing is wrong, 1: there are findings, 2: there is nothing that can be read as tiles.",
    )
    parser.add_argument(
        "path", metavar="PATH", help="a folder with or without tiles.csv, shards, or NAME:PATH of a published set"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there, with every name")
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise InputError(f"{options.json.parent} is no folder, so {options.json} cannot be written; make it first.")

    from histo.inspection import inspect

    report = inspect(options.path, progress=True)
    print(report.text())
    if options.json is not None:
        with writing(options.json), written_whole(options.json) as file:
            file.write(json.dumps(report.as_json(), indent=1, ensure_ascii=False).encode("utf-8"))
    return 1 if report.findings else 0
