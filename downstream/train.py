"""Learn a task from labelled tiles, on any encoder, once for every seed and fold.

    accelerate launch -q downstream/train.py --config configs/downstream/instances.yaml --data.tiles PATH \
        --encoder.source FILE --run.dir RUN

Every seed (and fold) has a run folder of its own in RUN; RUN/metrics.json and RUN/report.html hold all of them.
"""

import os
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see translate/train.py; libgomp reads it when torch loads it

try:
    import torch
    from accelerate import Accelerator
    from tqdm import tqdm

    from downstream.aggregation import aggregate
    from downstream.bagging import open_bags
    from downstream.cases import save_pictures
    from downstream.labelled import TEST, TRAIN, VALIDATION, DataSettings, Labelled, Needs, open_labelled
    from downstream.learner import Learner
    from downstream.probing import probe
    from downstream.recipe import PRESET, Recipe
    from downstream.results import Result, summarise, write_result
    from downstream.start import card_of, disagreements, open_start
    from downstream.stream import LabelledCrops
    from downstream.tasks import ON_FEATURES, task_class
    from histo.errors import InputError
    from histo.running import checkpoints
    from histo.running.loading import ImageClock, loader, sound_workers
    from histo.running.occupation import chosen_folder, default_config, non_finite, occupied, taken_up
    from histo.running.pace import Pace, mean_losses, passed
    from histo.running.processes import anywhere, together
    from histo.running.runs import RunFolder, StopRequest
    from histo.running.settings import as_yaml, read_settings, run_script
    from histo.running.tracking import Tracker
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")

SHOWN = 4  # tiles in a panel


def main(argv: list[str]) -> None:
    """Read the command line and train, or with --dry_run say what would be trained."""
    with together():
        preset = default_config(argv, PRESET)
        request = read_settings(Recipe, "downstream/train.py", "Learn a task from labelled tiles.", argv, preset)
    recipe = request.settings
    accelerator = Accelerator(mixed_precision="bf16" if recipe.train.precision == "bf16" else "no")
    whole = chosen_folder(recipe.run, "downstream")
    fits = [(seed, fold) for seed in recipe.seeds for fold in range(recipe.data.folds or 1)]
    if request.dry_run:
        _refuse_others(recipe, whole)
        print(as_yaml(recipe))
        for seed, fold in fits:
            if recipe.task == "mil":
                labelled = open_bags(recipe.data, recipe.crop.size, seed, fold).labelled
            else:
                labelled = open_labelled(_data(recipe), _needs(recipe), seed, fold)
            start = open_start(recipe, seed)
            if recipe.task not in ON_FEATURES:
                task_class(recipe.task)(recipe, start, labelled, seed)  # refuses what the task cannot use
        print(f"dry run: settings and data are sound. {labelled.facts['labels used']}, {len(fits)} training(s).")
        return
    with occupied(whole, accelerator) as scratch:
        with together():
            if accelerator.is_main_process:
                _refuse_others(recipe, whole)
                whole.keep_config(as_yaml(recipe))
        results = []
        for seed, fold in fits:
            name = f"seed{seed}" + (f"-fold{fold + 1}" if recipe.data.folds else "")
            result = fit(recipe, RunFolder(whole.path / name), seed, fold, accelerator, scratch)
            if result is None:
                return  # asked to stop
            results.append(result)
        if accelerator.is_main_process:
            print(summarise(recipe, whole, results))


def fit(recipe: Recipe, run: RunFolder, seed: int, fold: int, accelerator: Accelerator, scratch: Path) -> Result | None:
    """One seed and fold: what its folder has already, or a training; None if asked to stop."""
    done = Result.read(run.path)
    if done is not None:
        return done
    if recipe.task not in ON_FEATURES:
        return train(recipe, run, seed, fold, accelerator, scratch)
    with together():
        if accelerator.is_main_process and recipe.task == "mil":
            bags = open_bags(recipe.data, recipe.crop.size, seed, fold)
            aggregate(recipe, run, bags, seed, fold, accelerator)
        elif accelerator.is_main_process:
            labelled = open_labelled(_data(recipe), "label", seed, fold)
            probe(recipe, run, labelled, seed, fold, accelerator)
    return Result.read(run.path)


def train(
    recipe: Recipe, run: RunFolder, seed: int, fold: int, accelerator: Accelerator, scratch: Path
) -> Result | None:
    """Train for one seed and fold, from the start or from where its folder stands; None if asked to stop.

    Args:
        scratch: a temporary folder for the loader's sockets.
    """
    first, stop = accelerator.is_main_process, StopRequest()
    checkpoint, damaged = taken_up(run, asdict(recipe), recipe.FIXED, "auto", as_yaml(recipe), accelerator)

    # Data and network, from the start or as they were
    with together():
        kind = task_class(recipe.task)
        labelled = open_labelled(recipe.data, kind.NEEDS, seed, fold)
        start = open_start(recipe, seed)
        torch.manual_seed(seed)  # initial weights of the decoder; every later draw is keyed by image index
        task = kind(recipe, start, labelled, seed)
        learner = Learner(recipe, task, accelerator, seed)
        if checkpoint is not None:
            learner.restore(checkpoint)
        whole = recipe.task == "classify" and recipe.classify.whole
        crops = LabelledCrops(
            labelled.part(TRAIN), task, recipe.crop, seed, whole, labelled.extra, recipe.data.extra_share
        )
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
        if first:
            print(_facts(recipe, run, labelled, learner, seed), flush=True)
            for sentence in [*damaged, *(warnings := disagreements(recipe, labelled, start))]:
                tracker.warn(learner.images, sentence)

    def save() -> None:
        if first:
            checkpoints.save(run.checkpoints, learner.checkpoint({"seed": seed, "fold": fold}), recipe.run.keep)

    # Main loop: fetch, step, and what is due after it
    stop.listen()
    sums: dict[str, list[torch.Tensor]] = defaultdict(list)
    pace = Pace(learner.images)
    with tqdm(total=recipe.train.images, initial=learner.images, unit="img", disable=not first, smoothing=0.05) as bar:
        while learner.images < recipe.train.images and not anywhere(bool(stop)):
            pace.waits(True)
            with together(), sound_workers():
                batch = next(iterator)
            pace.waits(False)
            before = learner.images
            try:
                terms = learner.step(batch)
            except InputError as error:
                rate = recipe.train.learning_rate
                raise InputError(non_finite(error, run, learner.images, recipe.train.batch_size, rate)) from error
            bar.update(learner.images - before)
            for name, value in terms.items():
                sums[name].append(value)
            with together():
                if passed(before, learner.images, recipe.train.log_every):
                    scalars = mean_losses(sums, accelerator)
                    tracker.scalars(learner.images, scalars | {"rate": learner.rate()} | pace.scalars(learner.images))
                    sums.clear()
                last_choice = learner.images >= recipe.train.images and len(labelled.parts[VALIDATION]) > 0
                if first and (last_choice or passed(before, learner.images, recipe.train.look_every)):
                    _look(learner, labelled, tracker)
                if passed(before, learner.images, recipe.train.save_every):
                    save()

    # Done, or asked to stop
    del iterator  # ends the loader's workers
    with together():
        save()
    if learner.images < recipe.train.images:
        tracker.close()
        if first:
            print(stop.sentence(learner.images, run.path.parent), flush=True)
        return None
    with together():
        if first:
            labelled.facts["network"] = learner.take_best()
            found = learner.scored(labelled.part(TEST))
            tracker.scalars(learner.images, {f"test/{name}": value for name, value in found.scores.items()})
            file = learner.export(card_of(recipe, labelled, start), run.export)
            tiles = labelled.part(TEST)
            pictures = save_pictures(run.path, tiles, found.cases, task.CHOSEN, learner.drawn, found.pictures)
            said = Result.of(recipe, labelled, learner.images, found, seed, fold, file, start, pictures, warnings)
            write_result(run.path, said)
        tracker.close()
    return Result.read(run.path)


def _refuse_others(recipe: Recipe, whole: RunFolder) -> None:
    """Refuse a folder of another run, and any run where a new one is asked for."""
    whole.state(recipe.run.resume)
    whole.refuse_other_settings(asdict(recipe), recipe.FIXED)


def _data(recipe: Recipe) -> DataSettings:
    """Neighbours have nothing to choose by a validation part, so that all tiles whose labels are used vote."""
    return replace(recipe.data, validation_share=0.0) if recipe.task == "knn" else recipe.data


def _needs(recipe: Recipe) -> Needs:
    return "label" if recipe.task in ON_FEATURES else task_class(recipe.task).NEEDS


def _look(learner: Learner, labelled: Labelled, tracker: Tracker) -> None:
    """Pictures of fixed tiles that are not learned from, and the scores of the validation part."""
    validated = len(labelled.parts[VALIDATION]) > 0
    tiles = labelled.part(VALIDATION if validated else TEST)
    for place in range(min(SHOWN, len(tiles))):
        tracker.picture(learner.images, f"tile_{place}", learner.drawn(tiles[place]))
    if validated:
        scores = learner.scored(labelled.part(VALIDATION)).scores
        tracker.scalars(learner.images, {f"validation/{name}": value for name, value in scores.items()})
        learner.keep_best(scores[learner.task.CHOSEN])


def _facts(recipe: Recipe, run: RunFolder, labelled: Labelled, learner: Learner, seed: int) -> str:
    """The block of facts before the first step."""
    size = sum(weight.numel() for weight in learner.task.network.parameters())
    facts = {
        **labelled.facts,
        "task": f"{recipe.task} on {recipe.encoder.source}, {size / 1e6:.1f} M weights",
        "device": f"{learner.accelerator.device.type}, {recipe.train.precision}, "
        f"{learner.accelerator.num_processes} process(es)",
        "length": f"{recipe.train.images} crops of {recipe.crop.size}² px, from {learner.images} on",
        "seed": str(seed),
        "run folder": f"{run.path}   (tensorboard --logdir {run.path.parent})",
    }
    return "\n".join(f"  {name:<12}{value}" for name, value in facts.items())


if __name__ == "__main__":
    run_script(main)
