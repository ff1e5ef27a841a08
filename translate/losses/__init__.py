"""Losses of translation: one file per kind, pure functions from tensors to scalars."""

from dataclasses import fields
from typing import Any

from histo.errors import InputError


def refuse_weights(settings: Any) -> None:
    """Refuse a weight, a field of type float of a settings dataclass `loss`, that is negative or infinite.

    Raises:
        InputError: naming it.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, float) and not 0 <= value < float("inf"):
            raise InputError(f"loss.{field.name} is {value}, expected a finite number of 0 or more.")
