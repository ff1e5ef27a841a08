"""Kather 2016: eight textures of colorectal cancer."""

from pathlib import Path

from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

FACTS = Facts(
    title="Kather 2016: eight textures of colorectal cancer",
    licence="CC BY 4.0",
    noncommercial=False,
    citation="Kather et al., Scientific Reports 6 (2016) 27988",
    get="zenodo.org/records/53169: Kather_texture_2016_image_tiles_5000.zip",
    layout="Kather_texture_2016_image_tiles_5000/CLASS/*.tif",
    magnification="20x",
    mpp=0.495,
    patients=None,
    classes=dict.fromkeys(
        (
            "01_TUMOR",
            "02_STROMA",
            "03_COMPLEX",
            "04_LYMPHO",
            "05_DEBRIS",
            "06_MUCOSA",
            "07_ADIPOSE",
            "08_EMPTY",
        ),
        625,
    ),
    tiles=5000,
    size=(150, 150),
    notes="No official split. Names hold the slide (CRC-Prim-HE-NN) and the place in it: neighbours look alike.",
    unconfirmed=("licence", "classes"),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles."""
    tiles: list[TileEntry] = []
    for path in found(folder, "**/*.tif"):
        if path.parent.name in FACTS.classes:
            place = (path, path.relative_to(folder).as_posix(), source, None, FACTS.mpp)
            tiles.append(PublishedEntry(*place, path.parent.name, None, None))
    return tiles
