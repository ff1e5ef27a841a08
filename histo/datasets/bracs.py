"""BRACS: regions of seven kinds of breast lesion."""

from pathlib import Path

from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

FACTS = Facts(
    title="BRACS: regions of seven kinds of breast lesion",
    licence="CC BY-NC 4.0",
    noncommercial=True,
    citation="Brancati et al., Database 2022 (2022) baac093",
    get="bracs.icar.cnr.it/download: BRACS_RoI",
    layout="train/0_N/*.png to train/6_IC/*.png, and val and test likewise",
    magnification="40x",
    mpp=0.25,
    patients=None,
    classes=dict.fromkeys(("0_N", "1_PB", "2_UDH", "3_FEA", "4_ADH", "5_DCIS", "6_IC")),
    tiles=4539,
    splits={"train": 3657, "val": 312, "test": 570},
    notes="Regions have up to many megapixels; those beyond the limit of images are refused. Names hold the slide; "
    "its patient is in a table that is not read.",
    unconfirmed=("classes",),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles."""
    tiles: list[TileEntry] = []
    for path in found(folder, "**/*.png"):
        split = path.parent.parent.name
        if path.parent.name in FACTS.classes and split in FACTS.splits:
            place = (path, path.relative_to(folder).as_posix(), source, None, FACTS.mpp)
            tiles.append(PublishedEntry(*place, path.parent.name, split, None))
    return tiles
