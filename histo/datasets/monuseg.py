"""MoNuSeg 2018, and within it the images of Kumar et al. with their tests on the same and on different organs."""

from pathlib import Path

from histo.tiles.annotations import aperio_polygons
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found
from histo.tiles.tables import SUFFIXES

FACTS = Facts(
    title="MoNuSeg 2018 / Kumar 2017: nuclei of seven to nine organs, TCGA",
    licence="CC BY-NC-SA 4.0",
    noncommercial=True,
    citation="Kumar et al., IEEE TMI 36 (2017) 1550; Kumar et al., IEEE TMI 39 (2020) 1380",
    get="monuseg.grand-challenge.org/Data: MoNuSeg 2018 Training Data and MoNuSegTestData",
    layout="TCGA-….tif (or .png) and TCGA-….xml of the same name, in one folder or several, as 'Tissue Images'",
    magnification="40x",
    mpp=0.25,
    patients="first three fields of the TCGA barcode",
    disjoint=None,
    tiles=44,
    splits={"train": 30, "test": 14},
    size=(1000, 1000),
    parts={
        "kumar": "its 30 images, with the splits train 16, test_same 8 and test_different 6 as HoVer-Net lists them"
    },
    notes="Whether an image is of the test is known by its folder, whose name then holds 'test'. The counts are of the "
    "challenge; later archives hold more training images.",
    unconfirmed=("licence",),
)
_TRAIN = (
    "18-5592 21-5784 38-6178 50-5931 A7-A13E AR-A1AK AR-A1AS B0-5711 E2-A14V G9-6348 G9-6356 G9-6362 G9-6363 HE-7128 "
    "HE-7129 HE-7130"
)
_SAME = "21-5786 49-4488 A7-A13F CH-5767 E2-A1B5 G9-6336 B0-5698 B0-5710"
_DIFFERENT = "AY-A8YK DK-A2I6 KB-A93J NH-A8F7 RD-A8N9 G2-A2EK"
KUMAR = {
    f"TCGA-{patient}": split
    for split, patients in (("train", _TRAIN), ("test_same", _SAME), ("test_different", _DIFFERENT))
    for patient in patients.split()
}


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles; images without annotation have no mask."""
    annotations = {path.stem: path for path in found(folder, "**/TCGA-*.xml")}
    tiles: list[TileEntry] = []
    for path in found(folder, "**/TCGA-*.*"):
        patient = "-".join(path.stem.split("-")[:3])
        if path.suffix.lower() not in SUFFIXES or (parts and patient not in KUMAR):
            continue
        key = path.relative_to(folder)
        inside = any("test" in part.lower() for part in key.parts[:-1])
        official = "test" if inside or folder.name == "MoNuSegTestData" else "train"
        split, mask = KUMAR[patient] if parts else official, annotations.get(path.stem)
        tile = PublishedEntry(
            path, key.as_posix(), source, patient, FACTS.mpp, None, split, mask, nuclei_of=aperio_polygons
        )
        tiles.append(tile)
    return tiles
