"""The page a translation run ends with: final figures on held-out tiles, curves, panels, facts."""

from dataclasses import dataclass
from pathlib import Path

import torch

from histo.running.report import Report
from histo.running.runs import RunFolder
from histo.running.settings import as_yaml
from histo.running.tracking import read_log
from histo.tiles import Tile
from translate.agreement import Probe, score_held_out, score_teacher
from translate.domains import Domains
from translate.engine import Translator
from translate.export import revision
from translate.panels import draw_panels
from translate.recipe import Recipe

MOST_TILES = 200
METRICS = ("dice", "aji", "pq")


@dataclass(frozen=True)
class Summary:
    """Where the report is, the final scores by name, and one sentence for the terminal."""

    path: Path
    scores: dict[str, float]
    sentence: str


def write_report(run: RunFolder, recipe: Recipe, domains: Domains, probe: Probe, translator: Translator) -> Summary:
    """Score S on held-out tiles beside the untrained S and its watershed teacher, and write RUN/report.html."""
    labelled = [tile for tile in _some(domains) if tile.instances is not None]
    scores: dict[str, float] = {}
    if labelled:
        scores |= score_held_out(labelled, translator, "final/segmenter")
        scores |= score_held_out(labelled, Translator(recipe, translator.accelerator), "final/untrained")
        scores |= score_teacher(labelled, "final/watershed")
    report = Report("Translation: nucleus masks ⇄ tissue", f"{translator.images} images seen · {run.path}")
    sentence = _sentence(scores, len(labelled))
    report.text(sentence)
    if scores:
        report.table(
            ["on held-out tiles", "Dice", "AJI", "PQ"],
            [
                [name, *(_figure(scores.get(f"final/{key}_{metric}")) for metric in METRICS)]
                for key, name in (
                    ("untrained", "S before training"),
                    ("segmenter", "S"),
                    ("watershed", "watershed, its teacher's method"),
                )
            ],
            f"Mean over {len(labelled)} tiles of split {recipe.data.holdout!r}, never trained on; "
            f"seed {recipe.seed}; µm/px {_magnifications(labelled)}.",
        )
    for name, picture in draw_panels(probe, translator).items():
        report.picture(picture, name.replace("_", " "))
    _curves(report, run.path)
    report.facts(
        {
            **domains.facts,
            "seed": str(recipe.seed),
            "nucleate revision": revision() or "unknown",
            "torch": torch.__version__,
            "command": f"python translate/train.py --config {run.config} --run.dir {run.path}",
        }
    )
    report.text("All settings:")
    report.text(as_yaml(recipe))
    path = run.path / "report.html"
    report.save(path)
    return Summary(path, scores, sentence)


def _some(domains: Domains) -> list[Tile]:
    count = min(MOST_TILES, len(domains.holdout))
    return [domains.holdout[k * len(domains.holdout) // count] for k in range(count)]


def _sentence(scores: dict[str, float], tiles: int) -> str:
    if not scores:
        return "No labelled tiles were held out, so S could not be compared with labels."
    mine, before = scores["final/segmenter_dice"], scores["final/untrained_dice"]
    text = f"S reaches a Dice of {mine:.3f} on {tiles} held-out tiles, from {before:.3f} untrained"
    teacher = scores.get("final/watershed_dice")
    return text + (f"; its watershed teacher has {teacher:.3f}." if teacher is not None else ".")


def _curves(report: Report, folder: Path) -> None:
    records = read_log(folder)
    for group, title in (
        ("loss/", "Loss terms, unweighted"),
        ("content/", "Content agreement"),
        ("holdout", "S against labels on held-out crops"),
        ("speed/images", "Images per second"),
    ):
        names = sorted({name for record in records for name in record if name.startswith(group)})
        lines = {
            name.partition("/")[2] or name: (
                [record["images"] for record in records if name in record],
                [record[name] for record in records if name in record],
            )
            for name in names
        }
        if lines:
            report.curves(title, lines, "images seen")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _magnifications(tiles: list[Tile]) -> str:
    known = sorted({tile.mpp for tile in tiles if tile.mpp is not None})
    return ", ".join(f"{mpp:g}" for mpp in known) or "unknown"
