"""The page a pretraining ends with: probe figures, curves, what was shown, facts."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from histo.running.report import Report
from histo.running.runs import RunFolder
from histo.running.settings import as_yaml
from histo.running.tracking import read_log
from pretrain.learner import Learner

CURVES = (
    ("probe/knn", "kNN on the labelled tiles"),
    ("probe/linear", "Linear probe on the labelled tiles"),
    ("probe/stain", "Stain sensitivity: distance between stains of one tile; 0 is blind to stain"),
    ("probe/effective_rank", "Effective rank of the features"),
    ("loss/", "Loss terms, unweighted"),
    ("embedding/", "Spread of the embeddings; 1 is even, 0 is collapse"),
    ("speed/images", "Images per second"),
)


def write_report(run: RunFolder, learner: Learner, basis: str | None) -> Path:
    """Write RUN/report.html; returns its path.

    Args:
        basis: what the probe's figures rest on; None where there was none.
    """
    recipe, records = learner.recipe, read_log(run.path)
    report = Report(
        f"Pretraining: {' + '.join(recipe.objectives)}", f"{learner.images} images seen · {learner.origin} · {run.path}"
    )
    probed = [record for record in records if any(name.startswith("probe/") for name in record)]
    if basis is not None and probed:
        report.heading("What a probe finds in it")
        names = [name for name in probed[-1] if name.startswith("probe/")]
        rows = [
            [name.removeprefix("probe/").replace("_", " "), probed[0].get(name), probed[-1][name]] for name in names
        ]
        report.table(["figure", f"at {probed[0]['images']} images", f"at {probed[-1]['images']}"], rows, basis)
    _pictures(report, run.path / "panels")
    report.heading("The course of the training")
    for group, title in CURVES:
        lines = {
            name.partition("/")[2]: (
                [record["images"] for record in records if name in record],
                [record[name] for record in records if name in record],
            )
            for name in sorted({name for record in records for name in record if name.startswith(group)})
        }
        if lines:
            report.curves(title, lines, "images seen")
    report.heading("How it was made")
    report.facts({**learner.pool.facts, "start": learner.origin, "seed": str(recipe.seed), "torch": torch.__version__})
    report.text(f"python pretrain/train.py --config {run.config}", as_yaml(recipe))
    path = run.path / "report.html"
    report.save(path)
    return path


def _pictures(report: Report, panels: Path) -> None:
    """The newest of each panel."""
    newest = {path.name.rpartition("-")[0]: path for path in sorted(panels.glob("*.png"))}
    if newest:
        report.heading("What it was shown, and how alike it finds it")
    for name, path in newest.items():
        with Image.open(path) as picture:
            report.picture(np.asarray(picture.convert("RGB")), name.replace("_", " "))
