"""The page of a run of downstream/train.py for people: scores, confusions, single tiles, curves, data and encoder."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from downstream.cases import NUCLEI_LEGEND, REGIONS_LEGEND, SHOWN, side_by_side
from downstream.recipe import Recipe
from downstream.results import Result, joint_facts
from histo.metrics import EMPTY_TILES
from histo.running.report import Report
from histo.running.runs import RunFolder
from histo.running.settings import as_yaml
from histo.running.tracking import read_log

_LEGENDS = {"instances": NUCLEI_LEGEND, "segment": REGIONS_LEGEND}


def write_report(recipe: Recipe, run: RunFolder, results: list[Result], rows: dict[str, dict[str, Any]]) -> Path:
    """Write RUN/report.html; returns its place.

    Args:
        rows: mean, sd and interval of every score, over `results`.

    Raises:
        InputError: it cannot be written.
    """
    report = Report(f"Downstream: {recipe.task}", f"encoder {recipe.encoder.source} · {run.path}")
    report.heading("How good it is")
    table = [
        [name, row["mean"], row["sd"], "–" if row["interval"] is None else "{:.3f} to {:.3f}".format(*row["interval"])]
        for name, row in rows.items()
    ]
    caption = (
        f"Mean and standard deviation over the seeds {recipe.seeds}; bootstrap "
        "interval by patient of the mean over all test tiles, each weighing alike whatever its fold."
    )
    report.table(["score", "mean", "sd", "95 % interval"], table, caption)
    if len(results) > 1:
        names = list(dict.fromkeys(name for result in results for name in result.scores))
        each = [[r.seed, r.fold + 1, *(r.scores.get(name, "–") for name in names)] for r in results]
        report.table(["seed", "fold", *names], each)
    report.text(*(f"Warning: {sentence}" for sentence in _warnings(results)))
    if recipe.task == "instances":
        report.text(EMPTY_TILES)
    _add_confusion(report, results)
    _add_cases(report, recipe, run, results)
    if pictures := sorted((run.path / _folder(recipe, results[0])).glob("attention/*.png")):
        report.heading("What the scored bags are judged by")
        for picture in pictures:
            report.picture(_pixels(picture))
    charts = {}
    logs = {f"seed {r.seed}" + (f", fold {r.fold + 1}" if recipe.data.folds else ""): r for r in results}
    for prefix, title in (("loss/", "Loss"), ("validation/", "Validation part")):
        lines = {}
        for label, result in logs.items():
            records = read_log(run.path / _folder(recipe, result))
            for name in sorted({name for record in records for name in record if name.startswith(prefix)}):
                having = [record for record in records if name in record]
                lines[f"{label} {name.partition('/')[2]}"] = (
                    [record["images"] for record in having],
                    [record[name] for record in having],
                )
        if lines:
            charts[title] = lines
    if charts:
        report.heading("The course of the training")
    for title, lines in charts.items():
        report.curves(title, lines, "crops seen")
    report.heading("Data and split")
    report.facts(joint_facts(results))
    _add_encoder(report, results[0].encoder)
    report.heading("How it was made")
    report.text(f"python downstream/train.py --config {run.config}", as_yaml(recipe))
    path = run.path / "report.html"
    report.save(path)
    return path


def _warnings(results: list[Result]) -> list[str]:
    said = [result.facts["warning"] for result in results if "warning" in result.facts]
    return list(dict.fromkeys([*said, *(sentence for result in results for sentence in result.warnings)]))


def _add_confusion(report: Report, results: list[Result]) -> None:
    having = [result for result in results if result.confusion]
    if not having:
        return
    counts = np.sum([result.confusion for result in having], axis=0)
    report.heading("Which classes are taken for which")
    unit = "pixels" if having[0].facts.get("task") == "segment" else "tiles"
    caption = f"Test {unit} of {len(having)} training(s) together, and their share of the true class."
    report.matrix(having[0].classes, counts.tolist(), caption)


def _add_cases(report: Report, recipe: Recipe, run: RunFolder, results: list[Result]) -> None:
    """The worst and the best tiles of all trainings, each once."""
    found = {
        (one["kind"], one["key"]): (one, run.path / _folder(recipe, result) / one["file"])
        for result in results
        for one in result.pictures
    }
    if not found:
        return
    report.heading("The worst and the best test tiles")
    if recipe.task in _LEGENDS:
        report.text(_LEGENDS[recipe.task])
    for kind, sign in (("worst", 1), ("best", -1)):
        some = sorted((one for one in found.values() if one[0]["kind"] == kind), key=lambda one: sign * one[0]["score"])
        shown = [(_pixels(file), said) for said, file in some[:SHOWN] if file.is_file()]
        captions = [f"{said['key']}, {said['name']} {said['score']:.3f}" for _, said in shown]
        if recipe.task in _LEGENDS:
            for (picture, _), caption in zip(shown, captions, strict=True):
                report.picture(picture, f"{kind}: {caption}")
        elif shown:
            report.picture(side_by_side([picture for picture, _ in shown]), f"{kind}: {'; '.join(captions)}")


def _pixels(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _add_encoder(report: Report, encoder: dict[str, Any]) -> None:
    if not encoder:
        return
    report.heading("The encoder that it began from")
    report.facts({name: value for name, value in encoder.items() if name != "data"})
    data = [one for one in encoder.get("data") or [] if isinstance(one, dict)]
    if data:
        rows = [[one.get("source"), one.get("title"), one.get("licence"), one.get("noncommercial")] for one in data]
        report.table(["it learned from", "title", "licence", "non-commercial"], rows)
    else:
        report.text("It learned from no data." if encoder.get("source") == "none" else "Its data are unknown.")


def _folder(recipe: Recipe, result: Result) -> str:
    return f"seed{result.seed}" + (f"-fold{result.fold + 1}" if recipe.data.folds else "")
