"""NuInsSeg: nuclei of 31 human and mouse organs."""

from pathlib import Path

from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

FACTS = Facts(
    title="NuInsSeg: nuclei of 31 human and mouse organs",
    licence="CC BY 4.0",
    noncommercial=False,
    citation="Mahbod et al., Scientific Data 11 (2024) 295",
    get="zenodo.org/records/10518968 or kaggle.com/datasets/ipateam/nuinsseg",
    layout="ORGAN/tissue images/*.png and ORGAN/label masks modify/*.tif",
    magnification="40x",
    mpp=None,
    patients=None,
    tiles=665,
    size=(512, 512),
    notes="µm/px is given by --data.mpp. Labels are organs. One slide for each organ, so patients are not told apart.",
    unconfirmed=("licence",),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles; images without labels have no mask."""
    tiles: list[TileEntry] = []
    for path in found(folder, "**/tissue images/*.png"):
        organ = path.parent.parent
        mask = organ / "label masks modify" / f"{path.stem}.tif"
        place = (path, path.relative_to(folder).as_posix(), source, None, FACTS.mpp, organ.name, None)
        tiles.append(PublishedEntry(*place, mask if mask.is_file() else None))
    return tiles
