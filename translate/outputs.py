"""The folder of a job over many files: what was asked for is noted in it, so that the same call can go on later."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histo.errors import InputError, writing
from histo.files import written_whole
from histo.running import processes
from histo.running.locks import LOCK, FolderLock

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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
