"""The comparison of encoders: what it writes, what it rests on, and mistakes in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from histo import encoders
from histo.encoders import write_card
from histo.errors import InputError
from histo.phantom import PhantomTissue
from histo.tiles.classes import read_groups, resolved
from histo.tiles.tables import write_folder
from pretrain.probe import main
from pretrain.problems import open_problems

ROOT = Path(__file__).parents[1]
NETWORK = "test_resnet"
FAST = ["--tile_size", "48", "--folds", "2", "--stains", "2", "--pixel_crop", "64"]
CLASSIFIED = {f"{kind}_{name}" for kind in ("knn", "linear") for name in ("accuracy", "balanced_accuracy", "macro_f1")}


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty phantom tiles with labels, patients and masks, and the first once more, turned, as another patient's."""
    folder = tmp_path_factory.mktemp("probed") / "tissue"
    folder.mkdir()
    write_folder(PhantomTissue(4, size=64, count=40), folder)
    table = folder / "tiles.csv"
    header, first, *others = table.read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    with Image.open(folder / row["path"]) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(folder / "images" / "turned.png")
    row |= {"path": "images/turned.png", "patient": "another", "mask": ""}
    copy = ",".join(row[name] for name in header.split(","))
    table.write_text("\n".join([header, first, *others, copy]) + "\n")
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder file as a run exports it."""
    folder = tmp_path_factory.mktemp("runs") / "first-run" / "export"
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = encoders.build(encoders.architecture(NETWORK, "own"))
    card = {"kind": "encoder", "library": "timm", "architecture": NETWORK, "arguments": {}, "keys": "timm"}
    card |= {"tile_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "mpp": 0.5}
    write_card(folder / "encoder.safetensors", network.state_dict(), card)
    return folder / "encoder.safetensors"


@pytest.fixture(scope="module")
def compared(tissue: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder, the metrics, and what the command printed."""
    out = tmp_path_factory.mktemp("compared") / "probes"
    script = str(ROOT / "pretrain" / "probe.py")
    command = [sys.executable, script, "--encoder", str(file), f"random:{NETWORK}", *FAST]
    command += ["--data.labelled", str(tissue), "--seeds", "0", "1", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert process.returncode == 0, process.stderr
    return out, json.loads((out / "metrics.json").read_text()), process.stdout


def test_every_encoder_gets_every_figure(compared: tuple[Path, dict[str, Any], str], file: Path) -> None:
    _, metrics, printed = compared
    assert [result["encoder"] for result in metrics["results"]] == ["first-run", f"random:{NETWORK}"]
    for result in metrics["results"]:
        figures = result["figures"]
        assert figures.keys() >= CLASSIFIED | {"restained_accuracy", "stain_cosine", "stain_ratio", "nuclei_iou"}
        for name in (*CLASSIFIED, "nuclei_iou"):
            values = figures[name]["values"]
            assert len(values) == 4  # two folds, two seeds
            assert figures[name]["mean"] == pytest.approx(np.mean(values))
            assert figures[name]["sd"] == pytest.approx(np.std(values, ddof=1))
            assert all(0 <= value <= 1 for value in values)
        assert f"| {result['encoder']} | tissue |" in printed
        split = result["split"]["classification"]
        assert sum(split["test_tiles"]) == 2 * 41
        assert split["disjoint_by"] == "patient"
        assert split["near_duplicates"]["pairs"] >= 1
    assert metrics["results"][0]["figures"]["linear_accuracy"]["mean"] > 0.5  # of five classes
    about = metrics["encoders"]["first-run"]
    assert about["card"]["mpp"] == 0.5
    assert len(about["weights_sha256"]) == 64
    assert metrics["encoders"][f"random:{NETWORK}"]["weights"] == "random, seed 0, norm own"
    assert metrics["command"].startswith("python pretrain/probe.py --encoder")
    assert metrics["sets"]["tissue"]["mpp"] == [0.5]
    assert "2 folds disjoint by patient, seeds 0, 1" in printed
    assert "near-duplicate in another fold" in printed


def test_table_and_page_are_written(compared: tuple[Path, dict[str, Any], str]) -> None:
    out, _, _ = compared
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0].startswith("| encoder | set | kNN accuracy |")
    assert lines[2].startswith("| first-run | tissue | 0.")
    page = (out / "report.html").read_text()
    assert "first-run" in page
    assert "data:image/png;base64" in page


def test_features_are_made_once(
    compared: tuple[Path, dict[str, Any], str], tissue: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, metrics, _ = compared
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "features").iterdir()}
    assert len(kept) == 2

    def forbidden(*_: object) -> None:
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr("pretrain.candidates.Candidate.__call__", forbidden)
    again = ["--encoder", str(file), "--data.labelled", str(tissue), "--seeds", "0", "1", "--out", str(out), *FAST]
    main([*again, "--pixels", "false"])
    found = json.loads((out / "metrics.json").read_text())["results"][0]
    assert found["left_out"] == {"nuclei_iou": "not asked for"}
    for name, figure in found["figures"].items():
        assert figure == metrics["results"][0]["figures"][name]
    assert {path.name: path.stat().st_mtime_ns for path in (out / "features").iterdir()} == kept
    with pytest.raises(AssertionError, match="ran again"):
        main([*again, "--tile_size", "32"])


def test_groups_join_labels(tissue: Path) -> None:
    kinds = ["ductal_carcinoma", "lobular_carcinoma", "adenosis"]
    read = read_groups(["malignant=DC,LC", "benign=A"])
    assert resolved(read, kinds) == {"malignant": kinds[:2], "benign": kinds[2:]}
    assert resolved(read, ["A", *kinds]) == {"malignant": kinds[:2], "benign": ["A"]}
    with pytest.raises(InputError, match="names the label DC, which no tile has; the labels are A, LC: correct it"):
        resolved(read, ["LC", "A"])
    with pytest.raises(InputError, match="puts the label adenosis into two classes"):
        resolved(read_groups(["benign=A", "other=adenosis"]), kinds)
    (plain,) = open_problems([str(tissue)], "label", {}, None, 1000, 0)
    assert plain.labels is not None
    names = sorted(set(plain.labels))
    groups = read_groups([f"one={names[0]}", "rest=" + ",".join(names[1:])])
    (joined,) = open_problems([str(tissue)], "label", groups, None, 1000, 0)
    assert joined.labels == ["one" if label == names[0] else "rest" for label in plain.labels]
    with pytest.raises(InputError, match=rf"has the labels .*{names[1]}.*which no --data.group names"):
        open_problems([str(tissue)], "label", read_groups([f"one={names[0]}"]), None, 1000, 0)
    with pytest.raises(InputError, match="names the label x, which no tile has; the labels are"):
        open_problems([str(tissue)], "label", read_groups(["one=x", "two=y"]), None, 1000, 0)
    for wrong in (["malignant"], ["=a"], ["one="], ["one=a", "one=b"]):
        with pytest.raises(InputError, match="is no group"):
            read_groups(wrong)
    with pytest.raises(InputError, match="puts the label a into two classes"):
        read_groups(["one=a", "two=a"])


def test_where_a_tile_comes_from_can_be_told_apart(tile_folder: Path, tissue: Path) -> None:
    (problem,) = open_problems([str(tissue), str(tile_folder)], "source", {}, None, 1000, 0)
    assert problem.labels is not None
    assert {name: problem.labels.count(name) for name in set(problem.labels)} == {"tissue": 41, tile_folder.name: 10}
    assert len({patient[0] for patient in problem.patients if isinstance(patient, tuple)}) == 2
    with pytest.raises(InputError, match="expected two sets or more"):
        open_problems([str(tissue)], "source", {}, None, 1000, 0)


def test_flaws_of_a_set_are_told(tissue: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lc25000_small"
    folder.symlink_to(tissue)
    (named,) = open_problems([f"lc25000:{tissue}"], "label", {}, None, 1000, 0)
    (guessed,) = open_problems([str(folder)], "label", {}, None, 1000, 0)
    assert "any random split has copies" in named.notes[0]
    assert guessed.notes[0].startswith("If lc25000_small is a copy of LC25000")
    (some,) = open_problems([str(tissue)], "label", {}, None, 20, 0)
    assert (some.notes, len(some.positions)) == ([], 20)


def test_mistakes_are_one_sentence(tissue: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        with pytest.raises(InputError) as caught:
            main([*arguments, "--out", str(tmp_path / "out")])
        return str(caught.value)

    data = ["--data.labelled", str(tissue)]
    encoder = ["--encoder", f"random:{NETWORK}"]
    assert "--encoder is empty" in refused(*data)
    assert "--data.labelled is empty" in refused(*encoder)
    assert "--seeds names one twice" in refused(*encoder, *data, "--seeds", "1", "1")
    assert "timm has no model named 'resnet19'" in refused("--encoder", "random:resnet19", *data)
    assert "add --download" in refused("--encoder", f"timm:{NETWORK}", *data)
    assert "but 40 folds without a common patient need 40" in refused(*encoder, *data, *FAST, "--folds", "40")
    assert "--stain_targets has 41 tiles, expected 70" in refused(
        *encoder, *data, *FAST, "--stain_targets", str(tissue), "--stains", "70"
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(bare / "a.png")
    assert "without a label and no instance maps" in refused(*encoder, "--data.labelled", str(bare))
    assert not (tmp_path / "out" / "metrics.json").exists()
