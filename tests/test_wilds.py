"""The ten-seed protocol on a toy set of the published layout: what is learned from, and what is reported."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo.errors import InputError
from histo.phantom import PhantomTissue
from histo.running.tracking import read_log
from pretrain.wilds import ROOT, SPLITS, main

TOY = """
data: {tile_size: 64, view_size: 32, workers: 0}
encoder: {architecture: test_resnet}
train: {images: 16, batch_size: 4, optimizer: adamw, precision: fp32, log_every: 8, panel_every: 16, save_every: 16}
probe: {every: 0}
"""
NUMBERS = {"train": (0, 0), "id_val": (3, 1), "val": (1, 0), "test": (2, 0)}  # centre, official split


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of four hospitals: tumour is tissue, and what is not is the same with red and blue exchanged."""
    root = tmp_path_factory.mktemp("wilds") / "camelyon17_v1.0"
    tiles, rows = PhantomTissue(3, size=96, count=32), []
    for k in range(32):
        centre, official = list(NUMBERS.values())[k % 4]
        tumour, name = int(k // 4 % 2), f"patient_{centre:03d}_node_{k}"
        folder = root / "patches" / name
        folder.mkdir(parents=True)
        image = tiles[k].image.transpose(1, 2, 0)[:, :, :: 1 if tumour else -1]
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"patch_{name}_x_1_y_2.png")
        rows.append([k, f"{centre:03d}", k, 1, 2, tumour, k, centre, official])
    with (root / "metadata.csv").open("w", newline="") as file:
        header = ["", "patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split"]
        csv.writer(file).writerows([header, *rows])
    return root


@pytest.mark.slow
def test_seeds_are_pretrained_probed_and_summed_up(
    published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    recipe, out = tmp_path / "toy.yaml", tmp_path / "wilds10"
    recipe.write_text(TOY)
    preset = str(ROOT / "configs" / "pretrain" / "wilds10.yaml")
    argv = ["--tissue", f"camelyon17_wilds:{published}", "--recipe", f"[{preset}, {recipe}]", "--out", str(out)]
    main([*argv, "--seeds", "[0]"])
    first = (out / "seed_0" / "export" / "encoder.safetensors").stat().st_mtime_ns
    main([*argv, "--seeds", "[0, 1]"])
    assert (out / "seed_0" / "export" / "encoder.safetensors").stat().st_mtime_ns == first, "it was done"
    found = json.loads((out / "wilds.json").read_text())
    assert found["patches"] == {split: 8 for split in SPLITS}
    accuracies = {split: [found["seeds"][seed][split] for seed in ("0", "1")] for split in SPLITS}
    for split in SPLITS:
        assert found["mean"][split] == pytest.approx(np.mean(accuracies[split]))
        assert found["sd"][split] == pytest.approx(np.std(accuracies[split], ddof=1))
    assert found["mean"]["train"] == 1, "red and blue are told apart by any encoder"
    assert found["mean"]["test"] >= 0.75
    assert found["seeds"]["0"]["encoder_sha256"] != found["seeds"]["1"]["encoder_sha256"]
    assert any("loss/stain_invariant/contrast" in record for record in read_log(out / "seed_1"))
    assert "8 tiles" in capfd.readouterr().out, "only the training split is learned from"


def test_mistakes_get_a_sentence(tile_folder: Path, tmp_path: Path) -> None:
    for argv, sentence in (
        ([], "--tissue is missing"),
        (["--tissue", str(tile_folder)], "--tissue has no tile of split id_val"),
        (["--tissue", "x", "--seeds", "[1, 1]"], r"--seeds is \[1, 1\]"),
    ):
        with pytest.raises(InputError, match=sentence):
            main([*argv, "--out", str(tmp_path)])
