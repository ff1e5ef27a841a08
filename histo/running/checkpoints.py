"""Checkpoints for resuming: everything that changes during training, written whole or not at all.

A checkpoint is a folder `checkpoints/NNNNNNNNNNNN/` named by images seen. It holds one safetensors file per named
group of tensors and `manifest.json` with plain facts and the SHA-256 of each file. It is written into a folder
beside, synced to disk, and renamed; a reader therefore sees complete checkpoints only, and nothing in one is ever
unpickled. Which one is newest is told by the images in its name, never by a clock.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from histo.errors import InputError, writing

MANIFEST = "manifest.json"
ASIDE = ".writing-"
IMAGE_DIGITS = 12  # of the image count that names a checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """State at one instant.

    tensors: `tensors[group][name]`, on the CPU.
    facts: what JSON can hold, at least "images".
    path: the folder it was read from; None for one that is yet to be saved.
    """

    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    path: Path | None = None


def place(folder: Path, images: int) -> Path:
    """Where the checkpoint at an image count lies."""
    return folder / f"{images:0{IMAGE_DIGITS}d}"


Spared = Callable[[dict[Path, dict[str, Any]]], Collection[Path]]


def save(folder: Path, checkpoint: Checkpoint, keep: int, spared: Spared | None = None) -> Path:
    """Write a checkpoint into `folder` and drop all but the newest `keep` afterwards.

    Args:
        spared: chooses further ones to keep, by the facts of all whose manifest can be read.

    Returns:
        The folder of the new checkpoint.

    Raises:
        InputError: it cannot be written (disk full, read-only, folder gone); those before it are untouched.
    """
    target = place(folder, checkpoint.facts["images"])
    if not (target / MANIFEST).exists():  # else the state is the same by construction, and rewriting it could lose it
        _add(folder, target, checkpoint)
    with writing(folder, "make room there and run the same command again"):
        old = [path for path in complete(folder) if path != target][: 1 - keep or None]
        needed = spared(facts_of(folder)) if spared is not None and old else ()
        for path in old:
            if path not in needed:
                _remove(path)
    return target


def _add(folder: Path, target: Path, checkpoint: Checkpoint) -> None:
    before = complete(folder)
    aside = folder / f"{ASIDE}{target.name}"
    try:
        _write(aside, checkpoint)
        if target.exists():  # one that lost its manifest
            _remove(target)
        os.rename(aside, target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        last = f"the last good one is {before[-1]}" if before else "there is none before it"
        raise InputError(
            f"The checkpoint at {checkpoint.facts['images']} images cannot be written to {folder} ({error}); {last}: "
            "make room there and run the same command again."
        ) from error


def _write(aside: Path, checkpoint: Checkpoint) -> None:
    """Every file of a checkpoint, hashed and on the disk when this returns."""
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    hashes = {}
    for group, tensors in checkpoint.tensors.items():
        path = aside / f"{group}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        hashes[path.name] = _digest(path)
        _sync(path)
    manifest = {"facts": checkpoint.facts, "sha256": hashes}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    _sync(aside / MANIFEST)
    _sync(aside)


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; half-written ones do not count."""
    return [path for path in _named(folder) if (path / MANIFEST).exists()]


def _named(folder: Path) -> list[Path]:
    """All that bear a checkpoint's name, which a whole one alone is given: without a manifest one is damaged."""
    return sorted((path for path in folder.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder, checking every file against its hash.

    Raises:
        InputError: not a checkpoint, or a file missing or changed since it was written.
    """
    hashes, facts = _manifest(path)
    tensors = {}
    for name, expected in hashes.items():
        if not re.fullmatch(r"\w+\.safetensors", name):
            raise InputError(
                f"{path / MANIFEST} names {name!r}, expected NAME.safetensors; resume from another checkpoint."
            )
        file = path / name
        try:
            if not file.is_file() or _digest(file) != expected:
                raise InputError(
                    f"{file} is missing or was changed after it was written; resume from another checkpoint."
                )
            tensors[file.stem] = load_file(file)
        except OSError as error:  # a bad disk, or another run that takes its checkpoint away
            raise InputError(f"{file} cannot be read ({error.strerror}); resume from another checkpoint.") from error
        except SafetensorError as error:
            raise InputError(f"{file} is no safetensors file ({error}); resume from another checkpoint.") from error
    return Checkpoint(tensors, facts, path)


def facts_of(folder: Path) -> dict[Path, dict[str, Any]]:
    """The facts of all complete checkpoints whose manifest can be read, oldest first, their tensors unseen."""
    found = {}
    for path in complete(folder):
        with suppress(InputError):
            found[path] = _manifest(path)[1]
    return found


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is sound, None where there is none at all, and a sentence on each damaged newer one.

    Raises:
        InputError: there are checkpoints, and all are damaged: starting afresh is not ours to decide.
    """
    damaged: list[str] = []
    for path in reversed(_named(folder)):
        try:
            return load(path), damaged
        except InputError as error:
            damaged.append(str(error))
    if damaged:
        raise InputError(
            f"None of the {len(damaged)} checkpoints in {folder} can be read ({damaged[-1]}); restore one, or name "
            "another --run.dir to start afresh."
        )
    return None, []


def _manifest(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The hash of each file of a checkpoint, and its facts."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        hashes, facts = manifest["sha256"], manifest["facts"]
        if not (isinstance(hashes, dict) and isinstance(facts, dict)):
            raise ValueError("sha256 and facts must be mappings")
        _check_images(path, facts.get("images"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is no checkpoint, or a damaged one: it has no {MANIFEST}; name a folder RUN/checkpoints/N."
        ) from error
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path / MANIFEST} is damaged ({error}); resume from another checkpoint.") from error
    return hashes, facts


def _check_images(path: Path, images: Any) -> None:
    if type(images) is not int or not 0 <= images < 10**IMAGE_DIGITS:
        raise ValueError(f"images is {str(images)[:40]!r}, expected a count")
    if path.name.isdecimal() and int(path.name) != images:
        raise ValueError(f"images is {images}, but the folder is named {path.name}")


def forget_after(folder: Path, images: int) -> None:
    """Take away checkpoints beyond an image count: a run that goes back starts another life from there."""
    with writing(folder, "name another --run.dir"):
        for path in _named(folder):
            if int(path.name) > images:
                _remove(path)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for leftover in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: "PARAMETER.KEY", parameters numbered as in `state_dict`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took out; learning rates and betas stay those of the settings."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            # A fused optimiser walks memory in order: its state must be laid out like the parameter (channels last).
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint away; it stops counting as complete at once, and a kill leaves only what `sweep` removes."""
    aside = checkpoint.with_name(f"{ASIDE}old-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)  # a network disk keeps files that somebody reads; `sweep` comes again


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
