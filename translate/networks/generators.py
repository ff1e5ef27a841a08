"""Generators by name, and generator files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from histo.encoders import read_card
from histo.errors import InputError
from translate.networks.comod import SIDES, CoModGenerator, CoModSettings
from translate.networks.resnet import ResNetGenerator
from translate.networks.unet import UNetGenerator

LARGEST_SETTING = 65_536  # what a card may ask for; the largest in use is channel_base, 16 384


@dataclass
class GeneratorSettings(CoModSettings):
    """Mask → tissue network."""

    kind: Literal["comod", "resnet", "unet"] = "comod"
    """comod: co-modulated StyleGAN2; resnet, unet: those of CycleGAN, which have no style"""
    width: int = 64
    """resnet, unet: channels of the first layer"""
    blocks: int = 9
    """resnet: residual blocks"""


@dataclass
class ImageGeneratorSettings:
    """Image → image network without a style."""

    kind: Literal["resnet", "unet"] = "resnet"
    """resnet: two reductions and residual blocks; unet: reductions to a few pixels, handed across at every level"""
    width: int = 64
    """channels of the first layer"""
    blocks: int = 9
    """resnet: residual blocks"""
    anti_aliased: bool = False
    """resnet: low-pass filters where the resolution changes, as in CUT"""


def build_generator(settings: GeneratorSettings | ImageGeneratorSettings, side: int) -> nn.Module:
    """An untrained generator of tiles of `side` pixels.

    Raises:
        InputError: no channel or no block.
    """
    if isinstance(settings, GeneratorSettings) and settings.kind == "comod":
        return CoModGenerator(settings, side)
    if settings.kind == "unet":
        return UNetGenerator(side, settings.width)
    anti_aliased = isinstance(settings, ImageGeneratorSettings) and settings.anti_aliased
    return ResNetGenerator(settings.width, settings.blocks, anti_aliased=anti_aliased)


def load(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """A generator from a generator file, ready to render, and its card.

    Raises:
        InputError: no generator file, or weights that do not fit its card.
    """
    tensors, card = read_card(Path(path), "generator")
    side, settings = card.get("tile_size"), card.get("settings")
    try:
        if type(side) is not int or side not in SIDES:
            raise ValueError(f"tile_size is {side!r}")
        if not isinstance(settings, dict) or any(
            value > LARGEST_SETTING for value in settings.values() if not isinstance(value, str)
        ):
            raise ValueError("a setting is too large")
        kind = ImageGeneratorSettings if "anti_aliased" in settings else GeneratorSettings
        with torch.device("meta"):  # sizes come from the card, memory only with weights that fit
            generator = build_generator(kind(**settings), side)
        generator.load_state_dict(tensors, assign=True)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        wanted = f"{str(settings)[:200]} at {str(side)[:20]} pixels"
        raise InputError(f"{path} does not fit its card's settings {wanted}; export it again.") from error
    return generator.requires_grad_(False).eval(), card
