"""Lizard: nuclei of colon tissue from several sources with six classes."""

import csv
from pathlib import Path

import numpy as np

from histo.errors import InputError
from histo.randomness import draws
from histo.tiles.annotations import matlab_arrays, whole_instances
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, Nuclei, PublishedEntry, Size, found

SOURCES = ("consep", "crag", "dpath", "glas", "pannuke")
FACTS = Facts(
    title="Lizard: nuclei of colon tissue",
    licence="CC BY-NC-SA 4.0",
    noncommercial=True,
    citation="Graham et al., ICCV Workshops 2021, 684",
    get="warwick.ac.uk/fac/cross_fac/tia/data/lizard: lizard_images1.zip, lizard_images2.zip, lizard_labels.zip",
    layout="lizard_images1/Lizard_Images1/*.png, …2 likewise, lizard_labels/Lizard_Labels/Labels/*.mat and info.csv",
    magnification="20x",
    mpp=0.5,
    patients=None,
    nuclei=("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective"),
    tiles=238,
    parts={name: f"images of {name} alone" for name in SOURCES}
    | {
        str(n): f"{n} training images (drawn, each number within the next) with all others"
        for n in (1, 2, 4, 8, 16, 32)
    },
    notes="Splits are those of info.csv: 1 train, 2 val, 3 test. Which images share a patient is not published. The "
    "small training sets are drawn here by a fixed seed; those of other works are other images.",
    unconfirmed=("licence", "mpp"),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles; images without labels have no mask."""
    labels = {path.stem: path for path in found(folder, "**/Labels/*.mat")}
    splits = {"1": "train", "2": "val", "3": "test"}
    rows: dict[str, str | None] = {}
    for info in found(folder, "**/info.csv"):
        with info.open(encoding="utf-8-sig", newline="") as file:
            rows |= {row.get("Filename", ""): splits.get(row.get("Split", "")) for row in csv.DictReader(file)}
    tiles: list[TileEntry] = []
    for path in found(folder, "**/*.png"):
        if path.parent.name.lower() not in ("lizard_images1", "lizard_images2"):
            continue
        origin = path.stem.rpartition("_")[0]
        if not set(parts) & set(SOURCES) or origin in parts:
            place = (path, path.relative_to(folder).as_posix(), source, None, FACTS.mpp, None, rows.get(path.stem))
            tiles.append(PublishedEntry(*place, labels.get(path.stem), nuclei_of=_nuclei))
    for number in (int(part) for part in parts if part.isdigit()):
        training = [k for k, tile in enumerate(tiles) if tile.split == "train"]
        if len(training) < number:
            raise InputError(
                f"{folder} has {len(training)} training images, but lizard@{number} takes {number} of them."
            )
        left_out = set(draws(0, "lizard", 0).permutation(training)[number:].tolist())
        tiles = [tile for k, tile in enumerate(tiles) if k not in left_out]
    return tiles


def _nuclei(path: Path, size: Size) -> Nuclei:
    instances, ids, kinds = matlab_arrays(path, "inst_map", "id", "class")
    instances = whole_instances(instances, path)
    numbers, kinds = whole_instances(ids.reshape(1, -1), path)[0], kinds.ravel()
    if len(numbers) != len(kinds) or numbers.max(initial=0) > 65_535 or instances.max() > numbers.max(initial=0):
        raise InputError(f"{path} has {len(numbers)} ids and {len(kinds)} classes of nuclei; unpack the set again.")
    classes = np.zeros(int(numbers.max(initial=0)) + 1, np.uint8)
    classes[numbers] = kinds
    return Nuclei(instances, classes)
