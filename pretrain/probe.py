"""Compare frozen encoders on labelled tiles.

    python pretrain/probe.py --encoder A.safetensors B.safetensors random:resnet18 \
        --data.labelled breakhis_200x --data.group malignant=DC,LC,MC,PC benign=A,F,TA,PT --out probes

For every encoder and set: kNN and linear accuracy, balanced accuracy and macro-F1 over folds that share no patient,
stain sensitivity, accuracy on restained tiles, and the IoU of nuclei of a linear head on every pixel. Written to
metrics.json, table.md and report.html in OUT; OUT/features holds what need not be computed again.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

try:
    import torch

    from histo.errors import InputError, writing
    from histo.files import written_whole
    from histo.revision import revision
    from histo.running.settings import as_yaml, read_settings, run_script
    from pretrain.candidates import Candidate, distinct_names, open_candidate
    from pretrain.comparison import COLUMNS, describe_split, markdown, write_report
    from pretrain.evaluation import Result, evaluate
    from pretrain.problems import Problem, Target, open_problems, read_groups
    from pretrain.restaining import Restaining, open_restaining
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")

FORMAT = 1
_SEVERAL = ("encoder", "seeds", "data.labelled", "data.group")


@dataclass
class DataSettings:
    """The tiles and what is to be told apart in them."""

    labelled: list[str] = field(default_factory=list)
    """sets of tiles: folders, shards or NAME:PATH; each is a table of its own"""
    target: Target = "label"
    """what is told apart: the column label, or the set that a tile comes from (organ of origin)"""
    group: list[str] = field(default_factory=list)
    """labels joined to classes: CLASS=LABEL,LABEL …; DC, LC, MC, PC, A, F, TA and PT are BreakHis' labels"""
    tiles: int = 20_000
    """tiles of a set, at most"""
    mpp: float | None = None
    """bring tiles to this µm/px and cut out their centre; null: resize whole tiles, whatever their scale"""


@dataclass
class ProbingSettings:
    """Which encoders, on what, and how."""

    encoder: list[str] = field(default_factory=list)
    """encoder files, random:NAME (random weights) or timm:NAME (published weights; needs download)"""
    data: DataSettings = field(default_factory=DataSettings)
    folds: int = 5
    """parts without a common patient; each is the test part once"""
    seeds: list[int] = field(default_factory=lambda: [0])
    """draws of the folds"""
    out: str = "probes"
    """folder of metrics.json, table.md and report.html"""
    tile_size: int | None = None
    """pixels a side that every encoder sees; null: what each was trained with, 224 for random weights"""
    k: int = 20
    """neighbours that vote"""
    stains: int = 5
    """stains that tiles are shown in"""
    stain_targets: str | None = None
    """tiles to whose stains others are normalised (Macenko); null: stains drawn from the seed"""
    pixels: bool = True
    """train the per-pixel head on sets with instance maps, which must be of nuclei"""
    pixel_crop: int = 256
    """pixels a side, at most, of the centre of a tile that the per-pixel head sees, at the tile's own scale"""
    norm: Literal["group", "own"] = "own"
    """normalisation layers of random:NAME"""
    download: bool = False
    """fetch the weights that timm publishes"""
    seed: int = 0
    """seed of random weights, of the stains, and of tiles where there are too many"""

    def __post_init__(self) -> None:
        least = (("folds", 2), ("k", 1), ("stains", 2), ("pixel_crop", 32), ("seed", 0))
        for name, lowest in least:
            if getattr(self, name) < lowest:
                raise InputError(f"--{name} is {getattr(self, name)}, expected {lowest} or more.")
        if self.tile_size is not None and not 32 <= self.tile_size <= 2048:
            raise InputError(f"--tile_size is {self.tile_size}, expected 32 to 2048 pixels.")
        if self.data.tiles < 4:
            raise InputError(f"--data.tiles is {self.data.tiles}, expected 4 or more.")
        for name, values in (("encoder", self.encoder), ("data.labelled", self.data.labelled), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                fault = "names one twice" if values else "is empty"
                raise InputError(f"--{name} {fault}, expected one or more different ones; see --help.")


def main(argv: list[str]) -> None:
    """Read the command line and compare."""
    request = read_settings(
        ProbingSettings,
        "pretrain/probe.py",
        "Compare frozen encoders: kNN, linear probe, stain sensitivity, nuclei of a per-pixel head.",
        _listed(argv),
    )
    settings = request.settings
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    opened = partial(
        open_candidate,
        norm=settings.norm,
        seed=settings.seed,
        download=settings.download,
        tile_size=settings.tile_size,
        device=device,
    )
    data = settings.data
    groups = read_groups(data.group)
    problems = open_problems(data.labelled, data.target, groups, data.mpp, data.tiles, settings.seed)
    candidates = [opened(named) for named in settings.encoder]
    if request.dry_run:
        print(as_yaml(settings))
        print("dry run: settings, encoders and sets are sound.")
        return
    out = Path(settings.out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "pretrain/probe.py", *argv])
    about = {
        "format": FORMAT,
        "command": command,
        "revision": revision(),
        "device": str(device),
        "groups": groups,
        "stains": _stains(settings, candidates[0]).said,
        "libraries": {name: version(name) for name in ("torch", "timm", "scipy")},
    }
    results = _compare(settings, candidates, problems, about, out)
    (table, notes) = markdown(results), "\n".join(f"- {note}" for note in _notes(results, problems))
    with writing(out / "table.md"), written_whole(out / "table.md") as file:
        file.write(f"{table}\n\n{notes}\n\n    {command}\n".encode())
    first = candidates[0]
    page = _notes(results, problems), _stains(settings, first), first.side, command
    write_report(out / "report.html", results, problems, *page)
    print(f"{table}\n\n{notes}\n\nMetrics: {out / 'metrics.json'} · report: {out / 'report.html'}")


def _compare(
    settings: ProbingSettings,
    candidates: list[Candidate],
    problems: list[Problem],
    about: dict[str, Any],
    out: Path,
) -> list[Result]:
    """All results, written after each, so that a long comparison loses nothing."""
    results: list[Result] = []
    for problem in problems:
        for name, candidate in zip(distinct_names(candidates), candidates, strict=True):
            print(f"{name} on {problem.name} …", file=sys.stderr, flush=True)
            results.append(
                evaluate(
                    candidate,
                    name,
                    problem,
                    _stains(settings, candidate),
                    settings.folds,
                    settings.seeds,
                    settings.k,
                    settings.pixel_crop if settings.pixels else None,
                    out / "features",
                )
            )
            content = {
                **about,
                "encoders": {
                    name: {**each.facts, "tile_size": each.side}
                    for name, each in zip(distinct_names(candidates), candidates, strict=True)
                },
                "sets": {each.name: each.facts for each in problems},
                "results": [_plain(each) for each in results],
            }
            with writing(out / "metrics.json"), written_whole(out / "metrics.json") as file:
                file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return results


def _plain(result: Result) -> dict[str, Any]:
    return {
        "encoder": result.encoder,
        "set": result.problem,
        "figures": result.figures,
        "split": result.split,
        "left_out": result.left_out,
        "seconds": {name: round(value, 2) for name, value in result.seconds.items()},
    }


def _stains(settings: ProbingSettings, candidate: Candidate) -> Restaining:
    return open_restaining(settings.stain_targets, settings.stains, settings.seed, candidate.side)


def _notes(results: list[Result], problems: list[Problem]) -> list[str]:
    """How each set was split, and what is known against it."""
    notes = []
    for problem in problems:
        own = next(result for result in results if result.problem == problem.name)
        notes += [describe_split(own, problem), *problem.notes]
        notes += [f"{problem.name}: no {COLUMNS.get(name, name)}, as {why}." for name, why in own.left_out.items()]
    return notes


def _listed(argv: list[str]) -> list[str]:
    """The command line with `--encoder A B` as `--encoder [A, B]`, for all settings that take several values."""
    made: list[str] = []
    values: list[str] | None = None
    for token in [*argv, "--"]:
        if values is not None and not token.startswith("--"):
            values.append(token)
            continue
        if values is not None:
            single = len(values) == 1 and values[0].startswith("[")
            made.append(values[0] if single else json.dumps([_value(made[-1], text) for text in values]))
            values = None
        made.append(token)
        if token.removeprefix("--") in _SEVERAL:
            values = []
    return made[:-1]


def _value(flag: str, text: str) -> Any:
    return int(text) if flag == "--seeds" and text.isdecimal() else text


if __name__ == "__main__":
    run_script(main)
