"""`nucleate phantom slides`: slides of synthetic tissue with planted tumour, to try what reads slides."""

import argparse
from pathlib import Path

from histo.errors import InputError


def main(arguments: list[str]) -> int:
    """Run `nucleate phantom slides --out DIR`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate phantom",
        description="Draw slides of synthetic tissue from equations, every other one with planted tumour, as pyramidal "
        "TIFF with a slides.csv and exact masks of what was planted. Each patient has one slide of either class.",
    )
    parser.add_argument("deed", choices=["slides"], help="slides: draw them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for them, empty or new")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="slides; default: 20")
    parser.add_argument("--size", type=int, default=2048, metavar="N", help="pixels of a side; default: 2048")
    parser.add_argument("--mpp", type=float, default=0.5, metavar="X", help="µm/px; default: 0.5")
    parser.add_argument(
        "--tumour", type=float, default=0.06, metavar="X", help="planted share of the tissue; default: 0.06"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    options = parser.parse_args(arguments)
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise InputError(f"--out {options.out} is there and not an empty folder; name a new one.")

    from histo.phantom.slides import PhantomSlides, write_slides

    slides = PhantomSlides(options.seed, size=options.size, mpp=options.mpp, count=options.count, tumour=options.tumour)
    print(f"The slides: {write_slides(slides, options.out)}")
    return 0
