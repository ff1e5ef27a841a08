"""What trainings of several seeds and folds came to: numbers for machines, and a page for people."""

import json
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from downstream.labelled import TEST, Labelled
from downstream.recipe import Recipe
from downstream.task import Evaluation
from downstream.tasks import ON_FEATURES, task_class
from histo.bootstrap import balanced_interval, mean_interval
from histo.encoders import Start
from histo.encoders.files import libraries, write_text
from histo.errors import InputError
from histo.metrics.regions import ABSENT_CLASSES
from histo.revision import revision
from histo.running.runs import RunFolder

FORMAT = 1
NAME = "metrics.json"
ALIKE = 3  # of a fact in which trainings differ, so many are told


@dataclass
class Result:
    """One training, scored.

    Attributes:
        seed, fold: which one.
        scores: of the test part, by name.
        cases: the scores of every test tile, by key; patients: of these tiles, in the same order.
        truths: their true classes likewise; empty where the task has none, and in results of old.
        facts: data, split, task and encoder, by name.
        images: crops seen; file: what was exported.
        labels: training tiles whose labels were used, to learn from or to say which network counts; None in results of
            old.
        encoder: what the task began from: source, architecture, SHA-256, input, data and licences.
        confusion: true (row) and found class (column) by `classes`; empty where the task has none.
        pictures: of single tiles, by kind, key, score and file.
        warnings: where encoder and data disagree.
    """

    seed: int
    fold: int
    scores: dict[str, float]
    cases: dict[str, dict[str, float]]
    patients: list[str | None]
    facts: dict[str, Any]
    images: int
    file: str
    labels: int | None = None
    encoder: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    truths: list[str] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        labelled: Labelled,
        images: int,
        found: Evaluation,
        seed: int,
        fold: int,
        file: Path,
        start: Start | None = None,
        pictures: Sequence[dict[str, Any]] = (),
        warnings: Sequence[str] = (),
    ) -> "Result":
        """That of a training which has ended."""
        known = [labelled.patients[k] for k in labelled.parts[TEST]]
        patients = [None if one is None else str(one) for one in known]
        facts = {**labelled.facts, "task": recipe.task, "encoder": recipe.encoder.source}
        if recipe.task == "segment":
            facts["absent classes"] = ABSENT_CLASSES
        return cls(
            seed,
            fold,
            found.scores,
            found.cases,
            patients,
            facts,
            images,
            file.name,
            labels=labelled.used,
            encoder={} if start is None else _encoder(recipe, start),
            classes=found.classes,
            confusion=found.confusion,
            truths=[labelled.classes[labelled.numbers[k]] for k in labelled.parts[TEST]] if labelled.classes else [],
            pictures=list(pictures),
            warnings=list(warnings),
        )

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
            return cls(**{name: written[name] for name in cls.__dataclass_fields__ if name in written})
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
        "chosen": "balanced_accuracy" if recipe.task in ON_FEATURES else task_class(recipe.task).CHOSEN,
        "labels": results[0].labels,
        "encoder": results[0].encoder,
        "facts": joint_facts(results),
        "images": results[0].images,
        "command": shlex.join(["python", "downstream/train.py", *sys.argv[1:]]),
        "revision": revision(),
        "libraries": libraries(),
    }
    _write(run.path / NAME, metrics)
    from downstream.report import write_report  # which reads results

    report = write_report(recipe, run, results, rows)
    said = ", ".join(
        f"{name} {row['mean']:.3f}" + (f" ± {row['sd']:.3f}" if row["sd"] is not None else "")
        for name, row in rows.items()
    )
    sentences = dict.fromkeys(f"Warning: {one.facts['warning']}.\n" for one in results if "warning" in one.facts)
    return f"{''.join(sentences)}Done: {said} over {len(by_seed)} seed(s).   Report: {report}"


def joint_facts(results: Sequence[Result]) -> dict[str, Any]:
    """The facts of several trainings: those in which they differ say the first ones', and how many there are."""
    joint = {}
    for name, value in results[0].facts.items():
        different = list(dict.fromkeys(str(one.facts[name]) for one in results if name in one.facts))
        more = f" | … {len(different)} in all" if len(different) > ALIKE else ""
        joint[name] = value if len(different) == 1 else " | ".join(different[:ALIKE]) + more
    return joint


def _interval(results: list[Result], name: str) -> list[float] | None:
    """The 95 % bootstrap interval by patient of the mean over all test tiles, of any fold and number of µm/px."""
    values: dict[str, list[float]] = defaultdict(list)
    patient_of: dict[str, str] = {}
    truth_of: dict[str, str] = {}
    balanced = name == "balanced_accuracy"
    for result in results:
        for (key, scores), patient in zip(result.cases.items(), result.patients, strict=True):
            if name in scores:  # a tile that cannot be shown at a magnification has no score there
                values[key].append(scores["accuracy" if balanced else name])
                patient_of[key] = patient or key
        truth_of |= dict(zip(result.cases, result.truths, strict=False))
    if not values or (balanced and not values.keys() <= truth_of.keys()):
        return None
    means = np.array([[statistics.fmean(some)] for some in values.values()])
    patients = [patient_of[key] for key in values]
    if balanced:
        return list(balanced_interval(means[:, 0], [truth_of[key] for key in values], patients))
    low, high = mean_interval(means, patients)
    return [float(low[0]), float(high[0])]


def _encoder(recipe: Recipe, start: Start) -> dict[str, Any]:
    """What of the encoder is told beside scores."""
    parent = start.facts["parent"]
    return {
        "source": recipe.encoder.source,
        "architecture": str(start.architecture),
        "frozen": recipe.encoder.frozen or recipe.train.encoder_rate == 0 or recipe.task in ON_FEATURES,
        **(parent if isinstance(parent, dict) else {"sha256": None, "initial weights": parent}),
        **{name: start.facts[name] for name in ("mean", "std", "mpp", "tile_size", "data")},
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
