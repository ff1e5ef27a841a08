"""CoNSeP: nuclei of colorectal adenocarcinoma with seven classes."""

from pathlib import Path

from histo.tiles.annotations import classes_of, matlab_arrays, whole_instances
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, Nuclei, PublishedEntry, Size, found

FACTS = Facts(
    title="CoNSeP: nuclei of colorectal adenocarcinoma",
    licence="Apache-2.0",
    noncommercial=False,
    citation="Graham et al., Medical Image Analysis 58 (2019) 101563 (HoVer-Net)",
    get="warwick.ac.uk/TIA/data/hovernet: consep.zip (at times not available)",
    layout="Train/Images/train_K.png with Train/Labels/train_K.mat (or .npy instance maps), and Test likewise",
    magnification="40x",
    mpp=0.25,
    patients=None,
    disjoint=None,
    nuclei=(
        "miscellaneous",
        "inflammatory",
        "healthy epithelial",
        "dysplastic or malignant epithelial",
        "fibroblast",
        "muscle",
        "endothelial",
    ),
    tiles=41,
    splits={"train": 27, "test": 14},
    size=(1000, 1000),
    notes="41 images of 16 patients, but which is whose is not published, so the split may share patients.",
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles; images without labels have no mask."""
    tiles: list[TileEntry] = []
    for path in found(folder, "**/Images/*.png"):
        labels = [path.parent.parent / "Labels" / f"{path.stem}{suffix}" for suffix in (".mat", ".npy")]
        mask = next((label for label in labels if label.is_file()), None)
        tile = PublishedEntry(
            path,
            path.relative_to(folder).as_posix(),
            source,
            None,
            FACTS.mpp,
            None,
            path.stem.partition("_")[0],
            mask,
            nuclei_of=_nuclei if mask is not None and mask.suffix == ".mat" else None,
        )
        tiles.append(tile)
    return tiles


def _nuclei(path: Path, size: Size) -> Nuclei:
    instances, kinds = matlab_arrays(path, "inst_map", "type_map")
    instances = whole_instances(instances, path)
    return Nuclei(instances, classes_of(instances, kinds))
