"""The command: masks to tissue, tissue to masks; killed and resumed, shared by processes, never over others' files."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import translate
from histo.errors import InputError
from histo.images import read_image
from histo.masks import read_instances
from histo.phantom import PhantomTissue
from histo.tiles import open_tiles
from histo.tiles.tables import write_folder
from tests.launching import ALONE, ENVIRONMENT, PAIR, ROOT
from translate.generate import main

SCRIPT = str(ROOT / "translate" / "generate.py")


def start(arguments: list[str], launcher: list[str] = ALONE) -> subprocess.Popen[str]:
    command = [*launcher, SCRIPT, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the note, which names the command."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "generate.json"
    }


@pytest.fixture(scope="module")
def rendered(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layouts in two styles, by one process."""
    out = tmp_path_factory.mktemp("rendered") / "out"
    main([str(toy_run), *layouts(out)])
    return out


def layouts(out: Path) -> list[str]:
    return ["--masks", "layout", "--count", "6", "--styles", "2", "--out", str(out)]


def test_layouts_become_a_labelled_set(rendered: Path) -> None:
    tiles = open_tiles(rendered)
    assert len(tiles) == 12
    for tile in tiles:
        assert tile.image.shape == (3, 64, 64)
        assert tile.mpp == 0.5
        assert tile.instances is not None
        assert tile.instances.max() > 0
    np.testing.assert_array_equal(tiles[4].instances, tiles[5].instances)
    assert not np.array_equal(tiles[4].image, tiles[5].image)
    assert len({tile.image.tobytes() for tile in tiles}) == 12
    note = json.loads((rendered / "generate.json").read_text())
    assert note["finished"]
    assert (note["made"], note["skipped"]) == (6, 0)
    assert note["translator"]["mpp"] == 0.5
    assert note["translator"]["images_seen"] == 160
    assert note["plan"]["--styles"] == 2
    assert not (rendered / "lock.json").exists()


def test_two_processes_write_the_same(rendered: Path, toy_run: Path, tmp_path: Path) -> None:
    process = start([str(toy_run), *layouts(tmp_path / "pair")], PAIR)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert output.count("6 of 6 made") == 1
    assert content(tmp_path / "pair") == content(rendered)


def test_a_killed_call_goes_on_and_makes_nothing_twice(rendered: Path, toy_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(rendered, out)
    note = json.loads((out / "generate.json").read_text())
    (out / "generate.json").write_text(json.dumps({**note, "finished": False}))
    lost = ["tiles.csv", "images/000002-1.png", "labels/000004.png", "images/000005-0.png", "images/000005-1.png"]
    for name in lost:
        (out / name).unlink()
    kept = {
        name: (out / name).stat().st_mtime_ns for name in content(out) if name[7:13] in ("000000", "000001", "000003")
    }
    (out / "images" / "000005-0.png.partial").write_bytes(b"half")
    main([str(toy_run), *layouts(out)])
    assert content(out) == content(rendered)
    assert all((out / name).stat().st_mtime_ns == touched for name, touched in kept.items())


@pytest.mark.slow
def test_killed_in_between_no_file_is_half(toy_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(toy_run), "--masks", "layout", "--count", "60", "--size", "96", "--out", str(out)]
    process = start(arguments)
    deadline = time.monotonic() + 120
    while not (out / "images" / "000003-0.png").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "tiles.csv").exists()
    assert 4 <= len(list((out / "images").glob("*.png"))) < 60
    for image in (out / "images").glob("*.png"):
        Image.open(image).load()
    main(arguments)
    assert len(open_tiles(out)) == 60
    assert len(list((out / "images").iterdir())) == 60


def test_other_settings_are_no_continuation(rendered: Path, toy_run: Path) -> None:
    before = content(rendered)
    for change, name in ((["--seed", "1"], "--seed is 1, but"), (["--styles", "3"], "--styles is 3, but")):
        with pytest.raises(InputError, match=name):
            main([str(toy_run), *layouts(rendered), *change])
    assert content(rendered) == before


def test_only_overwriting_begins_anew(rendered: Path, toy_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(rendered, out)
    main([str(toy_run), "--masks", "layout", "--count", "2", "--out", str(out), "--overwrite"])
    assert len(open_tiles(out)) == 2
    assert len(content(out)) == 5


def test_files_of_other_origin_stay(toy_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").write_bytes(b"mine")
    (tmp_path / "images" / "000000-0.png").write_bytes(b"old")
    arguments = [str(toy_run), "--masks", "layout", "--count", "1", "--out", str(tmp_path)]
    with pytest.raises(InputError, match=r"is not empty: it holds images; name a new folder, or add --overwrite"):
        main(arguments)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["images"]
    for _ in range(2):
        main([*arguments, "--overwrite"])
        assert (tmp_path / "images" / "mine.png").read_bytes() == b"mine"
        assert open_tiles(tmp_path)[0].image.shape == (3, 64, 64)


def test_tiles_with_masks_keep_their_facts(toy_run: Path, tmp_path: Path) -> None:
    write_folder(PhantomTissue(3, size=(70, 90), count=3), tmp_path / "set")  # type: ignore[arg-type]
    main([str(toy_run), "--masks", str(tmp_path / "set"), "--count", "2", "--out", str(tmp_path / "out")])
    given, made = open_tiles(tmp_path / "set"), open_tiles(tmp_path / "out")
    assert len(made) == 2
    for one, other in zip(given, made, strict=False):
        assert other.image.shape == (3, 70, 90)
        np.testing.assert_array_equal(one.instances, other.instances)
        assert (one.patient, one.mpp, one.split) == (other.patient, other.mpp, other.split)


def test_tissue_becomes_instance_maps_and_polygons(toy_run: Path, tile_folder: Path, tmp_path: Path) -> None:
    main([str(toy_run), "--tissue", str(tile_folder), "--count", "2", "--out", str(tmp_path / "out")])
    names = ["labels/images/0.png", "labels/images/1.png", "polygons/images/0.geojson", "polygons/images/1.geojson"]
    assert sorted(content(tmp_path / "out")) == names
    for k in range(2):
        nuclei = read_instances(tmp_path / "out" / names[k])
        assert nuclei.shape == (96, 96)
        np.testing.assert_array_equal(read_instances(tmp_path / "out" / names[k + 2], (96, 96)), nuclei)


def test_a_call_that_made_nothing_may_be_corrected(toy_run: Path, tile_folder: Path, tmp_path: Path) -> None:
    arguments = [str(toy_run), "--tissue", str(tile_folder), "--count", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"has 0\.2 µm/px, but the run learned at 0\.5"):
        main([*arguments, "--mpp", "0.2"])
    main(arguments)
    with pytest.raises(InputError, match=r"--mpp is 0\.51, but"):
        main([*arguments, "--mpp", "0.51"])


BAD_MASKS: dict[str, tuple[Any, str]] = {
    "large ids": (np.array([[0, 70_000]], dtype=np.int32), "70000, but labels beside the tissue end at 65535"),
    "fractions": (np.array([[0, 1.5]]), "holds the value 1.5"),
    "below zero": (np.array([[0, -3]]), "holds the id -3"),
    "everything": (np.full((80, 80), 7), "is one nucleus, 7, without background"),
    "colours": (np.zeros((8, 8, 3), np.uint8), "instance map is"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_bad_mask_is_one_sentence_and_nothing_is_lost(toy_run: Path, tmp_path: Path, kind: str) -> None:
    array, sentence = BAD_MASKS[kind]
    masks, out = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    good = np.zeros((40, 50), dtype=np.uint16)
    good[5:20, 5:20], good[5:20, 20:30] = 9, 4  # touching
    np.save(masks / "a.npy", good)
    np.save(masks / "b.npy", array)
    with pytest.raises(InputError, match=sentence):
        main([str(toy_run), "--masks", str(masks), "--out", str(out)])
    np.testing.assert_array_equal(read_instances(out / "labels" / "000000.png"), good)
    assert not json.loads((out / "generate.json").read_text())["finished"]
    main([str(toy_run), "--masks", str(masks), "--out", str(out), "--on_bad", "skip"])
    assert len(open_tiles(out)) == 1
    np.save(masks / "b.npy", good)
    main([str(toy_run), "--masks", str(masks), "--out", str(out)])
    assert len(open_tiles(out)) == 2


def test_masks_that_cannot_be_meant(toy_run: Path, tmp_path: Path) -> None:
    masks, out = tmp_path / "masks", ["--out", str(tmp_path / "out")]
    masks.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(masks / "a.jpg")
    with pytest.raises(InputError, match="is a JPEG, whose compression changes ids"):
        main([str(toy_run), "--masks", str(masks), *out])
    (masks / "a.jpg").unlink()
    with pytest.raises(InputError, match="holds no instance maps"):
        main([str(toy_run), "--masks", str(masks), *out])
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(masks / "a.png")
    with pytest.raises(InputError, match=r"has 0\.25 µm/px, but the run learned at 0\.5"):
        main([str(toy_run), "--masks", str(masks), "--mpp", "0.25", *out])
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(masks / "a.png", dpi=(25_400, 25_400))  # 1 µm/px
    with pytest.raises(InputError, match=r"has 1 µm/px, but the run learned at 0\.5"):
        main([str(toy_run), "--masks", str(masks), *out])
    with pytest.raises(InputError, match="--count is 2, but"):
        main([str(toy_run), "--masks", str(masks), "--count", "2", *out])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--masks", "layout", "--tissue", "x"], "Both --masks and --tissue were given"),
        ([], "Neither --masks nor --tissue was given"),
        (["--masks", "layout"], "Layouts need --count"),
        (["--masks", "nowhere"], "'nowhere' is no folder"),
        (["--masks", "layout", "--restain", "true"], "given without --tissue"),
        (["--tissue", "x", "--styles", "2"], "--styles is for masks and does not go with --tissue"),
        (["--masks", "layout", "--styles", "0"], "--styles is 0, expected 1 or more"),
        (["--mask", "layout"], "did you mean"),
    ],
)
def test_commands_that_make_no_sense(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        main([str(toy_run), *arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_no_place_among_the_inputs(toy_run: Path, tile_folder: Path) -> None:
    for out in (tile_folder, tile_folder / "images", toy_run / "generated"):
        with pytest.raises(InputError, match="lie in one another"):
            main([str(toy_run), "--tissue", str(tile_folder), "--out", str(out), "--overwrite"])
    with pytest.raises(InputError, match="lie in one another"):
        main([str(toy_run), "--tissue", f"tnbc:{tile_folder}", "--out", str(tile_folder), "--overwrite"])
    assert len(open_tiles(tile_folder)) == 10


def test_a_reference_settles_the_styles(toy_run: Path, tile_folder: Path, tmp_path: Path) -> None:
    reference = tile_folder / "images" / "3.png"
    arguments = ["--masks", "layout", "--count", "2", "--styles", "2", "--style_of", str(reference)]
    main([str(toy_run), *arguments, "--out", str(tmp_path / "out")])
    translator = translate.load(toy_run)
    numbers = translator.styles_like(read_image(reference), 2)
    for k in range(2):
        tissue = translator.render(read_instances(tmp_path / "out" / "labels" / f"00000{k}.png"), numbers)
        for style in range(2):
            made = read_image(tmp_path / "out" / "images" / f"00000{k}-{style}.png")
            np.testing.assert_array_equal(made, tissue[style, 0])


def test_restaining_needs_a_run_that_learned_it(toy_run: Path, tile_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learned no translation of tissue to other tissue"):
        main([str(toy_run), "--tissue", str(tile_folder), "--restain", "true", "--out", str(tmp_path / "out")])


def test_a_run_of_masks_draws_tissue_anew_in_the_stain_of_a_reference(
    toy_run: Path, tile_folder: Path, tmp_path: Path
) -> None:
    reference = tile_folder / "images" / "3.png"
    arguments = ["--tissue", str(tile_folder), "--restain", "true", "--style_of", str(reference), "--count", "2"]
    main([str(toy_run), *arguments, "--out", str(tmp_path / "out")])
    translator = translate.load(toy_run)
    styles = translator.styles_like(read_image(reference), 1)
    for tile in list(open_tiles(tile_folder))[:2]:
        (made,) = (tmp_path / "out" / "images").rglob(f"*{Path(tile.key).stem}.png")
        expected = translator.render(translator.segment(tile.image), styles)[0, 0]
        np.testing.assert_array_equal(read_image(made), expected)


def test_a_mistake_is_one_sentence_and_exit_code_2(toy_run: Path, tmp_path: Path) -> None:
    process = start([str(toy_run), "--masks", "nowhere", "--out", str(tmp_path / "out")], [sys.executable])
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 2
    assert errors.startswith("error: --masks 'nowhere' is no folder")
    assert len(errors.splitlines()) == 1
