"""Two processes learn a task as one does."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from histo.phantom import PhantomTissue
from histo.tiles.tables import write_folder
from tests.launching import ALONE, DOWNSTREAM, ENVIRONMENT, PAIR


def learned(launcher: list[str], run: Path, *arguments: str) -> dict[str, Tensor]:
    """The tensors of a finished run, float64."""
    process = subprocess.run(
        [*launcher, DOWNSTREAM, *arguments, "--run.dir", str(run)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=ENVIRONMENT,
    )
    assert process.returncode == 0, process.stderr
    tensors = load_file(run / "seed0" / "export" / "instances.safetensors")
    return {name: tensor.double() for name, tensor in tensors.items() if tensor.is_floating_point()}


@pytest.mark.slow
def test_two_processes_match_one(tmp_path: Path) -> None:
    """One step of AdamW: the same statistics of batch norms, and the same direction of all weights but a few.

    Its first step is the sign of each gradient, so that a gradient near 0 may go the other way; measured 0.07 of the
    movement, whereas the gradients of one process's crops alone would turn a good part of all signs.
    """
    tiles = enumerate(PhantomTissue(0, size=96, count=12))
    parts = (replace(tile, split="train" if k < 8 else "test", patient=f"p{k}") for k, tile in tiles)
    write_folder(parts, tmp_path / "tiles")
    arguments = ["--data.tiles", str(tmp_path / "tiles"), "--crop.size", "64", "--encoder.architecture", "test_resnet"]
    arguments += ["--train.images", "4", "--train.batch_size", "4", "--train.precision", "fp32", "--data.workers", "0"]
    arguments += ["--instances.flips", "false", "--train.average", "0", "--train.warmup", "0"]
    one, two = (learned(launcher, tmp_path / name, *arguments) for launcher, name in ((ALONE, "one"), (PAIR, "two")))
    still = learned(ALONE, tmp_path / "still", *arguments, "--train.learning_rate", "1e-12")
    statistics = [name for name in one if "running" in name]
    assert statistics
    for name in statistics:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)
    moved, apart = (
        torch.cat([(one[name] - other[name]).flatten() for name in one if name not in statistics])
        for other in (still, two)
    )
    assert moved.norm() > 0.1
    assert apart.norm() < 0.2 * moved.norm()
