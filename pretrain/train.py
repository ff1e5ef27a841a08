"""Learn an encoder from unlabelled tiles.

    accelerate launch -q pretrain/train.py --config configs/pretrain/simclr.yaml --data.tissue PATH --run.dir RUN

Without arguments it trains the tiny preset on phantom tissue into a new folder under runs/. Look at the run with
`tensorboard --logdir runs`, or at RUN/report.html when it is done.
"""

import os
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see translate/train.py; libgomp reads it when torch loads it

try:
    import torch
    from accelerate import Accelerator
    from tqdm import tqdm

    from histo.errors import InputError
    from histo.running import checkpoints
    from histo.running.alarms import Alarm
    from histo.running.checkpoints import Checkpoint
    from histo.running.loading import ImageClock, loader, sound_workers
    from histo.running.occupation import chosen_folder, default_config, non_finite, occupied, taken_up
    from histo.running.pace import Pace, mean_losses, passed
    from histo.running.processes import anywhere, together
    from histo.running.runs import RunFolder, StopRequest
    from histo.running.settings import as_yaml, read_settings, run_script
    from histo.running.tracking import Tracker, read_log
    from pretrain.collapse import rule_of
    from pretrain.export import export
    from pretrain.learner import Learner
    from pretrain.objective import Batch
    from pretrain.online import OnlineProbe
    from pretrain.panels import Panels
    from pretrain.pool import Pool, PooledCrops, open_pool
    from pretrain.recipe import PRESET, Recipe
    from pretrain.summary import write_report
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")


def main(argv: list[str]) -> None:
    """Read the command line and train, or with --dry_run say what would be trained."""
    with together():
        preset = default_config(argv, PRESET)
        request = read_settings(Recipe, "pretrain/train.py", "Learn an encoder from unlabelled tiles.", argv, preset)
    recipe = request.settings
    accelerator = Accelerator(mixed_precision="bf16" if recipe.train.precision == "bf16" else "no")
    run = chosen_folder(recipe.run, "pretrain")
    if request.dry_run:
        run.refuse_other_settings(asdict(recipe), recipe.FIXED)
        run.state(recipe.run.resume)
        print(as_yaml(recipe))
        pool = open_pool(recipe.data, recipe.seed, recipe.train.batch_size)
        learner = Learner(recipe, pool, accelerator)
        _open_probe(recipe, pool, learner)
        print(f"dry run: settings, data and encoder are sound. It starts from {learner.origin}.")
        return
    if accelerator.is_main_process and request.configs == [PRESET] and "--config" not in argv:
        print(f"No --config given: training the preset {PRESET.stem} on {recipe.data.tissue} tissue into {run.path}.")
    with occupied(run, accelerator) as scratch:
        train(recipe, run, accelerator, scratch)


def train(recipe: Recipe, run: RunFolder, accelerator: Accelerator, scratch: Path) -> None:
    """Train until `train.images` tiles were seen, from the start or from where the run folder stands.

    Args:
        scratch: a temporary folder for the loader's sockets.
    """
    # Process and run folder: the first process writes, all read
    first, stop = accelerator.is_main_process, StopRequest()
    checkpoint, damaged = taken_up(run, asdict(recipe), recipe.FIXED, recipe.run.resume, as_yaml(recipe), accelerator)

    # Data and networks, from the start or as they were
    for turn in (first, not first):  # the first process makes pseudo-masks, the others find them
        with together():
            if turn:
                pool = open_pool(recipe.data, recipe.seed, recipe.train.batch_size)
                learner = Learner(recipe, pool, accelerator, run.path / "pseudo-masks")
    with together():
        probe = _open_probe(recipe, pool, learner) if first else None
        if checkpoint is not None:
            learner.restore(checkpoint)
        more = [items for objective in learner.objectives.values() if (items := objective.items()) is not None]
        crops = PooledCrops(pool, recipe.data, recipe.seed, more)
        clock = ImageClock(
            learner.images,
            recipe.train.images,
            recipe.train.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )
    iterator = iter(loader(crops, clock, recipe.data.workers, scratch))

    # Before the first step
    with together():
        tracker = Tracker(run.path, learner.images, enabled=first)
        panels = Panels(crops, learner)
        watch = Alarm(rule_of, read_log(run.path) if first else [])
        if first:
            print(_facts(recipe, run, learner, probe, checkpoint), flush=True)
            for sentence in damaged:
                tracker.warn(learner.images, sentence)
            if learner.images == 0:
                tracker.message(0, f"start: {learner.origin}")
                if probe is not None:
                    _probe(probe, learner, tracker, watch)

    def save() -> None:
        if first:
            checkpoints.save(run.checkpoints, learner.checkpoint({"seed": recipe.seed}), recipe.run.keep)

    # Main loop: fetch, step, and what is due after it
    stop.listen()
    sums: dict[str, list[torch.Tensor]] = defaultdict(list)
    pace = Pace(learner.images)
    with tqdm(total=recipe.train.images, initial=learner.images, unit="img", disable=not first, smoothing=0.05) as bar:
        while learner.images < recipe.train.images and not anywhere(bool(stop)):
            pace.waits(True)
            with together(), sound_workers():
                batch = Batch.of(next(iterator), accelerator.device)
            pace.waits(False)
            before = learner.images
            try:
                terms = learner.step(batch)
            except InputError as error:
                rate = recipe.train.peak_rate
                raise InputError(non_finite(error, run, learner.images, recipe.train.batch_size, rate)) from error
            bar.update(learner.images - before)
            for name, value in terms.items():
                sums[name].append(value)
            with together():
                if passed(before, learner.images, recipe.train.log_every):
                    scalars = mean_losses(sums, accelerator)
                    scalars |= learner.scalars() | pace.scalars(learner.images)
                    tracker.scalars(learner.images, scalars)
                    sums.clear()
                    for sentence in watch(scalars) if first else ():
                        tracker.warn(learner.images, sentence)
                if first and passed(before, learner.images, recipe.train.panel_every):
                    for name, picture in panels.draw().items():
                        tracker.picture(learner.images, name, picture)
                last = learner.images >= recipe.train.images
                if probe is not None and (last or passed(before, learner.images, recipe.probe.every)):
                    _probe(probe, learner, tracker, watch)
                if passed(before, learner.images, recipe.train.save_every):
                    save()

    # Done, or asked to stop
    del iterator  # ends the loader's workers
    with together():
        save()
    if learner.images < recipe.train.images:
        tracker.close()
        if first:
            print(stop.sentence(learner.images, run.path), flush=True)
        return
    if first:
        basis = None if probe is None else probe.basis
        found = export(learner, read_log(run.path), basis, run.export)
        report = write_report(run, learner, basis)
        tracker.close()
        for path, reason in pool.skipped:
            print(f"skipped {path}: {reason}")
        print(f"Done: {learner.images} images. Report: {report}   Encoder: {found}")


def _open_probe(recipe: Recipe, pool: Pool, learner: Learner) -> OnlineProbe | None:
    if recipe.probe.every == 0:
        return None
    encoder, size = learner.encoder, recipe.data.view_size
    return OnlineProbe(recipe.probe, size, encoder.mean, encoder.std, recipe.seed, pool.tissue.seen)


def _probe(probe: OnlineProbe, learner: Learner, tracker: Tracker, watch: Alarm) -> None:
    """Measure the encoder, log it, and show tiles in several stains and their embeddings."""
    encoder, device = learner.encoder.model, learner.accelerator.device
    with learner.accelerator.autocast():
        recipe = learner.recipe
        values = probe.measure(encoder, device, probe.views(encoder, device, recipe.view, recipe.seed))
        tracker.picture(learner.images, "stain_sensitivity", probe.panel(encoder, device))
        vectors, names, thumbnails = probe.projection(encoder, device)
    tracker.scalars(learner.images, values)
    tracker.embedding(learner.images, "probe", vectors, names, thumbnails)
    for sentence in watch(values):
        tracker.warn(learner.images, sentence)


def _facts(
    recipe: Recipe, run: RunFolder, learner: Learner, probe: OnlineProbe | None, checkpoint: Checkpoint | None
) -> str:
    """The block of facts before the first step."""
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in learner.networks.items()}
    accelerator, train = learner.accelerator, recipe.train
    facts = {
        **learner.pool.facts,
        **{name: fact for objective in learner.objectives.values() for name, fact in objective.facts().items()},
        "tiles": f"{recipe.data.tile_size}² px, seen at {recipe.data.view_size}²",
        "objective": " + ".join(recipe.objectives),
        "networks": ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sizes.items()),
        "start": f"continuing {checkpoint.path}" if checkpoint else learner.origin,
        "device": f"{accelerator.device.type}, {train.precision}, {accelerator.num_processes} process(es)",
        "batch": f"{train.batch_size} over all processes, {train.optimizer} at {train.peak_rate:g} at most",
        "length": f"{train.images} images",
        "probe": "none, as probe.every is 0" if probe is None else f"every {recipe.probe.every} images: {probe.basis}",
        "seed": str(recipe.seed),
        "run folder": f"{run.path}   (tensorboard --logdir {run.path})",
    }
    return "\n".join(f"  {name:<12}{value}" for name, value in facts.items())


if __name__ == "__main__":
    run_script(main)
