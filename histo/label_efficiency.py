"""Finished downstream runs side by side: what each encoder reaches with how many labels, and which differences hold.

Runs are read from what they wrote (metrics.json of the run and of each of its seeds), not from the package that did.
"""

import json
import statistics
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo.bootstrap import balanced_interval, mean_interval
from histo.curve_names import Encoder, curve_names
from histo.errors import InputError
from histo.permutation import holm, sign_flip_test
from histo.running.configs import read_config

NAME = "metrics.json"
CHOSEN = {"instances": "aji", "segment": "dice"}  # of runs that do not say; else balanced_accuracy
_FREE = ("encoder", "seeds", "run", "features", "data.label_fraction", "data.label_images")  # what may differ
# What makes no other curve, and is only told.
_TOLD = ("data.tiles", "data.holdout", "data.on_bad", "data.common_patients")
_TASKS = ("classify", "instances", "segment", "smse", "linear", "knn", "mil")  # groups of settings
_IDLE = ("data.workers", "data.cache_mb", "train.save_every", "train.log_every", "train.look_every")


@dataclass
class Run:
    """A finished run.

    Attributes:
        encoder: what it began from.
        labels: tiles whose labels it used, mean over its folds.
        by_seed: scores of each seed.
        cases: of each seed the scores of every test tile.
        patients: of each test tile; its key where unknown.
        truths: its true class; empty where the task has none, and in results of old.
        warning: what is known against its scores, such as patients in two parts; empty where nothing is.
        settings: flat names with values, without those that may differ between runs that are compared.
    """

    path: Path
    task: str
    chosen: str
    encoder: Encoder
    labels: int
    by_seed: dict[int, dict[str, float]]
    cases: dict[int, dict[str, dict[str, float]]]
    patients: dict[str, Hashable]
    truths: dict[str, str]
    warning: str
    settings: dict[str, Any]


@dataclass
class Point:
    """What an encoder reaches under some settings with a number of labels.

    Attributes:
        values: of each seed.
        cases: float [N], mean over seeds of each test tile in the order of their keys, nan of tiles without that score;
            None where no tile has it.
        interval: 95 % bootstrap interval by patient; None likewise, and where the score needs classes that results of
            old do not tell.
    """

    values: dict[int, float]
    cases: NDArray[np.float64] | None
    interval: tuple[float, float] | None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def sd(self) -> float | None:
        """Over seeds; None of one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass
class PairedTest:
    """Two curves at one number of labels: mean difference one - other, p, and p corrected for all tests."""

    labels: int
    one: str
    other: str
    difference: float
    p: float
    corrected: float


@dataclass
class Comparison:
    """Runs compared by one score.

    Attributes:
        points: by name of the curve, an encoder with what its settings have of their own, and number of labels.
        tests: of every two curves with the same number of labels.
        tiles, patients: how many test tiles, and patients of them (or tiles of unknown patient).
        notes: what readers must know.
    """

    task: str
    metric: str
    points: dict[str, dict[int, Point]]
    tests: list[PairedTest]
    tiles: int
    patients: int
    notes: list[str] = field(default_factory=list)


def read_run(path: Path) -> Run:
    """What a finished run of downstream/train.py came to.

    Raises:
        InputError: no such run, an unfinished one, or a damaged file.
    """
    whole = _read(path / NAME)
    files = sorted(path.glob(f"seed*/{NAME}"))
    try:
        parts = [_read(file) for file in files]
        facts = whole["facts"]
        by_seed = {int(seed): scores for seed, scores in whole["by_seed"].items()}
        cases: dict[int, dict[str, dict[str, float]]] = {seed: {} for seed in by_seed}
        patients: dict[str, Hashable] = {}
        truths: dict[str, str] = {}
        for part in parts:
            if part["seed"] in cases:
                cases[part["seed"]] |= part["cases"]
                patients |= {key: one or key for key, one in zip(part["cases"], part["patients"], strict=True)}
                truths |= dict(zip(part["cases"], part.get("truths", ()), strict=False))
        encoder = whole.get("encoder") or {}
        labels = [_labels(part) for part in parts]
        task = str(whole["task"])
        return Run(
            path,
            task,
            str(whole.get("chosen") or CHOSEN.get(task, "balanced_accuracy")),
            (str(facts["encoder"]), encoder.get("architecture"), encoder.get("frozen")),
            round(statistics.fmean(labels)),
            by_seed,
            cases,
            patients,
            truths,
            str(facts.get("warning", "")),
            _settings(path / "config.yaml", task),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path / NAME} is damaged ({error!r}); run its training again, which is quick now."
        ) from error


def compare_runs(runs: list[Run], metric: str | None = None) -> Comparison:
    """Group runs by encoder, settings and number of labels, and test every two curves that have the same number.

    Args:
        metric: a score of the runs; None takes the one that the task chooses by.

    Raises:
        InputError: runs that are not comparable, or no such score.
    """
    first = runs[0]
    for run in runs[1:]:
        _refuse_incomparable(first, run)
    name = metric or first.chosen
    for run in runs:
        if any(name not in scores for scores in run.by_seed.values()):
            known = ", ".join(next(iter(run.by_seed.values())))
            raise InputError(f"{run.path} has no score {name!r}; give one of {known} as --metric.")
    keys = sorted(first.patients)
    patients = [first.patients[key] for key in keys]
    shaping = [{key: value for key, value in run.settings.items() if key not in _TOLD} for run in runs]
    grouped: dict[str, dict[int, list[Run]]] = {}
    for run, curve in zip(runs, curve_names([run.encoder for run in runs], shaping), strict=True):
        grouped.setdefault(curve, {}).setdefault(run.labels, []).append(run)
    points = {
        curve: {labels: _point(some, name, keys, patients) for labels, some in sorted(of_curve.items())}
        for curve, of_curve in grouped.items()
    }
    tests = _tests(points, patients)
    return Comparison(first.task, name, points, tests, len(keys), len(set(patients)), _notes(runs, points, name))


def _labels(part: dict[str, Any]) -> int:
    if part.get("labels") is None:  # results of old say it only to people: "8 of 22 training tiles"
        return int(part["facts"]["labels used"].split()[0])
    return int(part["labels"])


def _point(runs: list[Run], metric: str, keys: list[str], patients: list[Hashable]) -> Point:
    values: dict[int, float] = {}
    owner: dict[int, Path] = {}
    rows = []
    for run in runs:
        for seed, scores in run.by_seed.items():
            if seed in values:
                raise InputError(
                    f"{owner[seed]} and {run.path} are of the same encoder and settings, {run.labels} labels and seed "
                    f"{seed}; name one of them."
                )
            values[seed], owner[seed] = scores[metric], run.path
            rows.append([run.cases[seed].get(key, {}).get(metric, np.nan) for key in keys])
    cases = np.array(rows, np.float64).mean(0)
    scored = np.flatnonzero(~np.isnan(cases))
    if not len(scored):
        return Point(values, None, None)
    whose = [patients[k] for k in scored]
    if metric == "balanced_accuracy":
        own, truths = [keys[k] for k in scored], runs[0].truths
        if not truths.keys() >= set(own):
            return Point(values, cases, None)
        right = np.mean([[run.cases[seed][key]["accuracy"] for key in own] for run in runs for seed in run.by_seed], 0)
        return Point(values, cases, balanced_interval(right, [truths[key] for key in own], whose))
    low, high = mean_interval(cases[scored, None], whose)
    return Point(values, cases, (float(low[0]), float(high[0])))


def _tests(points: dict[str, dict[int, Point]], patients: list[Hashable]) -> list[PairedTest]:
    tests = []
    for labels in sorted({labels for of_curve in points.values() for labels in of_curve}):
        having = [(name, of_curve[labels]) for name, of_curve in points.items() if labels in of_curve]
        for (one, mine), (other, theirs) in combinations(having, 2):
            if mine.cases is not None and theirs.cases is not None:
                every = mine.cases - theirs.cases
                scored = np.flatnonzero(~np.isnan(every))
                if not len(scored):
                    continue
                differences = every[scored]
                p = sign_flip_test(differences, [patients[k] for k in scored])
                tests.append(PairedTest(labels, one, other, float(differences.mean()), p, p))
    for test, corrected in zip(tests, holm([test.p for test in tests]), strict=True):
        test.corrected = corrected
    return tests


def _notes(runs: list[Run], points: dict[str, dict[int, Point]], metric: str) -> list[str]:
    notes = [f"Of {run.path}: {run.warning}." for run in runs if run.warning]
    names = {name for run in runs for name in run.settings}
    for name in sorted(names):
        values = list(dict.fromkeys(str(run.settings.get(name)) for run in runs))
        if len(values) > 1:
            notes.append(f"The runs differ in {name} ({', '.join(values)[:120]}), beside encoder and labels.")
    for labels in sorted({labels for of_curve in points.values() for labels in of_curve}):
        seeds = {name: sorted(one[labels].values) for name, one in points.items() if labels in one}
        if len(set(map(tuple, seeds.values()))) > 1:
            said = "; ".join(f"{name} {some}" for name, some in seeds.items())
            notes.append(f"With {labels} labels the seeds differ ({said}), and so may the labels that were used.")
    without = [name for name, one in points.items() if any(point.cases is None for point in one.values())]
    if without:
        notes.append(
            f"There are neither intervals nor tests of {metric} for {', '.join(without)}: metrics.json has no {metric} "
            "of single test tiles, since it is no mean over them, or the run is of an older version (train it again)."
        )
    lacking = max(
        (int(np.isnan(p.cases).sum()) for one in points.values() for p in one.values() if p.cases is not None),
        default=0,
    )
    if lacking:
        notes.append(f"Up to {lacking} test tiles have no {metric}, and are left out of its intervals and tests.")
    if any(p.interval is None and p.cases is not None for one in points.values() for p in one.values()):
        notes.append(f"Results of old do not tell the classes of test tiles, so {metric} has no interval; train again.")
    return notes


def _refuse_incomparable(first: Run, run: Run) -> None:
    if run.task != first.task:
        raise InputError(f"{first.path} is of task {first.task}, {run.path} of {run.task}; compare runs of one task.")
    if run.patients.keys() != first.patients.keys():
        common = len(run.patients.keys() & first.patients.keys())
        other = sorted(run.patients.keys() ^ first.patients.keys())[0]
        raise InputError(
            f"{run.path} was scored on {len(run.patients)} tiles and {first.path} on {len(first.patients)}, of which "
            f"{common} are the same and {other} is not; compare runs that were scored on the same tiles."
        )


def _settings(path: Path, task: str) -> dict[str, Any]:
    """Settings that shape a run of a task, by flat names; none where the file is missing."""
    if not path.is_file():
        return {}
    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name in _FREE or name in _IDLE or (name in _TASKS and name != task):
                continue
            if isinstance(value, dict):
                walk(value, f"{name}.")
            else:
                flat[name] = value

    try:
        content = read_config(path) or {}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    if isinstance(content, dict):
        walk(content, "")
    return flat


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}; name finished runs of downstream/train.py.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it is no object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); run its training again.") from error
    return content
