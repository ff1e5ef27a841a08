"""GlaS 2015: glands of the colon, benign and malignant. Its masks are of glands, not of nuclei."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo.errors import InputError
from histo.images import MAX_PIXELS
from histo.tiles.annotations import whole_instances
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, Nuclei, PublishedEntry, Size, found

FACTS = Facts(
    title="GlaS 2015: GLANDS of the colon (the masks are not of nuclei)",
    licence="research use only",
    noncommercial=True,
    citation="Sirinukunwattana et al., Medical Image Analysis 35 (2017) 489",
    get="warwick.ac.uk/fac/cross_fac/tia/data/glascontest: warwick_qu_dataset_released_2016_07_08.zip",
    layout="train_1.bmp with train_1_anno.bmp, testA_1.bmp, testB_1.bmp …, and Grade.csv",
    magnification="20x",
    mpp=None,
    patients="column 'patient ID' of Grade.csv",
    classes={"benign": None, "malignant": None},
    tiles=165,
    splits={"train": 85, "testA": 60, "testB": 20},
    notes="µm/px is stated as 0.465 and as 0.62 in different places; give it by --data.mpp.",
    unconfirmed=("licence", "splits"),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles; without Grade.csv labels and patients are unknown."""
    rows: dict[str, dict[str, str]] = {}
    for table in found(folder, "**/Grade.csv"):
        with table.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                fields = {str(name).strip(): str(value).strip() for name, value in row.items()}
                rows[fields.get("name", "")] = fields
    tiles: list[TileEntry] = []
    for path in found(folder, "**/*_*.bmp"):
        split, row = path.stem.partition("_")[0], rows.get(path.stem, {})
        if split in FACTS.splits and not path.stem.endswith("_anno"):
            mask = path.with_name(f"{path.stem}_anno.bmp")
            label, patient = row.get("grade (GlaS)"), row.get("patient ID")
            place = (path, path.relative_to(folder).as_posix(), source, patient, None, label, split)
            mask_of = mask if mask.is_file() else None
            tiles.append(PublishedEntry(*place, mask_of, image_of=_image, nuclei_of=_glands))
    return tiles


def _image(path: Path) -> NDArray[np.uint8]:
    return np.ascontiguousarray(_bitmap(path, "RGB").transpose(2, 0, 1))


def _glands(path: Path, size: Size) -> Nuclei:
    return Nuclei(whole_instances(_bitmap(path, None), path))


def _bitmap(path: Path, mode: str | None) -> NDArray[np.uint8]:
    """Pixels of a Windows bitmap; grey or the indices of a palette as they are, or converted to `mode`."""
    try:
        with Image.open(path, formats=["BMP"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are over the limit of {MAX_PIXELS:,}")
            return np.asarray(image if mode is None else image.convert(mode))
    except Exception as error:  # decoders meet damaged bytes with exceptions of every type
        raise InputError(f"{path} cannot be read as a bitmap ({error}); unpack the set again.") from error
