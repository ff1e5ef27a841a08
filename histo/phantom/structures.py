"""What nuclei stand in: glands, vessels and bundles of fibres, in µm."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from histo.phantom.noise import SmoothField
from histo.phantom.nuclei import Points

NUCLEAR_LAYER = 0.68  # where nuclei stand in the epithelium, from the lumen (0) to the basement membrane (1)


@dataclass(frozen=True)
class Ring:
    """A gland or vessel: a lumen of radius r(θ) = radius · (1 + Re Σ h_k exp(ikθ)), k = 1…4, and a wall around it.

    Lengths in µm. `goblets` is float64 [G, 3], centre y, x and radius of pale mucin drops in the wall.
    """

    y: float
    x: float
    radius: float
    wall: float
    harmonics: NDArray[np.complex128]
    kind: Literal["gland", "vessel"]
    goblets: NDArray[np.float64]

    @property
    def reach(self) -> float:
        """Radius of a circle that holds the ring."""
        return self.radius * (1 + float(np.abs(self.harmonics).sum())) + self.wall

    def inner(self, theta: NDArray[np.floating]) -> NDArray[np.floating]:
        """Radius of the lumen at angles theta."""
        powers = np.exp(1j * theta)
        waves = sum(h * powers**k for k, h in enumerate(self.harmonics, start=1))
        return self.radius * (1 + np.real(waves))

    def depth(self, y: NDArray[np.floating], x: NDArray[np.floating]) -> NDArray[np.floating]:
        """Radial distance from the edge of the lumen outwards; the wall is 0 to `wall`, the lumen is negative."""
        dy, dx = y - self.y, x - self.x
        return np.hypot(dy, dx) - self.inner(np.arctan2(dy, dx))


@dataclass(frozen=True)
class Fibres:
    """Wavy stromal bundles: the level lines of v = (distance across `angle`) + wave · field(y, x)."""

    angle: float
    wave: float
    field: SmoothField

    def direction(self, y: Points, x: Points) -> Points:
        """Angle of the fibre through each point."""
        step = 0.5
        slope_y = self.wave * (self.field.at(y + step, x) - self.field.at(y - step, x)) / (2 * step)
        slope_x = self.wave * (self.field.at(y, x + step) - self.field.at(y, x - step)) / (2 * step)
        gradient_y, gradient_x = np.cos(self.angle) + slope_y, -np.sin(self.angle) + slope_x
        return np.arctan2(-gradient_x, gradient_y)


def draw_glands(generator: np.random.Generator, extent: tuple[float, float], anchor: Points) -> list[Ring]:
    """Glands that do not meet; the wall of the first passes through `anchor`."""
    glands: list[Ring] = []
    sides = np.array(extent)
    margin = 30.0
    attempts = 1 + int(np.ceil((sides + 2 * margin).prod() / 1500))
    lumen = generator.choice([5.0, 9.0, 16.0])
    wall = generator.uniform(13, 19)
    for attempt in range(attempts):
        size = np.clip(lumen * np.exp(generator.normal(0, 0.3)), 3, 26)
        waves = generator.normal(0, 1, 4) + 1j * generator.normal(0, 1, 4)
        # No first harmonic: it would only move the centre.
        harmonics = waves * np.array([0, 0.14, 0.06, 0.03])
        centre = generator.uniform(-margin, sides + margin)
        towards = generator.uniform(-np.pi, np.pi)
        gland = Ring(centre[0], centre[1], size, wall, harmonics, "gland", np.zeros((0, 3)))
        if attempt == 0:
            middle = gland.inner(np.array([towards]))[0] + NUCLEAR_LAYER * wall
            centre = anchor - middle * np.array([np.sin(towards), np.cos(towards)])
        gland = Ring(centre[0], centre[1], size, wall, harmonics, "gland", _draw_goblets(generator, gland, centre))
        apart = all(np.hypot(gland.y - g.y, gland.x - g.x) > gland.reach + g.reach + 2 for g in glands)
        if apart:
            glands.append(gland)
    return glands


def _draw_goblets(generator: np.random.Generator, gland: Ring, centre: Points) -> NDArray[np.float64]:
    """Mucin drops on the luminal side of the wall; about half of the glands have some."""
    share = max(0.0, generator.uniform(-0.5, 0.5))
    number = generator.binomial(max(1, int(2 * np.pi * (gland.radius + 0.3 * gland.wall) / 5)), share)
    theta = generator.uniform(-np.pi, np.pi, number)
    distance = gland.inner(theta) + generator.uniform(0.2, 0.42, number) * gland.wall
    size = generator.uniform(1.6, 3.0, number)
    return np.stack([centre[0] + distance * np.sin(theta), centre[1] + distance * np.cos(theta), size], axis=1)


def draw_vessels(generator: np.random.Generator, extent: tuple[float, float], anchor: Points) -> list[Ring]:
    """Small vessels, about one in three 64 µm fields, wherever they neither meet nor cover `anchor`."""
    vessels: list[Ring] = []
    for _ in range(generator.poisson(0.35 * np.prod(extent) / 64**2)):
        y, x = generator.uniform(0, extent)
        waves = generator.normal(0, 1, 4) + 1j * generator.normal(0, 1, 4)
        harmonics = waves * np.array([0, 0.2, 0.06, 0.02])
        vessel = Ring(y, x, generator.uniform(4, 8), 2.2, harmonics, "vessel", np.zeros((0, 3)))
        clear = np.hypot(y - anchor[0], x - anchor[1]) > vessel.reach + 4
        if clear and all(np.hypot(y - v.y, x - v.x) > vessel.reach + v.reach for v in vessels):
            vessels.append(vessel)
    return vessels
