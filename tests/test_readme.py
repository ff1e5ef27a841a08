"""Every command and every line of Python in the README runs, at toy size."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slide_specimens import tissue_on_glass, write_slide

from histo.encoders import architecture, build, open_encoder, write_card, write_hub
from histo.phantom import PhantomTissue
from histo.phantom.slides import PhantomSlides, write_slides
from histo.tiles import open_tiles
from histo.tiles.packing import pack
from histo.tiles.tables import write_folder

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
TOY_NUCLEI = ["--train.images", "8", "--train.batch_size", "4", "--instances.flips", "false", "--data.workers", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command(
    command: str,
    toy_arguments: list[str],
    tile_folder: Path,
    other_folder: Path,
    toy_run: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Programs come from this environment; a training gets the toy's settings after its own."""
    if command == "make demo" and os.environ.get("CI"):
        pytest.skip("the demo is a CI step of its own")
    shards = tmp_path / "shards"
    if "--check path/to/shards" in command:
        pack(tile_folder, shards)
    if any(part in command for part in ("translate/score.py", "translate/generate.py", "--run.init", "--flows.model")):
        shutil.copytree(toy_run, tmp_path / "first")
    encoder = toy_run / "export" / "encoder.safetensors"
    published = tmp_path / "tenpercent_resnet18.ckpt"
    if "encoder convert" in command or "encoder compare" in command:
        shutil.copytree(toy_run, tmp_path / "first")
        tensors = build(architecture("resnet18", "own")).state_dict()
        for layer, shape in (("fc.1", (512, 512)), ("fc.3", (128, 512))):
            tensors |= {f"{layer}.weight": torch.ones(shape), f"{layer}.bias": torch.ones(shape[0])}
        torch.save({"state_dict": {f"model.resnet.{key}": value for key, value in tensors.items()}}, published)
    if "encoder compare" in command:
        for suffix in (".safetensors", ".json"):
            shutil.copy(encoder.with_suffix(suffix), tmp_path / f"ciga{suffix}")
    if "pretrain/probe.py" in command or "--encoder.source runs/encoder" in command:
        shutil.copytree(toy_run / "export", tmp_path / "encoder" / "export")
    if "--data.extra runs/labelled" in command:
        shutil.copytree(tile_folder, tmp_path / "labelled")
    if "runs/slides/slides.csv" in command:
        write_slides(PhantomSlides(0, size=512, count=10, tumour=0.12), tmp_path / "slides")
    if "nucleate compare" in command or "downstream/predict.py" in command:
        runs = request.getfixturevalue("nuclei_runs")
        shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    if "downstream/score.py" in command:
        maps = tmp_path / "predicted" / "labels" / "images"  # the true ones, as predict.py names them
        maps.mkdir(parents=True)
        (tmp_path / "predicted" / "predict.json").write_text(json.dumps({"finished": True, "kind": "instances"}))
        for entry in open_tiles(tile_folder).entries:
            if entry.split == "test":
                shutil.copy(tile_folder / "labels" / f"{entry.path.stem}.png", maps)
    if "path/to/slides" in command:
        (tmp_path / "slides").mkdir()
        write_slide(tmp_path / "slides" / "phantom.tif", tissue_on_glass())
    places = {
        "path/to/slides": tmp_path / "slides",
        "path/to/tissue": tmp_path / "tissue",
        "path/to/tiles": tile_folder,
        "path/to/others": other_folder,
        "path/to/shards": shards,
        "path/to/encoder.safetensors": encoder,
        "path/to/tenpercent_resnet18.ckpt": published,
    }
    for name, path in {**places, "runs": tmp_path}.items():
        command = command.replace(name, str(path))
    words = shlex.split(command)
    if words[0] == "make":
        words = ["make", "--dry-run", *words[1:]]
    elif words[0] == "pip":
        words = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-build-isolation", *words[2:]]
    elif words[0] == "tensorboard":
        words = [str(Path(sys.executable).parent / "tensorboard"), "--inspect", "--logdir", str(toy_run)]
    else:
        words[0] = sys.executable if words[0] == "python" else str(Path(sys.executable).parent / words[0])
    if "translate/train.py" in words:
        own = [key for key in words if key.startswith("--data") or key.startswith("--run")]
        pairs = list(zip(toy_arguments[::2], toy_arguments[1::2], strict=True))
        if "cut.yaml" in command:
            shared = [pair for pair in pairs if pair[0].startswith(("--data", "--train"))]
            pairs = [*shared, ("--generator.width", "8"), ("--discriminator.width", "8")]
        words += [part for key, value in pairs if key not in own for part in (key, value)]
        words += ["--train.images", "8"] + ([] if "--run.dir" in own else ["--run.dir", str(tmp_path / "run")])
    if "pretrain/train.py" in words:
        words += ["--data.tile_size", "48", "--data.view_size", "32", "--encoder.architecture", "test_resnet"]
        words += ["--train.images", "8", "--train.batch_size", "4"]
    if "downstream/train.py" in words:
        words += ["--crop.size", "64", "--mil.epochs", "2", *TOY_NUCLEI]
    if "phantom" in words:
        words += ["--count", "2", "--size", "256"]
    if "pretrain/probe.py" in words:
        words += ["--tile_size", "32", "--folds", "2", "--stains", "2"]
    if "cellpose" in words:  # one tile, and weights made here
        write_folder(PhantomTissue(7, size=64, count=1), tmp_path / "tile")
        words[words.index("--data.tissue") + 1] = str(tmp_path / "tile")
        words += ["--cellpose.model", str(request.getfixturevalue("cellpose_weights"))]
    if "translate/score.py" in words:
        words += ["--images", "8", "--force"]
    if "translate/generate.py" in words:
        words += ["--count", "2"]
    process = subprocess.run(
        words,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    if "downstream/train.py" in words:
        assert "Done: " in process.stdout
    if "downstream/score.py" in words:
        scores = json.loads((tmp_path / "predicted" / "scores.json").read_text())["scores"]
        assert scores["aji"] == scores["pq"] == 1
        assert "dice" not in scores
    if {"translate/train.py", "pretrain/train.py"} & set(words):
        assert "Done: 8 images" in process.stdout
    if "translate/score.py" in words:
        assert (tmp_path / "first" / "scores.json").is_file()
    if "translate/generate.py" in words:
        assert "2 of 2 made" in process.stdout
    if "translate/pseudomask.py" in words:
        assert "0 skipped" in process.stdout


@pytest.fixture(scope="session")
def nuclei_runs(tile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two toy runs of downstream/train.py: `nuclei` with all labels, and `four` with four of them."""
    runs = tmp_path_factory.mktemp("downstream-runs")
    for name, more in (("nuclei", []), ("four", ["--data.label_images", "4"])):
        command = [sys.executable, "downstream/train.py", "--data.tiles", str(tile_folder), "--crop.size", "64"]
        command += ["--encoder.architecture", "test_resnet", "--run.dir", str(runs / name), *TOY_NUCLEI, *more]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert process.returncode == 0, process.stderr
    return runs


@pytest.fixture(scope="session")
def resnet_run(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's run with the encoder file of a ResNet, as the README's run has; the toy's own encoder is none."""
    run = tmp_path_factory.mktemp("resnet-run")
    shutil.copytree(toy_run / "export", run / "export")
    wanted = architecture("resnet18", "group")
    path = run / "export" / "encoder.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    card |= {"architecture": wanted.name, "arguments": wanted.arguments}
    write_card(path, build(wanted).state_dict(), card)
    return run


def test_python_lines(resnet_run: Path, nuclei_runs: Path, tile_folder: Path, tmp_path: Path) -> None:
    names: dict[str, object] = {}
    hub = tmp_path / "hub"
    opened = open_encoder(str(resnet_run))
    write_hub(hub, opened.encoder, opened.architecture, opened.card)
    for snippet in SNIPPETS:
        text = snippet.replace("runs/first", str(resnet_run)).replace("runs/hub", str(hub))
        text = text.replace("runs/nuclei", str(nuclei_runs / "nuclei"))
        for name, file in (("path/to/tile.png", "images/0.png"), ("path/to/mask.png", "labels/0.png")):
            text = text.replace(name, str(tile_folder / file))
        exec(compile(text, "README.md", "exec"), names)
    assert names["nuclei"].shape == (96, 96)  # type: ignore[attr-defined]
    assert names["tissue"].shape == (4, 1, 3, 96, 96)  # type: ignore[attr-defined]
    assert len(SNIPPETS) == 6
    assert len(COMMANDS) == 34
