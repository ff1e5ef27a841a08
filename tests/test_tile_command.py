"""`nucleate tile`: shards that hold what streaming reads, reports, resuming, refusals, several processes, memory."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_specimens import tissue_on_glass, write_slide

from histo.commands.tile import main
from histo.errors import InputError
from histo.slides import tiling
from histo.tiles import open_tiles
from histo.tiles.packing import damage

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def slide_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides with tissue, of equal pixels and names alike but for their folder, and one of glass."""
    folder = tmp_path_factory.mktemp("cohort")
    picture = tissue_on_glass()
    (folder / "sub").mkdir()
    write_slide(folder / "sub" / "a.tif", picture)
    write_slide(folder / "sub_a.tif", picture[::-1])
    glass = 243 + np.random.default_rng(0).integers(-2, 3, (600, 900, 3))
    write_slide(folder / "glass.tif", glass.astype(np.uint8))
    (folder / "slides.csv").write_text(
        "path,patient,split\nsub/a.tif,P1,train\nsub_a.tif,P2,test\nglass.tif,P2,test\n", encoding="utf-8"
    )
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def cut(slide_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cut") / "shards"
    assert main([str(slide_files), "--out", str(out), "--mpp", "1.0", "--size", "128", "--shard_mb", "0.1"]) == 0
    return out


def test_shards_and_streaming_give_the_same_tiles(cut: Path, slide_files: Path, tmp_path: Path) -> None:
    assert damage(cut) == []
    shutil.copytree(slide_files, tmp_path / slide_files.name)
    streamed = open_tiles(tmp_path / slide_files.name / "slides.csv", mpp=1.0, size=128)
    packed = open_tiles(cut)
    assert len(packed) == len(streamed) == 16
    assert len(list(cut.glob("*.tar"))) > 2
    for one, other in zip(packed, streamed, strict=True):
        assert np.array_equal(one.image, other.image)
        for name in ("key", "source", "patient", "split", "label", "mpp"):
            assert getattr(one, name) == getattr(other, name)
    assert {tile.patient for tile in packed} == {"P1", "P2"}


def test_members_say_where_a_tile_is_from(cut: Path) -> None:
    archive = sorted(cut.glob("sub_a-*.tar"))[0]
    with tarfile.open(archive) as file:
        names = file.getnames()
        assert names == sorted(names)
        facts = json.loads(file.extractfile(next(n for n in names if n.endswith(".json"))).read())  # type: ignore[union-attr]
    assert facts["key"] == f"{facts['slide']}/x{facts['x']:06d}_y{facts['y']:06d}"
    assert (facts["level"], facts["mpp"], facts["source"]) == (1, 1.0, cut_source(cut))
    assert 0.5 <= facts["tissue"] <= 1


def cut_source(cut: Path) -> str:
    return json.loads((cut / "manifest.json").read_text())["source"]


def test_the_report_counts_every_tile(cut: Path) -> None:
    report = json.loads((cut / "report.json").read_text())
    by_slide = {record["slide"]: record for record in report["slides"]}
    assert by_slide["glass.tif"]["kept"] == 0
    assert by_slide["glass.tif"]["dropped"]["glass"] == 6  # 450 x 300 px at 1 µm/px
    assert report["kept"] == 16
    assert report["kept"] + sum(report["dropped"].values()) == 24 + 24 + 6
    manifest = json.loads((cut / "manifest.json").read_text())
    assert (manifest["tiles"], manifest["patients"], manifest["splits"]) == (16, 2, {"test": 8, "train": 8})
    for record in report["slides"]:
        with Image.open(cut / record["overview"]) as picture:
            green = np.asarray(picture).astype(int)
        framed = ((green[..., 1] - green[..., 0] > 60) & (green[..., 1] - green[..., 2] > 30)).any()
        assert framed == (record["kept"] > 0)


def test_a_finished_job_is_recognised_and_a_killed_one_goes_on(
    cut: Path, slide_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    command = [str(slide_files), "--out", str(out), "--mpp", "1.0", "--size", "128", "--shard_mb", "0.1"]
    cut_slide, done = tiling.cut_slide, []

    def stopped(*arguments, **options):
        if len(done) == 1:  # in the middle of the second slide
            (out / f"{arguments[3]}-000000.tar.partial").write_bytes(b"half a shard")
            (out / f"{arguments[3]}-000007.tar").write_bytes(b"of another life")
            raise KeyboardInterrupt
        done.append(arguments[3])
        return cut_slide(*arguments, **options)

    monkeypatch.setattr(tiling, "cut_slide", stopped)
    assert main(command) == 130
    with pytest.raises(InputError, match="was not packed to its end; run the same `nucleate tile` again"):
        open_tiles(out)
    first = done[0]
    monkeypatch.setattr(tiling, "cut_slide", lambda *a, **o: done.append(a[3]) or cut_slide(*a, **o))
    assert main(command) == 0
    assert done.count(first) == 1
    assert len(done) == 3
    assert contents(out) == contents(cut)
    capsys.readouterr()
    assert main(command) == 0
    assert "is finished already" in capsys.readouterr().out
    assert len(done) == 3
    with pytest.raises(InputError, match=r"--mpp is 2\.0, but .* was begun with 1\.0"):
        main([str(slide_files), "--out", str(out), "--mpp", "2.0", "--size", "128", "--shard_mb", "0.1"])
    assert main([*command[:4], "2.0", "--size", "128", "--overwrite"]) == 0
    assert open_tiles(out).entries[0].mpp == 2.0
    assert damage(out) == []


def test_several_processes_write_the_same(cut: Path, slide_files: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    command = [sys.executable, "-m", "histo.commands.line", "tile", str(slide_files), "--out", str(out)]
    command += ["--mpp", "1.0", "--size", "128", "--shard_mb", "0.1", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
    assert contents(out) == contents(cut)


def test_a_slide_leaves_shards_alone_whose_names_begin_like_its_own(tmp_path: Path) -> None:
    folder, out = tmp_path / "cohort", tmp_path / "shards"
    folder.mkdir()
    for name in ("A-1.svs", "A.tif", "A-1-000000.tif"):
        write_slide(folder / name, tissue_on_glass(1, 1))
    rows = ["A-1.svs", "A-1-000000.tif", "A.tif"]
    (folder / "slides.csv").write_text("\n".join(["path", *rows, ""]), encoding="utf-8")
    assert main([str(folder), "--out", str(out), "--mpp", "1.0", "--size", "128"]) == 0
    assert damage(out) == []
    assert {tile.key.split("/")[0] for tile in open_tiles(out).entries} == set(rows)


def cut_again(slide_files: Path, out: Path, *more: str) -> int:
    """The command of `cut`."""
    arguments = ["--mpp", "1.0", "--size", "128", "--shard_mb", "0.1", *more]
    return main([str(slide_files), "--out", str(out), *arguments])


@pytest.mark.parametrize("name", ["tile.json", "report.json", "slides/glass.json", "slides/sub_a.json"])
@pytest.mark.parametrize(
    "content", ["{}", '{"plan": 1, "kept": 1, "dropped": {}, "slides": [{}], "shards": [{}]}', "["]
)
def test_damaged_records_are_told(name: str, content: str, cut: Path, slide_files: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    shutil.copytree(cut, out)
    found = next(path for path in out.glob(name.replace(".json", "*.json")))
    found.write_text(content)
    with pytest.raises(InputError, match=rf"{found.name} is damaged \(.*\); remove it"):
        cut_again(slide_files, out)


def test_lost_and_cut_shards_of_a_finished_job_are_cut_anew(
    cut: Path, slide_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_slide, done = tiling.cut_slide, []
    monkeypatch.setattr(tiling, "cut_slide", lambda *a, **o: done.append(a[3]) or cut_slide(*a, **o))
    for number, harm in enumerate(
        (Path.unlink, lambda path: os.truncate(path, 1000), lambda path: path.with_suffix(".index.json").unlink())
    ):
        out = tmp_path / str(number)
        shutil.copytree(cut, out)
        harm(sorted(out.glob("sub_a-*.tar"))[-1])
        done.clear()
        assert cut_again(slide_files, out) == 0
        assert len(done) == 1
        assert contents(out) == contents(cut)


def test_overwriting_removes_what_was_cut_alone(cut: Path, slide_files: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    shutil.copytree(cut, out)
    next(out.glob("sub_a-*.tar")).with_suffix(".tar.partial").write_bytes(b"half a shard")
    strange = ("mine.tar", "sub_a.tar", "other-000000.tar", "notes.index.json", "thesis.partial")
    for name in strange:
        (out / name).write_bytes(b"years of work")
    assert cut_again(slide_files, out, "--overwrite") == 0
    found = contents(out)
    assert {name: found.pop(name) for name in strange} == dict.fromkeys(strange, b"years of work")
    assert found == contents(cut)


@pytest.mark.parametrize("levels", [1, 3])  # met in the survey, and after it
def test_damaged_slides_are_told(levels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_slide(tmp_path / "hurt.tif", tissue_on_glass(1, 1), levels=levels)
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages.first.dataoffsets[5], tiff.pages.first.databytecounts[5]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * length)
    command = [str(path), "--out", str(tmp_path / "shards"), "--mpp", "0.5"]
    for _ in range(2):
        assert main(command) == 1
        told = capsys.readouterr().err
        assert "damaged: 1 tiles left out, the first because" in told
        assert "hurt.tif cannot be read at x 2" in told
    assert len(open_tiles(tmp_path / "shards")) == 3


def test_glass_alone_is_told(slide_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    assert main([str(slide_files / "glass.tif"), "--out", str(out), "--mpp", "0.5"]) == 1
    assert "No tile was kept" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["kept"] == 0
    assert list((out / "overviews").glob("*.jpg"))
    with pytest.raises(InputError, match="shards holds no tile, since none was kept"):
        open_tiles(out)
    (out / "tile.json").unlink()
    with pytest.raises(InputError, match="shards holds no tile, since none was kept"):
        open_tiles(out)
    (out / "manifest.json").unlink()
    (out / "tile.json").write_text("{}")
    with pytest.raises(InputError, match="shards holds no image"):
        open_tiles(out)


def test_jpeg_overlap_and_unknown_patients(slide_files: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    arguments = ["--mpp", "1.0", "--size", "128", "--overlap", "64", "--format", "jpg", "--tissue", "0.9"]
    assert main([str(slide_files / "sub_a.tif"), "--out", str(out), *arguments]) == 0
    tiles = open_tiles(out)
    assert len(tiles) > 8
    assert {entry.patient for entry in tiles.entries} == {None}
    lefts = {int(entry.key.split("/x")[1][:6]) for entry in tiles.entries}
    assert {b - a for a, b in zip(sorted(lefts), sorted(lefts)[1:], strict=False)} == {128}
    with Image.open(io.BytesIO(tiles.entries[0].image_file())) as picture:
        assert picture.format == "JPEG"


def test_what_cannot_be_cut_is_named_before_anything_is_written(
    slide_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "mixed", tmp_path / "shards"
    folder.mkdir()
    picture = tissue_on_glass(1, 1)
    write_slide(folder / "a.tif", picture)
    write_slide(folder / "unknown.tif", picture, mpp=None)
    command = [str(folder), "--out", str(out), "--mpp", "0.5"]
    with pytest.raises(InputError, match=r"unknown.tif does not say its µm/px.*--assume_mpp"):
        main(command)
    assert not out.exists()
    (folder / "cut.tif").write_bytes((folder / "a.tif").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut.tif is cut off"):
        main([*command, "--assume_mpp", "0.5"])
    assert main([*command, "--assume_mpp", "0.5", "--on_bad", "skip"]) == 1
    assert "left out:" in capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert [record["slide"] for record in report["slides"]] == ["a.tif", "unknown.tif"]
    assert len(report["refused"]) == 1
    assert len(open_tiles(out)) == 8


def test_other_content_is_refused(slide_files: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for extra in ([], ["--overwrite"]):
        with pytest.raises(InputError, match=r"holds thesis.tex, which is not of `nucleate tile`"):
            main([str(slide_files), "--out", str(tmp_path), "--mpp", "1.0", *extra])
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(InputError, match="lies among the slides"):
        main([str(slide_files), "--out", str(slide_files / "out"), "--mpp", "1.0"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mpp", "0"], "mpp is 0"),
        (["--mpp", "1", "--size", "8"], "size is 8"),
        (["--mpp", "1", "--overlap", "256"], "overlap is 256"),
        (["--mpp", "1", "--tissue", "2"], "tissue is 2"),
        (["--mpp", "1", "--workers", "0"], "--workers is 0"),
        (["--mpp", "1", "--shard_mb", "nan"], "--shard_mb is nan"),
        (["--mpp", "0.2"], "coarser than the 0.2 asked for"),
    ],
)
def test_values_out_of_range(arguments: list[str], sentence: str, slide_files: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        main([str(slide_files), "--out", str(tmp_path / "out"), *arguments])


def test_a_slide_without_pyramid_takes_bounded_memory(tmp_path: Path) -> None:
    """A level of 8000 x 6000 pixels, 144 MB decoded, in less; the process itself is measured before."""
    path = tmp_path / "large.tif"
    shape = (6000, 8000, 3)
    blocks = (np.full((512, 512, 3), 243, np.uint8) for _ in range(12 * 16))
    tifffile.imwrite(
        path,
        blocks,
        shape=shape,
        dtype=np.uint8,
        tile=(512, 512),
        photometric="rgb",
        compression="deflate",
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    code = (
        "import re, sys; from pathlib import Path; import histo.slides.tiling; import openslide\n"
        "from histo.slides.grids import Tiling, grid_of; from histo.slides.readers import Slide\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"  # kB; ru_maxrss would begin with that of the process that started this one
        "grid, _ = grid_of(Slide(Path(sys.argv[1])), Tiling(1.0))\n"
        "print(len(grid.kept), grid.verdict.size, peak() - before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=120)
    kept, squares, kilobytes = map(int, found.stdout.split())
    assert (kept, squares) == (0, 11 * 15)
    assert 10_000 < kilobytes < 100_000
    print(f"{kilobytes / 1e3:.0f} MB above the libraries")
