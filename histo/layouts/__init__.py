"""Layouts: nucleus masks without tissue, drawn from a few measurable parameters; nobody's tissue is behind them.

They are the pseudo-masks to learn translation from where there are no labels and no segmenter is trusted. No tissue is
drawn: `histo.phantom` does that. `histo.layouts.fitting` finds the parameters of given instance maps.
"""

import math
import operator
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from histo.errors import InputError
from histo.layouts.drawing import EPITHELIUM, STROMA, draw_layout
from histo.layouts.settings import LayoutSettings, ShapeSettings
from histo.randomness import draws
from histo.tiles import Tile

__all__ = ["EPITHELIUM", "STROMA", "LayoutSettings", "Layouts", "ShapeSettings"]

_GOLDEN = (math.sqrt(5) - 1) / 2


class Layouts:
    """Instance maps as tiles of no tissue; map `i` is a pure function of the seed, the settings, size, µm/px and `i`.

    Each has contiguous ids, nuclei cropped by the border included, at least one, and `types`: 1 stroma, 2 epithelium.

    Args:
        settings: what they look like.
        seed: any integer.
        size: pixels of a side, or (height, width); 16 to 4096 each.
        mpp: µm/px, 0.1 to 2; of several, each map has one, all equally likely.
        count: number of maps.

    Raises:
        InputError: a value out of its range.
    """

    def __init__(
        self,
        settings: LayoutSettings,
        seed: int,
        *,
        size: int | tuple[int, int] = 256,
        mpp: float | Sequence[float] = 0.25,
        count: int = 1000,
    ) -> None:
        self.shape = (size, size) if isinstance(size, int) else (size[0], size[1])
        if not all(16 <= side <= 4096 for side in self.shape):
            raise InputError(f"size is {size}, expected 16 to 4096 pixels a side; choose a size such as 256.")
        self.mpp = np.atleast_1d(np.asarray(mpp, dtype=np.float64))
        wrong = [value for value in self.mpp.tolist() if not (math.isfinite(value) and 0.1 <= value <= 2)]
        if wrong or not self.mpp.size:
            raise InputError(f"mpp is {wrong[:1] or mpp}, expected 0.1 to 2 µm/px for layouts; check the µm/px.")
        if count < 0:
            raise InputError(f"count is {count}, expected 0 or more; give the number of maps.")
        self.settings, self.seed = settings, seed
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tile:
        """Draw one map; it depends on nothing drawn before."""
        position = range(self._count)[operator.index(index)]
        # Densities are spread evenly over any stretch of indices, by the additive recurrence of the golden ratio.
        first = draws(self.seed, "layout densities", 0).uniform()
        swing = float(ndtri((first + position * _GOLDEN) % 1 * (1 - 1e-9) + 5e-10))
        generator = draws(self.seed, "layout", position)
        mpp = float(self.mpp[generator.integers(len(self.mpp))])
        instances, types = draw_layout(generator, self.settings, self.shape, mpp, swing)
        return Tile(
            image=np.broadcast_to(np.uint8(0), (3, *self.shape)),  # takes no memory
            key=f"layout-{self.seed}-{position:06d}",
            source="layouts",
            patient=None,
            mpp=mpp,
            label=None,
            split=None,
            instances=instances,
            types=types,
        )

    def describe(self) -> str:
        """One line for people: maps and µm/px."""
        low, high = f"{self.mpp.min():.4g}", f"{self.mpp.max():.4g}"
        return (
            f"{len(self)} layouts of {self.shape[0]} x {self.shape[1]} px · "
            f"{low if low == high else f'{low}–{high}'} µm/px · drawn from seed {self.seed}"
        )
