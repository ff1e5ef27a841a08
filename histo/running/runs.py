"""Run folders: where a training keeps its settings, log, panels, checkpoints and exports."""

import hashlib
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from histo.errors import InputError, writing
from histo.files import written_whole
from histo.running import checkpoints
from histo.running.checkpoints import Checkpoint
from histo.running.configs import read_config
from histo.running.locks import LOCK

# A socket's path ends at 103 bytes on the strictest system; multiprocessing adds /pymp-12345678/listener-12345678.
LONGEST_SCRATCH = 103 - 32


@dataclass
class RunSettings:
    """Where a run lives and how it starts."""

    dir: str | None = None
    """run folder; null makes a new one under runs/"""
    resume: str = "auto"
    """auto: continue the folder's newest checkpoint if it has one; never: start afresh in a new folder; or a checkpoint
    folder to continue from"""
    keep: int = 2
    """checkpoints kept, newest first; scored ones that may turn out best are kept besides"""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise InputError(f"run.keep is {self.keep}, expected 1 or more checkpoints.")


class RunFolder:
    """`config.yaml`, `log.jsonl`, `tensorboard/`, `panels/`, `checkpoints/`, `export/`, `best/`, `report.html`.

    `lock.json` is there while a process works in it (see `histo.running.locks`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.export, self.best = path / "export", path / "best"
        self.config = path / "config.yaml"

    @classmethod
    def choose(cls, settings: RunSettings, name: str) -> "RunFolder":
        """The folder a run will use: the one named, or a new one under runs/ with the time in its name."""
        if settings.dir is not None:
            return cls(Path(settings.dir))
        path = new = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        others = 1
        while path.exists():
            others += 1
            path = new.with_name(f"{new.name}-{others}")
        return cls(path)

    def state(self, resume: str) -> tuple[Checkpoint | None, list[str]]:
        """What a run continues from, None to start afresh, and a sentence on each newer checkpoint that is damaged.

        Args:
            resume: as in `RunSettings`.

        Raises:
            InputError: `never` on a folder that holds a run, a checkpoint that does not exist, or none that is sound.
        """
        if resume == "auto":
            return checkpoints.load_newest(self.checkpoints)
        found = checkpoints.complete(self.checkpoints)
        if resume == "never":
            if found or self.config.exists():
                raise InputError(
                    f"{self.path} already holds a run; use --run.resume auto to continue it, or another --run.dir."
                )
            return None, []
        path = Path(resume)
        if not path.is_dir():
            names = ", ".join(p.name for p in found) or "none"
            raise InputError(
                f"--run.resume is {resume!r}, expected auto, never or a checkpoint folder; {self.path} has: {names}."
            )
        return checkpoints.load(path), []

    def create(self, config: str) -> None:
        """Make the folder and write its config; what a killed process left half-written is swept away.

        Raises:
            InputError: the folder cannot be written.
        """
        self.keep_config(config)
        with writing(self.path, "name another --run.dir"):
            self.checkpoints.mkdir(exist_ok=True)
            self.export.mkdir(exist_ok=True)
        checkpoints.sweep(self.checkpoints)

    def keep_config(self, config: str) -> None:
        """Make the folder and write its config, for what keeps no state of its own.

        Raises:
            InputError: the folder cannot be written.
        """
        with writing(self.path, "name another --run.dir"):
            self.path.mkdir(parents=True, exist_ok=True)
            with written_whole(self.config) as file:
                file.write(config.encode("utf-8"))

    def scratch(self, rank: int) -> Path:
        """A temporary folder, emptied, for the sockets of one process's loader workers.

        It is the same in every life of the run: what killed workers leave in it, the next life clears away.

        Raises:
            InputError: it cannot be made.
        """
        name = hashlib.blake2b(str(self.path.resolve()).encode(), digest_size=4).hexdigest()
        folder = Path(f"nucleate-{name}-{rank}")
        with writing(folder, "set TMPDIR to a folder that can be written"):
            folder = tempfile.gettempdir() / folder  # raises FileNotFoundError where all candidates are full
            if len(os.fsencode(folder)) > LONGEST_SCRATCH:
                raise InputError(
                    f"The temporary folder {tempfile.gettempdir()} has too long a name for the sockets of loader "
                    "workers; set TMPDIR to a shorter one, such as /tmp."
                )
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
        return folder

    def refuse_other_settings(self, wanted: dict[str, Any], fixed: tuple[str, ...]) -> None:
        """Compare the settings named in `fixed` (a group or a key, "data.mpp") with those the folder was made with.

        Nothing is refused while nothing was made with them: a mistyped path may be corrected.

        Raises:
            InputError: naming the first setting that differs, with both values.
        """
        if not self.config.exists() or not self._has_begun():
            return
        try:
            past = _flat(dict(read_config(self.config)))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.config} is damaged; restore it, or name another --run.dir.") from error
        for name, value in _flat(wanted).items():
            matters = any(name == one or name.startswith(f"{one}.") for one in fixed)
            if matters and name in past and past[name] != value:
                raise InputError(
                    f"--{name} is {value!r}, but {self.path} was trained with {past[name]!r}: "
                    "put it back to continue, or name another --run.dir."
                )

    def _has_begun(self) -> bool:
        """Whether there is more than the settings: pseudo-masks, a log, checkpoints."""
        return any(path.is_file() and path.name not in (self.config.name, LOCK) for path in self.path.rglob("*"))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


class StopRequest:
    """Whether someone asked the process to stop: SIGTERM, Ctrl-C, or a launcher that is gone.

    Once it listens, the signal handler only notes the request; the training loop asks between steps, saves and leaves.
    While a run is set up there is nothing to save, and a signal ends it (see `run_script`). A launcher
    (accelerate, torchrun) that is killed hands its child to another parent, which shows as a changed parent id.
    """

    LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")

    def __init__(self) -> None:
        self.reason: str | None = None
        self.parent = os.getppid() if any(name in os.environ for name in self.LAUNCHED) else None

    def listen(self) -> None:
        """Catch SIGTERM and Ctrl-C from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait
        self.reason = signal.Signals(number).name

    def sentence(self, images: int, folder: Path) -> str:
        """What to tell people when a run has stopped."""
        return (
            f"Stopped by {self.reason or 'another process'} at {images} images, state saved; continue with "
            f"--run.dir {folder} --run.resume auto."
        )

    def __bool__(self) -> bool:
        if self.reason is None and self.parent is not None and os.getppid() != self.parent:
            self.reason = "the launcher is gone"
        return self.reason is not None
