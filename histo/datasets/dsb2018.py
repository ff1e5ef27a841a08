"""Data Science Bowl 2018: nuclei of many kinds of microscopy, of which a part is H&E."""

from pathlib import Path

from histo.tiles.annotations import mask_folder
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

FACTS = Facts(
    title="Data Science Bowl 2018, stage 1: nuclei in brightfield and fluorescence (BBBC038)",
    licence="CC0",
    noncommercial=False,
    citation="Caicedo et al., Nature Methods 16 (2019) 1247",
    get="bbbc.broadinstitute.org/BBBC038: stage1_train.zip",
    layout="ID/images/ID.png and ID/masks/*.png, one for each nucleus",
    magnification="mixed",
    mpp=None,
    patients=None,
    tiles=None,
    notes="Most images are fluorescence, not H&E; only those in colour are of use for tissue, and they are not told "
    "apart by name. Nuclei differ fourfold in size, so µm/px differs and is not known.",
    unconfirmed=("licence",),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles; images without masks, as those of the test, have none."""
    tiles: list[TileEntry] = []
    for path in found(folder, "**/images/*.png"):
        masks = path.parent.parent / "masks"
        place = (path, path.relative_to(folder).as_posix(), source, None, None, None, None)
        tiles.append(PublishedEntry(*place, masks if masks.is_dir() else None, nuclei_of=mask_folder))
    return tiles
