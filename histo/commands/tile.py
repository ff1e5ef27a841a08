"""`nucleate tile`: whole slides into shards of tiles that hold tissue."""

import argparse
import sys
from pathlib import Path
from typing import Any

from histo.errors import InputError


def main(arguments: list[str]) -> int:
    """Run `nucleate tile SLIDES --out DIR --mpp X`.

    The exit code is 1 where slides were left out, a part of one could not be read, or no tile was kept.
    """
    parser = argparse.ArgumentParser(
        prog="nucleate tile",
        description="Cut whole slides into tiles of a given µm/px, leave out those without enough tissue, and pack the "
        "others into shards. Whatever takes a folder of tiles takes the folder of shards. The same command goes on "
        "where it was stopped.",
    )
    parser.add_argument(
        "slides",
        type=Path,
        metavar="SLIDES",
        help="a slide, a folder of slides, or a slides.csv (path,patient,label,split,mpp; only path must be there)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards")
    parser.add_argument("--mpp", type=float, required=True, metavar="X", help="µm/px of the tiles, such as 0.25")
    parser.add_argument("--size", type=int, default=256, metavar="N", help="side of the tiles; pixels, default: 256")
    parser.add_argument("--overlap", type=int, default=0, metavar="N", help="shared by neighbours; pixels, default: 0")
    parser.add_argument(
        "--tissue", type=float, default=0.5, metavar="X", help="share of a tile that must be tissue; default: 0.5"
    )
    parser.add_argument("--format", choices=["png", "jpg"], default="png", help="of the tiles; default: png")
    parser.add_argument("--shard_mb", type=float, default=64, metavar="MB", help="largest shard; MB, default: 64")
    parser.add_argument("--licence", metavar="TEXT", help="terms of the slides, for the manifest; default: unknown")
    parser.add_argument("--assume_mpp", type=float, metavar="X", help="µm/px of slides that do not say theirs")
    parser.add_argument("--allow_upsample", action="store_true", help="also from slides 1.1 times coarser or more")
    parser.add_argument(
        "--on_bad",
        choices=["error", "skip"],
        default="error",
        help="slides that cannot be cut: stop, or leave out",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes, for many slides; default: 1")
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier call left in --out")
    options = parser.parse_args(arguments)
    for name in ("shard_mb", "assume_mpp"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} is {value}, expected a number above 0; correct it.")
    if not 1 <= options.workers <= 256:
        raise InputError(f"--workers is {options.workers}, expected 1 to 256 processes; correct it.")
    return _tile(options)


def _tile(options: argparse.Namespace) -> int:
    from histo.running.locks import FolderLock
    from histo.slides.grids import Tiling
    from histo.slides.tables import list_slides, slides_source
    from histo.slides.tiling import TileJob, begin, cut_slides, read_report, ready

    tiling = Tiling(options.mpp, options.size, options.overlap, options.tissue, options.allow_upsample)
    _refuse_own_input(options.slides, options.out)
    rows = list_slides(options.slides)
    rows, refused = ready(rows, tiling, assume_mpp=options.assume_mpp, on_bad=options.on_bad)
    for sentence in refused:
        print(f"left out: {sentence}", file=sys.stderr, flush=True)
    job = TileJob(rows, slides_source(options.slides), tiling, options.format, options.shard_mb, options.licence)
    lock = FolderLock(options.out, "--out")
    try:
        if begin(options.out, job, overwrite=options.overwrite):
            print(f"{options.out} is finished already; add --overwrite to cut the slides again.")
            report = read_report(options.out)
        else:
            report = cut_slides(options.out, job, refused, workers=options.workers, progress=True)
    except KeyboardInterrupt:
        print(f"\nInterrupted; the same command goes on in {options.out}.", file=sys.stderr)
        return 130
    finally:
        lock.release()
    print(table(report))
    damaged = [record for record in report["slides"] if record["first unreadable"]]
    for record in damaged:
        number = record["dropped"]["unreadable"]
        print(f"damaged: {number} tiles left out, the first because {record['first unreadable']}", file=sys.stderr)
    if not report["kept"]:
        print(f"No tile was kept: look at the pictures in {options.out / 'overviews'}.")
        return 1
    print(f"The shards: {options.out}")
    return 1 if refused or damaged else 0


def _refuse_own_input(slides: Path, out: Path) -> None:
    if slides.is_dir() and (out.resolve() == slides.resolve() or out.resolve().is_relative_to(slides.resolve())):
        raise InputError(f"--out {out} lies among the slides in {slides}; name a folder beside it.")


def table(report: dict[str, Any]) -> str:
    """Kept and dropped tiles of every slide, for people."""
    reasons = list(report["dropped"])
    width = max(7, *(len(record["slide"]) for record in report["slides"]))
    lines = [f"{'slide':<{width}}{'kept':>8}" + "".join(f"{reason:>15}" for reason in reasons) + f"{'µm/px':>10}"]
    for record in [*report["slides"], {**report, "slide": "all", "mpp": None}]:
        counts = "".join(f"{record['dropped'][reason]:>15}" for reason in reasons)
        mpp = "" if record["mpp"] is None else f"{record['mpp']:.4g}"
        lines.append(f"{record['slide']:<{width}}{record['kept']:>8}{counts}{mpp:>10}".rstrip())
    return "\n".join(lines)
