"""Published data sets by name: tiny ones in their published layout, the development copies, and what is refused."""

import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from published_specimens import BOXES, SIDE, SPECIMENS, aperio, image, save, two_nuclei, write

import histo.datasets
from histo.commands.datasets import main
from histo.datasets import facts, named_set, names
from histo.errors import InputError
from histo.inspection import inspect
from histo.tiles import TileSet, open_tiles
from histo.tiles.annotations import aperio_polygons
from histo.tiles.packing import pack
from histo.tiles.published import Facts

DATA = os.environ.get("NUCLEATE_DATA")

# tiles; splits, labels and patients of the tiles in order (None: none of them has one)
EXPECTED = {
    "monuseg": (4, "train train train test", None, "TCGA-18-5592 TCGA-21-5786 TCGA-AY-A8YK TCGA-2Z-A9J9"),
    "tnbc": (3, None, None, "01 01 02"),
    "consep": (2, "test train", None, None),
    "pannuke": (6, "train train train val val val", "Breast Colon Bile-duct Breast Colon Bile-duct", None),
    "lizard": (4, "train train test train", None, None),
    "nuinsseg": (2, None, "human_bladder mouse_liver", None),
    "dsb2018": (2, None, None, None),
    "nct_crc": (4, "test test train train", "ADI TUM ADI TUM", None),
    "camelyon17_wilds": (4, "train id_val val test", "tumor normal tumor normal", "004 004 017 042"),
    "kather2016": (2, None, "01_TUMOR 08_EMPTY", None),
    "breakhis": (
        6,
        None,
        "adenosis adenosis ductal_carcinoma ductal_carcinoma lobular_carcinoma lobular_carcinoma",
        "14-22549AB 14-22549AB 14-13412 14-13412 14-13412 14-13412",
    ),
    "bach": (2, None, "Invasive Normal", None),
    "pcam": (6, "test test train train val val", "normal tumor normal tumor normal tumor", None),
    "lc25000": (2, None, "colon_n lung_aca", None),
    "bracs": (3, "test train val", "0_N 0_N 0_N", None),
    "glas": (3, "testA testB train", "malignant benign benign", "3 5 3"),
    "mhist": (2, "train test", "HP SSA", None),
}
NUCLEI = {"monuseg", "tnbc", "consep", "pannuke", "lizard", "nuinsseg", "dsb2018", "glas"}


def opened(name: str, folder: Path, part: str = "") -> TileSet:
    if name == "pcam":
        pytest.importorskip("h5py")
    SPECIMENS[name](folder)
    return open_tiles(f"{name}{part}:{folder}")


def column(tiles: TileSet, field: str) -> str | None:
    values = [getattr(entry, field) for entry in tiles.entries]
    return None if set(values) == {None} else " ".join(str(value).replace(" ", "_") for value in values)


def test_every_set_has_a_specimen() -> None:
    assert set(names()) == set(SPECIMENS) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_published_layout(name: str, tmp_path: Path) -> None:
    tiles = opened(name, tmp_path)
    count, splits, labels, patients = EXPECTED[name]
    assert len(tiles) == count
    assert (column(tiles, "split"), column(tiles, "label"), column(tiles, "patient")) == (splits, labels, patients)
    assert {entry.source for entry in tiles.entries} == {name}
    assert len({entry.key for entry in tiles.entries}) == count
    if name != "breakhis":
        assert {entry.mpp for entry in tiles.entries} == {facts(name).mpp}
    for entry in pickle.loads(pickle.dumps(list(tiles.entries))):  # noqa: S301  # as loaders' workers receive them
        tile = entry.read()
        assert tile.image.shape == (3, SIDE, SIDE)
        assert tile.image.dtype == np.uint8
        assert (tile.instances is not None) == (name in NUCLEI)


@pytest.mark.parametrize("name", sorted(NUCLEI))
def test_instances_are_exact(name: str, tmp_path: Path) -> None:
    tile = opened(name, tmp_path)[0]
    assert tile.instances is not None
    ids = [0, 3, 5] if name == "lizard" else [0, 1, 2]
    assert np.array_equal(tile.instances, np.array(ids)[two_nuclei()])


def test_classes_of_nuclei(tmp_path: Path) -> None:
    for name, expected in (("consep", [0, 4, 2]), ("pannuke", [0, 1, 5]), ("lizard", [0, 0, 0, 2, 0, 6])):
        tile = opened(name, tmp_path / name)[0] if (tmp_path / name).mkdir() is None else None
        assert tile is not None
        assert tile.classes is not None
        assert tile.classes.tolist() == expected
        assert len(facts(name).nuclei) >= max(expected)


def test_pixels_come_from_the_right_row(tmp_path: Path) -> None:
    tiles = opened("pannuke", tmp_path)
    for k in range(6):
        assert np.array_equal(tiles.image(k), image(k % 3).transpose(2, 0, 1))
    assert tiles[1].instances is not None
    assert not tiles[1].instances.any()


def test_parts(tmp_path: Path) -> None:
    for name in ("monuseg", "lizard", "breakhis", "nct_crc", "camelyon17_wilds"):
        (tmp_path / name).mkdir()
        SPECIMENS[name](tmp_path / name)

    def part(text: str) -> TileSet:
        name = text.partition("@")[0]
        return open_tiles(f"{text}:{tmp_path / name}")

    assert column(part("monuseg@kumar"), "split") == "train test_same test_different"
    assert column(part("breakhis@40x"), "mpp") == "0.49 0.49 0.49"
    assert column(part("breakhis@200x@fold1"), "split") == "train train test"
    assert len(part("lizard@dpath")) == 2
    assert "NONORM" in part("nct_crc@nonorm").entries[2].key
    assert column(part("camelyon17_wilds@centre2"), "patient") == "042"
    training = [{e.key for e in part(f"lizard@{n}").entries if e.split == "train"} for n in (1, 2)]
    assert [len(keys) for keys in training] == [1, 2]
    assert training[0] < training[1]
    with pytest.raises(InputError, match="has 3 training images, but lizard@8"):
        part("lizard@8")
    with pytest.raises(InputError, match="no part '50x', expected 40x, 100x"):
        part("breakhis@50x")
    with pytest.raises(InputError, match="no part 'all', expected none"):
        open_tiles(f"tnbc@all:{tmp_path}")


def test_several_sets_are_mixed(tmp_path: Path, tile_folder: Path) -> None:
    for name in ("tnbc", "pannuke"):
        (tmp_path / name).mkdir()
        SPECIMENS[name](tmp_path / name)
    tiles = open_tiles([f"tnbc:{tmp_path / 'tnbc'}", tile_folder, f"pannuke:{tmp_path / 'pannuke'}"], mpp=0.5)
    assert [entry.source for entry in tiles.entries][::9] == ["tnbc", tile_folder.name, "pannuke"]
    assert {entry.mpp for entry in tiles.entries} == {0.5}
    assert len(open_tiles(f"pannuke:{tmp_path / 'pannuke'}", split="val")) == 3
    with pytest.raises(InputError, match="has no split 'dev': its splits are train, val"):
        open_tiles(f"pannuke:{tmp_path / 'pannuke'}", split="dev")


def test_published_sets_are_packed(tmp_path: Path) -> None:
    for name in ("pannuke", "glas", "tnbc"):
        (tmp_path / name).mkdir()
        tiles = opened(name, tmp_path / name)
        pack(Path(f"{name}:{tmp_path / name}"), tmp_path / f"{name}-shards")
        packed = open_tiles(tmp_path / f"{name}-shards")
        for k, tile in enumerate(tiles):
            assert np.array_equal(tile.image, packed[k].image)
            assert np.array_equal(tile.instances, packed[k].instances)


def test_names_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_set(tmp_path) is None
    assert named_set("C:/tiles") is None
    with pytest.raises(InputError, match="no data set 'panuke'; did you mean pannuke"):
        open_tiles("panuke:somewhere")
    with pytest.raises(InputError, match="does not exist"):
        open_tiles(f"pannuke:{tmp_path / 'nowhere'}")
    odd = tmp_path / "scan:tiles"  # a folder that is there goes before a name
    save(odd / "a.png", image(1))
    monkeypatch.chdir(tmp_path)
    assert len(open_tiles("scan:tiles")) == 1
    with pytest.raises(InputError, match="nothing in the layout of bach, expected Photos/Normal"):
        open_tiles(f"bach:{odd}")


# --- what is refused


def test_annotations_that_are_no_polygons(tmp_path: Path) -> None:
    path, size = tmp_path / "a.xml", (SIDE, SIDE)
    entity = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>' + BOXES.replace("0.252", "&b;")
    for text, said in (
        (entity, "declares a document type"),
        (BOXES[:90], "cannot be read as an Aperio annotation"),
        (aperio([(1, 1), (float("nan"), 5), (5, 5)]), "coordinate out of range"),
        (BOXES.replace('X="2"', 'X="two"'), "cannot be read as an Aperio annotation"),
    ):
        write(path, text)
        with pytest.raises(InputError, match=said):
            aperio_polygons(path, size)
    path.write_bytes(entity.encode("utf-16"))
    with pytest.raises(InputError, match="cannot be read"):
        aperio_polygons(path, size)
    write(path, aperio([(1, 1), (5, 5)], [(90, 90), (95, 90), (95, 95)]))  # a line, and one outside
    assert not aperio_polygons(path, size).instances.any()


def test_too_large_an_annotation(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    with path.open("wb") as file:
        file.truncate(50_000_001)
    with pytest.raises(InputError, match="expected at most 50,000,000"):
        aperio_polygons(path, (SIDE, SIDE))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    SPECIMENS["pannuke"](tmp_path)
    types = tmp_path / "Fold 1" / "images" / "fold1" / "types.npy"
    np.save(types, np.array(["Breast", 1, None], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"types.npy holds Python objects.*could run code; download the set again"):
        open_tiles(f"pannuke:{tmp_path}")
    types.unlink()
    assert column(open_tiles(f"pannuke:{tmp_path}"), "label") == "None None None Breast Colon Bile-duct"


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    SPECIMENS["pannuke"](tmp_path)
    images = tmp_path / "Fold 1" / "images" / "fold1" / "images.npy"
    np.save(images, np.zeros((2, SIDE, SIDE, 3)))
    with pytest.raises(InputError, match="has 2 tiles, but the masks or types"):
        open_tiles(f"pannuke:{tmp_path}")
    np.save(images, np.full((3, SIDE, SIDE, 3), 0.5))
    with pytest.raises(InputError, match="not whole numbers from 0 to 255"):
        open_tiles(f"pannuke:{tmp_path}")[0]
    images.write_bytes(images.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read as a NumPy array"):
        open_tiles(f"pannuke:{tmp_path}")


def test_matlab_files_that_do_not_fit(tmp_path: Path) -> None:
    SPECIMENS["consep"](tmp_path)
    path = tmp_path / "Train" / "Labels" / "train_1.mat"
    scipy.io.savemat(path, {"inst_map": two_nuclei()})
    with pytest.raises(InputError, match="has no numbers 'type_map'"):
        open_tiles(f"consep:{tmp_path}")[1]
    path.write_bytes(b"MATLAB" * 40)
    with pytest.raises(InputError, match="cannot be read as a MATLAB file"):
        open_tiles(f"consep:{tmp_path}")[1]


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    SPECIMENS["nuinsseg"](tmp_path)
    save(tmp_path / "mouse liver" / "label masks modify" / "a_1.tif", np.ones((9, 9), np.uint16))
    with pytest.raises(InputError, match="9 x 9 pixels"):
        open_tiles(f"nuinsseg:{tmp_path}")[1]


def test_tables_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    SPECIMENS["camelyon17_wilds"](tmp_path)
    table = tmp_path / "metadata.csv"
    write(table, table.read_text().replace("017", "../017"))
    with pytest.raises(InputError, match=r"line 4 of .*metadata\.csv lacks a number"):
        open_tiles(f"camelyon17_wilds:{tmp_path}")


# --- facts and the check of a set


@pytest.mark.parametrize("name", EXPECTED)
def test_facts(name: str) -> None:
    known = facts(name)
    assert known.title
    assert known.licence
    assert known.citation
    assert known.get
    fields = {field.name for field in Facts.__dataclass_fields__.values()}
    assert set(known.unconfirmed) <= fields
    if known.splits:
        assert known.tiles == sum(known.splits.values())
    if known.classes and None not in known.classes.values():
        assert known.tiles == sum(number or 0 for number in known.classes.values())


def test_adapters_are_short() -> None:
    for path in Path(histo.datasets.__path__[0]).glob("[a-z]*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 80, path.name
        assert ast.get_docstring(ast.parse(text))


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert "CC BY-NC-SA 4.0 (non-commercial)" in said
    assert all(f"\n{name}  " in f"\n{said}" for name in names())


def test_check_of_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SPECIMENS["kather2016"](tmp_path)
    assert main(["check", "kather2016", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "a part of the set: 2 of 5000 tiles" in said
    assert "2 tiles are 24 x 24 pixels (height x width), expected 150 x 150" in said
    for path in tmp_path.rglob("*.tif"):
        save(path, image(1, (150, 150)))
    assert main(["check", "kather2016", str(tmp_path)]) == 0
    sorted(tmp_path.rglob("*.tif"))[-1].write_bytes(b"")
    assert main(["check", "kather2016", str(tmp_path)]) == 1


def test_check_of_a_whole_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    SPECIMENS["bracs"](tmp_path)
    monkeypatch.setattr("histo.datasets.bracs.FACTS", Facts(**{**vars(facts("bracs")), "tiles": 2}))
    assert main(["check", "bracs", str(tmp_path)]) == 1
    assert "3 tiles, more than the 2 published" in capsys.readouterr().out


def test_check_names_shared_patients_and_strangers(tmp_path: Path) -> None:
    for name, said in (("camelyon17_wilds", "1 patients are in more than one split, first 004"), ("glas", "first 3")):
        (tmp_path / name).mkdir()
        SPECIMENS[name](tmp_path / name)
        assert any(said in note for note in inspect(f"{name}:{tmp_path / name}").notes)
    (tmp_path / "mhist").mkdir()
    SPECIMENS["mhist"](tmp_path / "mhist")
    table = tmp_path / "mhist" / "annotations.csv"
    write(table, table.read_text().replace("SSA,3", "polyp,3"))
    found = inspect(f"mhist:{tmp_path / 'mhist'}").findings["published set"]
    assert "1 tiles of class 'polyp', which the set does not have" in found


# --- the development copies

COPIES = {
    "monuseg": ("nuclei/monuseg2018", 30),
    "tnbc": ("nuclei/tnbc_naylor", 33),
    "consep": ("nuclei/consep_patches", 147),
    "dsb2018": ("nuclei/dsb2018_he", 72),
    "breakhis": ("classify/breakhis", 73),
    "lc25000": ("classify/lc25000_lung_224px", 300),
    "pcam": ("classify/pcam_96px", 349),
    "kather2016": ("classify/kather2016_150px", 24),
    "glas": ("classify/glas", 24),
}


@pytest.mark.skipif(DATA is None, reason="needs real tiles under NUCLEATE_DATA")
@pytest.mark.parametrize("name", COPIES)
def test_copies(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, count = COPIES[name]
    path = Path(str(DATA)) / folder
    tiles = open_tiles(f"{name}:{path}")
    assert len(tiles) == count
    assert [entry.mpp for entry in tiles.entries] == [entry.mpp for entry in open_tiles(path).entries]
    assert main(["check", name, str(path)]) == 0
    said = capsys.readouterr().out
    published = facts(name).tiles
    if published is not None and published > count:
        assert f"a part of the set: {count} of {published} tiles" in said
