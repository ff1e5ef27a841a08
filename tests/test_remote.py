"""Shards at a URL against the same on disk, by fsspec's file system in memory; no test touches a network."""

import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from histo.errors import InputError
from histo.tiles import TileSet, open_tiles
from histo.tiles.batches import image_batches
from histo.tiles.packing import pack
from histo.tiles.remote import Url, place
from translate.domains import DataSettings, open_domains

URL = "memory://bucket/shards"


@pytest.fixture
def store(tile_folder: Path, tmp_path: Path) -> Iterator[MemoryFileSystem]:
    """A bucket with packed shards, which lie in `tmp_path / "s"` as well."""
    pack(tile_folder, tmp_path / "s", shard_mb=0.1)
    system = MemoryFileSystem()
    system.put(str(tmp_path / "s"), "/bucket/shards", recursive=True)
    yield system
    system.rm("/bucket", recursive=True)


def same(ours: TileSet, theirs: TileSet) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.key, a.source, a.patient, a.mpp, a.split) == (b.key, b.source, b.patient, b.mpp, b.split)
        assert (a.image == b.image).all()
        assert (a.instances == b.instances).all()


def test_a_url_gives_the_tiles_of_the_folder(store: MemoryFileSystem, tmp_path: Path) -> None:
    remote, local = open_tiles(URL), open_tiles(tmp_path / "s")
    assert len({entry.path.parent for entry in remote.entries}) > 1
    same(remote, local)
    assert remote.describe() == local.describe()
    same(open_tiles(URL, split="train", mpp=0.3), open_tiles(tmp_path / "s", split="train", mpp=0.3))
    both = open_tiles([URL, tmp_path / "s"])
    assert len({entry.source for entry in both.entries}) == 2
    assert str(remote.entries[0].path).startswith(f"{URL}/")
    same(copy.deepcopy(remote), local)
    same(open_tiles(f"simplecache::{URL}"), local)


def test_workers_read_ranges_and_no_whole_archive(
    store: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles, local = open_tiles(URL), open_tiles(tmp_path / "s")
    asked: list[int] = []
    whole = MemoryFileSystem.cat_file

    def counted(self: MemoryFileSystem, path: str, *, start: int, end: int) -> bytes:
        data = whole(self, path, start=start, end=end)
        asked.append(len(data))
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    tiles.image(3)
    assert asked == [tiles.entries[3].image_at[1]]  # type: ignore[attr-defined]
    order = [[0, 7, 3], [9, 1, 2]]
    for batch, positions in zip(image_batches(tiles, order, workers=2), order, strict=True):
        assert torch.equal(batch, torch.stack([torch.tensor(local[k].image) for k in positions]))


def test_a_training_opens_urls(store: MemoryFileSystem, tile_folder: Path) -> None:
    settings = DataSettings(tissue=URL, masks=URL, tile_size=64)
    remote = open_domains(settings, 0, None, False)
    local = open_domains(DataSettings(tissue=str(tile_folder), masks=str(tile_folder), tile_size=64), 0, None, False)
    assert remote.facts["tissue"] == local.facts["tissue"]
    assert remote.target.shown.tolist() == local.target.shown.tolist()
    assert len(remote.source.tiles) == len(local.source.tiles) < 5, "the labels of tiles that are not shown"


def test_what_is_missing_or_differs(store: MemoryFileSystem) -> None:
    tiles = open_tiles(URL)
    [first, *_] = sorted(path for path in store.ls("/bucket/shards", detail=False) if path.endswith(".tar"))
    data = store.cat_file(first)
    store.pipe_file(first, data[:3000])
    with pytest.raises(InputError, match=rf"memory:/{first} has 3000 bytes, expected \d+ by its manifest"):
        open_tiles(URL)
    with pytest.raises(InputError, match=rf"memory:/{first}/0000.* has \d+ bytes, expected \d+: .* was cut off"):
        tiles.image(0)
    store.rm(first)
    with pytest.raises(InputError, match=r"shards.* cannot be read \(FileNotFoundError"):
        open_tiles(URL)
    with pytest.raises(InputError, match=r"cannot be read \(FileNotFoundError"):
        tiles.image(0)
    store.pipe_file(first, data)
    store.pipe_file(first.replace(".tar", ".index.json"), b"{}")
    with pytest.raises(InputError, match=r"index\.json is not the index that memory://bucket/shards/manifest\.json"):
        open_tiles(URL)
    store.rm("/bucket/shards/manifest.json")
    with pytest.raises(InputError, match=r"memory://bucket/shards has no manifest\.json of `nucleate pack`"):
        open_tiles(URL)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///tiles/x", "on this machine, expected a path"),
        ("nonsense://bucket/x", r"nonsense://bucket/x cannot be read \(ValueError: .*nonsense"),
        ("memory://nowhere", "has no manifest"),
    ],
)
def test_urls_that_cannot_be_read(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_tiles(url)


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"s3://bucket/x.* cannot be read without another package: .*s3fs.*install it"):
        open_tiles("s3://bucket/x")


@pytest.mark.parametrize("text", ["s3://bucket/a/b", "memory://x", "simplecache::s3://bucket/a"])
def test_urls_are_paths(text: str) -> None:
    url = place(text)
    assert isinstance(url, Url)
    assert str(url) == os.fspath(url) == text
    assert str(url / "x.tar") == f"{text}/x.tar"
    assert str((url / "x.tar").with_suffix(".index.json")) == f"{text}/x.index.json"
    assert url.resolve() == copy.deepcopy(url) == url != place("s3://other")
    assert not isinstance(place("/tiles/a"), Url)
