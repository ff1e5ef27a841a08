"""`nucleate demo`: the whole way on phantom tissue, with the commands a user would type."""

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from histo.commands.demo_page import TASKS, write_page
from histo.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[2]


class Stage(NamedTuple):
    """One command of the demo: what it runs, where under the demo's folder, and what it takes from the stages before.

    Attributes:
        folder: that it writes, under the demo's; done: the file in it that is written last.
        script: of the checkout; None: `nucleate` itself, which needs no config.
        config: preset of the script.
        takes: flags, each with what stands under the demo's folder.
        options: further arguments.
    """

    folder: str
    script: Path | None
    config: Path | None = None
    takes: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    done: str = "report.html"

    def shown(self, folder: Path) -> list[str]:
        """The command as one would type it, without the interpreter and the checkout."""
        taken = [text for flag, other in self.takes for text in (flag, str(folder / other))]
        if self.script is None:
            return ["nucleate", *self.options, "--out", str(folder / self.folder)]
        config = [] if self.config is None else ["--config", str(self.config)]
        return [str(self.script), *config, *taken, *self.options, "--run.dir", str(folder / self.folder)]


def _downstream(task: str) -> tuple[Stage, Stage]:
    """A task from the pretrained encoder, and from one of random weights."""
    script, config = Path("downstream/train.py"), Path(f"configs/downstream/demo_{task}.yaml")
    tiles = ("--data.tiles", "tiles")
    alike = ("--encoder.source", "none", "--encoder.architecture", "resnet18", "--encoder.norm", "group")
    return (
        Stage(f"{task}/pretrained", script, config, (tiles, ("--encoder.source", "encoder"))),
        Stage(f"{task}/random", script, config, (tiles,), alike),
    )


TISSUE = (("--data.tissue", "tiles"),)
STAGES = (
    Stage("tiles", None, options=("phantom", "tiles", "--count", "320"), done="tiles.csv"),
    Stage("translator", Path("translate/train.py"), Path("configs/translate/demo.yaml"), TISSUE),
    Stage(
        "encoder",
        Path("pretrain/train.py"),
        Path("configs/pretrain/demo.yaml"),
        (*TISSUE, ("--translator", "translator")),
    ),
    *(stage for task in TASKS for stage in _downstream(task)),
)


def main(arguments: list[str]) -> int:
    """Run `nucleate demo [--dir DIR]`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate demo",
        description="The whole way on phantom tissue: draw it, train a small translator, an encoder from it, and tasks "
        "from that. A demo that was interrupted continues where it was.",
    )
    parser.add_argument("--dir", type=Path, default=Path("runs/demo"), help="where it is kept; default: %(default)s")
    return run_demo(parser.parse_args(arguments).dir, CHECKOUT)


def run_demo(folder: Path, checkout: Path) -> int:
    """Run every stage with the scripts and configs of a checkout, and write FOLDER/report.html.

    Returns:
        The code of the first command that fails, or 128 + the signal's number when a signal ended the demo before its
        last report.

    Raises:
        InputError: a script or its config is not there, as in an installation without a checkout.
    """
    parts = list(dict.fromkeys(path for stage in STAGES for path in (stage.script, stage.config) if path is not None))
    if missing := [str(path) for path in parts if not (checkout / path).is_file()]:
        raise InputError(
            f"{checkout} lacks {len(missing)} of the demo's {len(parts)} scripts and configs, first {missing[0]}; the "
            "demo needs a clone of nucleate's repository, installed with `pip install -e .`."
        )
    page = folder / "report.html"
    if page.is_file():
        print(f"The demo is already finished: open\n{page}\nTo start afresh, delete {folder} or name another --dir.")
        return 0
    for stage in STAGES:
        result = folder / stage.folder / stage.done
        if result.is_file():
            continue
        first, *rest = stage.shown(folder)
        if stage.script is None:
            command = [sys.executable, "-m", "histo.commands.line", *rest]
            print(f"$ {shlex.join([first, *rest])}", flush=True)
        else:
            config = {str(path): _near(checkout / path) for path in (stage.script, stage.config) if path is not None}
            command = [_near(Path(sys.executable)), *(config.get(text, text) for text in (first, *rest))]
            print(f"$ {shlex.join(command)}", flush=True)
        code = _run(command)
        if code or not result.is_file():
            print(f"\nThe demo ended at {result} (exit code {code}); the same command continues it.", file=sys.stderr)
            return code or 1
    write_page(folder, [shlex.join(stage.shown(folder)) for stage in STAGES])
    print(f"\nThe report: {page}\nAll curves and panels: tensorboard --logdir {shlex.quote(str(folder))}")
    return 0


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
