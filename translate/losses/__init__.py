"""Losses of translation: one file per kind, pure functions from tensors to scalars."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from histo.errors import InputError


class NonFiniteLoss(InputError):
    """A loss term became infinite or not a number: too high a learning rate, mostly."""

    def __init__(self, term: str, value: float) -> None:
        super().__init__(f"the loss term {term} became {value}")


def refuse_weights(settings: Any) -> None:
    """Refuse a weight, a field of type float of a settings dataclass `loss`, that is negative or infinite.

    Raises:
        InputError: naming it.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, float) and not 0 <= value < float("inf"):
            raise InputError(f"loss.{field.name} is {value}, expected a finite number of 0 or more.")


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Σ weight · term over the named scalar terms: the only place where losses are added.

    Raises:
        NonFiniteLoss: naming the first term that is infinite or not a number.
    """
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    if not torch.isfinite(total):
        for name, term in terms.items():
            if not torch.isfinite(term):
                raise NonFiniteLoss(name, term.item())
        raise NonFiniteLoss("total", total.item())
    return total
