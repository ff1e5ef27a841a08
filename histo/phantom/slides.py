"""Phantom slides: sections of phantom tissue on glass, half of them with planted tumour whose place is known exactly.

A section is stroma with vessels, zones of glands and aggregates of lymphocytes, which are dense as tumour is and no
tumour. In every other slide one or two regions are planted in it: nests of tumour with septa of stroma between them.
"""

import csv
import io
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from histo.errors import InputError, writing
from histo.files import written_whole
from histo.masks import write_instances
from histo.phantom.anatomy import Scene, draw_scene
from histo.phantom.noise import SmoothField
from histo.phantom.nuclei import Nuclei, Points, settle
from histo.phantom.patients import Patient, draw_patient
from histo.phantom.rendering import render
from histo.phantom.structures import Ring
from histo.randomness import draws
from histo.slides.pyramids import write_pyramid
from histo.slides.tables import COLUMNS, TABLE

NORMAL, TUMOUR = "normal", "tumour"
_TRIES = 200  # places that are tried for a region before it is taken where it is deepest in the tissue


@dataclass(frozen=True)
class Blob:
    """A region with a wavy edge: positive inside, about µm from its edge.

    Attributes:
        y, x: its centre; height, width: its semi-axes; µm.
        wave: how far the edge strays, µm; field: and where.
    """

    y: float
    x: float
    height: float
    width: float
    wave: float
    field: SmoothField

    def on(self, shape: tuple[int, int], mpp: float) -> NDArray[np.float32]:
        """Values at the pixel centres of a canvas: float32 [H, W]."""
        y, x = (((np.arange(pixels) + 0.5) * mpp).astype(np.float32) for pixels in shape)
        return self._inwards(y[:, None], x[None, :]) + np.float32(self.wave) * self.field.on(shape, mpp)

    def at(self, y: Points, x: Points) -> NDArray[np.floating]:
        """Values at points in µm, [N]."""
        return self._inwards(y, x) + self.wave * self.field.at(y, x)

    def _inwards(self, y: NDArray[np.floating], x: NDArray[np.floating]) -> NDArray[np.floating]:
        away = np.hypot((y - self.y) / self.height, (x - self.x) / self.width)
        return (min(self.height, self.width) * (1 - away)).astype(y.dtype)


@dataclass(frozen=True)
class Union:
    """The greatest of several fields: positive wherever one of them is."""

    parts: tuple[Blob, ...]

    def on(self, shape: tuple[int, int], mpp: float) -> NDArray[np.float32]:
        """Values at the pixel centres of a canvas: float32 [H, W]."""
        found = np.full(shape, -np.inf, np.float32)
        for part in self.parts:
            np.maximum(found, part.on(shape, mpp), out=found)
        return found

    def at(self, y: Points, x: Points) -> NDArray[np.floating]:
        """Values at points in µm, [N]."""
        return np.max([np.full(len(y), -np.inf), *(part.at(y, x) for part in self.parts)], axis=0)


@dataclass(frozen=True)
class Nests:
    """The nests of tumour that lie inside planted regions: the lesser of both fields."""

    planted: Union
    nests: SmoothField

    def on(self, shape: tuple[int, int], mpp: float) -> NDArray[np.float32]:
        """Values at the pixel centres of a canvas: float32 [H, W]."""
        return np.minimum(self.planted.on(shape, mpp), self.nests.on(shape, mpp))

    def at(self, y: Points, x: Points) -> NDArray[np.floating]:
        """Values at points in µm, [N]."""
        return np.minimum(self.planted.at(y, x), self.nests.at(y, x))


@dataclass(frozen=True)
class PhantomSlide:
    """One slide.

    Attributes:
        image: uint8 [3, H, W] RGB, its finest level.
        planted: bool [H, W], the planted regions, septa between nests included; nowhere in a normal slide.
        key, patient, label, split: as those of a tile; the label is "normal" or "tumour".
        mpp: µm/px.
    """

    image: NDArray[np.uint8]
    planted: NDArray[np.bool_]
    key: str
    patient: str
    label: str
    split: str
    mpp: float


class PhantomSlides:
    """Slides of synthetic tissue; slide `i` is a pure function of the seed, the settings and `i`, not of `count`.

    Each patient has two slides, a normal one and one with tumour, so that stain says nothing of the class.

    Args:
        seed: any integer.
        size: pixels of a side; 256 to 8192.
        mpp: µm/px, 0.1 to 2.
        count: number of slides.
        tumour: share of the tissue that is planted, on average; single slides have 0.5 to 1.5 times as much.

    Raises:
        InputError: a value out of its range.
    """

    def __init__(self, seed: int, *, size: int = 2048, mpp: float = 0.5, count: int = 20, tumour: float = 0.06) -> None:
        if not 256 <= size <= 8192:
            raise InputError(f"size is {size}, expected 256 to 8192 pixels; choose a size such as 2048.")
        if not (math.isfinite(mpp) and 0.1 <= mpp <= 2):
            raise InputError(f"mpp is {mpp}, expected 0.1 to 2 µm/px; choose a magnification such as 0.5.")
        if count < 1:
            raise InputError(f"count is {count}, expected 1 or more; give the number of slides.")
        if not 0.001 <= tumour <= 0.5:
            raise InputError(f"tumour is {tumour}, expected a share from 0.001 to 0.5; choose one such as 0.06.")
        self.seed, self.size, self.mpp, self.tumour, self._count = seed, size, mpp, tumour, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> PhantomSlide:
        """Draw one slide; seconds, and about 60 bytes of memory a pixel."""
        position = range(self._count)[operator.index(index)]
        patient = draw_patient(self.seed, position // 2)
        scene, planted = self.laid_out(position)
        assert scene.tissue is not None
        shape = (self.size, self.size)
        image, _, _ = render(draws(self.seed, "phantom slide rendering", position), scene, patient, shape, self.mpp)
        return PhantomSlide(
            image=image,
            planted=(planted.on(shape, self.mpp) > 0) & (scene.tissue.on(shape, self.mpp) > 0),
            key=f"slide_{position:04d}",
            patient=patient.name,
            label=TUMOUR if planted.parts else NORMAL,
            split=patient.split,
            mpp=self.mpp,
        )

    def laid_out(self, index: int) -> tuple[Scene, Union]:
        """What a slide shows, in µm, and the regions planted in it."""
        side = self.size * self.mpp
        generator = draws(self.seed, "phantom slide", index)
        section = _section(generator, side)
        planted = Union(_regions(generator, section, side, self.tumour) if index % 2 else ())
        return _scene(generator, draw_patient(self.seed, index // 2), section, planted, side), planted


def write_slides(slides: PhantomSlides, folder: Path) -> Path:
    """Write slides as pyramidal TIFF, the planted regions as masks of their size, and `slides.csv` last.

    Returns:
        The table.

    Raises:
        InputError: the folder cannot be written.
    """
    rows: list[Sequence[object]] = [COLUMNS]
    with writing(folder):
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        for position in tqdm(range(len(slides)), desc="drawing slides", unit="slide", disable=None):
            slide = slides[position]
            path, mask = f"{slide.key}.tif", f"masks/{slide.key}.png"
            write_pyramid(folder / path, slide.image, slide.mpp)
            write_instances(folder / mask, slide.planted)
            facts = {"path": path, "label": slide.label, "patient": slide.patient, "split": slide.split, "mask": mask}
            rows.append([facts.get(name) for name in COLUMNS])
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        with written_whole(folder / TABLE) as file:
            file.write(text.getvalue().encode())
    return folder / TABLE


def _section(generator: np.random.Generator, side: float) -> Blob:
    """The outline of the tissue: about half of the glass."""
    y, x = generator.uniform(0.47, 0.53, 2) * side
    height, width = generator.uniform(0.36, 0.44, 2) * side
    return Blob(y, x, height, width, 0.03 * side, SmoothField(generator, (side, side), side / 6))


def _regions(generator: np.random.Generator, section: Blob, side: float, share: float) -> tuple[Blob, ...]:
    """One or two regions that lie in the section and together take about the share of it."""
    area = math.pi * section.height * section.width * share * generator.uniform(0.5, 1.5)
    number = int(generator.integers(1, 3))
    found = []
    for part in generator.dirichlet([5.0] * number):
        radius, aspect = math.sqrt(area * part / math.pi), generator.uniform(0.75, 1.33)
        height, width = radius * math.sqrt(aspect), radius / math.sqrt(aspect)
        field = SmoothField(generator, (side, side), max(radius / 1.5, 8.0))
        y, x = generator.uniform(0, side, (2, _TRIES))
        depth = section.at(y, x)
        deep = np.flatnonzero(depth > max(height, width))
        place = deep[0] if len(deep) else depth.argmax()
        found.append(Blob(y[place], x[place], height, width, 0.15 * radius, field))
    return tuple(found)


def _scene(generator: np.random.Generator, patient: Patient, section: Blob, planted: Union, side: float) -> Scene:
    """Stroma, zones of glands, aggregates of lymphocytes and tumour, each where it belongs."""
    extent = (side, side)
    stroma, glands, lymphoid, tumour = (
        draw_scene(generator, label, patient, extent) for label in ("stroma", "glands", "lymphoid", "tumour")
    )
    assert isinstance(tumour.nests, SmoothField)
    zone = SmoothField(generator, extent, max(side / 5, 60.0))
    aggregates = Union(tuple(_aggregate(generator, side) for _ in range(generator.integers(2, 5))))

    def kept(ring: Ring) -> bool:
        y, x = np.array([ring.y]), np.array([ring.x])
        clear = planted.at(y, x)[0] < -ring.reach and aggregates.at(y, x)[0] < -ring.reach
        return clear and section.at(y, x)[0] > ring.reach and (ring.kind == "vessel" or zone.at(y, x)[0] > 0.2)

    rings = [ring for ring in glands.rings if kept(ring)]
    rings += [ring for ring in stroma.rings if kept(ring) and all(_apart(ring, gland) for gland in rings)]
    lining = _without(glands.nuclei, [ring for ring in glands.rings if ring not in rings])
    lining = lining[zone.at(lining["y"], lining["x"]) > 0.2]
    walls = _without(stroma.nuclei, [ring for ring in stroma.rings if ring not in rings])
    walls = _without(walls, [ring for ring in rings if ring.kind == "gland"])
    nests = Nests(planted, tumour.nests)
    inside = tumour.nuclei[planted.at(tumour.nuclei["y"], tumour.nuclei["x"]) > 0]
    dense = lymphoid.nuclei[aggregates.at(lymphoid.nuclei["y"], lymphoid.nuclei["x"]) > 0]
    around = np.concatenate([lining, dense, walls])
    around = around[planted.at(around["y"], around["x"]) <= 0]
    nuclei = np.concatenate([inside, around])
    nuclei = nuclei[section.at(nuclei["y"], nuclei["x"]) > nuclei["major"]]
    return replace(
        stroma,
        nuclei=settle(nuclei, extent),
        rings=tuple(rings),
        nests=nests if planted.parts else None,
        erythrocytes=_within(stroma.erythrocytes, section),
        debris=_within(stroma.debris, section),
        tissue=section,
    )


def _aggregate(generator: np.random.Generator, side: float) -> Blob:
    """Lymphocytes that lie together."""
    y, x = generator.uniform(0.2, 0.8, 2) * side
    height, width = generator.uniform(30, 70, 2)
    return Blob(y, x, height, width, 8.0, SmoothField(generator, (side, side), 25.0))


def _apart(one: Ring, other: Ring) -> bool:
    return math.hypot(one.y - other.y, one.x - other.x) > one.reach + other.reach + 2


def _without(nuclei: Nuclei, rings: Sequence[Ring]) -> Nuclei:
    """Those of the nuclei that lie in none of the rings nor in their walls."""
    keep = np.ones(len(nuclei), bool)
    for ring in rings:
        near = np.flatnonzero(np.hypot(nuclei["y"] - ring.y, nuclei["x"] - ring.x) < ring.reach + 2)
        keep[near[ring.depth(nuclei["y"][near], nuclei["x"][near]) < ring.wall + 1]] = False
    return nuclei[keep]


def _within(points: NDArray[np.float64], section: Blob) -> NDArray[np.float64]:
    """Rows of y, x, … that lie in the section."""
    return points[section.at(points[:, 0], points[:, 1]) > 4]
