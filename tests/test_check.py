"""`nucleate check`: folders broken on purpose, one fault each, and folders with nothing wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from histo.commands.check import main
from histo.errors import InputError
from histo.inspection import inspect
from histo.inspection.likeness import ALIKE, alike, spectrum
from histo.inspection.report import KINDS
from histo.masks import write_instances
from histo.phantom import PhantomTissue
from histo.tiles import open_tiles
from histo.tiles.packing import pack
from histo.tiles.tables import write_folder, write_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten phantom tiles, five patients, with masks: a set with nothing wrong."""
    path = tmp_path / "set"
    write_folder(PhantomTissue(3, size=128, mpp=0.25, count=10), path)
    return path


def rewrite(folder: Path, change: Callable[[list[list[object]]], None]) -> None:
    """Change the rows of tiles.csv: path, label, patient, mpp, split, mask."""
    entries = open_tiles(folder).entries
    rows: list[list[object]] = [
        [e.key, e.label, e.patient, e.mpp, e.split, None if e.mask is None else f"labels/{e.mask.name}"]
        for e in entries
    ]
    change(rows)
    write_table(folder, rows)


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    Image.fromarray(pixels).save(path, **options)


def pixels(folder: Path, number: int) -> np.ndarray:
    return np.asarray(Image.open(folder / "images" / f"{number}.png"))


# --- one fault each: what breaks the folder, the one finding, and a name that it holds


def break_table(folder: Path) -> None:
    rewrite(folder, lambda rows: rows[4].__setitem__(3, "wide"))


def add_column(folder: Path) -> None:
    lines = (folder / "tiles.csv").read_text().splitlines()
    (folder / "tiles.csv").write_text("\n".join([lines[0] + ",scanner", *(line + ",x" for line in lines[1:])]))


def lose_file(folder: Path) -> None:
    (folder / "images" / "4.png").unlink()
    (folder / "labels" / "4.png").unlink()


def repeat_row(folder: Path) -> None:
    rewrite(folder, lambda rows: rows.append(rows[2]))


def forget_row(folder: Path) -> None:
    rewrite(folder, lambda rows: rows.pop(9))
    (folder / "labels" / "9.png").unlink()


def empty_file(folder: Path) -> None:
    (folder / "images" / "4.png").write_bytes(b"")


def cut_file(folder: Path) -> None:
    data = (folder / "images" / "4.png").read_bytes()
    (folder / "images" / "4.png").write_bytes(data[: len(data) // 2])


def colour_mask(folder: Path) -> None:
    save(folder / "labels" / "4.png", pixels(folder, 4))


def lose_mask(folder: Path) -> None:
    rewrite(folder, lambda rows: rows[4].__setitem__(5, None))
    (folder / "labels" / "4.png").unlink()


def add_mask(folder: Path) -> None:
    write_instances(folder / "labels" / "other.png", np.ones((8, 8), np.int32))


def shrink_mask(folder: Path) -> None:
    write_instances(folder / "labels" / "4.png", np.eye(64, dtype=np.int32))


def blank_mask(folder: Path) -> None:
    write_instances(folder / "labels" / "4.png", np.zeros((128, 128), np.int32))


def binary_mask(folder: Path) -> None:
    mask = np.asarray(Image.open(folder / "labels" / "4.png"))
    write_instances(folder / "labels" / "4.png", np.where(mask > 0, 255, 0))


def crop_tile(folder: Path) -> None:
    save(folder / "images" / "4.png", pixels(folder, 4)[:100])
    mask = np.asarray(Image.open(folder / "labels" / "4.png")).astype(np.int32)
    write_instances(folder / "labels" / "4.png", mask[:100])


def grey_tile(folder: Path) -> None:
    save(folder / "images" / "4.png", pixels(folder, 4).mean(axis=2).astype(np.uint8))


def partner(folder: Path, *, same_split: bool) -> int:
    """A tile of the same or of another split than that of tile 0."""
    splits = [entry.split for entry in open_tiles(folder).entries]
    return next(k for k in range(1, 10) if (splits[k] == splits[0]) is same_split)


def copy_tile(folder: Path) -> None:
    save(folder / "images" / f"{partner(folder, same_split=True)}.png", pixels(folder, 0))


def turn_tile(folder: Path) -> None:
    turned = np.ascontiguousarray(np.rot90(pixels(folder, 0))[:, ::-1])
    path = folder / "images" / f"{partner(folder, same_split=True)}.png"
    save(path, turned, format="JPEG", quality=90)


def copy_across(folder: Path) -> None:
    save(folder / "images" / f"{partner(folder, same_split=False)}.png", pixels(folder, 0))


def share_patient(folder: Path) -> None:
    k = partner(folder, same_split=False)
    rewrite(folder, lambda rows: [rows[i].__setitem__(2, "somebody") for i in (0, k)] and None)


def double_mpp(folder: Path) -> None:
    rewrite(folder, lambda rows: [row.__setitem__(3, 1.0) for row in rows] and None)


FAULTS = {
    "table": (break_table, "line 6"),
    "columns": (add_column, "scanner"),
    "missing files": (lose_file, "4.png"),
    "repeated keys": (repeat_row, "lines 4 and 12"),
    "unlisted images": (forget_row, "9.png"),
    "empty files": (empty_file, "4.png"),
    "images": (cut_file, "4.png"),
    "masks": (colour_mask, "4.png is a colour image"),
    "images without mask": (lose_mask, "images/4.png"),
    "masks without image": (add_mask, "other.png"),
    "mask sizes": (shrink_mask, "mask 64 x 64, image 128 x 128"),
    "empty masks": (blank_mask, "4.png"),
    "binary masks": (binary_mask, "id 255"),
    "sizes": (crop_tile, "4.png: 100 x 128, not 128 x 128"),
    "modes": (grey_tile, "4.png: L, not RGB"),
    "duplicates": (copy_tile, "images/0.png = images/"),
    "near-duplicates": (turn_tile, "images/0.png = images/"),
    "duplicates across splits": (copy_across, "images/0.png = images/"),
    "patients across splits": (share_patient, "somebody: "),
    "pixel size": (double_mpp, "at 1 µm/px"),
}


def test_a_sound_folder_has_no_findings(folder: Path) -> None:
    report = inspect(str(folder))
    assert report.findings == {}
    assert report.facts["tiles"] == "10"
    assert report.facts["sizes"] == "128 x 128 (10)"
    assert report.facts["µm/px"] == "0.25 (10)"


def test_pictures_beside_the_tiles_are_no_tiles(folder: Path) -> None:
    save(folder / "contact.png", pixels(folder, 0))
    assert inspect(str(folder)).findings == {}


def test_copies_are_told_once_each(folder: Path) -> None:
    """Each beside the first of them: all pairs of thousands of blank tiles would fill the memory."""
    entries = open_tiles(folder).entries
    same = [k for k in range(10) if entries[k].split == entries[0].split][:4]
    for k in same[1:]:
        save(folder / "images" / f"{k}.png", pixels(folder, 0))
        shutil.copy(folder / "labels" / "0.png", folder / "labels" / f"{k}.png")
    assert len(inspect(str(folder)).findings["duplicates"]) == 3


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found_alone(kind: str, folder: Path) -> None:
    fault, name = FAULTS[kind]
    fault(folder)
    report = inspect(str(folder))
    found = {**report.findings}
    assert kind in found
    assert name in found.pop(kind)[0]
    if kind == "table":  # the row is left out, so its files belong to nobody
        found.pop("unlisted images")
        found.pop("masks without image")
    if kind == "repeated keys":
        assert report.facts["tiles"] == "10"
    assert found == {}


def test_every_kind_of_finding_has_a_test() -> None:
    elsewhere = {"links", "mixed magnification", "published set"}
    assert set(FAULTS) | elsewhere == set(KINDS)


def test_a_table_that_cannot_be_read_does_not_hide_the_images(folder: Path) -> None:
    (folder / "tiles.csv").write_text("pth,split\nimages/0.png,train\n")
    cut_file(folder)
    report = inspect(str(folder))
    assert set(report.findings) == {"table", "images"}
    assert report.facts["tiles"] == "10"


def test_folders_without_table_pair_masks_by_name(folder: Path) -> None:
    (folder / "tiles.csv").unlink()
    assert inspect(str(folder)).findings == {}
    (folder / "labels" / "4.png").rename(folder / "labels" / "44.png")
    assert inspect(str(folder)).findings == {
        "images without mask": ["images/4.png"],
        "masks without image": ["labels/44.png"],
    }


def test_links_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "tiles.csv").unlink()
    (folder / "images" / "4.png").rename(tmp_path / "away.png")
    (folder / "labels" / "4.png").unlink()
    (folder / "images" / "4.png").symlink_to(tmp_path / "away.png")
    assert list(inspect(str(folder)).findings) == ["links"]


def test_mixed_magnification(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_folder(PhantomTissue(3, size=128, mpp=0.5, count=5), folder)
    rows = []
    for k, mpp in enumerate([0.5] * 5 + [0.125] * 5):
        tile = PhantomTissue(3, size=128 if mpp == 0.5 else 512, mpp=mpp, count=10)[k]
        assert tile.instances is not None
        save(folder / "images" / f"{k}.png", tile.image.transpose(1, 2, 0))
        write_instances(folder / "labels" / f"{k}.png", tile.instances)
        rows.append([f"images/{k}.png", None, None, None, None, f"labels/{k}.png"])
    write_table(folder, rows)
    report = inspect(str(folder))
    assert list(report.findings) == ["mixed magnification"]
    assert "µm/px is unknown" in report.notes[0]


def test_shards_and_their_exit_code(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_across(folder)
    pack(folder, tmp_path / "shards")
    out = tmp_path / "report.json"
    assert main([str(tmp_path / "shards"), "--json", str(out)]) == 1
    assert "duplicates across splits (1)" in capsys.readouterr().out
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["findings"][0]["kind"] == "duplicates across splits"
    assert report["findings"][0]["count"] == 1
    assert report["what"].endswith("shards")


def test_exit_codes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    assert "Nothing is wrong." in capsys.readouterr().out
    for number in range(5):
        (folder / "images" / f"{number}.png").write_bytes(b"")
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "empty files (5)" in said
    assert "… and 2 more" in said
    (tmp_path / "nothing").mkdir()
    for path in ("nothing", "absent"):
        with pytest.raises(InputError):  # which `nucleate` turns into exit code 2
            main([str(tmp_path / path)])
    with pytest.raises(InputError, match="make it first"):
        main([str(folder), "--json", str(tmp_path / "no" / "report.json")])


# --- the perceptual hash


def test_pairs_are_those_of_a_slow_search() -> None:
    """Every orientation is made with the pixels themselves, and signs are compared one by one."""
    tiles = [tile.image for tile in PhantomTissue(5, size=96, count=5)]
    tiles += [np.ascontiguousarray(np.rot90(tiles[k], k, axes=(1, 2))) for k in (1, 2, 3)]
    tiles.append(np.ascontiguousarray(tiles[4][:, :, ::-1]))
    spectra = np.stack([found for image in tiles if (found := spectrum(image)) is not None])
    assert len(spectra) == len(tiles)

    def signs(image: np.ndarray) -> np.ndarray:
        grey = Image.fromarray(image.transpose(1, 2, 0)).convert("L").resize((64, 64), Image.Resampling.BOX)
        return dctn(np.asarray(grey, np.float64), norm="ortho")[:16, :16].ravel()[1:] >= 0

    slow = []
    for i in range(len(tiles)):
        for j in range(i + 1, len(tiles)):
            views = [np.rot90(tiles[j], k, axes=(1, 2))[:, :, ::step] for k in range(4) for step in (1, -1)]
            fewest = min(int((signs(tiles[i]) != signs(np.ascontiguousarray(view))).sum()) for view in views)
            slow += [(i, j)] if fewest <= ALIKE else []
    assert alike(spectra) == slow == [(1, 5), (2, 6), (3, 7), (4, 8)]


def test_blank_tiles_are_like_nothing() -> None:
    noise = np.random.default_rng(0).integers(240, 243, (3, 64, 64)).astype(np.uint8)
    assert spectrum(noise) is None


def test_alike_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    spectra = np.random.default_rng(1).normal(size=(9, 16, 16)).astype(np.float32)
    spectra[7] = spectra[1].T
    monkeypatch.setattr("histo.inspection.likeness._BLOCK", 2)
    assert alike(spectra) == [(1, 7)]
