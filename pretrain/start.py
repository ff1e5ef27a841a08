"""Where the weights of a run's encoder come from: nothing, a file, published weights, or a translator."""

from typing import Any, NamedTuple

from histo import encoders
from pretrain.backbone import MEAN, STD, Backbone
from pretrain.recipe import Recipe

DEFAULT = "resnet18"


class Begun(NamedTuple):
    """The encoder of a recipe with its initial weights; for cards `parent`, what they are, and for people `origin`."""

    encoder: Backbone
    parent: Any
    origin: str


def open_backbone(recipe: Recipe) -> Begun:
    """The encoder of a recipe with its initial weights.

    Raises:
        InputError: an unknown architecture, a source that is none, or one of another architecture than asked for.
    """
    settings = recipe.encoder
    source = settings.source or recipe.translator or "none"
    name = settings.architecture or (DEFAULT if source == "none" else None)
    start = encoders.start(source, settings.norm, name, seed=recipe.seed)
    mean, std = (start.facts[key] or usual for key, usual in (("mean", MEAN), ("std", STD)))
    origin = "random weights" if source == "none" else f"the weights of {source}"
    if start.report:
        origin += f"\n{start.report}"
    return Begun(Backbone(start.encoder, start.architecture, tuple(mean), tuple(std)), start.facts["parent"], origin)
