"""Tiny published data sets in the layouts they are published in, made by code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
import tifffile
from PIL import Image

SIDE = 24


def image(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """uint8 [H, W, 3] of noise."""
    return np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)


def two_nuclei() -> np.ndarray:
    """uint8 [24, 24]: nucleus 1 of 5 x 4 pixels and nucleus 2 of 6 x 5."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[2:7, 2:6] = 1
    mask[10:16, 10:15] = 2
    return mask


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def aperio(*rings: list[tuple[float, float]]) -> str:
    regions = ""
    for number, ring in enumerate(rings, 1):
        vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ring)
        regions += f'<Region Id="{number}"><Vertices>{vertices}</Vertices></Region>'
    return f'<Annotations MicronsPerPixel="0.252"><Annotation><Regions>{regions}</Regions></Annotation></Annotations>'


BOXES = aperio([(2, 2), (6, 2), (6, 7), (2, 7)], [(10, 10), (15, 10), (15, 16), (10, 16)])


def monuseg(root: Path) -> None:
    for folder, names in {
        "MoNuSeg 2018 Training Data": ("TCGA-18-5592-01Z-00-DX1", "TCGA-21-5786-01Z-00-DX1", "TCGA-AY-A8YK-01A-01-TS1"),
        "MoNuSegTestData": ("TCGA-2Z-A9J9-01A-01-TS1",),
    }.items():
        for k, name in enumerate(names):
            save(root / folder / "Tissue Images" / f"{name}.tif", image(k))
            write(root / folder / "Annotations" / f"{name}.xml", BOXES)


def tnbc(root: Path) -> None:
    for name in ("01_1", "01_2", "02_1"):
        save(root / f"Slide_{name[:2]}" / f"{name}.png", image(1))
        save(root / f"GT_{name[:2]}" / f"{name}.png", np.where(two_nuclei() > 0, 255, 0).astype(np.uint8))


def consep(root: Path) -> None:
    kinds = np.choose(two_nuclei(), [0, 4, 2]).astype(np.float64)
    for split, number in (("Train", 1), ("Test", 1)):
        name = f"{split.lower()}_{number}"
        save(root / split / "Images" / f"{name}.png", image(2))
        (root / split / "Labels").mkdir()
        content = {"inst_map": two_nuclei().astype(np.float64), "type_map": kinds}
        scipy.io.savemat(root / split / "Labels" / f"{name}.mat", content)


def pannuke(root: Path) -> None:
    for fold in (1, 2):
        images, masks = (root / f"Fold {fold}" / name / f"fold{fold}" for name in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        np.save(images / "images.npy", np.stack([image(k) for k in range(3)]).astype(np.float64))
        np.save(images / "types.npy", np.array(["Breast", "Colon", "Bile-duct"]))
        stack = np.zeros((3, SIDE, SIDE, 6))
        stack[0, ..., 0] = np.where(two_nuclei() == 1, 7, 0)
        stack[0, ..., 4] = np.where(two_nuclei() == 2, 7, 0)  # the same number in another channel
        stack[..., 5] = stack[..., :5].sum(-1) == 0
        np.save(masks / "masks.npy", stack)


def lizard(root: Path) -> None:
    rows = ["Filename,Source,Split"]
    for name, part, split in (("consep_1", 1, 1), ("crag_1", 1, 1), ("dpath_1", 2, 3), ("dpath_2", 2, 1)):
        save(root / f"lizard_images{part}" / f"Lizard_Images{part}" / f"{name}.png", image(part))
        labels = root / "lizard_labels" / "Lizard_Labels" / "Labels"
        labels.mkdir(parents=True, exist_ok=True)
        instances = np.choose(two_nuclei(), [0, 3, 5])
        content = {"inst_map": instances, "id": np.array([[3], [5]]), "class": np.array([[2], [6]])}
        scipy.io.savemat(labels / f"{name}.mat", content)
        rows.append(f"{name},{name.split('_')[0]},{split}")
    write(root / "lizard_labels" / "Lizard_Labels" / "info.csv", "\n".join(rows))


def nuinsseg(root: Path) -> None:
    for organ in ("human bladder", "mouse liver"):
        save(root / organ / "tissue images" / "a_1.png", image(3))
        save(root / organ / "label masks modify" / "a_1.tif", two_nuclei().astype(np.uint16))


def dsb2018(root: Path) -> None:
    for name in ("0a1b", "2c3d"):
        save(root / "stage1_train" / name / "images" / f"{name}.png", image(4))
        for number in (1, 2):
            mask = np.where(two_nuclei() == number, 255, 0).astype(np.uint8)
            save(root / "stage1_train" / name / "masks" / f"{number}.png", mask)


def nct_crc(root: Path) -> None:
    for folder in ("NCT-CRC-HE-100K", "NCT-CRC-HE-100K-NONORM", "CRC-VAL-HE-7K"):
        for kind in ("ADI", "TUM"):
            save(root / folder / kind / f"{kind}-AAAA.tif", image(5))


def camelyon17_wilds(root: Path) -> None:
    rows = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for k, (patient, tumour, centre, split) in enumerate(
        [("004", 1, 0, 0), ("004", 0, 0, 1), ("017", 1, 1, 0), ("042", 0, 2, 0)]
    ):
        rows.append(f"{k},{patient},4,{k},9,{tumour},{k},{centre},{split}")
        save(root / f"patches/patient_{patient}_node_4/patch_patient_{patient}_node_4_x_{k}_y_9.png", image(k))
    write(root / "metadata.csv", "\n".join(rows))


def kather2016(root: Path) -> None:
    for kind in ("01_TUMOR", "08_EMPTY"):
        save(root / "Kather_texture_2016_image_tiles_5000" / kind / "1A11_CRC-Prim-HE-07.tif", image(6))


def breakhis(root: Path) -> None:
    lines = []
    for kind, slide, split in (("A", "14-22549AB", "train"), ("DC", "14-13412", "train"), ("LC", "14-13412", "test")):
        side = "B" if kind == "A" else "M"
        for power in (40, 200):
            name = f"SOB_{side}_{kind}-{slide}-{power}-001.png"
            save(root / f"histology_slides/breast/x/SOB/y/SOB_{side}_{kind}_{slide}/{power}X/{name}", image(power))
            lines.append(f"{name}|{power}|1|{split}")
    write(root / "dsfold1.txt", "\n".join(lines) + "\n")


def bach(root: Path) -> None:
    for kind in ("Normal", "Invasive"):
        save(root / "ICIAR2018_BACH_Challenge" / "Photos" / kind / "n001.tif", image(7))


def pcam(root: Path) -> None:
    import h5py

    for split in ("train", "valid", "test"):
        for letter, content in (("x", np.stack([image(1), image(2)])), ("y", np.array([0, 1]).reshape(2, 1, 1, 1))):
            with h5py.File(root / f"camelyonpatch_level_2_split_{split}_{letter}.h5", "w") as file:
                file[letter] = content


def lc25000(root: Path) -> None:
    for kind in ("lung_aca", "colon_n"):
        save(root / f"{kind.split('_')[0]}_image_sets" / kind / f"{kind}1.jpeg", image(8))


def bracs(root: Path) -> None:
    for split in ("train", "val", "test"):
        save(root / "latest_version" / split / "0_N" / "BRACS_1228_N_1.png", image(9))


def glas(root: Path) -> None:
    for name in ("train_1", "testA_1", "testB_1"):
        save(root / f"{name}.bmp", image(10))
        save(root / f"{name}_anno.bmp", two_nuclei())
    write(
        root / "Grade.csv",
        "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)\n"
        "train_1,3, benign, healthy\ntestA_1,3, malignant, high grade\ntestB_1,5, benign, adenomatous\n",
    )


def mhist(root: Path) -> None:
    rows = ["Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"]
    for name, label, split in (("MHIST_aaa.png", "HP", "train"), ("MHIST_aab.png", "SSA", "test")):
        save(root / "images" / name, image(11))
        rows.append(f"{name},{label},3,{split}")
    write(root / "annotations.csv", "\n".join(rows))


SPECIMENS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (
        *(monuseg, tnbc, consep, pannuke, lizard, nuinsseg, dsb2018, nct_crc, camelyon17_wilds),
        *(kather2016, breakhis, bach, pcam, lc25000, bracs, glas, mhist),
    )
}
