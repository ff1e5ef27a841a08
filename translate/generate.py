"""Make tissue and masks with a trained translator.

    python translate/generate.py RUN --masks FOLDER --styles 4 --out DIR
    python translate/generate.py RUN --masks layout --count 100 --out DIR
    python translate/generate.py RUN --tissue FOLDER --out DIR

RUN is a run folder of translate/train.py or its export folder. Masks, of any size, become tissue in several styles,
with the instance maps beside and a tiles.csv: a labelled data set. Tissue becomes instance maps, 16-bit PNG and GeoJSON
as QuPath reads it. The same command goes on where it was stopped; under `accelerate launch` processes share the work.
"""

import hashlib
import shlex
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

try:
    import translate
    from histo.errors import InputError
    from histo.revision import revision
    from histo.running import processes
    from histo.running.outputs import Layout, OutputFolder, make_all
    from histo.running.settings import as_yaml, read_settings, run_script
    from histo.tiles import local_place
    from histo.tiles.tables import write_table
    from translate.inference import TrainedTranslator
    from translate.products import Product, Renderings, Restainings, Segmentations, open_masks, open_tissue
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")

LAYOUT = Layout("generate.json", ("images", "labels", "polygons"))


@dataclass
class GenerateSettings:
    """What is made, of what, and where it goes."""

    run: str | None = None
    """run folder of translate/train.py, or its export folder; the same as naming it first"""
    masks: str | None = None
    """render these: a folder of instance maps, a set of tiles that have masks, or layout: drawn as the run's
    data.layout says"""
    tissue: str | None = None
    """segment these: a folder of tiles or of shards"""
    restain: bool = False
    """with tissue: show the tiles in another stain instead of finding their nuclei; in the target's by a run with
    data.target, or in that of style_of by a run of masks, which draws the tissue around the nuclei anew"""
    count: int | None = None
    """how many masks or tiles, the first ones; null takes all, layouts need a number"""
    styles: int = 1
    """renderings of each mask"""
    style_of: str | None = None
    """an image in whose stain masks are rendered: of 64 styles the nearest, instead of ever new ones"""
    truncation: float = 1.0
    """1 keeps the styles as they are drawn, less brings them nearer to the mean style, 0 is that alone"""
    size: int | None = None
    """side of layouts in pixels; null is the tile of the training"""
    mpp: float | None = None
    """µm/px of masks or tissue, before what tiles.csv, shards or image files say; null: as these say"""
    out: str | None = None
    """folder of the results, new or empty, or one that the same command has begun"""
    overwrite: bool = False
    """begin anew: remove what an earlier call wrote to out; files of other origin go only where a new one has their
    name"""
    on_bad: Literal["error", "skip"] = "error"
    """inputs that cannot be used: stop, or leave them out and list them"""
    seed: int = 0
    """seed of styles and layouts"""

    def __post_init__(self) -> None:
        for name in ("count", "styles"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}, expected 1 or more.")
        if not 0 <= self.truncation <= 1:
            raise InputError(f"--truncation is {self.truncation}, expected 0 to 1.")
        if self.mpp is not None and not 0.01 <= self.mpp <= 100:
            raise InputError(f"--mpp is {self.mpp}, expected µm/px between 0.01 and 100.")


def main(argv: list[str]) -> None:
    """Read the command line and make what it asks for."""
    request = read_settings(
        GenerateSettings,
        "translate/generate.py RUN",
        "Make tissue of masks, nuclei of tissue, or tissue in another stain, with a trained translator.",
        ["--run", *argv] if argv and not argv[0].startswith("--") else argv,
    )
    settings = request.settings
    try:
        with processes.together():
            translator, product = _open(settings)
        if request.dry_run:
            if processes.state().is_main_process:
                print(as_yaml(settings))
                print(f"dry run: settings and inputs are sound. {product.describe()}.")
            return
        assert settings.out is not None
        output = OutputFolder(
            Path(settings.out),
            LAYOUT,
            _plan(settings, translator, product),
            {
                "translator": translator.facts(),
                "command": shlex.join(["python", "translate/generate.py", *argv]),
                "revision": revision(),
                "libraries": {name: version(name) for name in ("torch", "torchvision", "timm")},
            },
        )
        everything = (file for index in range(len(product)) for file in product.files(index))
        with output.work(everything, settings.overwrite):
            make_all(product, output, settings.on_bad, lambda made: _write_table(product, made, output.path))
    finally:
        processes.part()


def _open(settings: GenerateSettings) -> tuple[TrainedTranslator, Product]:
    """The networks and what they are to make; all mistakes that show before anything is made are found here."""
    if settings.run is None:
        raise InputError("No run was named; give a run folder of translate/train.py first of all.")
    if (settings.masks is None) == (settings.tissue is None):
        given = "Both --masks and --tissue were" if settings.masks else "Neither --masks nor --tissue was"
        raise InputError(f"{given} given, expected one of them: masks are rendered, tissue is segmented.")
    if settings.restain and settings.tissue is None:
        raise InputError("--restain shows tissue in another stain and was given without --tissue; name the tissue.")
    if settings.tissue is not None:
        for name, default in (("styles", 1), ("style_of", None), ("size", None), ("truncation", 1.0)):
            if settings.restain and name == "style_of":
                continue
            if getattr(settings, name) != default:
                raise InputError(f"--{name} is for masks and does not go with --tissue; leave it out.")
    if settings.out is None:
        raise InputError("No place for the results was named; give --out.")
    _refuse_own_inputs(settings)
    translator = translate.load(settings.run)
    reference = Path(settings.style_of) if settings.style_of else None
    if settings.masks is not None:
        masks = open_masks(
            settings.masks,
            translator,
            count=settings.count,
            size=settings.size,
            mpp=settings.mpp,
            seed=settings.seed,
        )
        return translator, Renderings(translator, masks, settings.styles, settings.seed, reference, settings.truncation)
    assert settings.tissue is not None
    tissue = open_tissue(settings.tissue, count=settings.count, mpp=settings.mpp)
    if settings.restain:
        return translator, Restainings(translator, tissue, settings.seed, reference)
    return translator, Segmentations(translator, tissue)


def _refuse_own_inputs(settings: GenerateSettings) -> None:
    """Results must not land among the inputs, where overwriting would remove them."""
    out = Path(settings.out or "").resolve()
    for name in ("run", "masks", "tissue"):
        value = getattr(settings, name)
        if value is None or (name == "masks" and value == "layout"):
            continue
        place = local_place(value)
        if place is None:
            continue
        if out == place or out.is_relative_to(place) or place.is_relative_to(out):
            raise InputError(
                f"--out {settings.out} and --{name} {value} lie in one another; name a folder beside them."
            )


def _plan(settings: GenerateSettings, translator: TrainedTranslator, product: Product) -> dict[str, Any]:
    """What settles the results; a finished file stands for its item only under the same."""
    names = hashlib.sha256()
    for index in range(len(product)):
        names.update(f"{product.identity(index)}\n".encode())
    return {
        "--masks": _place(settings.masks),
        "--tissue": _place(settings.tissue),
        "--restain": settings.restain,
        "--style_of": _contents(settings.style_of),
        "--count": len(product),
        "--styles": settings.styles,
        "--truncation": settings.truncation,
        "--size": settings.size,
        "--mpp": settings.mpp,
        "--seed": settings.seed,
        "the run's data.layout": asdict(translator.layout) if settings.masks == "layout" else None,
        "the number of types of nuclei": 2 if translator.typed else 1,
        "the list of inputs": names.hexdigest(),
        "the SHA-256 of the networks": translator.facts()["weights_sha256"],
    }


def _place(named: str | None) -> str | None:
    """Tiles however they were spelled; `layout` has no place."""
    return named if named in (None, "layout") else str(local_place(named) or named)


def _contents(named: str | None) -> str | None:
    """SHA-256 of a file."""
    return None if named is None else hashlib.sha256(Path(named).read_bytes()).hexdigest()


def _write_table(product: Product, made: list[int], folder: Path) -> None:
    rows = [row for index in made for row in product.rows(index)]
    if rows:
        write_table(folder, rows)


if __name__ == "__main__":
    run_script(main)
