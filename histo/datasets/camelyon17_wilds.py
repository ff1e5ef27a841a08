"""CAMELYON17-WILDS: tumour in lymph nodes from five hospitals, split by hospital."""

import csv
from pathlib import Path

from histo.errors import InputError
from histo.tiles.entries import TileEntry
from histo.tiles.published import Facts, PublishedEntry

FACTS = Facts(
    title="CAMELYON17-WILDS: tumour in lymph nodes, five hospitals",
    licence="CC0",
    noncommercial=False,
    citation="Koh et al., ICML 2021; Bandi et al., IEEE TMI 38 (2019) 550",
    get="wilds.stanford.edu: camelyon17_v1.0.tar.gz",
    layout="metadata.csv and patches/patient_P_node_N/patch_patient_P_node_N_x_X_y_Y.png",
    magnification="10x",
    mpp=None,
    patients="column patient of metadata.csv",
    disjoint=False,
    classes={"normal": None, "tumor": None},
    tiles=455_954,
    size=(96, 96),
    parts={f"centre{k}": f"patches of hospital {k} alone" for k in range(5)},
    notes="Official splits: hospital 1 is val, hospital 2 test, the others train with id_val drawn from the same "
    "patients, so train and id_val share patients. µm/px is given by --data.mpp.",
    unconfirmed=("tiles", "magnification"),
)
_SPLITS = {"1": "val", "2": "test"}  # by centre
_FIELDS = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")


def entries(folder: Path, source: str, parts: tuple[str, ...]) -> list[TileEntry]:
    """Its tiles; rows of metadata.csv without a file are left out, for the integrity check to count."""
    tables = [folder / "metadata.csv", *sorted(folder.glob("*/metadata.csv"))]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        return []
    root = table.parent
    present = {path for path in root.glob("patches/*/*.png") if not path.is_symlink()}
    tiles: list[TileEntry] = []
    with table.open(encoding="utf-8-sig", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            if any(not (row.get(name) or "").isdigit() for name in _FIELDS):
                raise InputError(f"line {line} of {table} lacks a number in {', '.join(_FIELDS)}; unpack it again.")
            patient, node, x, y, tumour, centre, official = (row[name] for name in _FIELDS)
            name = f"patient_{patient}_node_{node}"
            path = root / "patches" / name / f"patch_{name}_x_{x}_y_{y}.png"
            if path not in present or (parts and f"centre{centre}" not in parts):
                continue
            split = _SPLITS.get(centre, "id_val" if official == "1" else "train")
            label = "tumor" if tumour == "1" else "normal"
            place = (path, path.relative_to(folder).as_posix(), source, patient, FACTS.mpp, label, split, None)
            tiles.append(PublishedEntry(*place))
    return tiles
