"""BreakHis: benign and malignant breast tumours at four magnifications."""

import re
from pathlib import Path

from histo.errors import InputError
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry, found

MPP = {"40": 0.49, "100": 0.20, "200": 0.10, "400": 0.05}  # µm/px by total magnification
KINDS = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}
FACTS = Facts(
    title="BreakHis: eight kinds of breast tumour at four magnifications",
    licence="CC BY 4.0",
    noncommercial=False,
    citation="Spanhol et al., IEEE TBME 63 (2016) 1455",
    get="web.inf.ufpr.br/vri: BreaKHis_v1.tar.gz, and dsfold1.txt to dsfold5.txt of mkfold.tar.gz",
    layout="histology_slides/breast/…/SOB_B_A_14-22549AB/40X/SOB_B_A-14-22549AB-40-001.png; folds as dsfold1.txt",
    magnification="40x, 100x, 200x and 400x in total, through objectives of 4x to 40x",
    mpp=None,
    patients="year and number in the file name, as 14-22549AB",
    disjoint=False,
    classes=dict(zip(KINDS.values(), (444, 1014, 453, 569, 3451, 626, 792, 560), strict=True)),
    tiles=7909,
    size=(460, 700),
    parts={f"{power}x": f"images of {power}x alone" for power in MPP}
    | {f"fold{k}": f"splits train and test of dsfold{k}.txt" for k in range(1, 6)},
    notes="µm/px are the authors' and do not fit the nuclei, which they make 2 to 4 µm wide at 100x and 200x; give "
    "--data.mpp if you know better. No split unless a fold is asked for. 14-13412 is in it twice, as ductal and as "
    "lobular carcinoma, and fold 1 has the one in train and the other in test. Letters after a "
    "number are kept, as its authors count patients, but 14-22549AB and 14-22549CD may be one. A few images are 456 px "
    "high.",
    unconfirmed=("mpp", "get"),
)
_NAME = re.compile(r"SOB_[BM]_([A-Z]+)-(\d+-\w+)-(40|100|200|400)-\d+")


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles."""
    powers = {part.removesuffix("x") for part in parts if part.endswith("x")}
    folds = [part for part in parts if part.startswith("fold")]
    if len(folds) > 1:
        raise InputError(f"breakhis takes one fold, not {', '.join(folds)}; leave the others out.")
    splits = _fold(folder, folds[0]) if folds else {}
    tiles: list[TileEntry] = []
    for path in found(folder, "**/SOB_*.png"):
        name = _NAME.fullmatch(path.stem)
        if name is None or name[1] not in KINDS or (powers and name[3] not in powers):
            continue
        place = (path, path.relative_to(folder).as_posix(), source, name[2], MPP[name[3]])
        tiles.append(PublishedEntry(*place, KINDS[name[1]], splits.get(path.name), None))
    return tiles


def _fold(folder: Path, fold: str) -> dict[str, str]:
    """Split by file name; lines are NAME|magnification|fold|split."""
    tables = found(folder, f"**/ds{fold}.txt")
    if not tables:
        raise InputError(f"{folder} holds no ds{fold}.txt, which says who is in {fold}; put it there.")
    rows = [line.strip().split("|") for line in tables[0].read_text(encoding="utf-8", errors="replace").splitlines()]
    if wrong := [row for row in rows if row != [""] and (len(row) != 4 or row[3] not in ("train", "test"))]:
        raise InputError(
            f"{tables[0]} has the line {'|'.join(wrong[0])[:80]!r}, expected NAME|magnification|fold|split."
        )
    return {row[0]: row[3] for row in rows if len(row) == 4}
