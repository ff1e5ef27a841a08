"""NCT-CRC-HE-100K and CRC-VAL-HE-7K: nine tissues of colorectal cancer."""

from pathlib import Path

from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

FOLDERS = {"NCT-CRC-HE-100K": "train", "NCT-CRC-HE-100K-NONORM": "train", "CRC-VAL-HE-7K": "test"}
FACTS = Facts(
    title="NCT-CRC-HE-100K and CRC-VAL-HE-7K: nine tissues of colorectal cancer",
    licence="CC BY 4.0",
    noncommercial=False,
    citation="Kather et al., PLoS Medicine 16 (2019) e1002730",
    get="zenodo.org/records/1214456: NCT-CRC-HE-100K.zip (or -NONORM) and CRC-VAL-HE-7K.zip",
    layout="NCT-CRC-HE-100K/CLASS/*.tif and CRC-VAL-HE-7K/CLASS/*.tif",
    magnification="20x",
    mpp=0.5,
    patients=None,
    disjoint=True,
    classes=dict.fromkeys(("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")),
    tiles=107_180,
    splits={"train": 100_000, "test": 7180},
    size=(224, 224),
    parts={"nonorm": "NCT-CRC-HE-100K-NONORM in place of the colour-normalised NCT-CRC-HE-100K"},
    notes="The patients of CRC-VAL-HE-7K are others than those of the 100K; who is who within a part is not published.",
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles."""
    tiles: list[TileEntry] = []
    left_out = "NCT-CRC-HE-100K" if parts else "NCT-CRC-HE-100K-NONORM"
    for pattern in ("**/*.tif", "**/*.png"):
        for path in found(folder, pattern):
            origin = path.parent.parent.name
            if path.parent.name in FACTS.classes and origin in FOLDERS and origin != left_out:
                place = (path, path.relative_to(folder).as_posix(), source, None, FACTS.mpp)
                tiles.append(PublishedEntry(*place, path.parent.name, FOLDERS[origin], None))
    return tiles
