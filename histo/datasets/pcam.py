"""PatchCamelyon: tumour in the centre of patches of lymph nodes, in HDF5."""

from pathlib import Path

from histo.errors import InputError
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found
from histo.tiles.stacks import h5_array_length, h5_image, h5_rows

FACTS = Facts(
    title="PatchCamelyon: tumour in patches of lymph nodes",
    licence="CC0",
    noncommercial=False,
    citation="Veeling et al., MICCAI 2018, 210",
    get="zenodo.org/records/2546921: camelyonpatch_level_2_split_*_[xy].h5.gz, unpacked with gunzip",
    layout="camelyonpatch_level_2_split_train_x.h5 with …_train_y.h5, and valid and test likewise",
    magnification="10x, reduced from 40x",
    mpp=0.972,
    patients=None,
    classes={"normal": 163_840, "tumor": 163_840},
    tiles=327_680,
    splits={"train": 262_144, "val": 32_768, "test": 32_768},
    size=(96, 96),
    notes="Splits are by slide of CAMELYON16; slides are in the files of metadata, which are not read.",
    unconfirmed=("mpp",),
)


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles, without labels where the file of labels is missing."""
    if packed := found(folder, "**/camelyonpatch_*_x.h5.gz"):
        raise InputError(f"{packed[0]} is compressed, expected .h5; unpack the files with gunzip first.")
    tiles: list[TileEntry] = []
    for path in found(folder, "**/camelyonpatch_level_2_split_*_x.h5"):
        count, split = h5_array_length(path, "x"), path.stem.split("_")[-2].replace("valid", "val")
        answers = path.with_name(path.name.replace("_x.h5", "_y.h5"))
        numbers = h5_rows(answers, "y").ravel().tolist() if answers.is_file() else [None] * count
        if len(numbers) != count or not set(numbers) <= {0, 1, None}:
            raise InputError(f"{answers} has {len(numbers)} labels, expected {count} of 0 and 1; unpack it again.")
        for k, number in enumerate(numbers):
            label = None if number is None else "tumor" if number else "normal"
            place = (path / str(k), f"{split}/{k}", source, None, FACTS.mpp, label, split, None)
            tiles.append(PublishedEntry(*place, image_of=h5_image))
    return tiles
