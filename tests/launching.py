"""Starting the training script as users do, and waiting for what it writes."""

import os
import subprocess
import sys
import time
from pathlib import Path

from histo.running import checkpoints

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "translate" / "train.py")
ALONE = [sys.executable]
PAIR = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


def start(arguments: list[str], run: Path, launcher: list[str] = ALONE) -> subprocess.Popen[str]:
    """Begin a training in its own process or processes."""
    command = [*launcher, SCRIPT, *arguments, "--run.dir", str(run)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the path is there; a checkpoint being written may be whole before a slow machine looks again."""
    whole = path.with_name(path.name.removeprefix(checkpoints.ASIDE))
    deadline = time.monotonic() + 120
    while not (path.exists() or whole.exists()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
