"""Where the weights of a run's encoder come from: nothing, an encoder file, published weights, or a translator."""

from pathlib import Path

from histo import encoders
from histo.encoders import architecture, build
from histo.errors import InputError
from pretrain.backbone import Backbone
from pretrain.recipe import Recipe

DEFAULT = "resnet18"


def open_backbone(recipe: Recipe) -> tuple[Backbone, str]:
    """The encoder of a recipe with its initial weights, and one sentence on where they come from.

    Raises:
        InputError: an unknown architecture, a source that is none, or one of another architecture than asked for.
    """
    settings = recipe.encoder
    source = settings.source
    if source is None and recipe.translator is not None:
        source = str(Path(recipe.translator) / "export" / "encoder.safetensors")
        if not Path(source).is_file():
            raise InputError(
                f"--translator {recipe.translator} has no export/encoder.safetensors, expected the folder of a "
                "finished run of translate/train.py with a segmenter; let it end, or name another."
            )
    if source is None or source == "none":
        wanted = architecture(settings.architecture or DEFAULT, settings.norm)
        return Backbone(build(wanted), wanted), "random weights"
    model, card = encoders.load(source)
    wanted = encoders.Architecture(card["library"], card["architecture"], card["arguments"])
    if settings.architecture is not None and settings.architecture.removeprefix("timm:") != wanted.name:
        raise InputError(
            f"--encoder.architecture is {settings.architecture}, but {source} is a {wanted.name}; leave the "
            "architecture out, or start from another file."
        )
    return Backbone(model, wanted, tuple(card["mean"]), tuple(card["std"])), f"the weights of {source}"
