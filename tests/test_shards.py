"""Shards against the folder they were packed from, against Python's tarfile, and against archives made to harm."""

import gc
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from histo.errors import InputError
from histo.masks import write_instances
from histo.tiles import TileSet, archives, open_tiles
from histo.tiles.batches import image_batches
from histo.tiles.packing import pack
from histo.tiles.shards import Shard, ShardEntry

INSTANCES = np.zeros((8, 6), dtype=np.int32)
INSTANCES[2:4, 1:5] = 300


def picture(colour: int = 100, kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(np.full((*size, 3), colour, dtype=np.uint8)).save(file, kind)
        return file.getvalue()


def mask(tmp_path: Path) -> bytes:
    write_instances(tmp_path / "mask.png", INSTANCES)
    data = (tmp_path / "mask.png").read_bytes()
    (tmp_path / "mask.png").unlink()
    return data


def tar(path: Path, *members: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT, **fields: Any) -> Path:
    """An archive by Python's own writer; `fields` are set on every member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(data))
    return path


def same(ours: TileSet, theirs: TileSet) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a.key, a.source, a.patient, a.mpp, a.label, a.split) == (
            b.key, b.source, b.patient, b.mpp, b.label, b.split,
        )  # fmt: skip
        np.testing.assert_array_equal(a.image, b.image)
        assert (a.instances is None) == (b.instances is None)
        if a.instances is not None and b.instances is not None:
            np.testing.assert_array_equal(a.instances, b.instances)


# --- packed by nucleate


def test_shards_give_the_tiles_of_their_folder(tile_folder: Path, tmp_path: Path) -> None:
    pack(tile_folder, tmp_path / "s", shard_mb=0.1)
    shards, folder = open_tiles(tmp_path / "s"), open_tiles(tile_folder)
    assert len(list((tmp_path / "s").glob("*.tar"))) > 1
    same(shards, folder)
    assert shards.describe() == folder.describe()
    same(open_tiles(tmp_path / "s", split="train"), open_tiles(tile_folder, split="train"))
    assert {entry.mpp for entry in open_tiles(tmp_path / "s", mpp=2).entries} == {2.0}
    with pytest.raises(InputError, match="no split 'val': its splits are"):
        open_tiles(tmp_path / "s", split="val")


def test_one_archive_and_mixtures(tile_folder: Path, tmp_path: Path) -> None:
    pack(tile_folder, tmp_path / "s", shard_mb=0.1)
    first, *others = sorted((tmp_path / "s").glob("*.tar"))
    alone = open_tiles(first)
    assert 0 < len(alone) < 10
    assert [tile.key for tile in open_tiles([first, *others])] == [tile.key for tile in open_tiles(tile_folder)]
    assert {entry.source for entry in open_tiles([first, *others]).entries} == {tile_folder.name}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.png").write_bytes(picture())
    mixed = open_tiles([tmp_path / "plain", tmp_path / "s"])
    assert [entry.source for entry in mixed.entries] == ["plain"] + 10 * [tile_folder.name]
    assert mixed[0].image.max() == 100
    np.testing.assert_array_equal(mixed[10].image, open_tiles(tile_folder)[9].image)
    both = open_tiles([tile_folder, tmp_path / "s"])  # the same name twice: told apart by parents
    assert len({entry.source for entry in both.entries}) == 2
    with pytest.raises(InputError, match="is a part of"):
        open_tiles([tmp_path / "s", first])


def test_an_entry_names_archive_and_member(tile_folder: Path, tmp_path: Path) -> None:
    pack(tile_folder, tmp_path / "s")
    entry = open_tiles(tmp_path / "s").entries[3]
    [archive] = (tmp_path / "s").glob("*.tar")
    assert entry.path == archive / "00000003-3.png"
    assert entry.mask == archive / "00000003-3.mask.png"
    assert isinstance(entry, ShardEntry)
    with archive.open("r+b") as file:
        file.seek(entry.image_at[0] + 40)
        file.write(b"\xff" * 200)
    with pytest.raises(InputError, match=r"000000\.tar/00000003-3\.png cannot be decoded"):
        open_tiles(tmp_path / "s")[3]
    skipped = open_tiles(tmp_path / "s", on_bad="skip")
    assert len(skipped) == 9
    assert [path for path, _ in skipped.bad] == [entry.path]


def test_an_archive_cut_off_after_opening(tile_folder: Path, tmp_path: Path) -> None:
    pack(tile_folder, tmp_path / "s")
    tiles = open_tiles(tmp_path / "s")
    [archive] = (tmp_path / "s").glob("*.tar")
    os.truncate(archive, 2000)
    with pytest.raises(InputError, match=r"9\.png has 0 bytes, expected .*tar was cut off"):
        tiles[9]
    archive.unlink()
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        tiles[0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: (s / "set-000000.tar").unlink(), r"set-000001\.tar|set-000000\.tar is missing"),
        (lambda s: os.truncate(s / "set-000000.tar", 1024), "has 1024 bytes, expected"),
        (lambda s: (s / "set-000000.index.json").write_text("{}"), "is not the index"),
        (lambda s: (s / "set-000000.index.json").unlink(), r"index\.json is missing"),
        (lambda s: tar(s / "more.tar", ("a.png", picture())), r"more\.tar is not in .*manifest\.json"),
        (lambda s: (s / "a.png").write_bytes(picture()), r"holds the archive .* and the image a\.png"),
        (lambda s: edit(s, "format", 2), "is of format 2, expected 1; read it with nucleate"),
        (lambda s: edit(s, "shards", [{"name": "x.tar"}]), "lacks what a manifest says"),
        (lambda s: edit(s, "source", 3), "lacks what a manifest says"),
        (lambda s: (s / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (lambda s: lie(s, "name", "../x.tar"), r"names the shard '\.\./x\.tar'"),
    ],
)
def test_shards_unlike_their_manifest(tmp_path: Path, damage: Any, words: str) -> None:
    (tmp_path / "set").mkdir()
    for name in "abc":
        (tmp_path / "set" / f"{name}.png").write_bytes(picture())
    pack(tmp_path / "set", tmp_path / "s", shard_mb=0.001)
    damage(tmp_path / "s")
    with pytest.raises(InputError, match=words):
        open_tiles(tmp_path / "s")


def edit(shards: Path, name: str, value: Any) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {name: value}))


def lie(shards: Path, name: str, value: Any) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][0][name] = value
    (shards / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("image_at", [512, 10**6], "outside the 10240 bytes"),
        ("image_at", [-512, 10], "outside"),
        ("image_at", [512, 2**62], "outside"),
        ("image_at", [512], "no column 'image_at' of 1 valid values"),
        ("image_at", [512, "9"], "no column 'image_at'"),
        ("mask_at", [512, 9], "places ''"),
        ("image", "", "places ''"),
        ("image", "\ud800", "no column 'image'"),
        ("key", 7, "no column 'key'"),
        ("mpp", 0, "no column 'mpp'"),
        ("mpp", 10**400, "no column 'mpp'"),
        ("mpp", True, "no column 'mpp'"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, column: str, value: Any, words: str) -> None:
    """Manifest and index agree with each other, but not with the archive."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(picture())
    pack(tmp_path / "set", tmp_path / "s")
    index = tmp_path / "s" / "set-000000.index.json"
    columns = json.loads(index.read_text())
    columns[column] = [value]
    index.write_text(json.dumps(columns))
    lie(tmp_path / "s", "index_sha256", hashlib.sha256(index.read_bytes()).hexdigest())
    with pytest.raises(InputError, match=words):
        open_tiles(tmp_path / "s")


# --- many tiles


def many(path: Path, count: int) -> Shard:
    columns = {
        "image": [f"{k:08d}-some_tile_{k}.jpg" for k in range(count)],
        "mask": [f"{k:08d}-some_tile_{k}.mask.png" for k in range(count)],
        "image_at": [(512, 20_000)] * count,
        "mask_at": [(30_000, 3_000)] * count,
        "key": [f"images/some_tile_{k}.jpg" for k in range(count)],
        "label": ["tumour"] * count,
        "patient": [f"patient-{k % 100}" for k in range(count)],
        "split": ["train"] * count,
        "mpp": [0.25] * count,
    }
    return Shard(path, "s", columns)


def test_fifty_thousand_entries_are_few_objects_and_little_to_send(tmp_path: Path) -> None:
    count = 50_000
    tiles = TileSet(many(tmp_path / "x.tar", count))
    assert len(tiles) == count
    assert len(pickle.dumps(tiles)) < 250 * count
    gc.collect()
    assert sum(type(thing) is ShardEntry for thing in gc.get_objects()) == 0
    assert tiles.entries[49_999].key == "images/some_tile_49999.jpg"
    assert [entry.patient for entry in tiles.entries[-2:]] == ["patient-98", "patient-99"]
    assert [entry.key for entry in tiles.entries.take([7, 3])[::-1]] == [
        "images/some_tile_3.jpg",
        "images/some_tile_7.jpg",
    ]


class Images(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, tiles: TileSet) -> None:
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.tiles[index].image)


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_agree_with_this_process(tile_folder: Path, tmp_path: Path, method: str, workers: int) -> None:
    pack(tile_folder, tmp_path / "s", shard_mb=0.1)
    tiles = open_tiles(tmp_path / "s")
    loaded = list(DataLoader(Images(tiles), batch_size=None, num_workers=workers, multiprocessing_context=method))
    assert all(torch.equal(torch.tensor(a.image), b) for a, b in zip(tiles, loaded, strict=True))


def test_batches_are_the_tiles_and_keep_their_pixels(tile_folder: Path) -> None:
    """More batches than a worker has blocks, some larger than the first, whose size the blocks have."""
    tiles = open_tiles(tile_folder)
    order = [[(3 * k + j) % 10 for j in range(1 + (k + 1) % 4)] for k in range(24)]
    for number, batch in enumerate(image_batches(tiles, order, workers=2, ahead=1)):
        np.testing.assert_array_equal(batch.numpy(), np.stack([tiles[k].image for k in order[number]]))
    assert number + 1 == len(order)
    assert list(image_batches(tiles, [])) == []


def test_batches_of_several_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture(size=(6, 8)))
    with pytest.raises(InputError, match=r"tile b\.png of .* is 6 x 8 pixels but a\.png of .* is 8 x 6"):
        list(image_batches(open_tiles(tmp_path), [[0, 1]], workers=1))


# --- written by others


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_foreign_shards(tmp_path: Path, form: int) -> None:
    long = "folder/" * 12 + "é" * 20 if form != tarfile.USTAR_FORMAT else "folder/" * 20 + "e"
    tar(
        tmp_path / "s" / "b.tar",
        ("0001.JPG", picture(50, "JPEG")),
        ("0001.cls", b"7\n"),
        ("0002.mask.png", mask(tmp_path)),
        ("0002.json", b'{"label": "stroma", "patient": 12, "mpp": 0.5, "split": "train", "extra": [1]}'),
        ("0002.png", picture(60)),
        ("0002.txt", b"passed over"),
        ("._0002.png", b"hidden"),
        ("labels/0003.png", b"passed over"),
        (f"{long}.tiff", picture(70, "TIFF")),
        form=form,
    )
    tar(tmp_path / "s" / "a.tar", ("./0001.png", picture(40)), form=form)
    tiles = open_tiles(tmp_path / "s")
    assert [entry.key for entry in tiles.entries] == [
        "a.tar/0001.png",
        "b.tar/0001.JPG",
        "b.tar/0002.png",
        f"b.tar/{long}.tiff",
    ]
    assert [int(tile.image.max()) for tile in tiles] == [40, 50, 60, 70]
    assert [entry.label for entry in tiles.entries] == [None, "7", "stroma", None]
    entry = tiles.entries[2]
    assert (entry.patient, entry.mpp, entry.split, entry.source) == ("12", 0.5, "train", "s")
    np.testing.assert_array_equal(tiles[2].instances, INSTANCES)
    assert len(open_tiles(tmp_path / "s", split="train")) == 1


def test_archives_of_the_tar_program(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("there is no tar program")
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "set" / "sub" / f"{'n' * 120}.png").write_bytes(picture(9))
    for form in ("gnu", "pax"):
        (tmp_path / form).mkdir()
        command = ["tar", f"--format={form}", "-cf", tmp_path / form / "x.tar", "-C", tmp_path / "set", "."]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this tar program has no such option")
        assert [int(tile.image.max()) for tile in open_tiles(tmp_path / form)] == [9]


def test_facts_of_no_known_form(tmp_path: Path) -> None:
    for number, (facts, words) in enumerate(
        [
            (b"[1]", "holds a list, expected an object"),
            (b"{", "is not JSON"),
            (b"[" * 100_000, "is not JSON"),
            (b"\xff", "is not UTF-8"),
            (b'{"label": [1]}', r"has the label \[1\], expected a text"),
            (b'{"label": "\\ud800"}', "has the label"),
            (b'{"mpp": -1}', "has the mpp -1, expected"),
            (b'{"mpp": "0.5"}', "has the mpp '0.5', expected"),
            (b'{"mpp": NaN}', "has the mpp nan"),
            (b" " * 2**20 + b"{}", "expected at most 1048576 of facts"),
        ]
    ):
        path = tar(tmp_path / f"{number}.tar", ("a.png", picture()), ("a.json", facts))
        with pytest.raises(InputError, match=rf"{number}\.tar/a\.json.*{words}"):
            open_tiles(path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.txt", b"")], "holds no image"),
        ([], "holds no image"),
        ([("a.png", b"1"), ("a.jpg", b"2")], "holds 'a.png' and 'a.jpg'; keep one image per key"),
        ([("a.png", b"1"), ("a.mask.png", b"2"), ("a.mask.npy", b"2")], "keep one mask per tile"),
        ([("slide.1.png", b"1")], r"'slide\.1\.png', read as the field '1\.png' of a tile without an image"),
        ([("a.mask.png", b"1")], "a tile without an image"),
        ([("a.png", b"1"), ("tiles.csv", b"path")], r"'tiles\.csv', which is read from a folder only"),
    ],
)
def test_members_that_are_no_tiles(tmp_path: Path, members: list[tuple[str, bytes]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_tiles(tar(tmp_path / "x.tar", *members))


def test_a_link_to_an_archive_elsewhere(tmp_path: Path) -> None:
    elsewhere = tar(tmp_path / "elsewhere" / "x.tar", ("a.png", picture()))
    (tmp_path / "s").mkdir()
    os.symlink(elsewhere, tmp_path / "s" / "x.tar")
    with pytest.raises(InputError, match=r"s/x\.tar is a link to .*elsewhere/x\.tar, outside"):
        open_tiles(tmp_path / "s")


def test_two_tiles_of_one_key(tmp_path: Path) -> None:
    for name in "ab":
        tar(tmp_path / f"{name}.tar", (f"{name}.png", picture()), (f"{name}.json", b'{"key": "k"}'))
    assert open_tiles(tmp_path / "a.tar").entries[0].key == "k"
    with pytest.raises(InputError, match="two tiles of the key 'k'"):
        open_tiles(tmp_path)


# --- hostile archives


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/a.png", "'/etc/a.png', an absolute or empty name"),
        ("../a.png", r"'\.\./a\.png', but '\.\.' would leave"),
        ("a/../../b.png", "would leave"),
        ("..\\a.png", "would leave"),
        ("C:\\a.png", "an absolute or empty name"),
        ("/" + "x" * 200 + "/a.png", "an absolute or empty name"),
    ],
)
def test_names_outside_the_archive(tmp_path: Path, form: int, name: str, words: str) -> None:
    if form == tarfile.USTAR_FORMAT and len(name) > 100:
        pytest.skip("ustar has no room for the name")
    path = tar(tmp_path / "x.tar", ("ok.png", picture()), (name, picture()), form=form)
    with pytest.raises(InputError, match=rf"x\.tar holds .*{words}"):
        open_tiles(path)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"V", "an entry of kind b'V'"),
    ],
)
def test_kinds_of_members(tmp_path: Path, kind: bytes, what: str) -> None:
    path = tar(tmp_path / "x.tar", ("a.png", b""), type=kind, linkname="/etc/passwd")
    with pytest.raises(InputError, match=rf"x\.tar holds 'a\.png', {what}, expected plain files"):
        open_tiles(path)


def test_sparse_files_of_pax(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", ("a.png", picture()), form=tarfile.PAX_FORMAT, pax_headers={"GNU.sparse.major": "1"})
    with pytest.raises(InputError, match="a sparse file"):
        open_tiles(path)


def test_limits_on_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "x.tar", ("a.png", picture()))
    monkeypatch.setattr(archives, "MAX_MEMBER", 20)
    with pytest.raises(InputError, match=r"holds 'a\.png' of \d+ bytes, expected at most 20"):
        open_tiles(path)
    monkeypatch.setattr(archives, "MAX_HEADER", 100)
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tar(tmp_path / "y.tar", ("n" * 300 + ".png", picture()), form=form)
        with pytest.raises(InputError, match=r"a header of 3.. bytes, expected at most 100"):
            open_tiles(path)


def test_sizes_past_the_end(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", ("a.png", picture()))
    whole = path.read_bytes()
    header = tarfile.TarInfo("b.png")
    for size in (10**6, 2**40):  # octal, and base 256
        header.size = size
        path.write_bytes(whole[:1024] + header.tobuf(tarfile.GNU_FORMAT) + whole[1536:])
        with pytest.raises(InputError, match=rf"holds 'b\.png' of {size} bytes, but ends after"):
            open_tiles(path)
    path = tar(tmp_path / "y.tar", ("a.png", picture()), form=tarfile.PAX_FORMAT, pax_headers={"size": "99999999"})
    with pytest.raises(InputError, match=r"'a\.png' of 99999999 bytes, but ends after"):
        open_tiles(path)
    path = tar(tmp_path / "z.tar", ("a.png", picture()), form=tarfile.PAX_FORMAT, pax_headers={"size": "-1"})
    with pytest.raises(InputError, match="of size '-1', expected a number"):
        open_tiles(path)


def test_truncated_and_damaged_archives(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", ("a.png", picture()), ("b.png", picture()))
    whole = path.read_bytes()
    for length, words in (
        (0, "without the mark"),
        (300, "without the mark"),
        (1024, "without the mark"),
        (1600, "ends after"),
    ):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"x\.tar.*{words}"):
            open_tiles(path)
    path.write_bytes(whole[:1030] + b"!" + whole[1031:])
    with pytest.raises(InputError, match=r"x\.tar is no tar or damaged: the header at byte 1024 fails its checksum"):
        open_tiles(path)
    path.write_bytes(os.urandom(2048))
    with pytest.raises(InputError, match="no tar or damaged"):
        open_tiles(path)


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", ("a.png", picture()), ("./a.png", picture()))
    with pytest.raises(InputError, match=r"x\.tar holds '\./a\.png' twice"):
        open_tiles(path)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", ("a\udcff.png", picture()))
    with pytest.raises(InputError, match=r"the name b'a\\xff\.png' at byte 0, expected UTF-8"):
        open_tiles(path)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_archives(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / f"x.tar.{mode}"
    with tarfile.open(path, f"w:{mode}") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    for opened in (path, tmp_path):
        with pytest.raises(InputError, match=r"x\.tar\.\w+ is compressed, expected .*unpack it"):
            open_tiles(opened)
    with pytest.raises(InputError, match=r"x\.tar is compressed, expected .*unpack it"):
        open_tiles(path.rename(tmp_path / "x.tar"))


@pytest.mark.parametrize("content", ["{}", '{"a": 1}\n{"a": 2}\n'])
def test_images_beside_a_manifest_of_another_tool_are_tiles(content: str, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "manifest.json").write_text(content)
    assert len(open_tiles(tmp_path)) == 1
