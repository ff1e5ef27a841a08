"""Score generated tissue against real tissue.

    python translate/score.py REAL GENERATED --features inception --weights inception_v3.pth
    python translate/score.py RUN --features path/to/encoder.safetensors

REAL and GENERATED are folders of tiles or of shards. RUN is a finished run of translate/train.py by any method: its
generator renders masks of the run in fresh styles, or translates its source tissue, beside crops of tiles it never
learned from. The scores are printed and written with everything they depend on to scores.json, those of a run also to
its TensorBoard as score/….
"""

import json
import os
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

try:
    import torch

    from histo.errors import InputError, writing
    from histo.features import Extractor, open_extractor
    from histo.revision import revision
    from histo.running.locks import FolderLock
    from histo.running.settings import as_yaml, read_settings, run_script
    from histo.running.tracking import add_scalars
    from histo.tiles import Tiles, TileSet, open_tiles
    from translate.comparison import Score, SetSums, batches, compare_sets, describe, score_generator
    from translate.domains import open_domains
    from translate.fidelity import refuse_few
    from translate.rendering import FinishedRun, TissueDraws, has_styles, open_run, render, source_draws
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")

FORMAT = 1


@dataclass
class ScoreSettings:
    """What is scored, and by which features."""

    run: str | None = None
    """run folder of translate/train.py; the same as naming it first"""
    real: list[str] | str | None = None
    """folder of real tiles or of shards, several as [a, b]; the same as naming it first"""
    generated: list[str] | str | None = None
    """folder of generated tiles; the same as naming it second"""
    features: str = "inception"
    """feature extractor: inception (2048 features; needs weights or download), timm:NAME, or an encoder file"""
    weights: str | None = None
    """state dict for inception or timm:NAME, .safetensors or .pth; null: timm:NAME has random weights"""
    download: bool = False
    """fetch the weights that torchvision or timm publish"""
    force: bool = False
    """give a FID even from fewer images than features"""
    images: int = 2048
    """tiles drawn by a run's generator, and real crops beside them"""
    kid_subset: int = 1000
    """images in a subset of KID; fewer where there are fewer"""
    kid_subsets: int = 100
    """subsets of KID; one where a subset holds all images"""
    split: str | None = None
    """keep only the tiles of this split of REAL; a run is scored on its own held-out split"""
    mpp: float | None = None
    """µm/px of REAL and GENERATED, before what tiles.csv, shards or image files say; noted with the scores"""
    on_bad: Literal["error", "skip"] = "error"
    """broken files: stop, or leave them out and count them"""
    precision: Literal["bf16", "fp32"] = "fp32"
    """arithmetic of the networks"""
    batch_size: int = 32
    """images at a time"""
    out: str | None = None
    """file of the scores; null: scores.json in the run folder, or in the current one for two folders"""
    seed: int = 0
    """seed of masks, styles and crops, of KID's subsets, and of random weights"""

    def __post_init__(self) -> None:
        for name, least in (("images", 2), ("kid_subset", 2), ("kid_subsets", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} is {getattr(self, name)}, expected {least} or more.")


def main(argv: list[str]) -> None:
    """Read the command line and score a run or two folders."""
    request = read_settings(
        ScoreSettings,
        "translate/score.py REAL GENERATED | RUN",
        "Score generated tissue against real tissue: FID, KID, stains; of a run also content and diversity.",
        _named(argv),
    )
    settings = request.settings
    _check_places(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = open_extractor(
        settings.features,
        weights=Path(settings.weights) if settings.weights else None,
        download=settings.download,
        seed=settings.seed,
        device=device,
        precision=settings.precision,
    )
    if request.dry_run:
        print(as_yaml(settings))
        print(f"dry run: settings and features are sound. {describe(extractor.facts)}.")
        return
    if settings.run is None:
        scores, sets = score_folders(settings, extractor)
        target = Path(settings.out or "scores.json")
    else:
        lock = FolderLock(Path(settings.run))
        try:
            run = open_run(Path(settings.run), device)
            scores, sets = score_run(run, settings, extractor, device)
            values = {f"score/{name}": score.value for name, score in scores.items() if score.value is not None}
            add_scalars(run.folder.path, int(run.card["images_seen"]), values)
        finally:
            lock.release()
        target = Path(settings.out) if settings.out else run.folder.path / "scores.json"
    facts = {
        **sets,
        "seed": settings.seed,
        "command": shlex.join(["python", "translate/score.py", *argv]),
        "revision": revision(),
        "libraries": {name: version(name) for name in ("torch", "torchvision", "timm")},
    }
    _write(target, scores, facts)
    print(_table(scores, sets, extractor))
    print(f"Scores: {target}")


def score_folders(settings: ScoreSettings, extractor: Extractor) -> tuple[dict[str, Score], dict[str, Any]]:
    """FID, KID and stain fidelity of two sets of tiles, and what is known of the sets."""
    assert settings.real is not None
    assert settings.generated is not None
    tiles: dict[str, TileSet] = {
        name: open_tiles(paths, mpp=settings.mpp, split=split, on_bad=settings.on_bad, cache_mb=0)
        for name, paths, split in (
            ("real", settings.real, settings.split),
            ("generated", settings.generated, None),
        )
    }
    refuse_few(len(tiles["real"]), len(tiles["generated"]), extractor.width, settings.force)
    sums = {}
    for name, members in tiles.items():
        sums[name] = SetSums(extractor, settings.seed)
        for indices in batches(len(members), settings.batch_size, name, progress=True):
            images = [torch.from_numpy(members[k].image.copy()) for k in indices]
            same = len({image.shape for image in images}) == 1
            sums[name].add(torch.stack(images) if same else images, indices)
    scores = compare_sets(sums["real"], sums["generated"], settings.kid_subset, settings.kid_subsets, settings.seed)
    about = {
        name: {
            "images": sums[name].count,
            "split": settings.split if name == "real" else None,
            **_about(members, sums[name]),
            "skipped": len(members.bad),
        }
        for name, members in tiles.items()
    }
    return scores, about


def score_run(
    run: FinishedRun, settings: ScoreSettings, extractor: Extractor, device: torch.device
) -> tuple[dict[str, Score], dict[str, Any]]:
    """All scores that a run's networks allow, and what is known of the real and the generated set."""
    refuse_few(settings.images, settings.images, extractor.width, settings.force)
    data, seed, mpp = run.recipe.data, settings.seed, run.card.get("mpp")
    domains = open_domains(data, run.recipe.seed, run.folder.path / "pseudo-masks", progress=True)
    held_out = len(domains.target.holdout) > 0
    tiles = domains.target.seen
    real, generated = SetSums(extractor, seed), SetSums(extractor, seed)
    crops = TissueDraws(tiles, data, seed)
    for indices in batches(settings.images, settings.batch_size, "real", progress=True):
        real.add(crops(indices), indices)
    scores = score_generator(
        lambda source, stream, indices: render(run.generator, source, seed, stream, indices),
        run.reader,
        source_draws(domains, data, seed, mpp),
        generated,
        settings.images,
        batch=settings.batch_size,
        device=device,
        autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"),
        styles=has_styles(run.generator),
    )
    scores = compare_sets(real, generated, settings.kid_subset, settings.kid_subsets, seed) | scores
    split = data.holdout if held_out else "none held out: tiles that were learned from"
    about = {
        "real": {"images": real.count, "tiles": min(len(tiles), real.count), "split": split, **_about(tiles, real)},
        "generated": {
            "images": generated.count,
            "method": run.recipe.method,
            ("source" if data.between_tissues else "masks"): domains.origin,
            "images_seen": run.card["images_seen"],
            "sizes": _sizes(generated),
            "mpp": mpp,
        },
        "left_out": _left_out(run, scores),
    }
    return scores, about


def _left_out(run: FinishedRun, scores: dict[str, Score]) -> dict[str, str]:
    """Scores that this run does not allow, and why."""
    reasons = {
        "content_segmenter": "the run learned no network that finds nuclei in what it draws"
        if run.reader is None
        else "the source has neither labels nor known µm/px",
        "content_watershed": "the µm/px are unknown",
        "diversity": "the generator has no styles",
    }
    return {name: why for name, why in reasons.items() if not any(score.startswith(name) for score in scores)}


def _named(argv: list[str]) -> list[str]:
    """The command line with names for the folders that come first."""
    places = [token for k, token in enumerate(argv) if not any(t.startswith("--") for t in argv[: k + 1])]
    names = {1: ("run",), 2: ("real", "generated")}.get(len(places), ())
    if places and not names:
        raise InputError(f"{len(places)} folders were named, expected RUN alone, or REAL and GENERATED.")
    named = [part for name, place in zip(names, places, strict=True) for part in (f"--{name}", place)]
    return argv[len(places) :] + named


def _check_places(settings: ScoreSettings) -> None:
    """One run, or two sets of tiles; and a place to write to, before anything takes time."""
    if settings.run is None and (settings.real is None or settings.generated is None):
        raise InputError("Nothing to score was named; give a run folder, or REAL and GENERATED, first of all.")
    if settings.run is not None:
        for name in ("real", "generated", "split", "mpp"):
            if getattr(settings, name) is not None:
                raise InputError(f"--{name} does not go with a run folder, which has its own; leave it out.")
        if not Path(settings.run).is_dir():
            raise InputError(f"{settings.run} is no folder; expected a run folder, or REAL and GENERATED.")
    if settings.out is not None and not Path(settings.out).resolve().parent.is_dir():
        raise InputError(f"--out {settings.out} lies in a folder that does not exist; make it, or name another.")


def _about(tiles: Tiles, sums: SetSums) -> dict[str, Any]:
    known = {entry.mpp for entry in tiles.entries} if isinstance(tiles, TileSet) else {tiles[0].mpp}
    return {"tissue": tiles.describe(), "sizes": _sizes(sums), "mpp": sorted(mpp for mpp in known if mpp is not None)}


def _sizes(sums: SetSums) -> list[str]:
    """Height x width of the images, a few of them."""
    return [f"{height} x {width} px" for height, width in sorted(sums.sizes)[:10]]


def _table(scores: dict[str, Score], sets: dict[str, Any], extractor: Extractor) -> str:
    """The scores and what they rest on, for people."""
    real, generated = sets["real"], sets["generated"]
    lines = [
        f"  real       {real['images']} images ({', '.join(real['sizes'])}), split {real['split']}: {real['tissue']}",
        f"  generated  {generated['images']} images ({', '.join(generated['sizes'])})",
        f"  features   {describe(extractor.facts)}",
        "",
    ]
    for name, score in scores.items():
        value = "none" if score.value is None else f"{score.value:.5g}"
        spread = score.facts.get("deviation")
        value += f" ± {spread:.2g} over subsets" if spread is not None else ""
        lines.append(f"  {name:<24}{value}   {score.unit}")
    lines += [f"  {name:<24}left out: {why}" for name, why in sets.get("left_out", {}).items()]
    fewest = min(real["images"], generated["images"])
    if fewest < extractor.width:
        lines.append(f"note: FID from {fewest} images for {extractor.width} features is too high to be reported.")
    if extractor.origin.startswith("random"):
        lines.append("note: these features have random weights; compare only with scores of the same SHA-256.")
    if real["sizes"] != generated["sizes"]:
        lines.append("note: real and generated images differ in size; resizing hides a difference in scale.")
    return "\n".join(lines)


def _write(path: Path, scores: dict[str, Score], facts: dict[str, Any]) -> None:
    content = {
        "format": FORMAT,
        "scores": {name: {"value": score.value, "unit": score.unit, **score.facts} for name, score in scores.items()},
        **facts,
    }
    aside = path.with_name(f"{path.name}.tmp")
    with writing(path):
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, path)


if __name__ == "__main__":
    run_script(main)
