"""Losses of translation: one file per kind, pure functions from tensors to scalars; their weights live here."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from histo.errors import InputError


class NonFiniteLoss(InputError):
    """A loss term became infinite or not a number: too high a learning rate, mostly."""

    def __init__(self, term: str, value: float) -> None:
        super().__init__(f"the loss term {term} became {value}")


@dataclass
class LossSettings:
    """Weights of the named terms (UNITPathSSL, equation 7: λ = 2, 10, 2) and R1."""

    tissue_adversarial: float = 1.0
    """generated tissue against the tissue discriminator (non-saturating)"""
    mask_adversarial: float = 2.0
    """predicted masks against the mask discriminator (least squares)"""
    cycle_mask: float = 5.0
    """L1 of mask → tissue → mask; half of the paper's cycle weight 10"""
    cycle_tissue: float = 5.0
    """L1 of tissue → mask → tissue; the other half"""
    guidance: float = 2.0
    """S on generated tissue against the nuclei it was generated from"""
    guidance_kind: Literal["semantic", "none"] = "semantic"
    """semantic: binary nucleus mask; none: no guidance"""
    r1: float = 1.0
    """γ of the R1 penalty on real tissue"""
    r1_every: int = 16
    """steps between R1 penalties, which are scaled up to make good for it"""

    def __post_init__(self) -> None:
        for name in ("tissue_adversarial", "mask_adversarial", "cycle_mask", "cycle_tissue", "guidance", "r1"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"loss.{name} is {getattr(self, name)}, expected a finite number of 0 or more.")
        if self.r1_every < 1:
            raise InputError(f"loss.r1_every is {self.r1_every}, expected 1 or more steps.")


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
