"""`nucleate demo`: runs the training script on phantom tissue, with the command a user would type."""

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from histo.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT, CONFIG = Path("translate/train.py"), Path("configs/translate/demo.yaml")


def main(arguments: list[str]) -> int:
    """Run `nucleate demo [--dir DIR]`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate demo",
        description="Train a small translator on phantom tissue. A demo that was interrupted continues where it was.",
    )
    parser.add_argument("--dir", type=Path, default=Path("runs/demo"), help="where it is kept; default: %(default)s")
    return run_demo(parser.parse_args(arguments).dir, CHECKOUT)


def run_demo(folder: Path, checkout: Path) -> int:
    """Train into FOLDER/translator with the script and config of a checkout.

    Returns:
        The script's exit code, or 128 + the signal's number when a signal ended the demo before its report.

    Raises:
        InputError: the script or its config is not there, as in an installation without a checkout.
    """
    if missing := [str(path) for path in (SCRIPT, CONFIG) if not (checkout / path).is_file()]:
        raise InputError(
            f"{checkout} has no {' and no '.join(missing)}; the demo needs a clone of nucleate's repository, "
            "installed with `pip install -e .`."
        )
    run = folder / "translator"
    report = run / "report.html"
    if report.is_file():
        print(f"The demo is already finished: open {report}\nTo start afresh, delete {folder} or name another --dir.")
        return 0
    python, script, config = (_near(path) for path in (Path(sys.executable), checkout / SCRIPT, checkout / CONFIG))
    command = [python, script, "--config", config, "--run.dir", str(run)]
    print(f"$ {shlex.join(command)}", flush=True)
    code = _run(command)
    if not report.is_file():
        print(f"\nThe demo ended before its report (exit code {code}); the same command continues it.", file=sys.stderr)
        return code or 1
    print(f"\nThe report: {report}\nAll curves and panels: tensorboard --logdir {shlex.quote(str(folder))}")
    return code


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
