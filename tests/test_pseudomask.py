"""The command: tissue becomes a labelled set; the gate, resuming, several processes, agreement, and a training."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo.errors import InputError
from histo.images import read_image
from histo.masks import read_instances, read_record, write_instances
from histo.metrics import compare
from histo.phantom import PhantomTissue
from histo.running.locks import FolderLock
from histo.tiles import open_tiles
from histo.tiles.packing import pack
from histo.tiles.tables import write_folder
from histo.watershed import segment
from tests.launching import ALONE, ENVIRONMENT, PAIR, ROOT
from translate.domains import DataSettings, open_domains
from translate.pseudomask import main

SCRIPT = str(ROOT / "translate" / "pseudomask.py")


def start(arguments: list[str], launcher: list[str] = ALONE) -> subprocess.Popen[str]:
    command = [*launcher, SCRIPT, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the summary, which names the command."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "summary.json"
    }


def watershed(tissue: Path, out: Path) -> list[str]:
    return ["--method", "watershed", "--data.tissue", str(tissue), "--out", str(out)]


@pytest.fixture(scope="module")
def labelled(tile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom set, labelled by the watershed and compared with its exact masks."""
    out = tmp_path_factory.mktemp("labelled") / "out"
    main([*watershed(tile_folder, out), "--against", "tissue"])
    return out


def test_tissue_becomes_a_labelled_set(labelled: Path, tile_folder: Path) -> None:
    given, made = open_tiles(tile_folder), open_tiles(labelled)
    assert len(made) == 10
    for one, other in zip(given, made, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.patient, one.mpp, one.split, one.label) == (other.patient, other.mpp, other.split, other.label)
        np.testing.assert_array_equal(other.instances, segment(one.image, one.mpp))
    record = read_record(labelled / "labels" / "3.png")
    assert (record["tile"], record["mpp"], record["finder"]["method"]) == ("images/3.png", 0.5, "watershed")
    assert record["finder"]["licence"]
    assert record["set_aside"] is None
    summary = json.loads((labelled / "summary.json").read_text())
    assert (summary["finished"], summary["tiles"], summary["kept"], summary["set_aside"]) == (True, 10, 10, 0)
    assert summary["licence"] == record["finder"]["licence"]
    assert Image.open(labelled / "contact.png").size[0] > 1000
    assert not (labelled / "lock.json").exists()


def test_agreement_is_that_of_the_scores(labelled: Path, tile_folder: Path) -> None:
    truth, found = open_tiles(tile_folder), open_tiles(labelled)
    scores = [compare(one.instances, other.instances) for one, other in zip(truth, found, strict=True)]  # type: ignore[arg-type]
    report = json.loads((labelled / "agreement.json").read_text())
    group = report["groups"][0]
    assert (group["tiles"], group["tissue"]) == (10, None)
    assert group["patients"] == len({tile.patient for tile in truth})
    for name, field in (("AJI", "aji"), ("PQ", "pq"), ("Dice", "dice"), ("F1", "dq")):
        mean = np.mean([getattr(score, field) for score in scores])
        assert group[name]["mean"] == pytest.approx(mean, abs=1e-4)
        assert group[name]["low"] < mean < group[name]["high"]
    assert "IoU above 0.5" in report["scores"]


def test_sets_and_kinds_of_tissue_have_their_own_rows(
    tile_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sets whose tiles, patients and kinds have the same names; tiles without patient are drawn one by one."""
    for name, seed in (("one", 1), ("two", 2)):
        write_folder(PhantomTissue(seed, size=64, count=4), tmp_path / name)
        table = tmp_path / name / "tiles.csv"
        rows = list(csv.DictReader(table.read_text().splitlines()))
        for k, row in enumerate(rows):
            row |= {"label": "colon" if k % 2 else "breast", "patient": "p" if name == "one" else ""}
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    out = tmp_path / "out"
    tissue = f"[{tmp_path / 'one'},{tmp_path / 'two'}]"
    main(["--method", "watershed", "--data.tissue", tissue, "--out", str(out), "--against", "tissue"])
    groups = json.loads((out / "agreement.json").read_text())["groups"]
    assert [(group["set"], group["tissue"], group["tiles"]) for group in groups] == [
        ("all", None, 8),
        ("one", None, 4),
        ("one", "breast", 2),
        ("one", "colon", 2),
        ("two", None, 4),
        ("two", "breast", 2),
        ("two", "colon", 2),
    ]
    assert [(group["patients"], group["tiles_of_unknown_patients"]) for group in groups[::4]] == [(1, 4), (0, 4)]
    assert groups[1]["PQ"]["low"] is None, "a single patient says nothing of others"
    assert groups[4]["PQ"]["low"] < groups[4]["PQ"]["high"]
    printed = capsys.readouterr().out
    assert "| two | colon | 2 | unknown |" in printed
    assert "[–]" in printed
    made = open_tiles(out)
    assert len(made) == 8
    assert {tile.patient for tile in made} == {"one/p", None}
    assert (out / "labels" / "two" / "3.png").is_file()


def test_labels_may_lie_elsewhere(labelled: Path, tile_folder: Path, tmp_path: Path) -> None:
    """A folder of maps named as the tiles are, and a set of tiles, are the tissue's own here."""
    out = tmp_path / "out"
    shutil.copytree(labelled, out)
    expected = json.loads((labelled / "agreement.json").read_text())["groups"]
    for against in (tile_folder / "labels", tile_folder, f"tnbc:{tile_folder}"):
        main([*watershed(tile_folder, out), "--against", str(against)])
        assert json.loads((out / "agreement.json").read_text())["groups"] == expected
    strange = tmp_path / "strange"
    strange.mkdir()
    shutil.copy(tile_folder / "labels" / "0.png", strange / "other.png")
    with pytest.raises(
        InputError, match=r"None of the 1 labels of .* has the name of a tile \('other' there, '0' here"
    ):
        main([*watershed(tile_folder, out), "--against", str(strange)])
    write_instances(strange / "0.png", np.ones((8, 9), np.uint16))
    with pytest.raises(InputError, match=r"strange/0\.png is 8 x 9 pixels .*but 96 x 96 was expected; pair it"):
        main([*watershed(tile_folder, out), "--against", str(strange)])
    assert len(open_tiles(out)) == 10


def test_tiles_outside_the_gate_are_set_aside_with_the_reason(tile_folder: Path, tmp_path: Path) -> None:
    tissue, out = tmp_path / "tissue", tmp_path / "out"
    shutil.copytree(tile_folder / "images", tissue)
    Image.new("RGB", (96, 96), (240, 235, 240)).save(tissue / "glass.png")
    main([*watershed(tissue, out), "--data.mpp", "0.5"])
    assert [tile.key for tile in open_tiles(out)] == [f"images/{k}.png" for k in range(10)]
    (row,) = csv.DictReader((out / "set_aside.csv").read_text().splitlines())
    assert row["tile"] == "glass"
    assert row["reason"] == "nuclei 0 nuclei, expected 1 to 1e+06"
    assert not read_instances(out / row["mask"]).any()
    assert read_record(out / row["mask"])["set_aside"] == row["reason"]
    assert not (out / "images" / "glass.png").exists()
    assert not (out / "labels" / "glass.png").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["kept"], summary["set_aside"], summary["set_aside_by"]) == (10, 1, {"nuclei": 1})
    with pytest.raises(InputError, match=r"--gate\.coverage is \[0\.0, 0\.1\], but .* was begun with \[0\.0, 0\.75\]"):
        main([*watershed(tissue, out), "--data.mpp", "0.5", "--gate.coverage", "[0.0,0.1]"])


def test_two_processes_write_the_same(labelled: Path, tile_folder: Path, tmp_path: Path) -> None:
    process = start([*watershed(tile_folder, tmp_path / "pair"), "--against", "tissue"], PAIR)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert output.count("10 of 10 tiles have masks") == 1
    assert content(tmp_path / "pair") == content(labelled)


def test_a_killed_job_goes_on_and_makes_nothing_twice(labelled: Path, tile_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(labelled, out)
    for name in ("labels/4.png", "labels/7.png", "images/7.png", "tiles.csv", "contact.png", "agreement.json"):
        (out / name).unlink()
    (out / "labels" / "4.png.partial").write_bytes(b"half")
    kept = {name: (out / name).stat().st_mtime_ns for name in ("labels/0.png", "images/0.png", "labels/9.png")}
    main([*watershed(tile_folder, out), "--against", "tissue"])
    assert content(out) == content(labelled)
    assert all((out / name).stat().st_mtime_ns == touched for name, touched in kept.items())


@pytest.mark.slow
def test_killed_in_between_no_file_is_half(tmp_path: Path) -> None:
    write_folder(PhantomTissue(3, size=128, count=40), tmp_path / "tissue")
    arguments = watershed(tmp_path / "tissue", tmp_path / "out")
    process = start(arguments)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "labels" / "2.png").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = list((tmp_path / "out" / "labels").glob("*.png"))
    assert 3 <= len(found) < 40
    for file in found:
        read_record(file)
        read_instances(file)
    assert not (tmp_path / "out" / "tiles.csv").exists()
    main(arguments)
    assert len(open_tiles(tmp_path / "out")) == 40
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_second_job_waits_for_its_turn(labelled: Path, tile_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(labelled, out)
    lock = FolderLock(out, "--out")
    try:
        process = start(watershed(tile_folder, out))
        errors = process.communicate(timeout=100)[1]
    finally:
        lock.release()
    assert process.returncode == 2
    assert "is in use by process" in errors
    assert content(out) == content(labelled)


def test_shards_are_labelled_as_their_folder_is(labelled: Path, tile_folder: Path, tmp_path: Path) -> None:
    pack(tile_folder, tmp_path / "shards")
    main([*watershed(tmp_path / "shards", tmp_path / "out"), "--against", "tissue"])
    ours, theirs = content(tmp_path / "out"), content(labelled)
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name.startswith(("images", "tiles.csv", "agreement")))


def test_a_bad_tile_is_one_sentence_or_left_out(tile_folder: Path, tmp_path: Path) -> None:
    tissue, out = tmp_path / "tissue", tmp_path / "out"
    shutil.copytree(tile_folder / "images", tissue)
    (tissue / "4.png").write_bytes(b"")
    arguments = [*watershed(tissue, out), "--data.mpp", "0.5"]
    with pytest.raises(InputError, match=r"4\.png"):
        main(arguments)
    assert len(list((out / "labels").glob("*.png"))) == 4, "what was made before stays"
    main([*arguments, "--data.on_bad", "skip"])
    summary = json.loads((out / "summary.json").read_text())
    assert [entry["tile"] for entry in summary["skipped"]] == ["4"]
    assert len(open_tiles(out)) == 9
    shutil.copy(tile_folder / "images" / "4.png", tissue / "4.png")
    main(arguments)
    assert len(open_tiles(out)) == 10


def test_unknown_mpp_is_named(tile_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tile_folder / "images", tmp_path / "tissue")
    with pytest.raises(InputError, match=r"10 of 10 tiles have no known µm/px.*give --data\.mpp"):
        main(watershed(tmp_path / "tissue", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_translators_segmenter_labels_the_next_run(toy_run: Path, tile_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gate = ["--gate.contrast", "[-9,9]", "--gate.area", "[0,100000]", "--gate.nuclei", "[0,9999]"]
    arguments = ["--method", "flows", "--data.tissue", str(tile_folder), "--out", str(out), *gate]
    main([*arguments, "--flows.model", str(toy_run), "--gate.coverage", "[0,1]"])
    made = open_tiles(out)
    assert len(made) == 10
    record = read_record(out / "labels" / "0.png")
    assert record["finder"]["images_seen"] == 160
    settings = DataSettings(tissue=str(out), masks=str(out), tile_size=64, workers=0)
    domains = open_domains(settings, 0, tmp_path / "unused", progress=False)
    giving = {domains.source.tiles[k].key for k in range(len(domains.source.tiles))}
    assert giving.isdisjoint(domains.target.tiles[int(k)].key for k in domains.target.shown)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "watershed"], "No tissue was named"),
        (["--data.tissue", "x"], "No place for the results was named"),
        (["--data.tissue", "x", "--out", "x/out"], "lie in one another"),
        (["--data.tissue", "tnbc:x", "--out", "x"], "lie in one another"),
        (["--data.tissue", "x", "--out", "out", "--method", "stardist"], "expected one of cellpose, flows, watershed"),
        (["--data.tissue", "x", "--out", "out", "--gate.area", "[5,4]"], r"gate\.area is \[5.*, 4.*\], expected two"),
        (["--data.tissue", "x", "--out", "out", "--data.mpp", "0"], r"data\.mpp is 0\.0"),
        (["--data.tissue", "nowhere", "--out", "out"], "nowhere does not exist"),
    ],
)
def test_commands_that_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        main(arguments)
    assert not (tmp_path / "out").exists()


# Cellpose-SAM itself, on weights set by hand (see cellpose_weights)


def small_tissue(folder: Path, tiles: int) -> None:
    """Phantom tiles of 64 px: one window each, several seconds on a CPU."""
    write_folder(PhantomTissue(11, size=64, count=tiles), folder)


def cellpose(weights: Path, group: str) -> list[str]:
    return [f"--{group}.model", str(weights), f"--{group}.flow_threshold", "0", f"--{group}.diameter", "20"]


@pytest.mark.slow
def test_cellpose_labels_tissue_and_says_its_licence(cellpose_weights: Path, tmp_path: Path) -> None:
    small_tissue(tmp_path / "tissue", 2)
    out = tmp_path / "out"
    main(["--data.tissue", str(tmp_path / "tissue"), "--out", str(out), *cellpose(cellpose_weights, "cellpose")])
    made = open_tiles(out)
    assert len(made) == 2
    for k, tile in enumerate(made):
        assert tile.instances is not None
        dark = read_image(tmp_path / "tissue" / "images" / f"{k}.png")[0].astype(float)
        assert dark[tile.instances > 0].mean() < dark[tile.instances == 0].mean() - 20
        assert "CC BY-NC" in read_record(out / "labels" / f"{k}.png")["finder"]["licence"]
    summary = json.loads((out / "summary.json").read_text())
    assert "CC BY-NC" in summary["licence"]
    assert summary["finder"]["weights_sha256"] == read_record(out / "labels" / "0.png")["finder"]["weights_sha256"]


@pytest.mark.slow
def test_a_translator_trains_on_masks_of_cellpose_down_to_the_panels(
    cellpose_weights: Path, toy_arguments: list[str], tmp_path: Path
) -> None:
    small_tissue(tmp_path / "tissue", 4)
    run = tmp_path / "run"
    own = ["--data.tissue", str(tmp_path / "tissue"), "--data.masks", "cellpose", "--data.workers", "0"]
    short = ["--train.images", "8", "--train.panel_every", "4", "--train.log_every", "4"]
    command = [sys.executable, str(ROOT / "translate" / "train.py"), *toy_arguments, *own, *short]
    command += [*cellpose(cellpose_weights, "data.cellpose"), "--run.dir", str(run)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT)
    assert process.returncode == 0, process.stderr
    masks = sorted((run / "pseudo-masks").glob("*.png"))
    times = [file.stat().st_mtime_ns for file in masks]
    assert masks
    assert any(read_instances(file).any() for file in masks)
    assert "CC BY-NC" in read_record(masks[0])["finder"]["licence"]
    assert list((run / "panels").glob("*.png"))
    assert "CC BY-NC" in json.loads((run / "export" / "segmenter.json").read_text())["masks"]
    tiles = open_tiles(tmp_path / "tissue")
    train = [k for k, entry in enumerate(tiles.entries) if entry.split in ("train", None)]
    assert len(masks) == (len(train) + 1) // 2
    # again: found, not made; no weights are needed for that
    settings = DataSettings(tissue=str(tmp_path / "tissue"), masks="cellpose", tile_size=64)
    settings.cellpose.model = str(tmp_path / "gone")
    open_domains(settings, 0, run / "pseudo-masks", progress=False)
    assert [file.stat().st_mtime_ns for file in masks] == times
