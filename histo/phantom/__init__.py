"""Phantom tissue: H&E-like tiles drawn from equations, with exact nucleus masks and no data behind them.

Everything downstream of a tile can be tried, tested and demonstrated on it. Tissue is laid out in µm
(`histo.phantom.anatomy`), stained and photographed (`histo.phantom.rendering`); patients differ in dyes and cells
(`histo.phantom.patients`).
"""

import math
import operator
from typing import Literal

from histo.errors import InputError
from histo.phantom.anatomy import LABELS, draw_scene
from histo.phantom.nuclei import EPITHELIAL, STROMAL
from histo.phantom.patients import Patient, draw_patient
from histo.phantom.rendering import render
from histo.randomness import draws
from histo.tiles import Tile, TileCache

__all__ = ["EPITHELIAL", "LABELS", "STROMAL", "Patient", "PhantomTissue", "draw_patient"]


class PhantomTissue:
    """Tiles of synthetic H&E tissue; tile `i` is a pure function of the seed, the settings and `i`, not of `count`.

    Tissue classes and patients take turns, so that any stretch of indices is balanced. The same tissue at another
    magnification comes from the same field of view: `size=256, mpp=0.25` shows what `size=128, mpp=0.5` shows.

    Each tile has the instance map with contiguous ids, nuclei cropped by the border included, and `types`: 1 for
    nuclei of stroma, vessels and lymphocytes, 2 for those of epithelium and tumour. There is at least one nucleus in
    any tile of 32 µm or more a side at 0.5 µm/px or finer.

    Args:
        seed: any integer.
        size: pixels of a side, or (height, width); 16 to 4096 each.
        mpp: µm/px, 0.1 to 2; nuclei measure 5 to 12 µm.
        patients: how many patients take turns, 1 or more; patient p is the same person whatever their number.
        count: number of tiles.
        cache_mb: drawn tiles kept in memory, in megabytes per process.
        split: "train" or "test" gives only tiles of that split's patients (every fifth is a test patient); None gives
            all of them.

    Attributes:
        patients: all patients, those of the other split included, with the stain vectors their tiles are drawn with.

    Raises:
        InputError: a value out of its range, or a split without patients.
    """

    def __init__(
        self,
        seed: int,
        *,
        size: int | tuple[int, int] = 128,
        mpp: float = 0.5,
        patients: int = 10,
        count: int = 1000,
        split: Literal["train", "test"] | None = None,
        cache_mb: float = 128,
    ) -> None:
        self.shape = (size, size) if isinstance(size, int) else (size[0], size[1])
        if not all(16 <= side <= 4096 for side in self.shape):
            raise InputError(f"size is {size}, expected 16 to 4096 pixels a side; choose a size such as 128.")
        if not (math.isfinite(mpp) and 0.1 <= mpp <= 2):
            raise InputError(f"mpp is {mpp}, expected 0.1 to 2 µm/px; choose a magnification such as 0.5.")
        if patients < 1:
            raise InputError(f"patients is {patients}, expected 1 or more; give at least one patient.")
        if count < 0:
            raise InputError(f"count is {count}, expected 0 or more; give the number of tiles.")
        if split not in (None, "train", "test"):
            raise InputError(f"split is {split!r}, expected 'train', 'test' or nothing; choose one of them.")
        self.seed = seed
        self.mpp = mpp
        self._count = count
        self._cache = TileCache(cache_mb)
        self.patients = tuple(draw_patient(seed, number) for number in range(patients))
        self._turn = [p for p, patient in enumerate(self.patients) if split in (None, patient.split)]
        if not self._turn:
            raise InputError(
                f"patients is {patients}, expected 5 or more for split 'test', which every fifth patient makes up; "
                "give more patients."
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tile:
        """Draw one tile; it depends on nothing drawn before."""
        position = range(self._count)[operator.index(index)]
        tile = self._cache.get(position)
        if tile is None:
            tile = self._draw(position)
            self._cache.put(position, tile)
        return tile

    def _draw(self, position: int) -> Tile:
        round_, place = divmod(position, len(self._turn))
        number = self._turn[place]
        patient = self.patients[number]
        label = LABELS[(number + round_) % len(LABELS)]
        number_of_tile = round_ * len(self.patients) + number
        extent = (self.shape[0] * self.mpp, self.shape[1] * self.mpp)
        scene = draw_scene(draws(self.seed, "phantom scene", number_of_tile), label, patient, extent)
        generator = draws(self.seed, "phantom rendering", number_of_tile)
        image, instances, types = render(generator, scene, patient, self.shape, self.mpp)
        return Tile(
            image=image,
            key=f"phantom-{self.seed}-{number_of_tile:06d}",
            source="phantom",
            patient=patient.name,
            mpp=self.mpp,
            label=label,
            split=patient.split,
            instances=instances,
            types=types,
        )

    def describe(self) -> str:
        """One line for people: tiles, patients, µm/px and classes."""
        return (
            f"{len(self)} phantom tiles of {self.shape[0]} x {self.shape[1]} px · {len(self._turn)} patients · "
            f"{self.mpp:g} µm/px · {', '.join(LABELS)} · drawn from seed {self.seed}"
        )
