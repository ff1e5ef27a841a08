"""Generators by name, and generator files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from histo.encoders import read_card
from histo.errors import InputError
from translate.networks.comod import SIDES, CoModGenerator, CoModSettings

LARGEST_SETTING = 65_536  # what a card may ask for; the largest in use is channel_base, 16 384


@dataclass
class GeneratorSettings(CoModSettings):
    """Mask → tissue network."""

    kind: Literal["comod"] = "comod"
    """comod: co-modulated StyleGAN2"""


def build_generator(settings: GeneratorSettings, side: int) -> nn.Module:
    """An untrained generator of tiles of `side` pixels."""
    return CoModGenerator(settings, side)


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
        with torch.device("meta"):  # sizes come from the card, memory only with weights that fit
            generator = build_generator(GeneratorSettings(**settings), side)
        generator.load_state_dict(tensors, assign=True)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        wanted = f"{str(settings)[:200]} at {str(side)[:20]} pixels"
        raise InputError(f"{path} does not fit its card's settings {wanted}; export it again.") from error
    return generator.requires_grad_(False).eval(), card
