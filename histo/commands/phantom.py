"""`nucleate phantom`: tiles or slides of synthetic tissue, to try everything without data."""

import argparse
from pathlib import Path

from histo.errors import InputError


def main(arguments: list[str]) -> int:
    """Run `nucleate phantom tiles|slides --out DIR`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate phantom", description="Draw synthetic tissue from equations, with labels that are exact."
    )
    deeds = parser.add_subparsers(dest="deed", required=True)
    tiles = deeds.add_parser(
        "tiles",
        help="a folder of labelled tiles",
        description="Draw tiles of four classes of tissue of ten patients, every fifth of them for split test, with "
        "exact instance maps: a folder with a tiles.csv.",
    )
    slides = deeds.add_parser(
        "slides",
        help="slides with planted tumour",
        description="Draw slides, every other one with planted tumour, as pyramidal TIFF with a slides.csv and exact "
        "masks of what was planted. Each patient has one slide of either class.",
    )
    for deed, count, size in ((tiles, 400, 128), (slides, 20, 2048)):
        deed.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for them, empty or new")
        deed.add_argument("--count", type=int, default=count, metavar="N", help="how many; default: %(default)s")
        deed.add_argument("--size", type=int, default=size, metavar="N", help="pixels of a side; default: %(default)s")
        deed.add_argument("--mpp", type=float, default=0.5, metavar="X", help="µm/px; default: %(default)s")
        deed.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    slides.add_argument(
        "--tumour", type=float, default=0.06, metavar="X", help="planted share of the tissue; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise InputError(f"--out {options.out} is there and not an empty folder; name a new one.")
    if options.deed == "tiles":
        from histo.phantom import PhantomTissue
        from histo.tiles.tables import write_folder

        tissue = PhantomTissue(options.seed, size=options.size, mpp=options.mpp, count=options.count)
        write_folder((tissue[k] for k in range(len(tissue))), options.out)
        print(f"{options.out}: {tissue.describe()}")
        return 0

    from histo.phantom.slides import PhantomSlides, write_slides

    drawn = PhantomSlides(options.seed, size=options.size, mpp=options.mpp, count=options.count, tumour=options.tumour)
    print(f"The slides: {write_slides(drawn, options.out)}")
    return 0
