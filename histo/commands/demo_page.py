"""The page that `nucleate demo` ends with: what was drawn, learned and used, from the folders of its stages."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo.running.report import Report
from histo.running.tracking import read_log

# task: (what it asks, the score that answers, what that is)
TASKS = {
    "classes": ("Which tissue is it?", "balanced_accuracy", "balanced accuracy of a linear layer on frozen features"),
    "regions": ("Which pixels are nuclear?", "dice", "Dice of a U-Net fine-tuned on 40 labelled tiles"),
    "nuclei": ("Which pixels are one nucleus?", "aji", "AJI of a U-Net fine-tuned on 40 labelled tiles"),
}
FOUND = "picture.png"


def write_page(folder: Path, commands: Sequence[str]) -> Path:
    """Write FOLDER/report.html from what the stages left, and FOLDER/picture.png from its pictures; returns the page.

    Args:
        commands: as one would type them.
    """
    report = Report("nucleate on phantom tissue", "drawn, translated, pretrained and used without a data set")
    drawn = _newest(folder / "translator" / "panels", "mask_to_tissue")
    read = _newest(folder / "translator" / "panels", "tissue_to_mask")
    scores = {task: _scores(folder, task) for task in TASKS}
    report.heading("What came of it")
    ahead = sum(found["pretrained"] > found["random"] for found in scores.values())
    report.text(
        f"From phantom tissue alone: a translator, an encoder, and {len(TASKS)} tasks learned from it and from random "
        f"weights. The pretrained encoder is ahead in {ahead} of {len(TASKS)}; with so little training that shows how "
        "to compare, not which is better."
    )
    rows = [
        [question, _number(scores[task], "pretrained"), _number(scores[task], "random"), said]
        for task, (question, _, said) in TASKS.items()
    ]
    report.table(
        ["question", "from the pretrained encoder", "from random weights", "score"],
        rows,
        "On tiles of patients that nothing learned from; one seed, and a training of seconds. The encoder learned "
        "without any label.",
    )
    report.heading("1. Tissue from masks, and masks from tissue")
    report.text(
        "A translator saw tiles and, of other tiles, nucleus masks that a watershed had drawn; never a pair of them. "
        "It draws tissue for a mask in any style, and reads the nuclei out of tissue."
    )
    for picture in (drawn, read):
        if picture is not None:
            report.picture(picture)
    _curve(report, folder / "translator", "How much of a mask is found again in the tissue drawn for it", "content/")
    report.heading("2. An encoder from the translator")
    report.text(
        "The part of the translator that reads tissue went on to learn, still without labels, that a tile is the same "
        "in other stains and crops. A linear layer that looks on from time to time says what its features tell of the "
        "tissue's class."
    )
    _curve(report, folder / "encoder", "What features tell while they are learned", "probe/")
    panel = _newest(folder / "encoder" / "panels", "stain_sensitivity")
    if panel is not None:
        report.picture(panel)
    report.heading("3. Used on labels")
    for task, (question, _, said) in TASKS.items():
        pictures = _cases(folder / task / "pretrained")
        report.text(f"{question} {said[0].upper()}{said[1:]}.")
        for picture, caption in pictures:
            report.picture(picture, caption)
    report.heading("Every step's own page, and the commands")
    report.text(*(f"{folder / part / 'report.html'}" for part in _pages()))
    report.text("\n".join(commands))
    page = folder / "report.html"
    _save_picture(folder, drawn)
    report.save(page)
    return page


def _pages() -> list[str]:
    return ["translator", "encoder", *(f"{task}/{start}" for task in TASKS for start in ("pretrained", "random"))]


def _scores(folder: Path, task: str) -> dict[str, float]:
    """The task's score from either start."""
    found = {}
    for start in ("pretrained", "random"):
        metrics: dict[str, Any] = json.loads((folder / task / start / "metrics.json").read_text(encoding="utf-8"))
        found[start] = metrics["scores"][TASKS[task][1]]["mean"]
    return found


def _number(scores: dict[str, float], start: str) -> str:
    return f"{scores[start]:.3f}"


def _newest(panels: Path, name: str) -> NDArray[np.uint8] | None:
    files = sorted(panels.glob(f"{name}-*.png"))
    return _pixels(files[-1]) if files else None


def _pixels(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _curve(report: Report, run: Path, title: str, prefix: str) -> None:
    """The logged values whose names begin so and that lie in [0, 1]."""
    records = read_log(run)
    lines = {}
    for name in sorted({name for record in records for name in record if name.startswith(prefix)}):
        having = [record for record in records if name in record]
        values = [record[name] for record in having]
        if all(0 <= value <= 1 for value in values):
            lines[name.removeprefix(prefix).replace("_", " ")] = ([record["images"] for record in having], values)
    if lines:
        report.curves(title, lines, "tiles shown")


def _cases(run: Path, count: int = 2) -> list[tuple[NDArray[np.uint8], str]]:
    """The worst and the best tiles of a task, as its own page has them."""
    result: dict[str, Any] = json.loads((run / "seed0" / "metrics.json").read_text(encoding="utf-8"))
    shown = []
    for kind in ("worst", "best"):
        some = [one for one in result["pictures"] if one["kind"] == kind][:count]
        for one in some:
            file = run / "seed0" / one["file"]
            if file.is_file():
                shown.append((_pixels(file), f"{kind}: {one['key']}, {one['name']} {one['score']:.3f}"))
    return shown


def _save_picture(folder: Path, drawn: NDArray[np.uint8] | None) -> None:
    """What the translator drew above what the encoder's nuclei are, for a page that shows the project."""
    best = [picture for picture, caption in _cases(folder / "nuclei" / "pretrained") if caption.startswith("best")]
    top = None if drawn is None else drawn[: len(drawn) // 2]
    parts = [part for part in (top, *best) if part is not None]
    width = max(part.shape[1] for part in parts)
    padded = [np.pad(part, ((4, 4), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in parts]
    Image.fromarray(np.concatenate(padded)).save(folder / FOUND)
