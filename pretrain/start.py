"""Where the weights of a run's encoder come from: nothing, a file, published weights, or a translator."""

from typing import Any, NamedTuple

from histo import encoders
from histo.errors import InputError
from histo.probes import feature_width
from pretrain.backbone import MEAN, STD, Backbone
from pretrain.recipe import Recipe

DEFAULT = "resnet18"


class Begun(NamedTuple):
    """The encoder of a recipe with its initial weights.

    parent, data: what these are and were learned from, for cards; origin: the same for people.
    """

    encoder: Backbone
    parent: Any
    data: list[dict[str, Any]]
    origin: str


def open_backbone(recipe: Recipe) -> Begun:
    """The encoder of a recipe with its initial weights.

    Raises:
        InputError: an unknown architecture, one that takes no views of this size, a source that is none, or one of
            another architecture than asked for.
    """
    settings = recipe.encoder
    source = settings.source or recipe.translator or "none"
    name = settings.architecture or (DEFAULT if source == "none" else None)
    start = encoders.start(source, settings.norm or "own", name, seed=recipe.seed)
    found = start.architecture
    if found.library != "timm":
        raise InputError(
            f"{found} is an encoder of {found.library}, expected one of timm, whose features are pooled; name another."
        )
    if settings.norm and found.arguments != encoders.architecture(found.name, settings.norm, "encoder").arguments:
        raise InputError(
            f"--encoder.norm is {settings.norm}, but {source} is {found}; leave the norm out, or start from another."
        )
    mean, std = (start.facts[key] or usual for key, usual in (("mean", MEAN), ("std", STD)))
    origin = "random weights" if source == "none" else f"the weights of {source}"
    if start.report:
        origin += f"\n{start.report}"
    encoder = Backbone(start.encoder, found, tuple(mean), tuple(std))
    encoder.width = feature_width(encoder, found, recipe.data.view_size, "data.view_size")
    return Begun(encoder, start.facts["parent"], start.facts["data"], origin)
