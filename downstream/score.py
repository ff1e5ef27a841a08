"""Score predictions against labels.

    python downstream/score.py PRED LABELS [--metric aji,pq]

PRED is a folder that downstream/predict.py wrote, or label maps of another program. LABELS are tiles with their masks
or labels (tiles.csv, shards, NAME:PATH), a plain folder of label maps, or of bags also a slides.csv; names without
suffix must be the same. A table is printed; scores.json and report.html go to PRED.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

try:
    from downstream.cases import SHOWN, extremes, side_by_side
    from downstream.predictions import LABELS, TABLE
    from downstream.scoring import Scored, score_classes, score_nuclei, score_regions
    from downstream.truths import labelled_bags, match_maps, open_truth, read_note
    from downstream.type_names import refuse_other_labels
    from histo.encoders.files import libraries, write_text
    from histo.errors import InputError, writing
    from histo.metrics import EMPTY_TILES
    from histo.metrics.regions import ABSENT_CLASSES
    from histo.revision import revision
    from histo.running.report import Report
    from histo.running.settings import as_yaml, read_settings, run_script
    from histo.tiles import is_described, open_tiles
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")

FORMAT = 1
# Of a card, as tasks.
KINDS = {
    "instances": "instances",
    "regions": "segment",
    "classifier": "classify",
    "similarity": "classify",
    "bag classifier": "mil",
}
POLICIES = {"instances": EMPTY_TILES, "segment": ABSENT_CLASSES}


@dataclass
class ScoreSettings:
    """What is scored, and how."""

    predictions: str | None = None
    """folder of the predictions; the same as naming it first"""
    labels: str | None = None
    """labelled tiles or a folder of label maps; the same as naming it second"""
    task: Literal["instances", "segment", "classify", "mil"] | None = None
    """what the predictions are; null: as predict.py noted"""
    metric: list[str] | str | None = None
    """only these scores by their names, and those whose names go on with _ (dice: also dice_CLASS); null: all"""
    split: str | None = None
    """only the tiles of this split; predictions of other splits are then passed over"""
    group: list[str] = field(default_factory=list)
    """of classify and mil: labels joined to classes, CLASS=LABEL,LABEL …, as in the training"""
    classes: list[str] | None = None
    """of segment: names of the values 0, 1, …; null: as predict.py noted"""
    ignore: int | None = None
    """of segment: value of the labels that is not scored; null: as predict.py noted"""
    mpp: float | None = None
    """µm/px of all labels, before what tiles.csv, shards or image files say, for detection_f1; null: as these say"""
    out: str | None = None
    """folder of scores.json and report.html; null: that of the predictions"""

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0.01 <= self.mpp <= 100:
            raise InputError(f"--mpp is {self.mpp}, expected µm/px between 0.01 and 100.")


def main(argv: list[str]) -> None:
    """Read the command line and score."""
    places = [token for k, token in enumerate(argv) if not any(one.startswith("--") for one in argv[: k + 1])]
    if len(places) not in (0, 2):
        raise InputError(f"{len(places)} folder(s) were named first, expected PRED and LABELS.")
    named = [
        part for name, place in zip(("predictions", "labels"), places, strict=False) for part in (f"--{name}", place)
    ]
    request = read_settings(
        ScoreSettings,
        "downstream/score.py PRED LABELS",
        "Score predictions against labels.",
        named + argv[len(places) :],
    )
    settings = request.settings
    if settings.predictions is None or settings.labels is None:
        raise InputError("Nothing to score was named; give the folder of predictions and the labels first of all.")
    folder = Path(settings.predictions)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected the predictions, such as predict.py writes.")
    note = read_note(folder)
    task = _task(settings, folder, note)
    if request.dry_run:
        print(as_yaml(settings))
        print(f"dry run: settings are sound. Predictions of task {task}.")
        return
    scored = _chosen(_scored(settings, folder, note, task), settings.metric)
    out = Path(settings.out) if settings.out else folder
    facts = {
        "task": task,
        "predictions": str(folder),
        "labels": settings.labels,
        "split": settings.split or "all",
        "tiles": len(scored.cases),
        **scored.facts,
        "network": (note.get("network") or {}).get("file", "unknown"),
    }
    notes = [*note.get("notes", []), *scored.notes]
    content = {
        "format": FORMAT,
        "scores": scored.scores,
        "intervals": scored.intervals,
        "cases": scored.cases,
        "classes": scored.names,
        "confusion": scored.confusion,
        "facts": facts,
        "notes": notes,
        "empty_tiles": EMPTY_TILES if task == "instances" else None,
        "absent_classes": ABSENT_CLASSES if task == "segment" else None,
        "command": shlex.join(["python", "downstream/score.py", *argv]),
        "revision": revision(),
        "libraries": libraries(),
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / "scores.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _report(scored, facts, notes, task).save(out / "report.html")
    print(_table(scored, notes, task))
    print(f"Scores: {out / 'scores.json'}   Report: {out / 'report.html'}")


def _task(settings: ScoreSettings, folder: Path, note: dict[str, Any]) -> str:
    noted = KINDS.get(str(note.get("kind")))
    if settings.task is not None and noted is not None and settings.task != noted:
        raise InputError(f"--task is {settings.task}, but {folder} holds predictions of task {noted}; leave it out.")
    found = settings.task or noted or ("classify" if (folder / TABLE).is_file() else None)
    if found is None:
        raise InputError(
            f"{folder} has no predict.json that says what its maps are; give --task instances or --task segment."
        )
    return found


def _scored(settings: ScoreSettings, folder: Path, note: dict[str, Any], task: str) -> Scored:
    assert settings.labels is not None
    if settings.group and task not in ("classify", "mil"):
        raise InputError(f"--group joins labels of tiles and does not go with task {task}; leave it out.")
    if (settings.classes is not None or settings.ignore is not None) and task != "segment":
        raise InputError(f"--classes and --ignore are of task segment and do not go with {task}; leave them out.")
    if task == "mil":
        bags = labelled_bags(settings.labels, settings.split, settings.group)
        scored = score_classes(folder / TABLE, bags, settings.split, [], settings.labels)
        scored.draw = lambda _: None  # no single tile shows a bag
        return scored
    if task == "classify":
        if not is_described(settings.labels):
            raise InputError(f"{settings.labels} has no tiles.csv with labels; name labelled tiles.")
        tiles = open_tiles(settings.labels, mpp=settings.mpp, cache_mb=0)
        return score_classes(folder / TABLE, tiles, settings.split, settings.group, settings.labels)
    types = note.get("types") or ()
    refuse_other_labels(types, str(folder), settings.labels, str(folder / LABELS))
    truths, others = open_truth(settings.labels, settings.split, settings.mpp)
    files = match_maps(folder, truths, others, settings.labels)
    if task == "instances":
        return score_nuclei(truths, files, types)
    classes = settings.classes or note.get("classes")
    if not classes or len(classes) < 2:
        raise InputError("The classes of the maps are not known; give --classes [background,NAME], from value 0 on.")
    ignore = note.get("ignore") if settings.ignore is None else settings.ignore
    return score_regions(truths, files, list(classes), ignore)


def _chosen(scored: Scored, metric: list[str] | str | None) -> Scored:
    """Only the scores that were asked for."""
    if metric is None:
        return scored
    wanted = metric.split(",") if isinstance(metric, str) else metric
    kept: dict[str, float | None] = {}
    for one in wanted:
        some = {name: value for name, value in scored.scores.items() if name == one or name.startswith(f"{one}_")}
        if not some:
            raise InputError(f"There is no score {one!r}; expected some of {'; '.join(scored.scores)}.")
        kept |= some
    scored.scores = kept
    scored.intervals = {name: ends for name, ends in scored.intervals.items() if name in kept}
    return scored


def _rows(scored: Scored) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name, value in scored.scores.items():
        ends = scored.intervals.get(name)
        rows.append([name, value, "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"])
    return rows


def _table(scored: Scored, notes: list[str], task: str) -> str:
    width = max(map(len, scored.scores))
    lines = [
        f"  {name:<{width}}  {'–' if value is None else f'{value:.4f}':<7} {ends}"
        for name, value, ends in _rows(scored)
    ]
    lines.append("  (95 % bootstrap intervals of means over tiles, by patient where known)")
    lines += [f"note: {sentence}" for sentence in notes]
    if task in POLICIES:
        lines.append(POLICIES[task])
    return "\n".join(lines)


def _report(scored: Scored, facts: dict[str, Any], notes: list[str], task: str) -> Report:
    report = Report(f"Scores of task {task}", f"{facts['predictions']} against {facts['labels']}")
    report.heading("How good they are")
    report.table(
        ["score", "value", "95 % interval"], _rows(scored), "Bootstrap of means over tiles, by patient where known."
    )
    report.text(*notes)
    if task in POLICIES:
        report.text(POLICIES[task])
    if scored.confusion:
        unit = {"segment": "pixels", "mil": "bags"}.get(task, "images")
        report.heading("Which classes are taken for which")
        report.matrix(scored.names, scored.confusion, f"Number of {unit}, and share of the true class.")
    chosen = {name: case[scored.chosen] for name, case in scored.cases.items()}
    drawn = {
        (kind, name): picture for kind, name in extremes(chosen, SHOWN) if (picture := scored.draw(name)) is not None
    }
    if drawn:
        report.heading("The worst and the best tiles")
        report.text(*filter(None, [scored.legend]))
    said = {one: f"{one[1]}, {scored.chosen} {chosen[one[1]]:.3f}" for one in drawn}
    if task != "classify":
        for one, picture in drawn.items():
            report.picture(picture, f"{one[0]}: {said[one]}")
    else:
        for kind in dict.fromkeys(kind for kind, _ in drawn):
            some = [one for one in drawn if one[0] == kind]
            report.picture(
                side_by_side([drawn[one] for one in some]), f"{kind}: {'; '.join(said[one] for one in some)}"
            )
    report.heading("What they rest on")
    report.facts(facts)
    return report


if __name__ == "__main__":
    run_script(main)
