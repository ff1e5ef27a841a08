"""Kill trainings at random instants, resume them until they are done, and compare each with one that nobody disturbed.

    python benchmarks/soak.py --runs 50

The tiny preset is trained for 12 steps on 40 phantom tiles, with a checkpoint every second step.
Every run is killed with SIGKILL one to four times, half of the times in the middle of saving, otherwise anywhere
between its start and its end; sometimes with its loader workers, sometimes alone. Unknown flags go to
translate/train.py. Ends with code 1 unless all runs end with the weights, exports and log of the undisturbed one, bit
for bit, and leave no file that it does not leave.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from histo.commands.doctor import cpu_model
from histo.phantom import PhantomTissue
from histo.randomness import draws
from histo.running import checkpoints
from histo.running.tracking import read_log
from histo.tiles.tables import write_folder

SCRIPT = Path(__file__).parents[1] / "translate" / "train.py"
SHORT = ["--train.images", "96", "--train.save_every", "16", "--train.log_every", "16", "--train.panel_every", "48"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="trainings to kill and resume (default: 50)")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at a time, one thread each (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instants (default: 0)")
    options, training = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        tissue = PhantomTissue(options.seed, count=40)
        write_folder((tissue[index] for index in range(len(tissue))), folder / "tissue")
        named = ["--data.tissue", str(folder / "tissue")]
        return soak(folder, options.runs, options.parallel, options.seed, [*named, *SHORT, *training])


def soak(folder: Path, runs: int, parallel: int, seed: int, training: list[str]) -> int:
    """Run the reference, then the others; print the table; returns the exit code."""
    shared_before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    begun = time.monotonic()
    reference = Run(folder / "reference", training)
    assert reference.live(None, None) == 0, reference.errors
    duration = time.monotonic() - begun
    counts: Counter[str] = Counter()
    problems: list[str] = []

    def disturb(number: int) -> tuple[Counter[str], list[str]]:
        run = Run(folder / f"{number:03d}", training)
        return run.disturbed(draws(seed, "soak", number), duration), run.differences(reference)

    with ThreadPoolExecutor(parallel) as pool:
        for each, found in tqdm(pool.map(disturb, range(runs)), total=runs, unit="run"):
            counts += each
            problems += found
    left = [name for name in set(os.listdir("/dev/shm")) - shared_before if name.startswith("torch_")]
    problems += [f"left in shared memory: {name}" for name in left]
    print(f"machine: {cpu_model()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"training: {' '.join(training)}; undisturbed {duration:.1f} s")
    print("| runs | kills | while saving | before the first checkpoint | differing or leaving files |")
    print("|---|---|---|---|---|")
    print(f"| {runs} | {counts['kills']} | {counts['saving']} | {counts['early']} | {len(problems)} |")
    print("\n".join(problems))
    return int(bool(problems))


class Run:
    """One run folder and the lives of the processes that work in it."""

    def __init__(self, path: Path, training: list[str]) -> None:
        self.path, self.errors = path, ""
        self.scratch = path.with_name(f"{path.name}-tmp")  # what a process leaves in the temporary folder shows here
        self.scratch.mkdir()
        self.command = [sys.executable, str(SCRIPT), *training, "--run.dir", str(path)]

    def disturbed(self, generator: np.random.Generator, duration: float) -> Counter[str]:
        """Live and be killed up to four times, then live to the end."""
        counts: Counter[str] = Counter()
        for _ in range(int(generator.integers(1, 5))):
            saving = generator.random() < 0.5
            instant = float(generator.uniform(0, 0.2 if saving else duration))
            if self.live(instant, generator.random() < 0.5, saving) == 0:
                break
            counts["kills"] += 1
            folder = self.path / "checkpoints"
            counts["saving"] += any(folder.glob(f"{checkpoints.ASIDE}*"))
            counts["early"] += not checkpoints.complete(folder)
            for checkpoint in checkpoints.complete(folder):
                checkpoints.load(checkpoint)  # raises where one that counts as complete is not
        assert self.live(None, None) == 0, self.errors
        return counts

    def live(self, instant: float | None, with_workers: bool | None, saving: bool = False) -> int:
        """Start the training; kill it `instant` seconds later, or so long after it began to save; its exit code."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.scratch)}
        log = self.path.with_name(f"{self.path.name}.txt")
        with log.open("w") as output:
            process = subprocess.Popen(
                self.command, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        if instant is not None:
            while saving and process.poll() is None and not any(self.path.glob(f"checkpoints/{checkpoints.ASIDE}*")):
                time.sleep(0.001)
            try:
                process.wait(instant)
            except subprocess.TimeoutExpired:
                (os.killpg if with_workers else os.kill)(process.pid, signal.SIGKILL)
        code = process.wait()
        self.errors = log.read_text()
        return code

    def differences(self, reference: "Run") -> list[str]:
        """What this finished run has otherwise than the reference."""
        found = [f"another {what}" for what, mine in self._outcome().items() if mine != reference._outcome()[what]]
        found += [f"extra or missing {name}" for name in sorted(self._names() ^ reference._names())]
        names = {path.name for path in self.scratch.iterdir()} - {path.name for path in reference.scratch.iterdir()}
        found += [f"left {name} in the temporary folder" for name in sorted(names)]
        return [f"{self.path.name}: {what}" for what in found]

    def _outcome(self) -> dict[str, object]:
        newest = checkpoints.complete(self.path / "checkpoints")[-1]
        kinds = ("loss/", "final/", "content/", "diversity/", "score/")
        records = [{k: v for k, v in r.items() if k.startswith(kinds)} for r in self._log()]
        return {
            "last checkpoint": (newest.name, json.loads((newest / checkpoints.MANIFEST).read_text())["sha256"]),
            "export": {path.name: path.read_bytes() for path in (self.path / "export").glob("*.safetensors")},
            "log": [record for record in records if record],
        }

    def _log(self) -> list[dict[str, object]]:
        return read_log(self.path)

    def _names(self) -> set[str]:
        paths = (path.relative_to(self.path).as_posix() for path in self.path.rglob("*"))
        return {re.sub(r"events\.out.*", "events", name) for name in paths}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
