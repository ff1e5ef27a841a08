"""Stain fidelity: the amounts of haematoxylin and eosin in generated tissue against those in real tissue."""

from dataclasses import dataclass
from math import ceil, floor

import torch
from torch import Tensor

from histo.stains import HED, concentrations, optical_density

STAINS = ("haematoxylin", "eosin")
TISSUE_DENSITY = 0.15  # least mean optical density of a pixel that counts as tissue (Macenko et al., ISBI 2009)
BIN = 0.005  # optical density
_DARKEST = 2.4066  # optical density of a channel, log10(255)


def _range() -> tuple[float, float]:
    """Lowest and highest concentration that any 8-bit colour can have, in whole bins."""
    inverse = torch.tensor(HED, dtype=torch.float64).inverse()[:, : len(STAINS)] * _DARKEST
    low, high = inverse.clamp(max=0).sum(0).min(), inverse.clamp(min=0).sum(0).max()
    return floor(float(low) / BIN) * BIN, ceil(float(high) / BIN) * BIN


LOW, HIGH = _range()
BINS = round((HIGH - LOW) / BIN)


@dataclass(frozen=True)
class Staining:
    """Distribution of stain concentrations over tissue pixels; those of two sets of images add up.

    Concentrations are in units of optical density, by colour deconvolution with the fixed matrix of Ruifrok & Johnston
    (2001), so that the same colour counts as the same stain in either set.

    counts: int64 [2, BINS], tissue pixels by concentration of haematoxylin and of eosin, in bins of `BIN`.
    total, squares: float64 [2], sum and sum of squares of the concentrations.
    """

    counts: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, images: Tensor) -> "Staining":
        """images: uint8 [N, 3, H, W] RGB."""
        tissue = optical_density(images).mean(1) >= TISSUE_DENSITY
        amounts = concentrations(images)[:, : len(STAINS)].movedim(1, 0)[:, tissue].double().cpu()
        bins = ((amounts - LOW) / BIN).long().clamp(0, BINS - 1)  # only rounding leaves the range
        counts = torch.stack([torch.bincount(row, minlength=BINS) for row in bins])
        return cls(counts, amounts.sum(1), amounts.square().sum(1))

    def __add__(self, other: "Staining") -> "Staining":
        return Staining(self.counts + other.counts, self.total + other.total, self.squares + other.squares)

    @property
    def pixels(self) -> int:
        """Tissue pixels."""
        return int(self.counts[0].sum())

    @property
    def mean(self) -> Tensor:
        """float64 [2], optical density; NaN without tissue."""
        return self.total / self.pixels

    @property
    def deviation(self) -> Tensor:
        """Standard deviation, float64 [2], optical density; NaN without tissue."""
        return (self.squares / self.pixels - self.mean.square()).clamp(min=0).sqrt()


def stain_distance(real: Staining, generated: Staining) -> dict[str, float | None]:
    """Wasserstein-1 distance of the concentrations of each stain, in optical density; None where a set has no tissue.

    W₁ = ∫ |F_real(c) - F_generated(c)| dc (Vallender 1974), F being the shares of tissue pixels with less stain than c:
    the mean amount of stain by which pixels have to change. Exact up to `BIN`.
    """
    if not (real.pixels and generated.pixels):
        return dict.fromkeys(STAINS)
    shares = [staining.counts.double().cumsum(1) / staining.pixels for staining in (real, generated)]
    return dict(zip(STAINS, ((shares[0] - shares[1]).abs().sum(1) * BIN).tolist(), strict=True))
