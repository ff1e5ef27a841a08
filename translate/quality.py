"""What can be said of a tile's pseudo-mask without labels, and which tiles are set aside for it."""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from histo import stains
from histo.errors import InputError

UNITS = {"nuclei": "nuclei", "area": "µm²", "coverage": "of the tile", "contrast": "of optical density"}


@dataclass(frozen=True)
class Quality:
    """Figures of one instance map on its tissue.

    nuclei: how many.
    area: their median area, µm²; 0 without nuclei.
    coverage: share of the tile's pixels that lie in nuclei.
    inside, outside: mean amount of haematoxylin (optical density, matrix of Ruifrok & Johnston, amounts below 0 as 0)
        in nuclei and elsewhere; None where there are no such pixels.
    """

    nuclei: int
    area: float
    coverage: float
    inside: float | None
    outside: float | None

    @property
    def contrast(self) -> float | None:
        """How much more haematoxylin there is in nuclei; None where either side is empty."""
        return None if self.inside is None or self.outside is None else self.inside - self.outside


@dataclass
class GateSettings:
    """Ranges [least, most] of what a tile's pseudo-mask may be; tiles outside any are set aside.

    The defaults let pass what was labelled by hand: of 306 tiles of five sets, all but seven."""

    nuclei: list[float] = field(default_factory=lambda: [1, 1_000_000])
    """nuclei of a tile"""
    area: list[float] = field(default_factory=lambda: [4, 200])
    """median area of its nuclei; µm²"""
    coverage: list[float] = field(default_factory=lambda: [0.0, 0.75])
    """share of the tile that lies in nuclei"""
    contrast: list[float] = field(default_factory=lambda: [0.05, 10])
    """mean haematoxylin in nuclei less that elsewhere; optical density"""

    def __post_init__(self) -> None:
        for name, limits in asdict(self).items():
            if len(limits) != 2 or not limits[0] <= limits[1]:
                raise InputError(f"gate.{name} is {limits}, expected two numbers, [least, most].")

    def reason(self, quality: Quality) -> str | None:
        """Why a tile is set aside, a phrase; None where it is kept."""
        for name, (least, most) in asdict(self).items():
            value = getattr(quality, name)
            if value is not None and not least <= value <= most:
                return f"{name} {value:.3g} {UNITS[name]}, expected {least:g} to {most:g}"
        return None


def measure(image: NDArray[np.uint8], instances: NDArray[np.int32], mpp: float) -> Quality:
    """Measure an instance map on its tissue.

    Args:
        image: uint8 [3, H, W] RGB.
        instances: int32 [H, W], 0 = background.
        mpp: µm/px.
    """
    areas = np.bincount(instances.ravel())[1:]
    areas = areas[areas > 0]
    nuclear = instances > 0
    amount = stains.concentrations(torch.from_numpy(np.array(image)[None]))[0, 0].clamp(min=0).numpy()
    return Quality(
        nuclei=len(areas),
        area=round(float(np.median(areas)) * mpp**2, 3) if len(areas) else 0.0,
        coverage=round(float(nuclear.mean()), 5),
        inside=round(float(amount[nuclear].mean()), 4) if nuclear.any() else None,
        outside=round(float(amount[~nuclear].mean()), 4) if not nuclear.all() else None,
    )
