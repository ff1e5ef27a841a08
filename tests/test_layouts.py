"""Layouts: pure in the index, inside the measured ranges, fitted to given maps, and learned from."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from skimage.draw import disk, ellipse, polygon

from histo.commands import layout as verb
from histo.errors import InputError
from histo.layouts import EPITHELIUM, STROMA, Layouts, LayoutSettings, ShapeSettings, fitting
from histo.layouts.drawing import _any_row, _Canvas, _Fields
from histo.layouts.fitting import compare, fit
from histo.layouts.measures import measure
from histo.layouts.outlines import covered, draw_outline, draw_sizes, reach
from histo.masks import write_instances
from histo.phantom.noise import SmoothField
from histo.randomness import draws
from histo.running.runs import RunFolder
from histo.running.settings import as_yaml, read_settings
from histo.tiles import Tile
from translate.domains import DataSettings, open_domains
from translate.methods.unitpath import Recipe
from translate.recipe import PRESET
from translate.stream import UnpairedCrops
from translate.train import main

DATA = os.environ.get("NUCLEATE_DATA")
SHAPE = ShapeSettings(diameter=6.0, spread=0.25, aspect=1.5, aspect_spread=0.5, spindles=0.05)


@pytest.fixture(scope="module")
def tiles() -> list[Tile]:
    return list(Layouts(LayoutSettings(), 0, count=200))


def instances_of(tile: Tile) -> np.ndarray:
    assert tile.instances is not None
    return tile.instances


def pairs(tiles: list[Tile]) -> list[tuple[np.ndarray, float]]:
    return [(instances_of(tile), float(tile.mpp or 0)) for tile in tiles]


# Maps as a source of tiles


def test_a_map_depends_on_seed_and_index_alone(tiles: list[Tile]) -> None:
    for index in (17, 3, 17):
        again = Layouts(LayoutSettings(), 0, count=index + 1)[index]
        assert np.array_equal(instances_of(again), instances_of(tiles[index]))
        assert np.array_equal(again.types, tiles[index].types)
    assert not np.array_equal(instances_of(Layouts(LayoutSettings(), 1)[3]), instances_of(tiles[3]))
    assert len({instances_of(tile).tobytes() for tile in tiles}) == len(tiles)
    with pytest.raises(IndexError):
        Layouts(LayoutSettings(), 0, count=2)[2]


def test_another_process_draws_the_same(tiles: list[Tile]) -> None:
    code = "import sys; from histo.layouts import *; sys.stdout.buffer.write(Layouts(LayoutSettings(), 0)[5].instances)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert printed == instances_of(tiles[5]).tobytes()


def test_ids_are_contiguous_and_typed(tiles: list[Tile]) -> None:
    for tile in tiles:
        instances = instances_of(tile)
        assert instances.dtype == np.int32
        assert tile.image.shape == (3, *instances.shape)
        assert tile.types is not None
        assert np.array_equal(np.unique(instances), np.arange(len(tile.types)))
        assert set(tile.types[1:].tolist()) <= {STROMA, EPITHELIUM}
    bare = sum(EPITHELIUM not in tile.types for tile in tiles if tile.types is not None)
    assert 0.08 < bare / len(tiles) < 0.25, "15 % of maps have no epithelium"


@pytest.mark.parametrize(("size", "mpp"), [(16, 0.1), ((16, 40), 0.25), (24, 2.0)])
def test_no_map_is_empty(size: int | tuple[int, int], mpp: float) -> None:
    settings = replace(LayoutSettings(), density=50)
    for tile in Layouts(settings, 0, size=size, mpp=mpp, count=30):
        assert instances_of(tile).any()


def test_several_magnifications_come_in_equal_shares() -> None:
    found = [tile.mpp for tile in Layouts(LayoutSettings(), 0, size=32, mpp=[0.25, 0.5], count=60)]
    assert set(found) == {0.25, 0.5}
    assert 15 < found.count(0.25) < 45


def test_the_magnification_changes_pixels_and_not_sizes() -> None:
    fine, coarse = (
        measure(pairs(list(Layouts(LayoutSettings(), 0, size=round(128 / mpp), mpp=mpp, count=8))))
        for mpp in (0.25, 0.5)
    )
    assert coarse.density == pytest.approx(fine.density, rel=0.15)
    assert coarse.diameter == pytest.approx(fine.diameter, rel=0.1)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="density is 0, expected 50 to 30000 nuclei per mm²"):
        LayoutSettings(density=0)
    with pytest.raises(InputError, match=r"greatest_radius is 10, expected 15.0 to 500 µm"):
        LayoutSettings(greatest_radius=10)
    with pytest.raises(InputError, match="diameter is nan"):
        replace(SHAPE, diameter=float("nan"))
    with pytest.raises(InputError, match=r"mpp is \[3.0\], expected 0.1 to 2"):
        Layouts(LayoutSettings(), 0, mpp=3.0)
    with pytest.raises(InputError, match="size is 8"):
        Layouts(LayoutSettings(), 0, size=8)


# The figures measured on the masks of UNITPathSSL, 256 px at 40×


def test_the_defaults_lie_in_the_measured_ranges(tiles: list[Tile]) -> None:
    covered = np.median([np.mean(instances_of(tile) > 0) for tile in tiles])
    assert 0.09 <= covered <= 0.23
    counts, medians = [], {STROMA: [], EPITHELIUM: []}
    aspects = []
    for tile in tiles:
        assert tile.types is not None
        pixels = np.bincount(instances_of(tile).ravel())
        visible = pixels >= 60
        counts.append(np.count_nonzero(visible[1:]))
        for kind, found in medians.items():
            chosen = visible & (tile.types == kind)
            if chosen.any():
                found.append(np.median(2 * np.sqrt(pixels[chosen] / np.pi)))
    assert 12 <= np.median(counts) <= 22
    assert 13 <= np.median(medians[STROMA]) <= 24
    assert 21 <= np.median(medians[EPITHELIUM]) <= 29
    for first in range(0, len(tiles), 5):  # five maps hold nuclei enough to measure
        aspects.append(measure(pairs(tiles[first : first + 5])).aspect)
    assert 1.5 <= np.median(aspects) <= 2.3


# One nucleus and one row


def test_an_outline_has_the_area_and_the_axes_asked_for() -> None:
    smooth = replace(SHAPE, irregularity=0, spike=0)
    for aspect, angle in ((1.0, 0.0), (2.0, 0.5), (5.0, 1.2)):
        y, x = draw_outline(draws(0, "test", 0), smooth, 8.0, aspect, angle).T
        area = abs(np.sum(y * np.roll(x, -1) - x * np.roll(y, -1))) / 2
        assert area == pytest.approx(np.pi * 16, rel=1e-9)
        along, across = y * np.sin(angle) + x * np.cos(angle), y * np.cos(angle) - x * np.sin(angle)
        assert np.ptp(along) / np.ptp(across) == pytest.approx(aspect, rel=0.1)


def test_no_outline_leaves_its_reach() -> None:
    wild = ShapeSettings(10.0, 1.0, 3.0, 2.0, 0.5, irregularity=1.0, spike=0.5)
    generator = draws(0, "test", 1)
    diameters, aspects = draw_sizes(generator, wild, generator.standard_normal(500))
    longest = 0.0
    for diameter, aspect in zip(diameters, aspects, strict=True):
        outline = draw_outline(generator, wild, diameter, aspect, 0.0)
        longest = max(longest, float(np.hypot(*outline.T).max()))
    assert longest <= reach(wild)


def test_sizes_follow_their_distributions() -> None:
    generator = draws(0, "test", 2)
    diameters, aspects = draw_sizes(generator, replace(SHAPE, spindles=0.0), generator.standard_normal(20_000))
    assert np.median(diameters) == pytest.approx(6.0, rel=0.01)
    assert np.log(diameters).std() == pytest.approx(0.25, rel=0.05)
    assert np.median(aspects) == pytest.approx(1.5, rel=0.01)
    spindles = draw_sizes(generator, replace(SHAPE, spindles=0.3), np.zeros(20_000))[1]
    assert np.mean(spindles >= 3) == pytest.approx(0.3, abs=0.02)


def test_the_fill_is_that_of_a_slow_polygon_fill() -> None:
    generator = draws(0, "test", 5)
    kind = ShapeSettings(20.0, 0.5, 2.0, 1.0, 0.2, irregularity=1.0, spike=0.12)
    diameters, aspects = draw_sizes(generator, kind, generator.standard_normal(100))
    for diameter, aspect in zip(diameters, aspects, strict=True):
        outline = draw_outline(generator, kind, diameter, aspect, generator.uniform(-3, 3))
        rows, columns = polygon(*(outline + 200).T)
        assert {*zip(*covered(outline), strict=True)} == {*zip(rows - 200, columns - 200, strict=True)}


def square(side: float) -> np.ndarray:
    return side / 2 * np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]])


def test_later_nuclei_cover_nothing_and_take_the_freest_place() -> None:
    canvas = _Canvas((64, 64), 1.0, 0.0, 12.0)
    assert canvas.place(square(11), np.array([[32.0, 32.0]]), STROMA, 0)
    first = canvas.map()[0] == 1
    assert canvas.place(square(11), np.array([[32.0, 35.0], [32.0, 39.0], [32.0, 37.0]]), EPITHELIUM, 0)
    instances, types = canvas.map()
    assert np.array_equal(instances == 1, first)
    second = np.argwhere(instances == 2)
    assert second[:, 1].max() == 32 + 7 + 5, "the second place overlaps least"
    assert types.tolist() == [0, STROMA, EPITHELIUM]
    assert not canvas.place(square(11), np.array([[32.0, 32.0]]), STROMA, 0), "nothing of it would be seen"
    assert canvas.place(square(11), np.array([[32.0, 35.0], [10.0, 10.0], [50.0, 50.0]]), STROMA, 0)
    assert canvas.map()[0][10, 10] == 3, "the first free place is taken, and the search ends"


def test_what_neighbours_cut_in_two_keeps_its_largest_part() -> None:
    canvas = _Canvas((64, 64), 1.0, 0.0, 12.0)
    bar = np.array([[-12.0, -2.0], [-12.0, 2.0], [12.0, 2.0], [12.0, -2.0]])
    canvas.place(bar, np.array([[32.0, 32.0]]), STROMA, 0)
    canvas.place(square(15), np.array([[32.0, 33.0]]), STROMA, 0)
    columns = np.argwhere(canvas.map()[0] == 2)[:, 1]
    assert columns.min() > 32
    assert columns.max() == 33 + 7


def test_rows_stand_on_their_ellipse_across_it_and_side_by_side() -> None:
    settings = replace(
        LayoutSettings(), spacing=0.9, epithelial=replace(SHAPE, spread=0.0, aspect_spread=0.0, spindles=0)
    )
    canvas = _Canvas((256, 256), 0.25, 13.0, 20.0)
    generator = draws(0, "test", 3)
    for _ in range(20):
        fields = _Fields(*(SmoothField(generator, canvas.extent, 50.0) for _ in range(3)))
        row = _any_row(generator, settings, canvas, fields)
        steps = np.diff(row.places, axis=0)
        assert np.hypot(*steps.T) == pytest.approx(0.9 * 6 / np.sqrt(1.5), rel=0.02)
        tangent = (steps[1:] + steps[:-1]) / 2
        normal = np.stack([np.sin(row.normals), np.cos(row.normals)], 1)[1:-1]
        cosine = np.abs((tangent * normal).sum(1)) / np.hypot(*tangent.T)
        assert cosine.max() < np.sin(np.deg2rad(5))


def test_epithelium_touches_and_stroma_keeps_apart() -> None:
    alike = {"stroma": SHAPE, "epithelial": SHAPE, "without_epithelium": 0.0, "density": 3000.0}
    rows, apart, stroma = (
        measure(pairs(list(Layouts(LayoutSettings(**alike, **changed), 0, count=30)))).touching
        for changed in ({"epithelium": 1.0, "spacing": 0.9}, {"epithelium": 1.0, "spacing": 1.6}, {"epithelium": 0.0})
    )
    assert rows > 0.6
    assert apart < 0.35
    assert stroma < 0.2


# Measures against closed forms


def test_sizes_and_aspects_of_ellipses() -> None:
    instances = np.zeros((400, 400), np.int32)
    for k in range(25):
        rows, columns = ellipse(40 + 80 * (k // 5), 40 + 80 * (k % 5), 30, 12, rotation=0.3 * k)
        instances[rows, columns] = k + 1
    found = measure([(instances, 0.5)])
    assert found.diameter == pytest.approx(2 * np.sqrt(30 * 12) * 0.5, rel=0.01)
    assert found.aspect == pytest.approx(2.5, rel=0.01)
    assert found.density == pytest.approx(25 / 0.04)
    assert found.covered == pytest.approx(25 * np.pi * 30 * 12 / 160_000, rel=0.01)
    assert found.variation is None
    assert (found.maps, found.nuclei, found.extent) == (1, 25, (200.0, 200.0))


def test_cut_nuclei_count_half_and_are_not_measured() -> None:
    whole = grid_of_discs(25, 20, 4)
    found = measure([(whole[:, 12:], 1.0), (whole, 1.0)])  # 5 of them lose most of themselves
    assert found.density == pytest.approx(1e6 * (20 + 5 / 2 + 25) / (100 * 88 + 100 * 100))
    assert found.nuclei == 50
    area = np.count_nonzero(whole == 13)
    assert found.diameter == pytest.approx(2 * np.sqrt(area / np.pi))


def grid_of_discs(number: int, step: int, radius: float) -> np.ndarray:
    side = int(np.sqrt(number))
    instances = np.zeros((side * step, side * step), np.int32)
    for k in range(number):
        rows, columns = disk((step // 2 + step * (k // side), step // 2 + step * (k % side)), radius)
        instances[rows, columns] = k + 1
    return instances


def test_clustering_of_a_lattice_of_chance_and_of_clusters() -> None:
    lattice = measure([(grid_of_discs(400, 16, 2), 1.0)])
    assert lattice.dispersion == pytest.approx(0, abs=0.01)
    assert lattice.clark_evans == pytest.approx(2, rel=0.06)
    generator = draws(0, "test", 4)

    def scattered(parents: int) -> np.ndarray:
        instances = np.zeros((600, 600), np.int32)
        places = generator.uniform(5, 595, (600, 2))
        if parents:
            middles = generator.uniform(60, 540, (parents, 2))
            places = middles[generator.integers(parents, size=600)] + generator.normal(0, 15, (600, 2))
        for k, (y, x) in enumerate(places.astype(int).tolist()):
            instances[y : y + 2, x : x + 2] = k + 1
        return instances

    chance = measure([(scattered(0), 1.0) for _ in range(4)])
    assert chance.dispersion == pytest.approx(1, abs=0.15)
    assert chance.clark_evans == pytest.approx(1, abs=0.06)
    clusters = measure([(scattered(20), 1.0) for _ in range(4)])
    assert clusters.dispersion > 4
    assert clusters.clark_evans < 0.8


@pytest.mark.parametrize(("gap", "touch"), [(0, True), (2, True), (3, False)])
def test_touching_means_half_a_micrometre(gap: int, touch: bool) -> None:
    instances = np.zeros((200, 100), np.int32)
    for k in range(10):
        instances[5 + 20 * k : 15 + 20 * k, 10:20] = 2 * k + 1
        instances[5 + 20 * k : 15 + 20 * k, 20 + gap : 30 + gap] = 2 * k + 2
    assert measure([(instances, 0.25)]).touching == touch


def test_too_little_to_measure_is_refused() -> None:
    with pytest.raises(InputError, match="1 maps hold 9 whole nuclei, expected 20"):
        measure([(grid_of_discs(9, 16, 4), 0.25)])


# Fitting

KNOWN = LayoutSettings(density=5000, density_spread=0.3, clustering=1.1, spacing=1.1, stroma=SHAPE, epithelial=SHAPE)


def test_the_settings_of_drawn_maps_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_NUCLEI", 1500)
    monkeypatch.setattr(fitting, "ROUNDS", 5)
    given = measure(pairs(list(Layouts(KNOWN, 5, size=320, mpp=0.25, count=50))))
    found = fit(given)
    assert found.density == pytest.approx(KNOWN.density, rel=0.1)
    assert found.density_spread == pytest.approx(KNOWN.density_spread, abs=0.1)
    # Rows cluster more than the field does, so its variance is blurred; what counts is that the maps cluster alike.
    assert found.clustering > 0
    assert compare(found, given).dispersion == pytest.approx(given.dispersion, rel=0.3)
    assert found.spacing == pytest.approx(KNOWN.spacing, abs=0.15)
    assert found.stroma == found.epithelial
    assert found.stroma.diameter == pytest.approx(SHAPE.diameter, rel=0.05)
    assert found.stroma.spread == pytest.approx(SHAPE.spread, rel=0.15)
    assert found.stroma.aspect - 1 == pytest.approx(SHAPE.aspect - 1, rel=0.12)
    assert found.stroma.aspect_spread == pytest.approx(SHAPE.aspect_spread, rel=0.25)
    assert found.stroma.spindles == pytest.approx(SHAPE.spindles, abs=0.03)
    defaults = LayoutSettings()
    assert (found.epithelium, found.least_radius) == (defaults.epithelium, defaults.least_radius)


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "maps"
    folder.mkdir()
    for k, tile in enumerate(Layouts(KNOWN, 6, size=256, count=6)):
        write_instances(folder / f"{k}.png", instances_of(tile))
    return folder


def test_one_command_writes_a_config_that_training_takes(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting, "_NUCLEI", 300)
    monkeypatch.setattr(fitting, "ROUNDS", 2)
    target = tmp_path / "new" / "layout.yaml"
    assert verb.main(["fit", str(maps), "--out", str(target), "--mpp", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert "index of dispersion" in printed
    assert "Types are unknown" in printed
    request = read_settings(Recipe, "p", "d", ["--config", str(PRESET), "--config", str(target)], PRESET)
    written = yaml.safe_load(target.read_text(encoding="utf-8"))["data"]
    assert asdict(request.settings.data.layout) == written["layout"]
    assert request.settings.data.masks == "layout"
    assert request.settings.data.layout.stroma.diameter == pytest.approx(6, rel=0.1)
    assert os.listdir(target.parent) == ["layout.yaml"]


def test_fitting_needs_the_micrometres_and_leaves_held_out_labels_alone(maps: Path, tile_folder: Path) -> None:
    with pytest.raises(InputError, match=r"µm/px of the maps of .* is not known.*give --mpp"):
        verb.main(["fit", str(maps), "--out", "a.yaml"])
    with pytest.raises(InputError, match="expected a name ending in"):
        verb.main(["fit", str(maps), "--out", "a.txt"])
    found = list(verb.instance_maps(tile_folder, None, "train"))
    assert len(found) == 8
    assert {mpp for _, mpp in found} == {0.5}
    with pytest.raises(InputError, match="names no masks of split 'val'"):
        list(verb.instance_maps(tile_folder, None, "val"))


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="NUCLEATE_DATA is not set")
@pytest.mark.parametrize("folder", ["monuseg2018", "tnbc_naylor"])
def test_drawn_maps_measure_as_real_ones(folder: str) -> None:
    wanted = measure(verb.instance_maps(Path(str(DATA)) / "nuclei" / folder, None, "train"))
    drawn = compare(fit(wanted), wanted)
    print(verb.table(wanted, drawn))
    for name, share in {"density": 0.1, "diameter": 0.05, "spread": 0.15, "aspect": 0.05, "dispersion": 0.25}.items():
        assert getattr(drawn, name) == pytest.approx(getattr(wanted, name), rel=share), name
    assert drawn.touching == pytest.approx(wanted.touching, abs=0.1)


# Learning from layouts


def test_layouts_show_all_tissue_at_its_own_magnification(tile_folder: Path, tmp_path: Path) -> None:
    settings = DataSettings(tissue=str(tile_folder), masks="layout", tile_size=64, workers=0)
    domains = open_domains(settings, 0, tmp_path, progress=False)
    assert len(domains.target.shown) == len(domains.target.tiles) == 8
    assert "data.layout" in domains.origin
    tile = domains.source.tiles[0]
    assert (tile.mpp, instances_of(tile).shape) == (0.5, (64, 64))
    item = UnpairedCrops(domains, settings, 0)[3]
    assert item["source"].shape == (3, 64, 64)
    assert item["instances"].any()
    dense = replace(settings, layout=replace(LayoutSettings(), density=15_000))
    there = [
        np.mean(instances_of(open_domains(one, 0, tmp_path, False).source.tiles[2]) > 0) for one in (settings, dense)
    ]
    assert there[1] > 1.5 * there[0]


def test_layouts_of_an_unknown_magnification_are_refused(tile_folder: Path, tmp_path: Path) -> None:
    settings = DataSettings(tissue=str(tile_folder / "images"), masks="layout", tile_size=64)
    with pytest.raises(InputError, match=r"the layout prior needs it; give --data\.mpp"):
        open_domains(settings, 0, tmp_path, progress=False)
    domains = open_domains(replace(settings, mpp=0.25), 0, tmp_path, progress=False)
    assert domains.source.tiles[0].mpp == 0.25


def test_a_resumed_run_keeps_its_layout(tmp_path: Path) -> None:
    recipe = Recipe()
    run = RunFolder(tmp_path / "run")
    run.create(as_yaml(recipe))
    (run.path / "log.jsonl").touch()  # as soon as something was made, its settings hold
    run.refuse_other_settings(asdict(recipe), Recipe.FIXED)
    recipe.data.layout = replace(recipe.data.layout, density=1234.0)
    with pytest.raises(InputError, match=r"--data\.layout\.density is 1234\.0"):
        run.refuse_other_settings(asdict(recipe), Recipe.FIXED)


def test_settings_are_shown_and_set(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data.masks", "layout", "--data.layout.stroma.diameter", "5.5", "--data.layout.density", "2000"]
    settings = read_settings(Recipe, "p", "d", arguments, PRESET).settings
    assert (settings.data.layout.stroma.diameter, settings.data.layout.density) == (5.5, 2000)
    assert settings.data.layout.stroma.spread == LayoutSettings().stroma.spread
    assert settings.data.layout.epithelial == LayoutSettings().epithelial
    with pytest.raises(SystemExit):
        read_settings(Recipe, "p", "d", [*arguments, "--print_config"], PRESET)
    shown = yaml.safe_load(capsys.readouterr().out)["data"]["layout"]
    assert shown == asdict(settings.data.layout)
    with pytest.raises(InputError, match="layout's spacing is 9"):
        read_settings(Recipe, "p", "d", ["--data.layout.spacing", "9"], PRESET)


def test_a_training_on_layouts_runs(toy_arguments: list[str], tmp_path: Path) -> None:
    arguments = [*toy_arguments, "--data.masks", "layout", "--data.workers", "0", "--train.images", "16"]
    main([*arguments, "--run.dir", str(tmp_path / "run"), "--train.save_every", "16"])
    assert "layouts drawn" in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    assert (tmp_path / "run" / "export" / "encoder.safetensors").exists()
