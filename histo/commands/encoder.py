"""`nucleate encoder`: encoder files from and for other libraries, what one holds, and two side by side."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histo.errors import InputError

if TYPE_CHECKING:
    from histo.encoders import Opened

SHOWN = 10  # tensors


def main(arguments: list[str]) -> int:
    """Run `nucleate encoder convert|show|compare`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate encoder",
        description="Convert encoders between nucleate, timm, torchvision, segmentation_models_pytorch (smp) and the "
        "Hugging Face hub, show what a file holds, or compare two. Nothing that stands in a file is ever run.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="convert|show|compare", required=True)
    convert = verbs.add_parser("convert", help="write an encoder for a library, with its cards")
    convert.add_argument("source", metavar="IN", help="encoder file, run folder, checkpoint, hub folder, or timm:NAME")
    convert.add_argument("out", type=Path, metavar="OUT", help="name ending in .safetensors; of --to hub a folder")
    convert.add_argument(
        "--to",
        choices=["timm", "torchvision", "smp", "hub"],
        default="timm",
        help="timm: an encoder file of nucleate, which timm loads; default: timm",
    )
    convert.add_argument("--mean", type=_numbers, metavar="X", help="of the levels / 255: one number, or R,G,B")
    convert.add_argument("--std", type=_numbers, metavar="X", help="likewise")
    convert.add_argument("--mpp", type=float, metavar="X", help="µm/px of the tiles it learned from; default: unknown")
    convert.add_argument("--tile_size", type=int, metavar="N", help="side of these tiles, pixels; default: unknown")
    convert.add_argument("--data", metavar="TEXT", help="what it learned from, for the card; default: unknown")
    convert.add_argument("--licence", metavar="TEXT", help="terms of these data; default: unknown")
    show = verbs.add_parser("show", help="what a file holds")
    show.add_argument("source", metavar="FILE", help="as IN of convert")
    compare = verbs.add_parser("compare", help="tensors and features of two encoders")
    compare.add_argument("source", metavar="A", help="as IN of convert")
    compare.add_argument("other", metavar="B", help="as IN of convert")
    for verb in (convert, show):
        verb.add_argument("--architecture", metavar="NAME", help="of a checkpoint: timm:NAME or smp:NAME")
        verb.add_argument("--norm", choices=["own", "group"], default="own", help="group: it was built with GroupNorm")
        verb.add_argument("--take", metavar="DICTIONARY:PREFIX", help="where in a checkpoint of several it is")
    options = parser.parse_args(arguments)
    return {"convert": _convert, "show": _show, "compare": _compare}[options.verb](options)


def _convert(options: argparse.Namespace) -> int:
    from histo.encoders import write_for

    opened = _opened(options)
    card = opened.card | _told(options)
    lacking = [name for name in ("mean", "std") if card.get(name) is None]
    if lacking:
        raise InputError(
            f"{options.source} does not say how its input is scaled, and this cannot be seen in weights; give "
            f"{' and '.join(f'--{name}' for name in lacking)} as its authors state them."
        )
    lines = write_for(options.to, options.out, opened._replace(card=card))
    unknown = [name for name in ("mpp", "tile_size", "data") if not card.get(name)]
    print(f"Wrote {options.out} ({opened.architecture}, for {options.to}) with its cards.")
    if unknown:
        print(f"Unknown, and so the cards say: {', '.join(unknown)}.")
    print(f"Load it:\n\n{lines}")
    return 0


def _told(options: argparse.Namespace) -> dict[str, Any]:
    """Entries of the card that the user gave."""
    if options.mpp is not None and not 0.01 <= options.mpp <= 100:
        raise InputError(f"--mpp is {options.mpp}, expected µm/px between 0.01 and 100; correct it.")
    if options.tile_size is not None and not 32 <= options.tile_size <= 2048:
        raise InputError(f"--tile_size is {options.tile_size}, expected 32 to 2048 pixels; correct it.")
    if options.std is not None and min(options.std) <= 0:
        raise InputError(f"--std is {options.std}, expected numbers above 0; correct it.")
    told = {name: getattr(options, name) for name in ("mean", "std", "mpp", "tile_size")}
    if options.data or options.licence:
        licence = options.licence or "unknown"
        source = options.data or "unknown"
        told["data"] = [{"source": source, "title": None, "licence": licence, "noncommercial": None}]
        told["licences"] = licence
    return {name: value for name, value in told.items() if value is not None}


def _show(options: argparse.Namespace) -> int:
    from histo.encoders.files import card_beside
    from histo.encoders.published import known
    from histo.encoders.weights import read_weights

    path = Path(options.source)
    bare = options.architecture is None and path.is_file() and card_beside(path) is None
    weights = read_weights(path) if bare else None
    if weights is None or known(weights):
        opened = _opened(options)
        numbers = sum(tensor.numel() for tensor in opened.encoder.state_dict().values())
        print(f"{opened.architecture}, {numbers:,} values")
        for name, value in opened.card.items():
            if name not in ("kind", "library", "architecture", "arguments", "format", "loading"):
                print(f"  {name:<16}{'unknown' if value in (None, []) else value}")
        return 0
    for place, tensors in weights.dictionaries.items():
        total = sum(tensor.numel() for tensor in tensors.values())
        print(f"{'/'.join(place) or 'the file itself'}: {len(tensors)} tensors, {total:,} values")
        for name, tensor in list(tensors.items())[:SHOWN]:
            print(f"  {name}  {list(tensor.shape)}")
        if len(tensors) > SHOWN:
            print(f"  … and {len(tensors) - SHOWN} more")
    print(f"Left unread: {', '.join(weights.left_unread) or 'nothing'}.")
    print("What network this is does not stand in the file; --architecture NAME says how it fits one.")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from histo.encoders import open_encoder
    from histo.encoders.comparison import SIDE, TILES, compare, phantom_tiles

    one, two = open_encoder(options.source), open_encoder(options.other)
    found = compare(one, two, phantom_tiles())
    same = one.architecture == two.architecture
    print(f"A  {one.architecture}\nB  {two.architecture}  {'(the same)' if same else '(another)'}")
    if not found.differing and not found.alone:
        print(f"tensors   all {found.tensors} are equal")
    else:
        print(f"tensors   {found.tensors} in both, of which {len(found.differing)} differ; {found.alone} in one alone")
    for name, distance in list(found.differing.items())[:SHOWN]:
        print(f"          {name}  |A - B| / |A| = {distance:.3g}")
    print(
        f"features  linear CKA {found.alignment:.3f} of {TILES} phantom tiles of {SIDE} px "
        "(1: the same up to rotation and scale, about 0: unrelated)"
    )
    return 0


def _opened(options: argparse.Namespace) -> "Opened":
    from histo.encoders import open_encoder

    opened = open_encoder(options.source, options.architecture, options.norm, take=options.take)
    if opened.report:
        print(opened.report)
    return opened


def _numbers(text: str) -> list[float]:
    """One number for all channels, or one for each of three."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(-1000 < number < 1000 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not one number or three, as 0.5 or 0.485,0.456,0.406")
    return numbers * 3 if len(numbers) == 1 else numbers
