"""Predict with what downstream/train.py learned: nuclei, regions or classes of tiles, of an image, of slides or bags.

    python downstream/predict.py RUN --data.tiles PATH --out DIR
    python downstream/predict.py RUN --image FILE --out DIR
    python downstream/predict.py RUN --slide PATH --out DIR

RUN is a run of one seed, the folder of one of several, or an exported file. Nuclei and regions of tiles become label
maps, 16-bit PNG named as the tiles are, with the types of nuclei beside; classes a predictions.csv; nuclei of slides
GeoJSON as QuPath reads it, regions of slides a TIFF. A run of task mil takes each slide as a bag, or puts tiles into
bags as its training did, by slide or else by patient; classes of bags become a predictions.csv, and of slides a picture
of attention. The same command goes on where it was stopped; under `accelerate launch` processes share the work.
"""

import hashlib
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

try:
    import downstream
    from downstream.bag_predictions import ATTENTION, BagClasses
    from downstream.inference import TrainedTask
    from downstream.pieces import OVERVIEWS, PIECES, POLYGONS, REGIONS, Slides
    from downstream.predictions import LABELS, PARTS, PREVIEW, PROBABILITIES, TABLE, TYPES, Classes, Maps, scale_notes
    from histo.encoders.files import digest, libraries
    from histo.errors import InputError
    from histo.revision import revision
    from histo.running import processes
    from histo.running.outputs import Layout, OutputFolder, make_all
    from histo.running.settings import as_yaml, read_settings, run_script
    from histo.slides.tables import list_slides
    from histo.tiles import TileEntry, TileSet, local_place, open_tiles
    from histo.tiles.tables import with_mpp
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")

NOTE = "predict.json"
LAYOUT = Layout(
    NOTE, (LABELS, TYPES, PROBABILITIES, PARTS, POLYGONS, REGIONS, OVERVIEWS, PIECES, ATTENTION), (TABLE, PREVIEW)
)
Product = Maps | Classes | Slides | BagClasses


@dataclass
class PredictData:
    """Tiles to look at."""

    tiles: str | None = None
    """folder of tiles or of shards, NAME:PATH of a published set, or a slides.csv, which is cut into tiles"""
    split: str | None = None
    """only the tiles of this split"""
    mpp: float | None = None
    """µm/px of tiles or the image, before what tiles.csv, shards or image files say; of --slide that of the finest
    level, before what the file says, but after slides.csv; slides.csv as data.tiles is cut at it; null: as they say"""
    on_bad: Literal["error", "skip"] = "error"
    """inputs that cannot be used: stop, or leave them out and list them"""

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0.01 <= self.mpp <= 100:
            raise InputError(f"data.mpp is {self.mpp}, expected µm/px between 0.01 and 100.")


@dataclass
class PredictSettings:
    """What is predicted, of what, and where it goes."""

    run: str | None = None
    """run folder of downstream/train.py, or an exported file; the same as naming it first"""
    data: PredictData = field(default_factory=PredictData)
    image: str | None = None
    """one image file instead of tiles"""
    slide: str | None = None
    """a slide, a folder of them or a slides.csv instead; windows are streamed and nuclei stitched; of mil a bag each"""
    probabilities: bool = False
    """of task segment: keep the probability of every class at every pixel as well, float16 .npy"""
    out: str | None = None
    """folder of the results, new or empty, or one that the same command has begun"""
    overwrite: bool = False
    """begin anew: remove what an earlier call wrote to out"""


def main(argv: list[str]) -> None:
    """Read the command line and predict."""
    request = read_settings(
        PredictSettings,
        "downstream/predict.py RUN",
        "Predict nuclei, regions or classes of tiles, of an image, or of slides.",
        ["--run", *argv] if argv and not argv[0].startswith("--") else argv,
    )
    settings = request.settings
    try:
        with processes.together():
            task, product, notes = _open(settings)
        if processes.state().is_main_process:
            for sentence in notes:
                print(f"note: {sentence}", file=sys.stderr, flush=True)
        if request.dry_run:
            if processes.state().is_main_process:
                print(as_yaml(settings))
                print(f"dry run: settings and inputs are sound. {product.describe()}.")
            return
        assert settings.out is not None
        facts = {
            "network": {"file": str(task.path), **{name: task.card.get(name) for name in ("task", "mpp", "tile_size")}},
            "kind": task.kind,
            "classes": task.card.get("classes"),
            "types": task.types,
            "ignore": task.card.get("ignore"),
            "notes": notes,
            "command": shlex.join(["python", "downstream/predict.py", *argv]),
            "revision": revision(),
            "libraries": libraries(),
        }
        output = OutputFolder(Path(settings.out), LAYOUT, _plan(settings, task, product), facts)
        everything = (file for index in range(len(product)) for file in product.files(index))
        with output.work(everything, settings.overwrite):
            make_all(product, output, settings.data.on_bad, lambda made: product.conclude(made, output.path))
    finally:
        processes.part()


def _open(settings: PredictSettings) -> tuple[TrainedTask, Product, list[str]]:
    """The network, what it is to make, and what people must know; mistakes that show before that are found here."""
    if settings.run is None:
        raise InputError("No run was named; give a run folder of downstream/train.py first of all.")
    named = {"--data.tiles": settings.data.tiles, "--image": settings.image, "--slide": settings.slide}
    given = [name for name, value in named.items() if value is not None]
    if len(given) != 1:
        raise InputError(
            f"{' and '.join(given) or 'Nothing to look at'} was given, expected one of {', '.join(named)}."
        )
    if settings.out is None:
        raise InputError("No place for the results was named; give --out.")
    _refuse_own_inputs(settings, str(named[given[0]]))
    if settings.data.split is not None and settings.data.tiles is None:
        raise InputError(
            f"--data.split {settings.data.split} is of tiles and does not go with {given[0]}; leave it out."
        )
    task = downstream.load(settings.run)
    if task.judges_bags and settings.image is not None:
        raise InputError(
            f"--image {settings.image} is no bag, which {settings.run} of task mil judges; name slides by --slide, or "
            "tiles by --data.tiles."
        )
    if settings.probabilities and (task.nuclei or task.classes_tiles or task.judges_bags or settings.slide):
        raise InputError("--probabilities is of task segment on tiles or an image; leave it out.")
    if settings.slide is not None:
        rows = list_slides(Path(settings.slide))
        if task.judges_bags:
            return task, BagClasses.of_slides(task, rows, settings.data.mpp), []
        return task, Slides(task, rows, settings.data.mpp), []
    tiles = _image(settings) if settings.image is not None else _tiles(settings, task)
    notes = scale_notes(task, tiles)
    if task.judges_bags:
        return task, BagClasses.of_tiles(task, tiles), notes
    if task.classes_tiles:
        return task, Classes(task, tiles, settings.data.on_bad), notes
    return task, Maps(task, tiles, settings.probabilities), notes


def _tiles(settings: PredictSettings, task: TrainedTask) -> TileSet:
    data = settings.data
    assert data.tiles is not None
    if data.tiles.lower().endswith(".csv"):  # slides, cut as the network learned to see tissue
        side = (task.card.get("tile_pixels") or [task.card["tile_size"]])[0]
        return open_tiles(data.tiles, mpp=data.mpp or task.mpp, split=data.split, on_bad=data.on_bad, size=side)
    return open_tiles(data.tiles, mpp=data.mpp, split=data.split, on_bad=data.on_bad, cache_mb=0)


def _image(settings: PredictSettings) -> TileSet:
    path = Path(settings.image or "")
    if not path.is_file():
        raise InputError(f"--image {path} is no file; name a PNG, JPEG or TIFF.")
    entry = TileEntry(path, path.name, path.resolve().parent.name, None, None, None, None, None)
    return TileSet([with_mpp(entry, settings.data.mpp)], cache_mb=0)


def _refuse_own_inputs(settings: PredictSettings, named: str) -> None:
    """Results must not land among the inputs, where overwriting would remove them."""
    out = Path(settings.out or "").resolve()
    for value in (settings.run, named):
        place = local_place(str(value))
        if place is None or not place.exists():
            continue
        folder = place.parent if place.is_file() and value != named else place
        if out == folder or out.is_relative_to(folder) or place.is_relative_to(out):
            raise InputError(f"--out {settings.out} and {value} lie in one another; name a folder beside them.")


def _plan(settings: PredictSettings, task: TrainedTask, product: Product) -> dict[str, Any]:
    """What settles the results; a finished file stands for its item only under the same."""
    names = hashlib.sha256()
    for index in range(len(product)):
        names.update(f"{[str(file) for file in product.files(index)]}\n".encode())
    if isinstance(product, Classes | BagClasses):
        for name in product.inputs():
            names.update(f"{name}\n".encode())
    place = settings.data.tiles or settings.image or settings.slide
    return {
        "the input": str(local_place(str(place)) or place),
        "--data.split": settings.data.split,
        "--data.mpp": settings.data.mpp,
        "--probabilities": settings.probabilities,
        "the list of inputs": names.hexdigest(),
        "the SHA-256 of the network": digest(task.network.state_dict()),
    }


if __name__ == "__main__":
    run_script(main)
