"""The page a translation run ends with: final figures on held-out tiles, curves, panels, facts."""

from dataclasses import dataclass
from pathlib import Path

import torch

from histo.metrics import InstanceScores, mean_scores
from histo.revision import revision
from histo.running.report import Report
from histo.running.runs import RunFolder
from histo.running.settings import as_yaml
from histo.running.tracking import read_log
from histo.tiles import Tile, Tiles
from translate.agreement import METRICS, Probe, means, score_segmenter, score_watershed
from translate.best import CRITERION, Scored
from translate.domains import Domains
from translate.engine import Translator
from translate.methods import open_method
from translate.panels import draw_panels
from translate.recipe import Recipe

MOST_TILES = 200
NAMES = {"untrained": "S before training", "segmenter": "S", "watershed": "the watershed, its teacher"}


@dataclass(frozen=True)
class Summary:
    """Where the report is, the final scores by name, and one sentence for the terminal."""

    path: Path
    scores: dict[str, float]
    sentence: str


def write_report(
    run: RunFolder, domains: Domains, probe: Probe, translator: Translator, best: Scored | None = None
) -> Summary:
    """Score S on held-out tiles beside the untrained S and its watershed teacher, and write RUN/report.html.

    Args:
        best: the best checkpoint, where some were scored.
    """
    recipe = translator.recipe
    tiles = [tile for tile in _some(domains.target.holdout) if tile.instances is not None] if translator.reader else []
    scored: dict[str, list[InstanceScores]] = {}
    if tiles:
        scored["untrained"] = score_segmenter(tiles, open_method(recipe, translator.accelerator))
        scored["segmenter"] = score_segmenter(tiles, translator)
        if all(tile.mpp is not None for tile in tiles):
            scored["watershed"] = score_watershed(tiles)
    scores = {key: value for name, each in scored.items() for key, value in means(f"final/{name}", each).items()}
    domain = "tissue → other tissue" if recipe.data.between_tissues else "nucleus masks ⇄ tissue"
    report = Report(f"Translation: {domain} ({recipe.method})", f"{translator.images} images seen · {run.path}")
    sentence = _sentence(scores, len(tiles)) if translator.reader else "The method learns no segmenter."
    report.text(sentence)
    if tiles:
        report.heading("S on tiles it never learned from")
        _table(report, recipe, tiles, scored)
    if best is not None:
        report.heading("The best checkpoint")
        lies = "the last" if best.images == translator.images else f"exported to {run.best}"
        report.text(f"{best.sentence}; {lies}. Chosen by {CRITERION}. Scores rest on {best.basis}.")
        report.facts(dict(best.values))
    report.heading("What it draws and what it reads")
    for name, picture in draw_panels(probe, translator).items():
        report.picture(picture, name.replace("_", " "))
    report.heading("The course of the training")
    _curves(report, run.path)
    report.heading("How it was made")
    report.facts(
        {
            **domains.facts,
            "seed": str(recipe.seed),
            "nucleate revision": revision() or "unknown",
            "torch": torch.__version__,
        }
    )
    report.text(f"python translate/train.py --config {run.config}", as_yaml(recipe))
    path = run.path / "report.html"
    report.save(path)
    return Summary(path, scores, sentence)


def _table(report: Report, recipe: Recipe, tiles: list[Tile], scored: dict[str, list[InstanceScores]]) -> None:
    """A row for all tiles, and one for each source where there are several."""
    sources = list(dict.fromkeys(tile.source for tile in tiles))
    groups = {"all": list(range(len(tiles)))}
    if len(sources) > 1:
        groups |= {source: [k for k, tile in enumerate(tiles) if tile.source == source] for source in sources}
    rows = []
    for source, members in groups.items():
        for name, label in NAMES.items():
            if name in scored:
                average = mean_scores([scored[name][k] for k in members])
                rows.append([source, len(members), label, *(round(average[metric], 3) for metric in METRICS)])
    known = sorted({tile.mpp for tile in tiles if tile.mpp is not None})
    report.table(
        ["tiles of", "number", "nuclei by", "Dice", "AJI", "PQ"],
        rows,
        f"Mean over tiles of split {recipe.data.holdout!r}; seed {recipe.seed}; "
        f"µm/px {', '.join(f'{mpp:g}' for mpp in known) or 'unknown'}.",
    )


def _some(tiles: Tiles) -> list[Tile]:
    count = min(MOST_TILES, len(tiles))
    return [tiles[k * len(tiles) // count] for k in range(count)]


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
        ("ada/", "ADA: probability p of each augmentation; r, mean sign of D on real tissue"),
        ("content/", "Content agreement"),
        ("score/kid", "KID, with the deviation over its subsets"),
        ("score/stain", "Distance of stains to those of real tissue; optical density"),
        ("diversity/", "Diversity, as a share of that of real tissue"),
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
