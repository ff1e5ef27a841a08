"""MHIST: colorectal polyps, hyperplastic or sessile serrated."""

import csv
from pathlib import Path

from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

FACTS = Facts(
    title="MHIST: hyperplastic polyps and sessile serrated adenomas",
    licence="the Dataset Research Use Agreement that comes with it",
    noncommercial=None,
    citation="Wei et al., AIME 2021 (arXiv 2101.12355)",
    get="bmirds.github.io/MHIST, on request: images.zip and annotations.csv",
    layout="images/MHIST_aaa.png and annotations.csv",
    magnification="stated as 8x and as 40x in different places",
    mpp=None,
    patients=None,
    classes={"HP": 2162, "SSA": 990},
    tiles=3152,
    splits={"train": 2175, "test": 977},
    size=(224, 224),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles, those that annotations.csv lists."""
    images = {path.name: path for path in found(folder, "**/MHIST_*.png")}
    tiles: list[TileEntry] = []
    for table in found(folder, "**/annotations.csv"):
        with table.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if (path := images.get(row.get("Image Name") or "")) is not None:
                    place = (path, path.relative_to(folder).as_posix(), source, None, None)
                    label, split = row.get("Majority Vote Label") or None, row.get("Partition") or None
                    tiles.append(PublishedEntry(*place, label, split, None))
    return tiles
