"""A run folder in use: what several processes agree on before they train in it, and what they leave behind.

The first process writes, all read.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from histo.errors import InputError
from histo.running import checkpoints
from histo.running.checkpoints import Checkpoint
from histo.running.loading import sound_workers
from histo.running.locks import FolderLock
from histo.running.processes import part, together
from histo.running.runs import RunFolder, RunSettings
from histo.running.settings import flag_values


def chosen_folder(settings: RunSettings, name: str) -> RunFolder:
    """The run folder that all processes use; a new one has the time in its name, so one process decides for all."""
    chosen = [str(RunFolder.choose(settings, name).path)]
    return RunFolder(Path(broadcast_object_list(chosen)[0]))


def default_config(argv: list[str], preset: Path) -> Path:
    """The config of the run folder when an existing one is named, else the preset."""
    folders = flag_values(argv, "run.dir")
    config = Path(folders[-1]) / "config.yaml" if folders else preset
    return config if os.path.exists(config) else preset  # Path.exists raises where a folder is barred


@contextmanager
def occupied(run: RunFolder, accelerator: Accelerator) -> Iterator[Path]:
    """Hold the run folder's lock while training in it; gives a temporary folder for the loader's sockets.

    Whatever ends the training, its loader workers end with it.

    Raises:
        InputError: another process works in the folder, or a temporary folder cannot be made.
    """
    with together():
        lock = FolderLock(run.path) if accelerator.is_main_process else None
    if lock is not None and lock.stale:
        print(f"{lock.stale} left {run.path} without a word (killed?); taking over.", flush=True)
    scratch = None
    try:
        with together():
            scratch = run.scratch(accelerator.process_index)
        with sound_workers():
            yield scratch
        part()
    finally:
        for worker in multiprocessing.active_children():  # an error left it behind, and Python would wait for its end
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes it for a fault
            worker.kill()
        if scratch is not None:
            with suppress(OSError):  # after an error its workers may still be about to leave it
                scratch.rmdir()
        if lock is not None:
            lock.release()


def taken_up(
    run: RunFolder, settings: dict[str, Any], fixed: tuple[str, ...], resume: str, config: str, accelerator: Accelerator
) -> tuple[Checkpoint | None, list[str]]:
    """Make the folder, or find where its run stands: the checkpoint to continue, None to start afresh, and a sentence
    on each newer one that is damaged.

    Args:
        settings: all of them; those named in `fixed` must be what the folder was made with.
        resume: as of `RunSettings`.
        config: the settings as the folder keeps them.

    Raises:
        InputError: other settings, no such checkpoint, or a folder that cannot be written.
    """
    first = accelerator.is_main_process
    checkpoint: Checkpoint | None = None
    damaged: list[str] = []
    with together():
        if first:
            run.refuse_other_settings(settings, fixed)
            checkpoint, damaged = run.state(resume)
    # What a disk shows to one machine it may not show to another yet, so the others take the first one's word.
    (chosen,) = broadcast_object_list([str(checkpoint.path) if checkpoint else None])
    with together():
        if not first and chosen is not None:
            checkpoint = checkpoints.load(Path(chosen))
    with together():
        if first:
            run.create(config)
            if checkpoint is not None:
                checkpoints.forget_after(run.checkpoints, checkpoint.facts["images"])
    return checkpoint, damaged


def named_state(flag: str, path: Path) -> Checkpoint:
    """The checkpoint that a flag names, in a run folder the newest sound one.

    Raises:
        InputError: no folder, or no checkpoint in it yet.
    """
    if not path.is_dir():
        raise InputError(f"--{flag} {path} is no folder; expected a run folder, or one of its checkpoints.")
    if not RunFolder(path).checkpoints.is_dir():
        return checkpoints.load(path)
    state, _ = checkpoints.load_newest(RunFolder(path).checkpoints)
    if state is None:
        raise InputError(f"--{flag} {path} has no checkpoint yet; let it train until its first one.")
    return state


def non_finite(error: InputError, run: RunFolder, images: int, batch: int, learning_rate: float) -> str:
    """The sentence with which a training ends when a loss is not finite."""
    good = checkpoints.complete(run.checkpoints)
    last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
    return (
        f"{error} at step {images // batch} ({images} images); {last}; lower --train.learning_rate "
        f"({learning_rate:g}) or use --train.precision fp32."
    )
