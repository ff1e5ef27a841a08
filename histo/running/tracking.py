"""Tracking: the same scalars in TensorBoard and in `log.jsonl`, pictures in TensorBoard and beside it.

The clock is images seen. When a run resumes, records past the checkpoint are taken back, so that every image count
stands in the log once, however often the run was killed.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Writes a run's scalars, pictures and messages; on processes other than the first, `enabled=False` makes it mute.

    Args:
        folder: the run's folder.
        start: images seen when the run starts or resumes; later records of an earlier life are dropped.
    """

    def __init__(self, folder: Path, start: int, enabled: bool) -> None:
        self.folder, self.enabled = folder, enabled
        if not enabled:
            return
        self.log = folder / "log.jsonl"
        kept = [record for record in read_log(folder) if record["images"] <= start and start > 0]
        aside = self.log.with_suffix(".tmp")
        aside.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        os.replace(aside, self.log)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else 0)

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """Record named numbers ("loss/cycle_mask", "speed/images_per_second") at an image count."""
        if not self.enabled:
            return
        for name, value in values.items():
            self.board.add_scalar(name, value, images)
        self._record({"images": images, "time": round(time.time(), 1), **values})

    def picture(self, images: int, name: str, picture: np.ndarray) -> None:
        """Record an RGB picture, uint8 [H, W, 3], in TensorBoard and as RUN/panels/NAME-IMAGES.png."""
        if not self.enabled:
            return
        self.board.add_image(name, picture, images, dataformats="HWC")
        panels = self.folder / "panels"
        panels.mkdir(exist_ok=True)
        Image.fromarray(picture).save(panels / f"{name}-{images:09d}.png")

    def message(self, images: int, text: str, level: str = "note") -> None:
        """Record a sentence ("warning", "note") in the log and in TensorBoard's text page."""
        if not self.enabled:
            return
        self.board.add_text(level, text, images)
        self._record({"images": images, "time": round(time.time(), 1), level: text})

    def close(self) -> None:
        if self.enabled:
            self.board.close()

    def _record(self, entry: dict[str, Any]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(_line(entry))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole records of RUN/log.jsonl, oldest first; a last line cut off by a kill is left out."""
    path = folder / "log.jsonl"
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
