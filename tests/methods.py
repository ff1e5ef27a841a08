"""Every method of translation as a toy: its arguments, its recipe, and the method itself, untrained."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from histo.running.settings import read_settings
from tests.conftest import ROOT
from translate.engine import Translator
from translate.methods import asked_kind, open_method
from translate.recipe import Recipe

_PATCHES = ("--discriminator.width", "4")
_UNITPATH = (
    *("--segmenter.encoder", "test_efficientnet_gn", "--segmenter.pyramid_width", "32"),
    *("--discriminator.channel_base", "512", "--discriminator.channel_max", "16", "--discriminator.mask_width", "8"),
    *("--discriminator.deviation_group", "2", "--ada.kind", "fixed", "--ada.probability", "0.5"),
)
_COMOD = (
    *("--generator.channel_base", "512", "--generator.channel_max", "16", "--generator.style_width", "16"),
    *("--generator.mapping_layers", "2", "--generator.code_width", "32"),
)
TOYS: dict[str, tuple[str, ...]] = {
    "cyclegan": ("--generator.width", "4", "--generator.blocks", "1", *_PATCHES),
    "cut": ("--generator.width", "4", "--generator.blocks", "5", "--loss.patches", "16", *_PATCHES),
    "unitpath": (*_UNITPATH, *_COMOD),
}
FASTCUT = ("--loss.nce", "10", "--loss.nce_identity", "0", "--loss.flip", "true")


def arguments(method: str, *more: str) -> list[str]:
    """A command line of 4 steps of 4 tiles of 64 px on a tiny method, as far as `more` does not say otherwise."""
    settings = {
        "data.tile_size": 64,
        "data.workers": 0,
        "train.batch_size": 4,
        "train.images": 16,
        "train.save_every": 8,
        "train.log_every": 4,
        "train.panel_every": 16,
    }
    shared = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return ["--config", str(ROOT / "configs" / "translate" / f"{method}.yaml"), *shared, *TOYS[method], *more]


def recipe_of(argv: Sequence[str]) -> Recipe:
    """The recipe that a command line asks for."""
    return read_settings(asked_kind(argv), "test", "", argv).settings


def of_run(run: Path) -> Recipe:
    """The recipe of a run folder."""
    return recipe_of(["--config", str(run / "config.yaml")])


def opened(method: str, *more: str) -> Translator:
    """A toy at its start, in single precision."""
    return open_method(
        recipe_of(arguments(method, "--train.precision", "fp32", *more)), Accelerator(mixed_precision="no")
    )
