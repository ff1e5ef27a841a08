"""Starting the training scripts as users do, waiting for what they write, and comparing what they learned."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from histo.running import checkpoints

ROOT = Path(__file__).parents[1]
TRANSLATE, PRETRAIN, DOWNSTREAM = (
    str(ROOT / package / "train.py") for package in ("translate", "pretrain", "downstream")
)
ALONE = [sys.executable]
PAIR = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


def start(
    arguments: list[str], run: Path, launcher: list[str] = ALONE, script: str = TRANSLATE
) -> subprocess.Popen[str]:
    """Begin a training in its own process or processes."""
    command = [*launcher, script, *arguments, "--run.dir", str(run)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the path is there; a checkpoint being written may be whole before a slow machine looks again."""
    whole = path.with_name(path.name.removeprefix(checkpoints.ASIDE))
    deadline = time.monotonic() + 120
    while not (path.exists() or whole.exists()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def final_state(run: Path, images: int) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a run's last checkpoint, which is of so many images."""
    newest = checkpoints.complete(run / "checkpoints")[-1]
    assert int(newest.name) == images
    return checkpoints.load(newest).tensors


def assert_same_weights(run: Path, reference: Path, images: int) -> None:
    """Both runs ended at so many images with the same tensors, bit for bit."""
    mine, other = final_state(run, images), final_state(reference, images)
    assert mine.keys() == other.keys()
    for group, tensors in other.items():
        assert mine[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(mine[group][name], tensor), f"{group} {name}"
