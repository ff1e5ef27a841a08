"""BACH: four kinds of breast tissue (ICIAR 2018), the photographs of its part A."""

from pathlib import Path

from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

FACTS = Facts(
    title="BACH (ICIAR 2018), part A: four kinds of breast tissue",
    licence="CC BY-NC-ND 4.0",
    noncommercial=True,
    citation="Aresta et al., Medical Image Analysis 56 (2019) 122",
    get="zenodo.org/records/3632035: ICIAR2018_BACH_Challenge.zip",
    layout="Photos/Normal/*.tif, and Benign, InSitu, Invasive likewise",
    magnification="20x",
    mpp=0.42,
    patients=None,
    classes=dict.fromkeys(("Normal", "Benign", "InSitu", "Invasive")),
    size=(1536, 2048),
    notes="400 images by the paper, 408 by other counts. Several images come from one patient; the list of patients is "
    "linked from the challenge's site and not read. The test photographs have no labels and are passed over.",
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles."""
    tiles: list[TileEntry] = []
    for path in found(folder, "**/*.tif"):
        if path.parent.name in FACTS.classes:
            place = (path, path.relative_to(folder).as_posix(), source, None, FACTS.mpp)
            tiles.append(PublishedEntry(*place, path.parent.name, None, None))
    return tiles
