"""PanNuke: nuclei of nineteen tissues with five classes, in three folds."""

from pathlib import Path

import numpy as np

from histo.errors import InputError
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, Nuclei, PublishedEntry, Size, found
from histo.tiles.stacks import npy_array, npy_image, npy_row

TISSUES = (
    *("Adrenal_gland", "Bile-duct", "Bladder", "Breast", "Cervix", "Colon", "Esophagus", "HeadNeck", "Kidney", "Liver"),
    *("Lung", "Ovarian", "Pancreatic", "Prostate", "Skin", "Stomach", "Testis", "Thyroid", "Uterus"),
)
FACTS = Facts(
    title="PanNuke: nuclei of nineteen tissues, TCGA and other sources",
    licence="CC BY-NC-SA 4.0",
    noncommercial=True,
    citation="Gamper et al., ECDP 2019; Gamper et al., arXiv 2003.10778",
    get="warwick.ac.uk/fac/cross_fac/tia/data/pannuke: fold_1.zip, fold_2.zip, fold_3.zip",
    layout="Fold N/images/foldN/images.npy with types.npy beside it, and Fold N/masks/foldN/masks.npy",
    magnification="40x",
    mpp=0.25,
    patients=None,
    disjoint=None,
    classes=dict.fromkeys(TISSUES),
    nuclei=("neoplastic", "inflammatory", "connective", "dead", "epithelial"),
    tiles=7901,
    splits={"train": 2656, "val": 2523, "test": 2722},
    size=(256, 256),
    notes="Splits are folds 1, 2, 3: the first of the three published rotations. Labels are tissues.",
)
_SPLITS = {"1": "train", "2": "val", "3": "test"}


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles, without masks where masks.npy is missing and without labels where types.npy is."""
    masks = {_fold(path, folder): path for path in found(folder, "**/masks.npy")}
    tiles: list[TileEntry] = []
    for images in found(folder, "**/images.npy"):
        fold, types = _fold(images, folder), images.with_name("types.npy")
        count = len(npy_array(images, dimensions=4))
        labels = npy_array(types, dimensions=1).astype(str).tolist() if types.is_file() else [None] * count
        mask = masks.get(fold)
        if len(labels) != count or (mask is not None and len(npy_array(mask, dimensions=4)) != count):
            raise InputError(f"{images} has {count} tiles, but the masks or types of its fold have another number.")
        for k, label in enumerate(labels):
            key, row = f"fold{fold}/{k}", mask / str(k) if mask else None
            place = (images / str(k), key, source, None, FACTS.mpp, label, _SPLITS[fold], row)
            tiles.append(PublishedEntry(*place, image_of=npy_image, nuclei_of=_nuclei))
    return tiles


def _fold(path: Path, folder: Path) -> str:
    """The fold that a file belongs to, by the folder closest to it whose name ends in 1, 2 or 3 after "fold"."""
    for part in reversed((*folder.resolve().parts, *path.relative_to(folder).parts[:-1])):
        if part.lower().replace(" ", "").replace("_", "") in ("fold1", "fold2", "fold3"):
            return part[-1]
    raise InputError(f"{path} lies in no folder named fold1, fold2 or fold3; unpack the set as it is published.")


def _nuclei(path: Path, size: Size) -> Nuclei:
    """Channels 0 to 4 hold the instances of a class each, numbered on their own or together; 5 is background."""
    row = npy_row(path)[..., : len(FACTS.nuclei)]
    instances, classes = np.zeros(row.shape[:2], np.int32), [0]
    for kind in range(row.shape[2]):
        ids, places = np.unique(row[..., kind], return_inverse=True)
        numbers = np.where(ids > 0, len(classes) - 1 + np.cumsum(ids > 0), 0)[places].reshape(row.shape[:2])
        instances = np.where(numbers > 0, numbers, instances).astype(np.int32)
        classes += [kind + 1] * int((ids > 0).sum())
    return Nuclei(instances, np.array(classes, np.uint8))
