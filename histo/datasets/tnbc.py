"""TNBC: nuclei of triple-negative breast cancer, eleven patients of the Curie Institute."""

from pathlib import Path

from histo.tiles.annotations import binary_components
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

FACTS = Facts(
    title="TNBC: nuclei of triple-negative breast cancer",
    licence="CC BY 4.0",
    noncommercial=False,
    citation="Naylor et al., IEEE TMI 38 (2019) 448",
    get="zenodo.org: TNBC_NucleiSegmentation.zip",
    layout="Slide_NN/NN_K.png and GT_NN/NN_K.png",
    magnification="40x",
    mpp=0.25,
    patients="NN, the first two digits of the name",
    tiles=50,
    size=(512, 512),
    notes="Masks are binary: connected components are taken for nuclei, so a few that touch are one. No "
    "official split.",
    unconfirmed=("licence",),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles; images without ground truth have no mask."""
    tiles: list[TileEntry] = []
    for path in found(folder, "**/Slide_*/*.png"):
        number = path.parent.name.removeprefix("Slide_")
        mask = path.parent.parent / f"GT_{number}" / path.name
        tile = PublishedEntry(
            path,
            path.relative_to(folder).as_posix(),
            source,
            path.stem.partition("_")[0],
            FACTS.mpp,
            None,
            None,
            mask if mask.is_file() else None,
            nuclei_of=binary_components,
        )
        tiles.append(tile)
    return tiles
