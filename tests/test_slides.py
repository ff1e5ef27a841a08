"""Whole slides: both libraries, levels and µm/px, tissue, pen and blur, grids against slow sums, streaming."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from slide_specimens import tissue_on_glass, write_slide
from torch.utils.data import DataLoader

from histo.errors import InputError
from histo.slides import readers
from histo.slides.grids import REASONS, Tiling, coverage, grid_of
from histo.slides.readers import Slide, UnreadableRegionError
from histo.slides.resampling import read_grid, sampling_of
from histo.slides.tables import list_slides
from histo.slides.tissue import find_tissue, find_tissue_in
from histo.tiles import open_tiles

DATA = os.environ.get("NUCLEATE_DATA")
COLOURS = np.array([[200, 60, 120], [60, 160, 90], [90, 80, 200], [230, 200, 40]])


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    return tissue_on_glass()


@pytest.fixture(scope="session")
def slide_file(picture: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "phantom.tif", picture)


@pytest.fixture(params=["openslide", "tiffslide"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both libraries in turn."""
    monkeypatch.setattr(readers, "_LIBRARIES", (request.param,))
    return request.param


def squares(side: int = 1280, pitch: int = 128) -> np.ndarray:
    """uint8 [H, W, 3]: a chequerboard of four colours, each square `pitch` pixels wide."""
    row, column = np.indices((side, side)) // pitch
    return COLOURS[(row + 2 * column) % 4].astype(np.uint8)


def test_pixels_levels_and_resolution(library: str, slide_file: Path, picture: np.ndarray) -> None:
    with Slide(slide_file) as slide:
        assert slide.library == library
        assert slide.mpp == pytest.approx(0.5)
        assert slide.sizes == [(1536, 1024), (768, 512), (384, 256)]
        assert slide.downsamples == [1, 2, 4]
        found = slide.read(0, 700, 300, 90, 40)
        assert np.array_equal(found, picture[300:340, 700:790].transpose(2, 0, 1))
        beyond = slide.read(0, 1500, -10, 60, 30)
        assert (beyond[:, :10] == 255).all()
        assert (beyond[:, :, 36:] == 255).all()
        assert np.array_equal(beyond[:, 10:, :36], picture[:20, 1500:].transpose(2, 0, 1))


def test_a_level_as_it_is_within_two_per_cent_else_the_next_finer(slide_file: Path) -> None:
    with Slide(slide_file) as slide:
        for mpp, level, step, own in (
            (0.5, 0, 1, 0.5),
            (0.51, 0, 1, 0.5),
            (0.99, 1, 1, 1.0),
            (0.96, 0, 1.92, 0.96),
            (1.5, 1, 1.5, 1.5),
            (7.0, 2, 3.5, 7.0),
            (0.46, 0, 0.92, 0.46),
        ):
            sampling = sampling_of(slide, mpp)
            assert (sampling.level, sampling.step) == (level, pytest.approx(step))
            assert sampling.mpp == pytest.approx(own)
            assert abs(sampling.mpp / mpp - 1) <= 0.0201
        with pytest.raises(InputError, match=r"phantom.tif has 0\.5 µm/px, coarser than the 0\.45 .*--allow_upsample"):
            sampling_of(slide, 0.45)
        assert sampling_of(slide, 0.25, allow_upsample=True).step == pytest.approx(0.5)


@pytest.mark.parametrize("mpp", [0.5, 0.7, 1.0, 1.3, 2.0, 3.2])
@pytest.mark.parametrize("levels", [1, 3])
def test_colours_lie_at_their_micrometres(mpp: float, levels: int, tmp_path: Path) -> None:
    """Squares of 64 µm: the middle of each has its colour at whatever µm/px; a wrong level or step would not."""
    path = write_slide(tmp_path / "squares.tif", squares(), levels=levels)
    with Slide(path) as slide:
        sampling = sampling_of(slide, mpp)
        size = 100
        left, top = 41, 57
        tile = read_grid(slide, sampling, left, top, size, size)
        checked = 0
        for y in range(size):
            for x in range(size):
                across, down = ((place + 0.5) * sampling.mpp for place in (left + x, top + y))
                if max(across, down) < 640 and all(12 < place % 64 < 52 for place in (across, down)):
                    expected = COLOURS[(int(down // 64) + 2 * int(across // 64)) % 4]
                    assert np.abs(tile[:, y, x].astype(int) - expected).max() <= 6
                    checked += 1
        assert checked > 1000


@pytest.mark.parametrize("mpp", [0.7, 1.0, 1.3])
def test_edges_lie_within_half_a_pixel_and_tiles_meet(mpp: float, tmp_path: Path) -> None:
    """A step edge at 300 µm is found where it is; two neighbouring tiles are the halves of a larger one."""
    picture = np.full((1024, 1024, 3), 240, np.uint8)
    picture[:, 600:] = 40
    with Slide(write_slide(tmp_path / "edge.tif", picture)) as slide:
        sampling = sampling_of(slide, mpp)
        left = int(200 / mpp)
        wide = read_grid(slide, sampling, left, 10, 200, 50)
        dark = (240 - wide[0, 25].astype(float)).sum() / 200  # pixels beyond the edge
        assert (left + 200 - dark) * mpp == pytest.approx(300, abs=0.5 * mpp)
        halves = [read_grid(slide, sampling, left + start, 10, 100, 50) for start in (0, 100)]
        assert np.abs(np.concatenate(halves, 2).astype(int) - wide).max() <= 1


def test_nothing_is_guessed(library: str, tmp_path: Path) -> None:
    picture = squares(256)
    path = write_slide(tmp_path / "unknown.tif", picture, mpp=None)
    with Slide(path) as slide:
        assert slide.mpp is None
        with pytest.raises(InputError, match=r"unknown.tif does not say its µm/px.*--assume_mpp"):
            sampling_of(slide, 0.5)
    with Slide(path, 0.4) as slide:
        assert sampling_of(slide, 0.8).mpp == pytest.approx(0.8)
    dots = write_slide(tmp_path / "dpi.tif", picture, mpp=25400 / 72)  # 72 dpi is no scanner's
    with Slide(dots) as slide:
        assert slide.mpp is None
    with pytest.raises(InputError, match=r"uneven.tif says that its pixels are 0\.5 µm wide and 0\.6 µm high"):
        Slide(write_slide(tmp_path / "uneven.tif", picture, mpp=(0.5, 0.6)))
    with Slide(tmp_path / "uneven.tif", 0.5) as slide:
        assert slide.mpp == 0.5


def test_damaged_files_are_named(slide_file: Path, tmp_path: Path) -> None:
    content = slide_file.read_bytes()
    bad = tmp_path / "bad.tif"
    for data, sentence in (
        (b"", r"bad.tif is empty \(0 bytes\)"),
        (content[:-1000], r"bad.tif is cut off: it has \d+ bytes, but says that it goes on to byte \d+"),
        (content[: len(content) // 2], r"bad.tif is cut off"),
        (content[:8], r"bad.tif is cut off"),
        (b"no slide at all", r"bad.tif cannot be opened as a whole slide"),
        (b"II*\0 nor this", r"bad.tif (is cut off|cannot be)"),
    ):
        bad.write_bytes(data)
        with pytest.raises(InputError, match=sentence):
            Slide(bad)
    with pytest.raises(InputError, match=r"none.svs does not exist"):
        Slide(tmp_path / "none.svs")


def test_strips_are_left_to_tiffslide_and_one_huge_strip_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = squares(512)
    path = write_slide(tmp_path / "strips.tif", picture, tile=None, levels=1)
    with Slide(path) as slide:
        assert slide.library == "tiffslide"
        assert np.array_equal(slide.read(0, 5, 6, 70, 80), picture[6:86, 5:75].transpose(2, 0, 1))
    monkeypatch.setattr(readers, "LARGEST_BLOCK", 1000)
    with pytest.raises(InputError, match=r"strips.tif stores 32768 pixels in one piece.*tiled TIFF"):
        Slide(path)


def test_without_both_libraries_one_sentence_says_what_to_install(
    slide_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    with Slide(slide_file) as slide:
        assert slide.library == "tiffslide"
    monkeypatch.setitem(sys.modules, "tiffslide", None)
    with pytest.raises(InputError, match=r"neither OpenSlide nor tiffslide .* run `pip install -e \.\[slides\]`"):
        Slide(slide_file)


def damage(path: Path, number: int) -> None:
    """Overwrite one stored tile of the finest level."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        start, length = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * length)


def test_a_damaged_part_costs_itself_alone(library: str, slide_file: Path, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "hurt.tif"
    path.write_bytes(slide_file.read_bytes())
    damage(path, 8)  # row 1, column 2 of 6
    with Slide(path) as slide:
        with pytest.raises(UnreadableRegionError, match=r"hurt.tif cannot be read at x 520, y 300 of level 0"):
            slide.read(0, 520, 300, 50, 50)
        assert np.array_equal(slide.read(0, 300, 300, 50, 50), picture[300:350, 300:350].transpose(2, 0, 1))


def test_a_damaged_part_of_a_slide_without_pyramid_is_a_reason(picture: np.ndarray, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "hurt.tif", picture, levels=1)
    damage(path, 8)
    with Slide(path) as slide:
        grid, _ = grid_of(slide, Tiling(0.5))
    assert grid.dropped()["unreadable"] == 1
    assert grid.verdict[1, 2] == REASONS.index("unreadable")


def test_tissue_of_the_phantom_is_found_and_glass_is_not(slide_file: Path) -> None:
    with Slide(slide_file) as slide:
        maps = find_tissue(slide)
        grid, _ = grid_of(slide, Tiling(0.5))
    assert maps.mpp == pytest.approx(8)
    assert maps.tissue[16:48, 16:80].mean() > 0.9
    outside = maps.tissue.copy()
    outside[15:49, 15:81] = False
    assert not outside.any()
    assert not maps.pen.any()
    assert not maps.blurred.any()
    assert np.array_equal(grid.kept, [(row, column) for row in (1, 2) for column in (1, 2, 3, 4)])
    assert sum(grid.dropped().values()) + len(grid.kept) == 24


def test_glass_alone_has_no_tissue() -> None:
    """Otsu would part any noise in two halves."""
    generator = np.random.default_rng(1)
    for white in ([243, 243, 243], [235, 230, 238], [250, 246, 236]):
        glass = np.clip(np.array(white)[:, None, None] + generator.normal(0, 1.5, (3, 300, 400)), 0, 255)
        glass[:, 100:103, 50:300] -= 60  # a grey scratch
        glass[:, 200:205, 200:205] = 90  # dust
        assert not find_tissue_in(glass.astype(np.uint8), 8).tissue.any()


def test_tissue_without_glass_is_all_tissue() -> None:
    """Pale colloid, with noise alone and with shades as wide as nuclei: neither is parted by Otsu."""
    for sigma in (0, 8):
        shades = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 1, (3, 200, 200)), (0, sigma, sigma))
        colloid = 4 * shades / shades.std() + np.array([232, 203, 214])[:, None, None]
        assert find_tissue_in(colloid.astype(np.uint8), 8).tissue.mean() > 0.99


@pytest.mark.parametrize(
    ("ink", "taken"),
    [
        ((40, 130, 90), True),  # green
        ((50, 80, 190), True),  # blue
        ((25, 25, 30), True),  # black
        ((200, 40, 60), True),  # red
        ((90, 60, 140), False),  # dense haematoxylin
        ((230, 120, 170), False),  # eosin
    ],
)
def test_ink_is_told_from_dyes(ink: tuple[int, int, int], taken: bool) -> None:
    picture = np.full((3, 300, 300), 243, np.uint8)
    picture[:, 50:250, 50:250] = np.array([200, 140, 185])[:, None, None]
    picture[:, 120:180, 100:290] = np.array(ink)[:, None, None]
    maps = find_tissue_in(picture, 8)
    assert maps.pen[120:180, 100:290].all() == taken
    assert maps.pen.any() == taken
    assert not (maps.tissue & maps.pen).any()
    assert maps.tissue[140:160, 110:240].all() != taken
    small = np.full((3, 300, 300), 200, np.uint8)
    small[:, 140:150, 140:150] = np.array(ink)[:, None, None]  # pigment, not a stroke
    assert not find_tissue_in(small, 8).pen.any()


def test_blur_is_found(picture: np.ndarray, tmp_path: Path) -> None:
    """The right half out of focus by 10 µm; the left half stays, and all of it under the least blur."""
    shares = []
    for sigma in (1.0, 10.0):
        mixed = picture.copy()
        blurred = ndimage.gaussian_filter(picture.astype(np.float32), (sigma / 0.5, sigma / 0.5, 0))
        mixed[:, 768:] = blurred[:, 768:]
        with Slide(write_slide(tmp_path / "blur.tif", mixed)) as slide:
            maps = find_tissue(slide)
        assert not maps.blurred[:, :44].any()
        shares.append(maps.blurred[:, 52:].sum() / maps.tissue[:, 52:].sum())
    assert shares[0] == 0
    assert shares[1] > 0.6


def test_coverage_against_a_slow_sum() -> None:
    generator = np.random.default_rng(2)
    mask = generator.random((13, 17)) < 0.4
    fine = mask.repeat(20, 0).repeat(20, 1)
    fine = np.pad(fine, ((0, 200), (0, 200)))
    lefts, tops = np.array([0, 1.35, 4.2, 11.0]), np.array([0.05, 3.4, 9.95])
    found = coverage(mask, lefts, tops, 5.5)
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            part = fine[round(top * 20) : round((top + 5.5) * 20), round(left * 20) : round((left + 5.5) * 20)]
            assert found[row, column] == pytest.approx(part.mean())


@pytest.mark.skipif(DATA is None, reason="NUCLEATE_DATA names no folder of real tiles")
def test_a_real_slide() -> None:
    path = Path(str(DATA)) / "wsi" / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip("the slide is not there")
    with Slide(path) as slide:
        assert slide.mpp == pytest.approx(0.499)
        fine, coarse = (grid_of(slide, Tiling(mpp))[0] for mpp in (0.5, 1.0))
        assert fine.sampling.step == 1
        assert coarse.sampling.step == pytest.approx(1 / 0.499)
        assert len(fine.kept) == 33
        assert fine.dropped() == {"glass": 34, "little tissue": 21, "pen": 0, "blurred": 0, "unreadable": 0}
        with pytest.raises(InputError, match=r"coarser than the 0\.25 asked for"):
            grid_of(slide, Tiling(0.25))


@pytest.fixture
def slide_table(slide_file: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / "a.tif").write_bytes(slide_file.read_bytes())
    (folder / "b.tif").write_bytes(slide_file.read_bytes())
    (folder / "slides.csv").write_text("path,patient,label,split,mpp\na.tif,P1,tumour,train,\nb.tif,,,test,0.25\n")
    return folder / "slides.csv"


def test_streaming(slide_table: Path, picture: np.ndarray, slide_file: Path) -> None:
    tiles = open_tiles(slide_table, mpp=0.5)
    first = [entry for entry in tiles.entries if entry.patient == "P1"]
    assert len(first) == 8
    assert len(tiles) > 8
    assert {(e.label, e.split, e.mpp, e.source) for e in first} == {("tumour", "train", 0.5, "cohort")}
    assert first[0].key == "a.tif/x000256_y000256"
    assert np.array_equal(tiles[0].image, picture[256:512, 256:512].transpose(2, 0, 1))
    second = tiles.entries[8]
    assert (second.patient, second.split, second.mpp) == (None, "test", 0.5)
    assert len(open_tiles(slide_table, mpp=0.5, split="test")) == len(tiles) - 8
    images = [tiles.image(k) for k in range(len(tiles))]
    kept = slide_table.with_name("slides.tissue")
    assert len(list(kept.iterdir())) == 2
    again = open_tiles(slide_table, mpp=0.5)  # by what was kept
    copied = pickle.loads(pickle.dumps(again))  # noqa: S301 - what a loader does to its workers
    for k in (len(tiles) - 1, 0, 9, 3):
        assert np.array_equal(copied.image(k), images[k])
    next(kept.iterdir()).write_text("damaged")
    assert [e.key for e in open_tiles(slide_table, mpp=0.5).entries] == [e.key for e in tiles.entries]


class Images:
    def __init__(self, tiles) -> None:
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tiles.image(index)


def test_loader_workers_read_what_the_process_reads(slide_table: Path, library: str) -> None:
    tiles = open_tiles(slide_table, mpp=1.0, size=128)
    alone = [tiles.image(k) for k in range(len(tiles))]  # the slides are open when the workers are forked
    loader = DataLoader(Images(tiles), batch_size=None, num_workers=2)
    for image, expected in zip(loader, alone, strict=True):
        assert np.array_equal(np.asarray(image), expected)


def test_slides_mix_with_folders_in_the_order_given(slide_table: Path, tile_folder: Path) -> None:
    for on_bad in ("error", "skip"):
        tiles = open_tiles([slide_table, tile_folder], mpp=0.5, size=128, on_bad=on_bad)  # type: ignore[arg-type]
        sources = list(dict.fromkeys(entry.source for entry in tiles.entries))
        assert sources == ["cohort", tile_folder.name]


def test_streaming_refuses_in_one_sentence(slide_table: Path) -> None:
    with pytest.raises(InputError, match=r"slides.csv lists slides.*give --data\.mpp"):
        open_tiles(slide_table)
    with pytest.raises(InputError, match=r"a.tif has 0\.5 µm/px, coarser than the 0\.25"):
        open_tiles(slide_table, mpp=0.25)
    slide_table.with_name("a.tif").write_bytes(b"")
    with pytest.raises(InputError, match=r"a.tif is empty"):
        open_tiles(slide_table, mpp=0.5)
    tiles = open_tiles(slide_table, mpp=0.5, on_bad="skip")
    assert {entry.row.key for entry in tiles.entries} == {"b.tif"}  # type: ignore[attr-defined]
    assert [path.name for path, _ in tiles.bad] == ["a.tif"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,pateint\na.tif,1\n", r"column 'pateint' that looks like 'patient'"),
        ("patient\n1\n", r"has no column 'path'"),
        ("path\n", r"has no rows below its header"),
        ("path\nc.tif\n", r"line 2 of .*slides.csv names .*c.tif, which is missing"),
        ("path\n../a.tif\n", r"has the path '../a.tif'"),
        ("path\na.tif\na.tif\n", r"has a second slide 'a.tif'"),
        ("path,mpp\na.tif,coarse\n", r"has the mpp 'coarse', expected µm/px above 0"),
    ],
)
def test_tables_that_break_a_rule(slide_table: Path, text: str, sentence: str) -> None:
    slide_table.write_text(text)
    with pytest.raises(InputError, match=sentence):
        list_slides(slide_table)


def test_a_folder_of_slides(slide_table: Path, tmp_path: Path) -> None:
    assert [row.key for row in list_slides(slide_table.parent)] == ["a.tif", "b.tif"]
    assert [row.patient for row in list_slides(slide_table.parent)] == ["P1", None]
    slide_table.unlink()
    (slide_table.parent / "deep").mkdir()
    (slide_table.parent / "a.tif").rename(slide_table.parent / "deep" / "c.SVS")
    assert [row.key for row in list_slides(slide_table.parent)] == ["b.tif", "deep/c.SVS"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no slide"):
        list_slides(tmp_path / "empty")
