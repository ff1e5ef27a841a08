"""Tiny assets made by code: a folder of phantom tiles as users have them, and the arguments of a toy training."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from cellpose_weights import cones, write_weights

from histo.phantom import PhantomTissue
from histo.tiles.tables import write_folder

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def precision_of_its_own() -> Iterator[None]:
    """Accelerate keeps the first precision of a Python process for all that follow, but for this."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # for what fixtures of the next module train


@pytest.fixture(scope="session")
def tile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten phantom tiles of 96 px in the shape of a real set: images/, labels/, tiles.csv with splits and µm/px."""
    folder = tmp_path_factory.mktemp("phantom-set")
    write_folder(PhantomTissue(7, size=96, count=10), folder)
    return folder


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six more phantom tiles, of other patients, to translate those of `tile_folder` into."""
    folder = tmp_path_factory.mktemp("other-phantom-set")
    write_folder(PhantomTissue(8, size=96, count=6), folder)
    return folder


@pytest.fixture(scope="session")
def toy_arguments(tile_folder: Path) -> list[str]:
    """A training small enough for seconds: 40 steps of 4 tiles, networks of 0.5 M weights altogether."""
    settings = {
        "data.tissue": tile_folder,
        "data.tile_size": 64,
        "generator.channel_base": 512,
        "generator.channel_max": 16,
        "generator.style_width": 16,
        "generator.mapping_layers": 2,
        "generator.code_width": 32,
        "segmenter.encoder": "test_efficientnet_gn",
        "segmenter.pyramid_width": 32,
        "discriminator.channel_base": 512,
        "discriminator.channel_max": 16,
        "discriminator.mask_width": 8,
        "ada.kind": "adaptive",
        "ada.probability": 0.2,
        "ada.speed": 200,
        "train.batch_size": 4,
        "train.images": 160,
        "train.save_every": 32,
        "train.log_every": 16,
        "train.panel_every": 64,
    }
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


@pytest.fixture(scope="session")
def toy_run(toy_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one uninterrupted toy training."""
    run = tmp_path_factory.mktemp("reference") / "run"
    command = [sys.executable, str(ROOT / "translate" / "train.py"), *toy_arguments, "--run.dir", str(run)]
    process = subprocess.run(
        [*command, "--data.workers", "0"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    assert "Done: 160 images" in process.stdout
    return run


@pytest.fixture(scope="session")
def cellpose_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of Cellpose-SAM that read darkness and its slope, for nuclei of 20 px brought to its 30."""
    path = tmp_path_factory.mktemp("cellpose") / "by_hand"
    write_weights(path, cones(128, 40, 10)[2] / 1.5)
    return path
