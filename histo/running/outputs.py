"""The folder of a job over many files: what was asked for is noted in it, so that the same call can go on later.

`make_all` makes a product's items in it, by one process or several.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from tqdm import tqdm

from histo.errors import InputError, writing
from histo.files import written_whole
from histo.running import processes
from histo.running.locks import LOCK, FolderLock
from histo.tiles import TileEntry

TABLE = "tiles.csv"
FORMAT = 1


@dataclass(frozen=True)
class Layout:
    """What a command writes.

    note: the file that says what was asked for and what came of it.
    folders: those of the results.
    tables: files that are written once all results are there.
    """

    note: str
    folders: tuple[str, ...]
    tables: tuple[str, ...] = (TABLE,)


class OutputFolder:
    """An output folder and its note.

    Args:
        path: the folder.
        layout: what lies in it.
        plan: what settles the pixels, as JSON knows it; a call with another plan does not continue this work.
        facts: what else to note.
    """

    def __init__(self, path: Path, layout: Layout, plan: dict[str, Any], facts: dict[str, Any]) -> None:
        self.path, self.layout, self.plan, self.facts = path, layout, plan, facts
        self._beside_others = False

    @contextmanager
    def work(self, names: Iterable[Path], overwrite: bool) -> Iterator[None]:
        """Hold the folder for this call, made ready by `begin`; all processes of the call enter and leave together.

        Raises:
            InputError: another call is at work in it, and see `begin`.
        """
        lock: FolderLock | None = None
        try:
            with processes.together():
                if processes.state().is_main_process:
                    lock = FolderLock(self.path, "--out")
                    self.begin(names, overwrite)
            yield
        finally:
            if lock:
                lock.release()

    def begin(self, names: Iterable[Path], overwrite: bool) -> None:
        """Make the folder ready: empty, or with earlier work on the same plan.

        Overwriting removes what this command wrote there before. In a folder of other origin it removes the files whose
        names are about to be used, and no others.

        Args:
            names: files that will be written, relative to the folder.

        Raises:
            InputError: the folder holds something else, and is not to be overwritten; or it cannot be written.
        """
        past = self._note()
        others = [entry for entry in self.path.glob("*") if entry.name != LOCK] if self.path.is_dir() else []
        if overwrite and others:
            self._beside_others = past is None or bool(past.get("beside_others"))
            with writing(self.path):
                self._sweep(names)
        elif past is not None:
            if self._has_begun():
                self._refuse_other_plan(past)
            self._beside_others = bool(past.get("beside_others"))
        elif others:
            raise InputError(
                f"--out {self.path} is not empty: it holds {others[0].name}; name a new folder, or add --overwrite."
            )
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._write(finished=False)

    def finish(self, **results: Any) -> None:
        """Note that everything is there, and what came of it."""
        self._write(finished=True, **results)

    def _sweep(self, names: Iterable[Path]) -> None:
        """The note goes last: until then, a killed call is still known as this command's."""
        if self._beside_others:
            for name in names:
                (self.path / name).unlink(missing_ok=True)
        else:
            for folder in self.layout.folders:
                shutil.rmtree(self.path / folder, ignore_errors=True)
        for file in (*self.layout.tables, self.layout.note):
            (self.path / file).unlink(missing_ok=True)

    def _note(self) -> dict[str, Any] | None:
        note = self.path / self.layout.note
        if not note.is_file():
            return None
        try:
            content = json.loads(note.read_text(encoding="utf-8"))
            if not isinstance(content["plan"], dict):
                raise TypeError("plan is no object")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(f"{note} is damaged ({error}); name a new --out, or remove the folder.") from error
        return content

    def _has_begun(self) -> bool:
        """Whether anything was made; until then a mistake in the call may be corrected."""
        return any(path.is_file() for folder in self.layout.folders for path in (self.path / folder).rglob("*"))

    def _refuse_other_plan(self, past: dict[str, Any]) -> None:
        wanted = json.loads(json.dumps(self.plan))
        for name in wanted | past["plan"]:
            before, now = (plan.get(name) for plan in (past["plan"], wanted))
            if before != now:
                raise InputError(
                    f"{name} is {_short(now)}, but {self.path} was begun with {_short(before)}; put it back to "
                    "continue, name a new --out, or add --overwrite."
                )

    def _write(self, **results: Any) -> None:
        content = {
            "format": FORMAT,
            **results,
            "beside_others": self._beside_others,
            "plan": self.plan,
            **self.facts,
        }
        with writing(self.path), written_whole(self.path / self.layout.note) as file:
            file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


class Product(Protocol):
    """What a job makes, item by item; paths are relative to the output folder.

    An item is finished when all of its files are there, and each of them is there whole or not at all.
    """

    def __len__(self) -> int: ...

    def files(self, index: int, /) -> list[Path]:
        """All files of an item."""
        ...

    def make(self, index: int, folder: Path, /) -> None:
        """Write an item's files."""
        ...

    def describe(self) -> str:
        """One line for people."""
        ...


def make_all(product: Product, output: OutputFolder, on_bad: str, conclude: Callable[[list[int]], None]) -> None:
    """Make what is missing, each process its share; the first one then calls `conclude` with the items that are there.

    Args:
        on_bad: "error" stops at an item that cannot be made; "skip" says why and goes on.

    Raises:
        InputError: see `on_bad`; no item at all could be made, or the folder cannot be written.
    """
    state = processes.state()
    mine = range(state.process_index, len(product), state.num_processes)
    with processes.together():
        with writing(output.path):
            for name in {file.parts[0] for file in product.files(0)} & set(output.layout.folders):
                (output.path / name).mkdir(exist_ok=True)
        missing = [index for index in mine if not _is_made(product, output.path, index)]
        for index in tqdm(missing, desc="making", unit="image", disable=None if state.is_main_process else True):
            try:
                product.make(index, output.path)
            except InputError as error:
                if on_bad == "error":
                    raise
                print(f"skipped: {error}", file=sys.stderr, flush=True)
    with processes.together():
        if state.is_main_process:
            made = [index for index in range(len(product)) if _is_made(product, output.path, index)]
            if not made:
                raise InputError(f"None of the {len(product)} inputs could be used; the reasons are above.")
            conclude(made)
            output.finish(made=len(made), skipped=len(product) - len(made))
            print(f"{product.describe()}\n{len(made)} of {len(product)} made: {output.path}")


def result_names(entries: Sequence[TileEntry]) -> list[str]:
    """What the results of tiles are called: their keys without suffix, sub-folders kept.

    Raises:
        InputError: a name that leads out of the output folder, or two tiles of one name.
    """
    names = [PurePosixPath(entry.key).with_suffix("").as_posix() for entry in entries]
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"The tile {name!r} would be written outside --out; rename it.")
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise InputError(f"Two tiles are called {twice} but for the suffix, and so would be their results; rename one.")
    return names


def _is_made(product: Product, folder: Path, index: int) -> bool:
    return all((folder / file).is_file() for file in product.files(index))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
