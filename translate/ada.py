"""Adaptive discriminator augmentation (ADA): how often to augment what the tissue discriminator sees.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676), section 3.1: a
discriminator that knows the real images by heart calls nearly all of them real. So the mean sign of its logits on real
images, r, is held at a target by raising and lowering the probability p of each augmentation.
"""

from dataclasses import dataclass
from math import isnan
from typing import Any, Literal

import torch
from torch import Tensor

from histo.errors import InputError
from histo.running.processes import summed
from translate.augmentation import augment, draw

STEPS = 4  # between changes of p, as in the paper


@dataclass
class AdaSettings:
    """Augmentation of what the tissue discriminator sees (ADA)."""

    kind: Literal["none", "fixed", "adaptive"] = "adaptive"
    """none; fixed: always with `probability`; adaptive: its probability follows the discriminator's overfitting"""
    probability: float = 0.0
    """of each augmentation: for good when fixed, at the start when adaptive"""
    target: float = 0.6
    """adaptive: mean sign of the discriminator's logits on real tissue to hold"""
    speed: int = 500_000
    """adaptive: images in which the probability can go from 0 to 1"""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"ada.probability is {self.probability}, expected a number in [0, 1].")
        if self.kind == "fixed" and self.probability == 0:
            raise InputError(
                "ada.probability is 0 while ada.kind is fixed, expected a number in (0, 1]; "
                "name one, or set ada.kind none."
            )
        if not 0 < self.target < 1:
            raise InputError(f"ada.target is {self.target}, expected a number in (0, 1).")
        if self.speed < 1:
            raise InputError(f"ada.speed is {self.speed}, expected 1 or more images.")


class AdaptiveAugmentation:
    """The probability p of each augmentation, what it is steered by, and the augmenting itself.

    Everything in it is the same in every process, and its `facts` belong to the checkpoint.
    """

    def __init__(self, settings: AdaSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.p = 0.0 if settings.kind == "none" else settings.probability
        self.r: float | None = None  # of the last four steps; unknown before
        self.signs, self.images, self.steps = 0.0, 0, 0  # since p was last looked at

    def augmented(self, tissue: Tensor, stream: str, indices: list[int]) -> Tensor:
        """Tissue float [N, 3, r, r] as the discriminator is to see it, by global image index; differentiable.

        `stream` names who looks at what, so that real and generated tissue meet different augmentations.
        """
        if self.p == 0:
            return tissue
        return augment(tissue, draw(self.seed, f"ada of {stream}", indices, self.p, tissue.shape[-1]))

    def observe(self, real_logits: Tensor) -> None:
        """Take note of this process's logits [N] on (augmented) real tissue; every fourth time, adapt p.

        Raises:
            InputError: some of them, in any process, are not finite; raised in all processes, before p changes.
        """
        if self.settings.kind == "none":
            return
        signs = torch.where(real_logits.isfinite(), real_logits.detach().float().sign(), torch.nan)
        total, images = summed([signs.sum().item(), len(signs)])
        if isnan(total):
            raise InputError("ADA's r, the mean sign of the tissue discriminator's logits on real tissue, became nan")
        self.signs, self.images, self.steps = self.signs + total, self.images + round(images), self.steps + 1
        if self.steps < STEPS:
            return
        self.r = self.signs / self.images
        if self.settings.kind == "adaptive":
            upwards = (self.r > self.settings.target) - (self.r < self.settings.target)
            # Above 1 nothing more could be augmented, and p would only have farther to come back.
            self.p = min(max(self.p + upwards * self.images / self.settings.speed, 0.0), 1.0)
        self.signs, self.images, self.steps = 0.0, 0, 0

    def scalars(self) -> dict[str, float]:
        """p and the last r by name, for the log; nothing without augmentation."""
        if self.settings.kind == "none":
            return {}
        return {"ada/p": self.p} | ({} if self.r is None else {"ada/r": self.r})

    def facts(self) -> dict[str, Any]:
        """Its state, for a checkpoint's facts; JSON keeps floats exactly."""
        return {"p": self.p, "r": self.r, "signs": self.signs, "images": self.images, "steps": self.steps}

    def restore(self, facts: object) -> None:
        """Put back what `facts` gave out; a fixed probability stays as it is set.

        Raises:
            InputError: it is not such a state.
        """
        if self.settings.kind == "none":
            return
        if not (isinstance(facts, dict) and facts.keys() == self.facts().keys() and _sound(**facts)):
            raise InputError(
                f"The checkpoint's state of ADA is {facts!r}, expected its p, r and counts; "
                "resume from another checkpoint."
            )
        self.r, self.signs, self.images, self.steps = (facts[name] for name in ("r", "signs", "images", "steps"))
        if self.settings.kind == "adaptive":
            self.p = facts["p"]


def _sound(p: object, r: object, signs: object, images: object, steps: object) -> bool:
    return (
        (isinstance(p, int | float) and 0 <= p <= 1)
        and (r is None or (isinstance(r, int | float) and -1 <= r <= 1))
        and (type(images) is int and type(steps) is int and 0 <= steps < STEPS and images >= steps)
        and (isinstance(signs, int | float) and abs(signs) <= images)
    )
