"""`nucleate layout fit`: the settings of the layout prior under which its maps measure as given instance maps do."""

import argparse
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from histo.errors import InputError, writing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from histo.layouts import LayoutSettings
    from histo.layouts.measures import Measures

# figure: (what it is called, format)
ROWS = {
    "density": ("nuclei per mm²", "{:.0f}"),
    "covered": ("share covered *", "{:.3f}"),
    "diameter": ("diameter, median, µm", "{:.2f}"),
    "spread": ("diameter, log spread", "{:.3f}"),
    "aspect": ("aspect, median", "{:.2f}"),
    "aspect_spread": ("aspect - 1, log spread", "{:.2f}"),
    "spindles": ("aspect of 3 or more", "{:.3f}"),
    "variation": ("density, spread over maps", "{:.3f}"),
    "dispersion": ("index of dispersion", "{:.2f}"),
    "clark_evans": ("Clark-Evans ratio *", "{:.2f}"),
    "touching": ("share touching", "{:.3f}"),
}


def main(arguments: list[str]) -> int:
    """Run `nucleate layout fit FOLDER --out FILE`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate layout",
        description="Measure instance maps and write the settings under which the layout prior draws maps that measure "
        "alike; translate/train.py takes them as a --config.",
    )
    parser.add_argument("deed", choices=["fit"], help="fit: find the settings")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="instance maps, or tiles with masks")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="YAML to write")
    parser.add_argument("--mpp", type=float, metavar="X", help="µm/px of the maps; default: as tiles.csv says")
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="measure this split, where the tiles name any; default: train"
    )
    options = parser.parse_args(arguments)
    if options.out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out is {options.out}, expected a name ending in .yaml; rename it.")
    if options.mpp is not None and not 0.1 <= options.mpp <= 2:
        raise InputError(f"--mpp is {options.mpp}, expected 0.1 to 2 µm/px; correct it.")

    from histo.layouts.fitting import compare, fit
    from histo.layouts.measures import measure

    wanted = measure(instance_maps(options.folder, options.mpp, options.split))
    settings = fit(wanted, progress=True)
    print(table(wanted, compare(settings, wanted)))
    print(
        "* not fitted: a check\nTypes are unknown: both kinds got one shape, and the share of epithelium is its "
        "default unless its rows cluster more than these maps do."
    )
    write(options.out, settings, options.folder, wanted)
    print(f"The settings: {options.out}")
    return 0


def instance_maps(folder: Path, mpp: float | None, split: str) -> "Iterator[tuple[NDArray[np.int32], float]]":
    """The maps of a folder of maps, or of tiles with masks, with their µm/px, one at a time.

    Raises:
        InputError: nothing usable in the folder, or an unknown µm/px.
    """
    from histo.masks import mask_files, read_instances
    from histo.tiles import open_tiles
    from histo.tiles.shards import is_shards

    advice = "layouts are in µm; give --mpp, or fill the column mpp of tiles.csv."
    if not (folder / "tiles.csv").is_file() and not is_shards(folder):
        files, _ = mask_files(folder)
        if mpp is None:
            raise InputError(f"The µm/px of the maps of {folder} is not known, but {advice}")
        yield from ((read_instances(file), mpp) for file in files)
        return
    entries = [e for e in open_tiles(folder, mpp=mpp).entries if e.mask is not None and e.split in (split, None)]
    if not entries:
        raise InputError(f"{folder} names no masks of split {split!r}; fill its column mask, or give another --split.")
    for entry in entries:
        if entry.mpp is None:
            raise InputError(f"The µm/px of {entry.path} is not known, but {advice}")
        instances = entry.read().instances
        assert instances is not None
        yield instances, entry.mpp


def table(wanted: "Measures", drawn: "Measures") -> str:
    """The figures of given and of drawn maps side by side, for people."""
    lines = [f"{'':<27}{'given':>9}{'drawn':>9}"]
    lines.append(f"{'maps':<27}{wanted.maps:>9}{drawn.maps:>9}")
    lines.append(f"{'nuclei':<27}{wanted.nuclei:>9}{drawn.nuclei:>9}")
    for name, (title, form) in ROWS.items():
        figures = (getattr(measures, name) for measures in (wanted, drawn))
        texts = ["unknown" if figure is None else form.format(figure) for figure in figures]
        lines.append(f"{title:<27}{texts[0]:>9}{texts[1]:>9}")
    return "\n".join(lines)


def write(path: Path, settings: "LayoutSettings", folder: Path, wanted: "Measures") -> None:
    """Write the settings as a config of translate/train.py, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    import yaml

    content = {"data": {"masks": "layout", "layout": _rounded(asdict(settings))}}
    name = " ".join(str(folder).split())
    text = f"# Fitted to {wanted.nuclei} nuclei of {wanted.maps} maps of {name} by `nucleate layout fit`.\n"
    text += yaml.safe_dump(content, sort_keys=False)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path.parent, "name another --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def _rounded(values: dict) -> dict:
    """Four digits: more would be noise."""
    return {key: _rounded(value) if isinstance(value, dict) else float(f"{value:.4g}") for key, value in values.items()}
