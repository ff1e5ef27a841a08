"""Learn mask ⇄ tissue from unpaired tiles.

    accelerate launch -q translate/train.py --config configs/translate/tiny.yaml --data.tissue PATH --run.dir RUN

Without arguments it trains the tiny preset on phantom tissue into a new folder under runs/. Look at the run with
`tensorboard --logdir runs`, or at RUN/report.html when it is done.
"""

import os
import shutil
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

# OpenMP threads spin while they wait. With the long spin of libgomp a tiny step takes 0.42 s on two quiet cores and up
# to 12 s on busy ones; with none 0.65 s; with a short one 0.44 s and 1.5 s. libgomp reads this when torch loads it.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

try:
    import torch
    from accelerate import Accelerator
    from tqdm import tqdm

    from histo.errors import InputError, writing
    from histo.running import checkpoints
    from histo.running.alarms import Alarm
    from histo.running.checkpoints import Checkpoint
    from histo.running.loading import ImageClock, loader, sound_workers
    from histo.running.occupation import (
        chosen_folder,
        default_config,
        named_state,
        non_finite,
        occupied,
        taken_up,
    )
    from histo.running.pace import Pace, mean_losses, passed
    from histo.running.processes import anywhere, together
    from histo.running.runs import RunFolder, StopRequest
    from histo.running.settings import as_yaml, read_settings, run_script
    from histo.running.tracking import Tracker, read_log
    from translate.agreement import Probe, measure
    from translate.best import CRITERION, load_best, spared
    from translate.collapse import diversity, rule_of
    from translate.domains import Domains, open_domains
    from translate.engine import Batch, Translator
    from translate.export import export
    from translate.methods import asked_kind, open_method
    from translate.panels import draw_panels
    from translate.recipe import PRESET, Recipe
    from translate.scoring import TrainingScorer, training_extractor
    from translate.stream import UnpairedCrops
    from translate.summary import write_report
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")

ALARMS = ("content/segmenter_dice", "content/watershed_dice")


def main(argv: list[str]) -> None:
    """Read the command line and train, or with --dry_run say what would be trained."""
    with together():
        preset = default_config(argv, PRESET)
        request = read_settings(
            asked_kind(argv, preset),
            "translate/train.py",
            "Learn mask ⇄ tissue, or tissue → tissue, from unpaired tiles.",
            argv,
            preset,
        )
    recipe = request.settings
    accelerator = Accelerator(mixed_precision="bf16" if recipe.train.precision == "bf16" else "no")
    run = chosen_folder(recipe.run, "translate")
    if request.dry_run:
        run.refuse_other_settings(asdict(recipe), recipe.FIXED)
        run.state(recipe.run.resume)
        print(as_yaml(recipe))
        domains = open_domains(recipe.data, recipe.seed, None, progress=False)
        open_method(recipe, accelerator)
        if recipe.scores.every:
            training_extractor(recipe, accelerator)
        print(f"dry run: settings, data and networks are sound. Tissue: {domains.target.tiles.describe()}.")
        return
    if accelerator.is_main_process and request.configs == [PRESET] and "--config" not in argv:
        print(f"No --config given: training the preset {PRESET.stem} on {recipe.data.tissue} tissue into {run.path}.")
    with occupied(run, accelerator) as scratch:
        train(recipe, run, accelerator, scratch)


def train(recipe: Recipe, run: RunFolder, accelerator: Accelerator, scratch: Path) -> None:
    """Train until `train.images` tissue tiles were seen, from the start or from where the run folder stands.

    Args:
        scratch: a temporary folder for the loader's sockets.
    """
    # Process and run folder: the first process writes, all read
    first, stop = accelerator.is_main_process, StopRequest()
    checkpoint, damaged = taken_up(run, asdict(recipe), recipe.FIXED, recipe.run.resume, as_yaml(recipe), accelerator)

    # Data; the first process makes pseudo-masks, the others find them
    for turn in (first, not first):
        with together():
            if turn:
                domains = open_domains(recipe.data, recipe.seed, run.path / "pseudo-masks", progress=first)
                probe = Probe.draw(domains, recipe.data, recipe.seed)

    # Networks, from scratch or as they were
    untrained: dict[str, float] = {}
    with together():
        translator = open_method(recipe, accelerator)
        if checkpoint is not None:
            translator.restore(checkpoint)
            untrained = _scores(checkpoint)
        elif recipe.run.init is not None:
            translator.start_from(named_state("run.init", Path(recipe.run.init)))
        crops = UnpairedCrops(domains, recipe.data, recipe.seed, translator.needs_flows)
        clock = ImageClock(
            translator.images,
            recipe.train.images,
            recipe.train.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )
    iterator = iter(loader(crops, clock, recipe.data.workers, scratch))

    # Before the first step
    with together():
        tracker = Tracker(run.path, translator.images, enabled=first)
        scorer, watch = None, Alarm(rule_of)
        if first:
            if recipe.scores.every:
                scorer = TrainingScorer(domains, translator, probe.mpp, progress=True)
            print(_facts(recipe, run, domains, translator, checkpoint), flush=True)
            for sentence in damaged:
                tracker.warn(translator.images, sentence)
            if not untrained:
                untrained = measure(probe, translator)
            if translator.images == 0:
                tracker.scalars(0, untrained)
                tracker.message(0, f"source: {domains.origin}")
            past = read_log(run.path)
            if scorer is not None and not any(record.get("note") == f"scores: {scorer.basis}" for record in past):
                tracker.message(translator.images, f"scores: {scorer.basis}")
            watch = Alarm(rule_of, past)

    def save(scores: dict[str, Any] | None = None) -> None:
        if first:
            facts = {"untrained": untrained, "seed": recipe.seed} | ({"scores": scores} if scores else {})
            checkpoints.save(run.checkpoints, translator.checkpoint(facts), recipe.run.keep, spared)

    # Main loop: fetch, step, and what is due after it
    stop.listen()
    sums: dict[str, list[torch.Tensor]] = defaultdict(list)
    pace = Pace(translator.images)
    with tqdm(
        total=recipe.train.images, initial=translator.images, unit="img", disable=not first, smoothing=0.05
    ) as bar:
        while translator.images < recipe.train.images and not anywhere(bool(stop)):
            pace.waits(True)
            with together(), sound_workers():
                batch = Batch.of(next(iterator), accelerator.device)
            pace.waits(False)
            before = translator.images
            try:
                terms = translator.step(batch)
            except InputError as error:
                rate = translator.rates["translators"]
                raise InputError(non_finite(error, run, translator.images, recipe.train.batch_size, rate)) from error
            bar.update(translator.images - before)
            for name, value in terms.items():
                sums[name].append(value)
            with together():
                if passed(before, translator.images, recipe.train.log_every):
                    scalars = mean_losses(sums, accelerator)
                    scalars |= translator.scalars() | pace.scalars(translator.images)
                    tracker.scalars(translator.images, scalars)
                    sums.clear()
                    for sentence in watch(scalars) if first else ():
                        tracker.warn(translator.images, sentence)
                content: dict[str, float] | None = None
                if first and passed(before, translator.images, recipe.train.panel_every):
                    content = _look(probe, translator, tracker, untrained, watch, bar)
                scores = None
                last = translator.images >= recipe.train.images
                if scorer is not None and (last or passed(before, translator.images, recipe.scores.every)):
                    scores = _score(scorer, probe, translator, tracker, content)
                if scores or passed(before, translator.images, recipe.train.save_every):
                    save(scores)

    # Done, or asked to stop
    del iterator  # ends the loader's workers
    with together():
        save()
    if translator.images < recipe.train.images:
        tracker.close()
        if first:
            print(stop.sentence(translator.images, run.path), flush=True)
        return
    if first:
        _finish(run, domains, probe, translator, tracker)


def _finish(run: RunFolder, domains: Domains, probe: Probe, translator: Translator, tracker: Tracker) -> None:
    """Export the last networks, report, export the best ones too where they are others, and say where all is."""
    images, best = translator.images, load_best(run.checkpoints)
    last = checkpoints.facts_of(run.checkpoints).get(checkpoints.place(run.checkpoints, images), {})
    export(translator, probe.mpp, domains.facts, run.export, last.get("scores"))
    report = write_report(run, domains, probe, translator, best[1] if best else None)
    tracker.scalars(images, report.scores)
    tracker.close()
    if best is None or best[1].images == images:
        shutil.rmtree(run.best, ignore_errors=True)  # of an earlier end of this run
    else:
        translator.restore(best[0])
        with writing(run.best):
            run.best.mkdir(exist_ok=True)
        export(translator, probe.mpp, domains.facts, run.best, best[0].facts["scores"])
    for path, reason in domains.skipped:
        print(f"skipped {path}: {reason}")
    print(f"Done: {images} images. {report.sentence}")
    if best is not None:
        place = run.export if best[1].images == images else run.best
        print(f"Best: {best[1].sentence} ({CRITERION}).   Exports: {place}")
    print(f"Report: {report.path}   Exports: {run.export}")


def _scores(checkpoint: Checkpoint) -> dict[str, float]:
    """What untrained networks reached, as the checkpoint's facts say."""
    stored = checkpoint.facts.get("untrained")
    if not isinstance(stored, dict) or any(type(value) not in (int, float) for value in stored.values()):
        raise InputError(
            f"{checkpoint.path} does not say what untrained networks reached; resume from another checkpoint."
        )
    return stored


def _look(
    probe: Probe,
    translator: Translator,
    tracker: Tracker,
    untrained: dict[str, float],
    watch: Alarm,
    bar: tqdm,
) -> dict[str, float]:
    """Draw the panels, measure and return agreement; warn when nuclei are found worse than by untrained networks, and
    when translations hardly differ."""
    images = translator.images
    for name, picture in draw_panels(probe, translator).items():
        tracker.picture(images, name, picture)
    values = measure(probe, translator)
    apart = diversity(probe, translator)
    tracker.scalars(images, values | apart)
    if ALARMS[0] in values:
        bar.set_postfix_str(f"content Dice {values[ALARMS[0]]:.2f}")
    for name in ALARMS:
        if name in values and values[name] < untrained.get(name, 0.0):
            text = (
                f"{name} {values[name]:.3f} is below the untrained {untrained[name]:.3f} at {images} images: "
                "nuclei and background may be swapped or the mask hidden; look at the panels."
            )
            tracker.warn(images, text)
    for sentence in watch(apart):
        tracker.warn(images, sentence)
    return values


def _score(
    scorer: TrainingScorer,
    probe: Probe,
    translator: Translator,
    tracker: Tracker,
    content: dict[str, float] | None,
) -> dict[str, Any]:
    """Log the scores, with agreement where that was not measured just now, and return what a checkpoint keeps."""
    values = scorer(translator)
    if content is None:
        content = measure(probe, translator)
        tracker.scalars(translator.images, values | content)
    else:
        tracker.scalars(translator.images, values)
    return scorer.facts(values | content)


def _facts(
    recipe: Recipe, run: RunFolder, domains: Domains, translator: Translator, checkpoint: Checkpoint | None
) -> str:
    """The block of facts before the first step."""
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in translator.networks.items()}
    accelerator = translator.accelerator
    facts = {
        **domains.facts,
        "tiles": f"{recipe.data.tile_size}² px",
        "networks": ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sizes.items()),
        "device": f"{accelerator.device.type}, {recipe.train.precision}, {accelerator.num_processes} process(es)",
        "batch": f"{recipe.train.batch_size} over all processes",
        "length": f"{recipe.train.images} images, "
        + (f"continuing {checkpoint.path}" if checkpoint else _origin(recipe)),
        "seed": str(recipe.seed),
        "run folder": f"{run.path}   (tensorboard --logdir {run.path})",
    }
    return "\n".join(f"  {name:<12}{value}" for name, value in facts.items())


def _origin(recipe: Recipe) -> str:
    if recipe.run.init is None:
        return "from scratch"
    return f"starting from {recipe.run.init}" + (", stage 2" if recipe.run.stage == 2 else "")


if __name__ == "__main__":
    run_script(main)
