"""Tracking: the same scalars in TensorBoard and in `log.jsonl`, pictures in TensorBoard and beside it.

The clock is images seen. When a run resumes, records past the checkpoint are taken back, so that every image count
stands in the log once, however often the run was killed.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from histo.errors import writing
from histo.files import written_whole


class Tracker:
    """Writes a run's scalars, pictures and messages; on processes other than the first, `enabled=False` makes it mute.

    `log.jsonl` is the record: what TensorBoard shows of the scalars is written again from it when its folder vanishes.

    Args:
        folder: the run's folder.
        start: images seen when the run starts or resumes; later records of an earlier life are dropped, and so are
            its figures named final/…, which every life that reaches the end writes anew.

    Raises:
        InputError: here and in every method, when the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path, start: int, enabled: bool) -> None:
        self.folder, self.enabled = folder, enabled
        if not enabled:
            return
        self.log = folder / "log.jsonl"
        with writing(self.log):
            past = [record for record in read_log(folder) if record["images"] <= start and start > 0]
            kept = [record for record in past if not any(name.startswith("final/") for name in record)]
            with written_whole(self.log) as file:
                file.write("".join(_line(record) for record in kept).encode("utf-8"))
        threading.excepthook = _raised_later
        with writing(folder / "tensorboard"):
            gone = not any((folder / "tensorboard").glob("events.*"))
            self._begin_board(purge_step=start + 1 if start else 0)
            if gone:
                self._add_log()

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """Record named numbers ("loss/cycle_mask", "speed/images_per_second") at an image count."""
        if not self.enabled:
            return
        with self._on_board():
            self._record(images, values)
            self._add(images, values)

    def picture(self, images: int, name: str, picture: np.ndarray) -> None:
        """Record an RGB picture, uint8 [H, W, 3], in TensorBoard and as RUN/panels/NAME-IMAGES.png."""
        if not self.enabled:
            return
        panels = self.folder / "panels"
        with writing(panels):
            panels.mkdir(exist_ok=True)
            with written_whole(panels / f"{name}-{images:09d}.png") as file:
                Image.fromarray(picture).save(file, format="PNG")
        with self._on_board():
            self.board.add_image(name, picture, images, dataformats="HWC")

    def embedding(self, images: int, name: str, vectors: Tensor, labels: list[str], thumbnails: Tensor) -> None:
        """Show embeddings in TensorBoard's projector.

        Args:
            vectors: float [N, D].
            labels: one of each, line breaks aside.
            thumbnails: float [N, 3, h, w] in [0, 1].
        """
        if not self.enabled:
            return
        with self._on_board():
            self.board.add_embedding(vectors, labels, thumbnails, images, name)

    def message(self, images: int, text: str, level: str = "note") -> None:
        """Record a sentence ("warning", "note") in the log and in TensorBoard's text page."""
        if not self.enabled:
            return
        with self._on_board():
            self._record(images, {level: text})
            self.board.add_text(level, text, images)

    def warn(self, images: int, text: str) -> None:
        """Say something in the log and on the terminal, without tearing the progress bar."""
        self.message(images, text, "warning")
        tqdm.write(f"warning: {text}", file=sys.stderr)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self.enabled:
            with self._on_board():
                self.board.close()

    def _begin_board(self, purge_step: int | None) -> None:
        folder = self.folder / "tensorboard"
        others = set(folder.glob("events.*"))
        self.board = SummaryWriter(str(folder), purge_step=purge_step)
        self.board.flush()
        (self.events,) = set(folder.glob("events.*")) - others
        self.written = self.events.stat().st_size

    @contextmanager
    def _on_board(self) -> Iterator[None]:
        """Around every use of TensorBoard: where its file is gone, one is begun with all scalars of the log.

        TensorBoard itself would go on in a new file without a beginning; it shows in the size.
        """
        with writing(self.folder / "tensorboard"):
            if (self.events.stat().st_size if self.events.exists() else 0) < self.written:
                self._begin_board(purge_step=None)
                self._add_log()
                tqdm.write(
                    f"warning: {self.events.parent} was deleted; its scalars are written again from {self.log.name}.",
                    file=sys.stderr,
                )
            yield
            self.board.flush()
            if self.events.exists():  # else it was deleted just now, which the next use mends
                self.written = self.events.stat().st_size

    def _add_log(self) -> None:
        """All scalars of the log."""
        for record in read_log(self.folder):
            numbers = {name: value for name, value in record.items() if isinstance(value, float)}
            self._add(record["images"], {name: numbers[name] for name in numbers.keys() - {"time"}})

    def _add(self, images: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, images)

    def _record(self, images: int, entry: dict[str, Any]) -> None:
        with writing(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(_line({"images": images, "time": round(time.time(), 1), **entry}))


def add_scalars(folder: Path, images: int, values: dict[str, float]) -> None:
    """Add scalars at an image count to a run that is not training: a record of the log, a file of TensorBoard's.

    Raises:
        InputError: the folder cannot be written.
    """
    log = folder / "log.jsonl"
    record = {"images": images, "time": round(time.time(), 1), **values}
    with writing(log), written_whole(log) as file:
        file.write("".join(_line(entry) for entry in [*read_log(folder), record]).encode("utf-8"))
    with writing(folder / "tensorboard"), SummaryWriter(str(folder / "tensorboard")) as board:
        for name, value in values.items():
            board.add_scalar(name, value, images)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole records of RUN/log.jsonl, oldest first; lines that a kill or a bad disk spoilt are left out."""
    path = folder / "log.jsonl"
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("images")) is int:
            records.append(record)
    return records


def _raised_later(arguments: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer thread hands a refusal to write to the next caller; it need not print a traceback too."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
