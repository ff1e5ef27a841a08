"""What trainings of several seeds and folds came to: numbers for machines, and a page for people."""

import json
import shlex
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downstream.labelled import TEST, Labelled
from downstream.recipe import Recipe
from downstream.task import Evaluation
from histo.bootstrap import mean_interval
from histo.encoders.files import libraries, write_text
from histo.errors import InputError
from histo.images import read_image
from histo.revision import revision
from histo.running.report import Report
from histo.running.runs import RunFolder
from histo.running.settings import as_yaml
from histo.running.tracking import read_log

FORMAT = 1
NAME = "metrics.json"


@dataclass
class Result:
    """One training, scored.

    Attributes:
        seed, fold: which one.
        scores: of the test part, by name.
        cases: the scores of every test tile, by key; patients: of these tiles, in the same order.
        facts: data, split, task and encoder, by name.
        images: crops seen; file: what was exported.
    """

    seed: int
    fold: int
    scores: dict[str, float]
    cases: dict[str, dict[str, float]]
    patients: list[str | None]
    facts: dict[str, Any]
    images: int
    file: str

    @classmethod
    def of(
        cls, recipe: Recipe, labelled: Labelled, images: int, found: Evaluation, seed: int, fold: int, file: Path
    ) -> "Result":
        """That of a training which has ended."""
        known = [labelled.patients[k] for k in labelled.parts[TEST]]
        patients = [None if one is None else f"{one[0]}/{one[1]}" for one in known]
        facts = {**labelled.facts, "task": recipe.task, "encoder": recipe.encoder.source}
        return cls(seed, fold, found.scores, found.cases, patients, facts, images, file.name)

    @classmethod
    def read(cls, folder: Path) -> "Result | None":
        """The result that a folder holds; None where its training has not ended.

        Raises:
            InputError: a damaged one.
        """
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
            if written.pop("format") != FORMAT:
                raise ValueError("of another version")
            return cls(**{name: written[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}); delete it to train this part again.") from error


def write_result(folder: Path, result: Result) -> None:
    """Write what a training came to; a run folder that has it is done.

    Raises:
        InputError: it cannot be written.
    """
    _write(folder / NAME, {"format": FORMAT, **asdict(result)})


def summarise(recipe: Recipe, run: RunFolder, results: list[Result]) -> str:
    """Write RUN/metrics.json and RUN/report.html over all seeds and folds; returns the sentence for people.

    Raises:
        InputError: they cannot be written.
    """
    of_seed: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        of_seed[result.seed].append(result)
    names = [name for name in results[0].scores if all(name in one.scores for one in results)]
    by_seed = {
        seed: {name: statistics.fmean(one.scores[name] for one in some) for name in names}
        for seed, some in of_seed.items()
    }
    rows = {}
    for name in names:
        values = [scores[name] for scores in by_seed.values()]
        rows[name] = {
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "interval": _interval(results, name),
        }
    metrics = {
        "format": FORMAT,
        "task": recipe.task,
        "scores": rows,
        "by_seed": {str(seed): scores for seed, scores in by_seed.items()},
        "folds": recipe.data.folds,
        "facts": results[0].facts,
        "images": results[0].images,
        "command": shlex.join(["python", "downstream/train.py", *sys.argv[1:]]),
        "revision": revision(),
        "libraries": libraries(),
    }
    _write(run.path / NAME, metrics)
    report = _report(recipe, run, results, rows)
    said = ", ".join(
        f"{name} {row['mean']:.3f}" + (f" ± {row['sd']:.3f}" if row["sd"] is not None else "")
        for name, row in rows.items()
    )
    return f"Done: {said} over {len(by_seed)} seed(s).   Report: {report}"


def _interval(results: list[Result], name: str) -> list[float] | None:
    """The 95 % bootstrap interval of the mean over test tiles, by patient; of the mean over seeds of each tile."""
    values: dict[str, list[float]] = defaultdict(list)
    patient_of: dict[str, str] = {}
    for result in results:
        for (key, scores), patient in zip(result.cases.items(), result.patients, strict=True):
            if name not in scores:
                return None
            values[key].append(scores[name])
            patient_of[key] = patient or key
    if not values:
        return None
    means = np.array([[statistics.fmean(some)] for some in values.values()])
    low, high = mean_interval(means, [patient_of[key] for key in values])
    return [float(low[0]), float(high[0])]


def _report(recipe: Recipe, run: RunFolder, results: list[Result], rows: dict[str, dict[str, Any]]) -> Path:
    report = Report(f"Downstream: {recipe.task}", f"encoder {recipe.encoder.source} · {run.path}")
    report.heading("How good it is")
    table = [
        [name, row["mean"], row["sd"], "–" if row["interval"] is None else "{:.3f} to {:.3f}".format(*row["interval"])]
        for name, row in rows.items()
    ]
    caption = f"Mean and standard deviation over the seeds {recipe.seeds}; bootstrap interval by patient."
    report.table(["score", "mean", "sd", "95 % interval"], table, caption)
    if len(results) > 1:
        names = list(rows)
        report.table(
            ["seed", "fold", *names], [[r.seed, r.fold + 1, *(r.scores[name] for name in names)] for r in results]
        )
    if pictures := sorted((run.path / _folder(recipe, results[0])).glob("attention/*.png")):
        report.heading("What the scored bags are judged by")
        for picture in pictures:
            report.picture(read_image(picture).transpose(1, 2, 0))
    report.heading("The course of the training")
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
            report.curves(title, lines, "crops seen")
    report.heading("How it was made")
    report.facts(results[0].facts)
    report.text(f"python downstream/train.py --config {run.config}", as_yaml(recipe))
    path = run.path / "report.html"
    report.save(path)
    return path


def _folder(recipe: Recipe, result: Result) -> str:
    return f"seed{result.seed}" + (f"-fold{result.fold + 1}" if recipe.data.folds else "")


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
