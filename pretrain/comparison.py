"""The results of a comparison of encoders, for people: one table and one page."""

from pathlib import Path
from typing import Any

import numpy as np

from histo.running.report import Report
from pretrain.evaluation import Result
from pretrain.problems import Problem
from pretrain.restaining import Restaining

COLUMNS = {
    "knn_accuracy": "kNN accuracy",
    "knn_balanced_accuracy": "kNN balanced",
    "knn_macro_f1": "kNN macro-F1",
    "linear_accuracy": "linear accuracy",
    "linear_balanced_accuracy": "linear balanced",
    "linear_macro_f1": "linear macro-F1",
    "restained_accuracy": "linear, restained",
    "stain_cosine": "stain cosine distance",
    "stain_ratio": "stain / tile distance",
    "effective_rank": "effective rank",
    "nuclei_iou": "nuclei IoU",
}
ROWS = 4  # tiles that the page shows in all stains


def markdown(results: list[Result]) -> str:
    """Results as a Markdown table: mean ± standard deviation over folds and seeds."""
    header, rows = table(results)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(results: list[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; columns that no result has are left out."""
    present = [name for name in COLUMNS if any(name in result.values for result in results)]
    header = ["encoder", "set", *(COLUMNS[name] for name in present)]
    rows = [
        [result.encoder, result.problem, *(_shown(result.figures.get(name)) for name in present)] for result in results
    ]
    return header, rows


def describe_split(result: Result, problem: Problem) -> str:
    """One sentence on the parts that a result rests on."""
    facts = problem.facts
    said = [f"{problem.name}: {facts['tiles']} tiles"]
    if facts["classes"]:
        said.append(", ".join(f"{name} {number}" for name, number in facts["classes"].items()))
    said.append(f"{facts['patients']} patients" if facts["patients"] else "patients unknown")
    split = result.split.get("classification")
    if split is not None:
        seeds = ", ".join(map(str, split["seeds"]))
        low, high = min(split["test_tiles"]), max(split["test_tiles"])
        said.append(
            f"{split['folds']} folds disjoint by {split['disjoint_by']}, seeds {seeds}, {low}–{high} test tiles"
        )
        parted = split.get("near_duplicates", {}).get("share_of_tiles_parted_by_folds", 0)
        if parted:
            said.append(
                f"{parted:.0%} of the tiles or more have a near-duplicate in another fold, so accuracies are too high"
            )
    nuclei = result.split.get("nuclei")
    if nuclei is not None:
        said.append(f"nuclei: {nuclei['tiles']} tiles, {nuclei['folds']} folds of patients, {nuclei['crop']}")
    mpp = facts["mpp"]
    said.append(f"{', '.join(f'{value:g}' for value in mpp)} µm/px" if mpp else "µm/px unknown")
    said.append(f"resized {facts['resized']}")
    return "; ".join(said) + "."


def write_report(
    path: Path,
    results: list[Result],
    problems: list[Problem],
    notes: list[str],
    restaining: Restaining,
    side: int,
    command: str,
) -> None:
    """The page: table, splits and flaws, and what restaining does to some tiles of each set.

    Raises:
        InputError: the place cannot be written.
    """
    report = Report("Encoders compared", "frozen features; mean ± standard deviation over folds and seeds")
    report.table(*table(results))
    report.heading("What the figures rest on")
    report.text(*notes)
    report.text(
        "The linear probe is logistic regression on standardised features, solved to its optimum, its penalty chosen "
        "by patients held out of the training part. Restained: the layer learned on tiles as they are reads test tiles "
        "in every stain. Stain cosine distance: between embeddings of one tile in two stains; divided by that of two "
        "tiles in one stain it does not depend on how crowded the embeddings are."
    )
    report.heading("Tiles as they are, and restained")
    for problem in problems:
        places = np.linspace(0, len(problem.positions) - 1, ROWS).round().astype(int)
        chosen = problem.images(side)[sorted(set(places.tolist()))]
        made = restaining(chosen)
        rows = [
            np.concatenate([_picture(each) for each in (image, *made.images[:, k])], axis=1)
            for k, image in enumerate(chosen)
        ]
        report.picture(np.concatenate(rows, axis=0), f"{problem.name}: first as it is, then in each stain")
    report.heading("Command")
    report.text(command)
    report.save(path)


def _picture(image: Any) -> Any:
    return image.permute(1, 2, 0).numpy()


def _shown(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "–"
    digits = 1 if figure["mean"] >= 10 else 3 if figure["mean"] >= 0.01 else 5
    spread = "" if figure["sd"] is None else f" ± {figure['sd']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{spread}"
