"""`nucleate demo`: runs the training scripts on phantom tissue in turn, with the commands a user would type."""

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from histo.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[2]


class Stage(NamedTuple):
    """One script of the demo: what it runs, where under the demo's folder, and what it takes from the stage before."""

    script: Path
    config: Path
    folder: str
    takes: tuple[tuple[str, str], ...] = ()


STAGES = (
    Stage(Path("translate/train.py"), Path("configs/translate/demo.yaml"), "translator"),
    Stage(Path("pretrain/train.py"), Path("configs/pretrain/demo.yaml"), "encoder", (("--translator", "translator"),)),
)


def main(arguments: list[str]) -> int:
    """Run `nucleate demo [--dir DIR]`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate demo",
        description="Train a small translator on phantom tissue, and an encoder from it. A demo that was interrupted "
        "continues where it was.",
    )
    parser.add_argument("--dir", type=Path, default=Path("runs/demo"), help="where it is kept; default: %(default)s")
    return run_demo(parser.parse_args(arguments).dir, CHECKOUT)


def run_demo(folder: Path, checkout: Path) -> int:
    """Train into FOLDER/translator and FOLDER/encoder with the scripts and configs of a checkout.

    Returns:
        The code of the first script that fails, or 128 + the signal's number when a signal ended the demo before its
        last report.

    Raises:
        InputError: a script or its config is not there, as in an installation without a checkout.
    """
    parts = [path for stage in STAGES for path in (stage.script, stage.config)]
    if missing := [str(path) for path in parts if not (checkout / path).is_file()]:
        raise InputError(
            f"{checkout} has no {' and no '.join(missing)}; the demo needs a clone of nucleate's repository, "
            "installed with `pip install -e .`."
        )
    reports = [folder / stage.folder / "report.html" for stage in STAGES]
    if all(report.is_file() for report in reports):
        shown = "\n".join(map(str, reports))
        print(f"The demo is already finished: open\n{shown}\nTo start afresh, delete {folder} or name another --dir.")
        return 0
    for stage, report in zip(STAGES, reports, strict=True):
        if report.is_file():
            continue
        python, script, config = (_near(path) for path in (Path(sys.executable), *_found(stage, checkout)))
        taken = [text for flag, other in stage.takes for text in (flag, str(folder / other))]
        command = [python, script, "--config", config, *taken, "--run.dir", str(folder / stage.folder)]
        print(f"$ {shlex.join(command)}", flush=True)
        code = _run(command)
        if code or not report.is_file():
            print(
                f"\nThe demo ended at {report} (exit code {code}); the same command continues it.",
                file=sys.stderr,
            )
            return code or 1
    shown = "\n".join(f"  {report}" for report in reports)
    print(f"\nThe reports:\n{shown}\nAll curves and panels: tensorboard --logdir {shlex.quote(str(folder))}")
    return 0


def _found(stage: Stage, checkout: Path) -> tuple[Path, Path]:
    return checkout / stage.script, checkout / stage.config


def _near(path: Path) -> str:
    """The path as one would type it from here: relative where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _run(command: list[str]) -> int:
    """Run a command to its end, passing on requests to stop, so that it can save."""
    asked: list[int] = []
    process = subprocess.Popen(command)

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        # A terminal sends Ctrl-C to the script as well, which takes a second one for impatience; a SIGTERM it does not.
        process.send_signal(signal.SIGTERM)

    former = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    ended_by = asked[-1] if asked else -code
    return 128 + ended_by if ended_by > 0 else code
