"""Folders of tiles, the rules of `tiles.csv`, the cache, and what reaches the user from a loader's worker."""

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from histo.errors import InputError
from histo.masks import write_instances
from histo.phantom import PhantomTissue
from histo.tiles import Tile, TileSet, open_tiles
from histo.tiles.tables import write_folder

HEADER = "path,label,patient,mpp,split,mask"


def save(path: Path, colour: int = 100, size: tuple[int, int] = (8, 6), **options: Any) -> Path:
    """An image of size (height, width) in one grey, so that a tile is known by its colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), colour, dtype=np.uint8)).save(path, **options)
    return path


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    """A folder with the table; every path in the first column of a well-formed row gets an image."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiles.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    folder = table(
        tmp_path / "set",
        "images/b.png,tumour,p1,0.25,train,labels/b.png",
        "images/a.png,normal,p2,,test,",
        "images/c.png,,,0.5,train,",
    )
    for colour, name in enumerate("abc"):
        save(folder / "images" / f"{name}.png", colour)
    (folder / "labels").mkdir()
    instances = np.zeros((8, 6), dtype=np.int32)
    instances[2:4, 1:5] = 7
    write_instances(folder / "labels" / "b.png", instances)
    return folder


# --- plain folders


def test_plain_folder_is_sorted_and_passes_over_what_is_no_tile(tmp_path: Path) -> None:
    for colour, name in enumerate(["b.png", "a/z.TIF", "a/c.jpeg"]):
        save(tmp_path / name, colour, format={"png": "PNG", "TIF": "TIFF", "jpeg": "JPEG"}[name.split(".")[1]])
    for name in [".hidden.png", ".cache/d.png", "labels/b.png", "a/Masks/z.png"]:
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    tiles = open_tiles(tmp_path)
    assert [entry.key for entry in tiles.entries] == ["a/c.jpeg", "a/z.TIF", "b.png"]
    assert [int(tile.image.max()) for tile in tiles] == [2, 1, 0]
    tile = tiles[2]
    assert (tile.image.shape, tile.image.dtype) == ((3, 8, 6), np.uint8)
    assert (tile.source, tile.patient, tile.mpp, tile.label, tile.split) == (tmp_path.name, None, None, None, None)
    assert tile.instances is None
    assert tile.types is None


def test_a_folder_named_labels_can_be_opened_itself(tmp_path: Path) -> None:
    save(tmp_path / "labels" / "a.png")
    assert len(open_tiles(tmp_path / "labels")) == 1


def test_positions(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    tiles = open_tiles(tmp_path)
    assert tiles[-1].key == "b.png"
    for beyond in (2, -3):
        with pytest.raises(IndexError):
            tiles[beyond]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tilse", r"does not exist.* did you mean .*tiles\?"),
        ("elsewhere", "does not exist"),
        ("empty", "holds no image"),
    ],
)
def test_paths_that_cannot_be_opened(tmp_path: Path, name: str, words: str) -> None:
    save(tmp_path / "tiles" / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=words):
        open_tiles(tmp_path / name)


def test_a_file_in_place_of_a_folder(labelled: Path) -> None:
    with pytest.raises(InputError, match="is a file, expected a folder"):
        open_tiles(labelled / "tiles.csv")


def test_a_table_below_a_plain_folder_is_not_passed_over(labelled: Path) -> None:
    with pytest.raises(InputError, match=r"set inside .* has a tiles\.csv of its own"):
        open_tiles(labelled.parent)


def test_splits_need_a_table(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"no tiles\.csv and therefore no splits, but split 'train'"):
        open_tiles(tmp_path, split="train")


# --- tables


def test_table(labelled: Path) -> None:
    tiles = open_tiles(labelled)
    facts = [(e.key, e.label, e.patient, e.mpp, e.split) for e in tiles.entries]
    assert facts == [
        ("images/b.png", "tumour", "p1", 0.25, "train"),
        ("images/a.png", "normal", "p2", None, "test"),
        ("images/c.png", None, None, 0.5, "train"),
    ]
    tile = tiles[0]
    assert tile.image.max() == 1
    assert tile.instances is not None
    assert tile.instances.dtype == np.int32
    assert (tile.instances == 7).sum() == 8
    assert tiles[1].instances is None


def test_split(labelled: Path) -> None:
    assert [entry.key for entry in open_tiles(labelled, split="train").entries] == ["images/b.png", "images/c.png"]
    with pytest.raises(InputError, match="no split 'val': its splits are test, train"):
        open_tiles(labelled, split="val")
    table(labelled, "images/a.png", header="path")
    with pytest.raises(InputError, match="it has no splits"):
        open_tiles(labelled, split="train")


def test_only_the_chosen_split_must_be_there(labelled: Path) -> None:
    (labelled / "images" / "a.png").unlink()
    assert len(open_tiles(labelled, split="train")) == 2
    with pytest.raises(InputError, match=r"1 of 4 files of the tiles are missing, first .*a\.png"):
        open_tiles(labelled)


def test_bom_quotes_and_other_columns(tmp_path: Path) -> None:
    save(tmp_path / "a, b.png")
    text = '\ufeffpath, patient ,scanner\n"a, b.png", p1 ,x\n\n'
    (tmp_path / "tiles.csv").write_text(text, encoding="utf-8")
    entry = open_tiles(tmp_path).entries[0]
    assert (entry.key, entry.patient) == ("a, b.png", "p1")


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        ("label,mpp", "x,1", "no column 'path'"),
        ("path,pateint", "a.png,p", "'pateint' that looks like 'patient'"),
        ("Path,label", "a.png,p", "'Path' that looks like 'path'"),
        ("path,mpp,mpp", "a.png,1,2", "'mpp' twice"),
        ("path,mpp", "a.png", "line 2 .* has 1 fields, expected 2"),
        ("path,mpp", "a.png,1,2", "line 2 .* has 3 fields, expected 2"),
        ("path,mpp", "a.png,fine", "mpp 'fine', expected µm/px above 0"),
        ("path,mpp", "a.png,0", "mpp '0'"),
        ("path,mpp", "a.png,-0.25", "mpp '-0.25'"),
        ("path,mpp", "a.png,nan", "mpp 'nan'"),
        ("path,mpp", "a.png,inf", "mpp 'inf'"),
        ("path,mpp", ",1", "path '', expected a file"),
        ("path,mpp", "a.png,\n./a.png,", "line 3 .* repeats the path 'a.png' of line 2"),
        ("path,mpp", "../a.png,", r"'\.\.' would leave"),
        ("path,mpp", "sub/../../a.png,", r"'\.\.' would leave"),
        ("path,mpp", "..\\a.png,", r"'\.\.' would leave"),
        ("path,mpp", "/etc/a.png,", "absolute path '/etc/a.png'"),
        ("path,mpp", "C:\\a.png,", "absolute path"),
        ("path,mask", "a.png,../../b.png", r"mask '\.\./b\.png', but '\.\.' would leave"),
        ("path,mask", "a.png,/b.png", "absolute mask"),
        ("path,mpp", 'a.png,"1', "cannot be read as comma-separated UTF-8"),
        ("path,mpp", "", "no rows below its header"),
    ],
)
def test_broken_tables(tmp_path: Path, header: str, row: str, words: str) -> None:
    save(tmp_path / "a.png")
    table(tmp_path, row, header=header)
    for on_bad in ("error", "skip"):
        with pytest.raises(InputError, match=words) as caught:
            open_tiles(tmp_path, on_bad=on_bad)
        assert str(tmp_path) in str(caught.value)


def test_empty_and_undecodable_tables(tmp_path: Path) -> None:
    (tmp_path / "tiles.csv").write_text("")
    with pytest.raises(InputError, match="no column 'path' among none"):
        open_tiles(tmp_path)
    (tmp_path / "tiles.csv").write_bytes(b"path\n\xff\xfe.png\n")
    with pytest.raises(InputError, match="cannot be read as comma-separated UTF-8"):
        open_tiles(tmp_path)


def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside" / "a.png")
    folder = table(tmp_path / "set", "link.png", header="path")
    inside = save(folder / "inside.png", 7)
    os.symlink(inside, folder / "link.png")
    assert open_tiles(folder)[0].image.max() == 7
    (folder / "link.png").unlink()
    os.symlink(outside, folder / "link.png")
    with pytest.raises(InputError, match=r"path 'link\.png', a link to .*outside.a\.png outside"):
        open_tiles(folder)
    os.symlink(outside.parent, folder / "sub")
    table(folder, "inside.png,sub/a.png", header="path,mask")
    with pytest.raises(InputError, match=r"mask 'sub/a\.png', a link"):
        open_tiles(folder)


def test_mask_of_another_size_names_both_files_and_sizes(labelled: Path) -> None:
    write_instances(labelled / "labels" / "b.png", np.ones((6, 8), dtype=np.int32))
    with pytest.raises(InputError) as caught:
        open_tiles(labelled)[0]
    for words in ("labels/b.png is 6 x 8", "images/b.png is 8 x 6"):
        assert words in str(caught.value)


def test_polygons_take_the_size_of_their_tile(tmp_path: Path) -> None:
    ring = [[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]]
    folder = table(tmp_path, "a.png,a.geojson", header="path,mask")
    save(folder / "a.png")
    (folder / "a.geojson").write_text(str([{"type": "Polygon", "coordinates": [ring]}]).replace("'", '"'))
    instances = open_tiles(folder)[0].instances
    assert instances is not None
    assert instances.shape == (8, 6)
    assert instances.sum() == 6


# --- µm/px


def test_mpp_goes_argument_then_table_then_file(labelled: Path) -> None:
    save(labelled / "images" / "a.png", dpi=(25400, 25400))
    save(labelled / "images" / "b.png", dpi=(25400, 25400))
    assert [entry.mpp for entry in open_tiles(labelled).entries] == [0.25, pytest.approx(1.0), 0.5]
    assert [tile.mpp for tile in open_tiles(labelled, mpp=2)] == [2.0, 2.0, 2.0]
    open_tiles(labelled).require_mpp("the layout prior")


def test_require_mpp(labelled: Path) -> None:
    words = r"1 of 3 tiles have no known µm/px, first .*images/a\.png, but the layout prior needs it; give --data\.mpp"
    with pytest.raises(InputError, match=words):
        open_tiles(labelled).require_mpp("the layout prior")


@pytest.mark.parametrize(
    "options", [{"mpp": 0}, {"mpp": -1.0}, {"mpp": float("nan")}, {"on_bad": "ignore"}, {"cache_mb": -1}]
)
def test_wrong_arguments(labelled: Path, options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        open_tiles(labelled, **options)


# --- several folders


def test_several_folders(tmp_path: Path) -> None:
    save(tmp_path / "x" / "lung" / "a.png", 1)
    save(tmp_path / "y" / "colon" / "a.png", 2)
    tiles = open_tiles([tmp_path / "y" / "colon", str(tmp_path / "x" / "lung")])
    assert [(tile.source, tile.key, int(tile.image.max())) for tile in tiles] == [
        ("colon", "a.png", 2),
        ("lung", "a.png", 1),
    ]
    save(tmp_path / "z" / "lung" / "a.png")
    sources = [entry.source for entry in open_tiles([tmp_path / "x" / "lung", tmp_path / "z" / "lung"]).entries]
    assert sources == ["x/lung", "z/lung"]


def test_no_tile_is_counted_twice(tmp_path: Path) -> None:
    save(tmp_path / "a" / "b" / "tile.png")
    with pytest.raises(InputError, match="is a part of"):
        open_tiles([tmp_path / "a", tmp_path / "a" / "b"])
    with pytest.raises(InputError, match="is the same folder as"):
        open_tiles([tmp_path / "a", tmp_path / "a" / "b" / ".."])
    with pytest.raises(InputError, match="no folder of tiles was given"):
        open_tiles([])


# --- damaged files


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    for colour, name in enumerate(["a.png", "b.png", "c.png"]):
        save(tmp_path / name, colour, size=(64, 64))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    return tmp_path


def test_damaged_file_raises_on_access(damaged: Path) -> None:
    tiles = open_tiles(damaged)
    assert len(tiles) == 3
    assert tiles[2].image.max() == 2
    with pytest.raises(InputError, match=r"b\.png cannot be decoded"):
        tiles[1]


def test_damaged_files_are_skipped_and_listed(damaged: Path) -> None:
    tiles = open_tiles(damaged, on_bad="skip")
    assert [entry.key for entry in tiles.entries] == ["a.png", "c.png"]
    [(path, reason)] = tiles.bad
    assert path == damaged / "b.png"
    assert "cannot be decoded" in reason
    assert "1 skipped as unreadable" in tiles.describe()


def test_missing_files_and_masks_are_skipped_as_well(labelled: Path) -> None:
    (labelled / "images" / "a.png").unlink()
    write_instances(labelled / "labels" / "b.png", np.ones((6, 8), dtype=np.int32))
    tiles = open_tiles(labelled, on_bad="skip")
    assert [entry.key for entry in tiles.entries] == ["images/c.png"]
    assert [path.name for path, _ in tiles.bad] == ["b.png", "a.png"]


def test_nothing_left_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"none of the 1 tiles can be read.*a\.png is empty"):
        open_tiles(tmp_path, on_bad="skip")


def test_input_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(InputError("a.png is empty")))  # noqa: S301
    assert (type(error), str(error)) == (InputError, "a.png is empty")


class Images(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, tiles: TileSet) -> None:
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.tiles[index].image)


def test_a_worker_names_the_damaged_file(damaged: Path) -> None:
    with pytest.raises(InputError, match=r"b\.png cannot be decoded"):
        list(DataLoader(Images(open_tiles(damaged)), num_workers=2, multiprocessing_context="fork"))


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])  # a spawned worker imports torch anew
def test_workers_agree_with_this_process(damaged: Path, method: str, workers: int) -> None:
    tiles = open_tiles(damaged, on_bad="skip")
    here = [torch.tensor(tile.image) for tile in tiles]
    loaded = list(DataLoader(Images(tiles), batch_size=None, num_workers=workers, multiprocessing_context=method))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(here, loaded, strict=True))


# --- cache


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for colour, name in enumerate(["a.png", "b.png", "c.png"]):
        save(tmp_path / name, colour, size=(100, 100))  # 30 kB decoded
    return tmp_path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on."""
    from histo.tiles import entries as module

    names: list[str] = []
    decode = module.read_image

    def counted(path: Path) -> Any:
        names.append(Path(path).name)
        return decode(path)

    monkeypatch.setattr(module, "read_image", counted)
    return names


def test_the_least_recently_used_tile_leaves_the_cache(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = open_tiles(three, cache_mb=0.065)
    names = reads(monkeypatch)
    for index in (0, 1, 0, 2, 0, -3, 1):  # c.png throws b.png out, for a.png was used since
        tiles[index]
    assert names == ["a.png", "b.png", "c.png", "b.png"]


def test_the_cache_counts_instances(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = 8 * 6
    names = reads(monkeypatch)
    for megabytes, expected in ((7 * pixels / 1e6, 1), ((7 * pixels - 1) / 1e6, 2)):
        names.clear()
        tiles = open_tiles(labelled, cache_mb=megabytes)
        assert tiles[0].instances is not None
        tiles[0]
        assert len(names) == expected


def test_cache_off_and_tiles_larger_than_it(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = reads(monkeypatch)
    for megabytes in (0, 0.02):
        names.clear()
        tiles = open_tiles(three, cache_mb=megabytes)
        tiles[0], tiles[0]
        assert names == ["a.png", "a.png"]


def test_cached_tiles_cannot_be_changed(labelled: Path) -> None:
    tile = open_tiles(labelled)[0]
    assert tile.instances is not None
    for array in (tile.image, tile.instances):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_pickling_drops_the_cache_and_keeps_its_limit(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = open_tiles(three, cache_mb=0.065)
    empty = len(pickle.dumps(tiles))
    for _ in tiles:
        pass
    sent = pickle.dumps(tiles)
    assert len(sent) == empty
    names = reads(monkeypatch)
    copy: TileSet = pickle.loads(sent)  # noqa: S301
    for index in (0, 1, 0, 2, 0, 1):
        copy[index]
    assert names == ["a.png", "b.png", "c.png", "b.png"]


# --- facts


def test_describe(labelled: Path, tmp_path: Path) -> None:
    facts = "3 tiles · 2 patients · splits test 1, train 2 · 0.25–0.5 µm/px (unknown for 1) · from set"
    assert open_tiles(labelled).describe() == facts
    save(tmp_path / "plain" / "a.png")
    assert open_tiles(tmp_path / "plain").describe() == "1 tile · patients unknown · µm/px unknown · from plain"


def test_real_sets_open_and_describe() -> None:
    if "NUCLEATE_DATA" not in os.environ:
        pytest.skip("NUCLEATE_DATA is unset")
    root = Path(os.environ["NUCLEATE_DATA"])
    folders = sorted(path for path in root.glob("*/*/") if path.is_dir() and path.parent.name != "wsi")
    assert folders
    for folder in folders:
        tiles = open_tiles(folder)
        assert tiles.describe().endswith(f"from {folder.name}")
        tile = tiles[0]
        assert isinstance(tile, Tile)
        assert (tile.image.dtype, tile.image.shape[0]) == (np.uint8, 3)
        if folder.parent.name == "nuclei":
            assert tile.instances is not None
            assert tile.instances.max() > 0
        if tiles.entries[0].split is not None:
            sizes = [len(open_tiles(folder, split=split)) for split in ("train", "test")]
            assert sum(sizes) == len(tiles)


def test_what_is_written_as_a_folder_is_read_back(tmp_path: Path) -> None:
    tissue = PhantomTissue(3, size=64, count=4)
    write_folder(tissue, tmp_path / "set")
    back = open_tiles(tmp_path / "set")
    assert [tile.key for tile in back] == [f"images/{k}.png" for k in range(4)]
    for tile, read in zip(tissue, back, strict=True):
        assert np.array_equal(tile.image, read.image)
        assert np.array_equal(tile.instances, read.instances)
        assert (tile.label, tile.patient, tile.mpp, tile.split) == (read.label, read.patient, read.mpp, read.split)
    bare = [replace(tile, instances=None, patient=None) for tile in tissue]
    write_folder(bare, tmp_path / "bare")
    assert all(tile.instances is None and tile.patient is None for tile in open_tiles(tmp_path / "bare"))
