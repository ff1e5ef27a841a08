"""`nucleate pack`: the same bytes every time, WebDataset's layout, facts of the manifest, interruptions and damage."""

import errno
import json
import tarfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from histo.commands.pack import main
from histo.errors import InputError
from histo.tiles import open_tiles, packing
from histo.tiles.packing import INCOMPLETE, damage, leftovers, pack
from histo.tiles.shards import scan


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def packed(tile_folder: Path, tmp_path: Path) -> Path:
    pack(tile_folder, tmp_path / "shards", shard_mb=0.1)
    return tmp_path / "shards"


def test_the_same_tiles_give_the_same_bytes(tile_folder: Path, packed: Path, tmp_path: Path) -> None:
    pack(tile_folder, tmp_path / "again", shard_mb=0.1)
    assert contents(tmp_path / "again") == contents(packed)
    for path in packed.glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_the_layout_is_webdatasets(tile_folder: Path, packed: Path) -> None:
    """By Python's tarfile: members in order, grouped by the name up to its first dot, files as they were."""
    folder = open_tiles(tile_folder)
    found = []
    for path in sorted(packed.glob("*.tar")):
        assert path.stat().st_size < 0.1e6 + 20_480  # the tar's own padding comes on top
        with tarfile.open(path) as archive:
            names = archive.getnames()
            assert names == sorted(names)
            for _, group in groupby(names, key=lambda name: name.partition(".")[0]):
                fields = {name.partition(".")[2]: archive.extractfile(name).read() for name in group}  # type: ignore[union-attr]
                found.append(fields)
    assert len(found) == len(folder)
    for fields, entry in zip(found, folder.entries, strict=True):
        assert entry.mask is not None
        assert fields.keys() == {"png", "json", "mask.png"}
        assert fields["png"] == entry.path.read_bytes()
        assert fields["mask.png"] == entry.mask.read_bytes()
        assert json.loads(fields["json"]) == {
            "key": entry.key,
            "label": entry.label,
            "patient": entry.patient,
            "mpp": entry.mpp,
            "split": entry.split,
            "source": tile_folder.name,
        }


def test_the_index_is_what_a_look_inside_finds(packed: Path) -> None:
    for path in packed.glob("*.tar"):
        columns = json.loads(path.with_suffix(".index.json").read_text())
        looked_up = scan(path, packed)
        assert {
            name: [list(v) if isinstance(v, tuple) else v for v in column] for name, column in looked_up.items()
        } == columns


def test_the_manifest(tile_folder: Path, tmp_path: Path) -> None:
    manifest = pack(tile_folder, tmp_path / "s", shard_mb=0.1, licence="CC BY 4.0")
    assert json.loads((tmp_path / "s" / "manifest.json").read_text()) == manifest
    entries = open_tiles(tile_folder).entries
    assert (manifest["tiles"], manifest["masks"], manifest["format"]) == (10, 10, 1)
    assert manifest["patients"] == len({entry.patient for entry in entries})
    assert manifest["mpp"] == [0.5, 0.5]
    assert manifest["licences"] == ["CC BY 4.0"]
    assert sum(manifest["splits"].values()) == 10 - manifest["unknown"]["split"]
    assert manifest["classes"] == {
        label: sum(entry.label == label for entry in entries) for label in sorted({str(e.label) for e in entries})
    }
    assert manifest["bytes"] == sum(path.stat().st_size for path in (tmp_path / "s").glob("*.tar"))
    assert [shard["tiles"] for shard in manifest["shards"]] == [
        len(open_tiles(tmp_path / "s" / shard["name"])) for shard in manifest["shards"]
    ]


def test_what_is_unknown_is_said_and_odd_files_keep_their_tiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names with dots and accents, a suffix that is not the format's, masks that are no PNG."""
    folder = tmp_path / "odd set"
    (folder / "é.x").mkdir(parents=True)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    instances = generator.integers(0, 1000, (8, 6)).astype(np.int32)
    for name, kind in (("é.x/a.b.c.jpg", "JPEG"), ("b.jpg", "PNG"), ("c.tif", "TIFF")):
        Image.fromarray(pixels).save(folder / name, kind)
    np.save(folder / "b.npy", instances)
    tifffile.imwrite(folder / "c_mask.tif", instances.astype(np.uint16))
    (folder / "tiles.csv").write_text(
        "path,mask,label,mpp\né.x/a.b.c.jpg,,x,0.5\nb.jpg,b.npy,,0.25\nc.tif,c_mask.tif,,\n"
    )
    assert main([str(folder), "--out", str(tmp_path / "s")]) == 0
    shown = capsys.readouterr().out
    for line in (
        "tiles     3, 2 with masks",
        "classes   x 1, unknown for 2",
        "patients  unknown",
        "µm/px     0.25 to 0.5, unknown for 1",
        "licences  unknown",
    ):
        assert line in shown
    ours, theirs = open_tiles(tmp_path / "s"), open_tiles(folder)
    assert [entry.key for entry in ours.entries] == ["é.x/a.b.c.jpg", "b.jpg", "c.tif"]
    assert [entry.path.name for entry in ours.entries] == ["00000000-a_b_c.jpg", "00000001-b.png", "00000002-c.tif"]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
    for tile in (ours[1], ours[2]):
        np.testing.assert_array_equal(tile.instances, instances)


def test_shards_can_be_packed_again_in_another_size(packed: Path, tile_folder: Path, tmp_path: Path) -> None:
    manifest = pack(packed, tmp_path / "larger")
    assert len(manifest["shards"]) == 1
    assert [tile.key for tile in open_tiles(tmp_path / "larger")] == [tile.key for tile in open_tiles(tile_folder)]


def test_a_folder_in_use_is_refused(tile_folder: Path, packed: Path, tmp_path: Path) -> None:
    before = contents(packed)
    with pytest.raises(InputError, match=r"has a manifest\.json, so it is packed already; name another --out"):
        pack(tile_folder, packed)
    assert contents(packed) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files, expected a new or empty folder"):
        pack(tile_folder, tmp_path / "notes")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        pack(tile_folder, tmp_path / "notes" / "a.txt")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_packing_is_recognised_and_starts_afresh(
    tile_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    out, calls = tmp_path / "s", 0
    addfile = tarfile.TarFile.addfile

    def interrupted(self: tarfile.TarFile, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise error
        addfile(self, *arguments)

    command = [str(tile_folder), "--out", str(out), "--shard_mb", "0.1"]
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", interrupted)
        if isinstance(error, OSError):
            with pytest.raises(InputError, match=r"s cannot be read or written \(No space left on device\); make room"):
                main(command)
        else:
            assert main(command) == 130
            assert "the same command starts afresh" in capsys.readouterr().err
    left = contents(out)
    assert "manifest.json" not in left
    assert any(name.endswith(".tar") for name in left)
    assert not any(name.endswith(".partial") for name in left)
    for name in left:  # what has a final name is whole
        if name.endswith(".tar"):
            assert len(scan(out / name, out)["key"]) > 0
    with pytest.raises(InputError, match="was not packed to its end; run the same `nucleate pack` again"):
        open_tiles(out)
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        damage(out)
    (out / "s-000099.tar.partial").write_bytes(b"left by a power cut")
    assert main([*command[:-1], "1"]) == 0
    assert "was interrupted; its" in capsys.readouterr().out
    pack(tile_folder, tmp_path / "other", shard_mb=1)
    assert contents(out) == contents(tmp_path / "other")


def test_a_damaged_tile_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "b.png").write_bytes((tmp_path / "set" / "a.png").read_bytes()[:70])
    with pytest.raises(InputError, match=r"b\.png cannot be decoded"):
        pack(tmp_path / "set", tmp_path / "s")
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    try:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "set" / "a\udcff.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(InputError, match=r"'a\\udcff\.png' is no name in UTF-8"):
        pack(tmp_path / "set", tmp_path / "s")


def test_check_finds_one_damaged_byte(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(packed)]) == 0
    assert "every shard is as its manifest says" in capsys.readouterr().out
    first, second, *_ = sorted(packed.glob("*.tar"))
    data = bytearray(second.read_bytes())
    data[700] ^= 1
    second.write_bytes(data)
    first.with_suffix(".index.json").unlink()
    (packed / "new.tar").touch()
    assert main(["--check", str(packed)]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert any(f"{second} is damaged: its SHA-256 is not the manifest's" in line for line in shown)
    assert any("index.json is missing." in line for line in shown)
    assert any("new.tar is not in manifest.json." in line for line in shown)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to pack, expected FOLDER and --out DIR"),
        (["FOLDER"], "nothing to pack"),
        (["FOLDER", "--check", "x"], "--check takes the folder of shards alone"),
        (["FOLDER", "--out", "OUT", "--shard_mb", "0"], "shard_mb is 0.0, expected MB above 0"),
        (["FOLDER", "--out", "OUT", "--shard_mb", "nan"], "shard_mb is nan"),
        (["OUT", "--out", "x"], "OUT does not exist"),
        (["--check", "OUT"], r"has no manifest\.json"),
    ],
)
def test_wrong_arguments(tile_folder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    places = {"FOLDER": str(tile_folder), "OUT": str(tmp_path / "OUT")}
    with pytest.raises(InputError, match=words):
        main([places.get(argument, argument) for argument in arguments])


def test_no_archive_is_held_in_memory(tile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members are written as they come: when the second tile is read, the first is in the file."""
    sizes = []
    sample = packing._sample

    def watched(*arguments: Any) -> Any:
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "s").glob("*.partial")))
        return sample(*arguments)

    monkeypatch.setattr(packing, "_sample", watched)
    pack(tile_folder, tmp_path / "s")
    assert sizes[0] == 0
    assert sizes[-1] > 50_000


def test_what_a_cut_of_slides_left_is_not_packed_over(tile_folder: Path, tmp_path: Path) -> None:
    """Both jobs mark a folder as unfinished in the same way, and each removes what it thinks its own."""
    out = tmp_path / "cut"
    out.mkdir()
    (out / INCOMPLETE).write_text("unfinished", encoding="utf-8")
    (out / "tile.json").write_text("{}", encoding="utf-8")
    (out / "slide-000000.tar").write_bytes(b"hours of work")
    assert leftovers(out) == []
    with pytest.raises(InputError, match="holds other files"):
        pack(tile_folder, out)
    assert (out / "slide-000000.tar").read_bytes() == b"hours of work"
