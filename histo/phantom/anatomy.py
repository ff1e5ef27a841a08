"""Where nuclei, glands, vessels and debris lie in a field of view, in µm and without pixels.

A scene is drawn once per tile from its tissue class; the same scene can be rendered at any magnification.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histo.phantom.noise import Field, SmoothField
from histo.phantom.nuclei import (
    COLUMNAR,
    ENDOTHELIAL,
    FIBROBLAST,
    LYMPHOBLAST,
    LYMPHOCYTE,
    STROMAL_OVAL,
    TUMOUR,
    Morphology,
    Nuclei,
    Points,
    grow,
    settle,
)
from histo.phantom.patients import Patient
from histo.phantom.structures import NUCLEAR_LAYER, Fibres, Ring, draw_glands, draw_vessels

LABELS = ("stroma", "glands", "tumour", "lymphoid")
_MARGIN = 8.0  # µm around the field in which nuclei may lie and reach in


@dataclass(frozen=True)
class Scene:
    """A field of view.

    Attributes:
        label: one of LABELS.
        extent: height and width, µm.
        nuclei: rows of NUCLEUS, none on top of another by more than a touch.
        rings: glands and vessels.
        nests: positive inside nests of tumour; None without tumour.
        fibres: the stroma.
        erythrocytes: float64 [E, 3], y, x and radius.
        debris: float64 [D, 4], y, x, radius and share of haematoxylin.
        tissue: positive inside the section, µm from its edge, and glass beyond; None is tissue everywhere.
    """

    label: str
    extent: tuple[float, float]
    nuclei: Nuclei
    rings: tuple[Ring, ...]
    nests: Field | None
    fibres: Fibres
    erythrocytes: NDArray[np.float64]
    debris: NDArray[np.float64]
    tissue: Field | None = None


def draw_scene(generator: np.random.Generator, label: str, patient: Patient, extent: tuple[float, float]) -> Scene:
    """Draw the tissue of one tile.

    Args:
        generator: the tile's own; nothing drawn here depends on pixels.
        label: one of LABELS.
        patient: whose morphology offsets apply.
        extent: height and width of the field, µm.
    """
    fibres = Fibres(generator.uniform(0, np.pi), generator.uniform(2, 7), SmoothField(generator, extent, 28.0))
    anchor = np.array(extent) * generator.uniform(0.3, 0.7, size=2)
    rings: list[Ring] = []
    nests = None
    groups: list[Nuclei] = []

    def scatter(coverage: float, kind: Morphology, clumping: float = 0.0) -> Nuclei:
        y, x = _scatter(generator, extent, anchor, coverage, kind.diameter * patient.nucleus_scale, clumping)
        angle = generator.uniform(0, np.pi, len(y))
        if kind.aspect[1] > 2.3 or label == "stroma":
            angle = fibres.direction(y, x) + generator.normal(0, 0.25, len(y))
        return grow(generator, kind, patient, y, x, angle)

    if label == "glands":
        rings = draw_glands(generator, extent, anchor)
        groups += [_line_wall(generator, ring, patient) for ring in rings]
        groups += [_outside(scatter(0.10, FIBROBLAST), rings), _outside(scatter(0.05, LYMPHOCYTE, 0.5), rings)]
    elif label == "stroma":
        rings = draw_vessels(generator, extent, anchor)
        groups += [_line_wall(generator, ring, patient) for ring in rings]
        groups += [_outside(scatter(0.085, FIBROBLAST), rings), _outside(scatter(0.035, STROMAL_OVAL), rings)]
        groups += [_outside(scatter(0.025, LYMPHOCYTE, 0.8), rings)]
    elif label == "tumour":
        nests = SmoothField(generator, extent, generator.uniform(18, 30))
        nests.grid += np.float32(generator.uniform(0.2, 1.8))
        cells = scatter(generator.uniform(0.45, 0.7), TUMOUR)
        groups += [cells[nests.at(cells["y"], cells["x"]) > 0]]
        septa = np.concatenate([scatter(0.16, FIBROBLAST), scatter(0.06, LYMPHOCYTE, 0.5)])
        groups += [septa[nests.at(septa["y"], septa["x"]) <= 0], scatter(0.01, LYMPHOCYTE)]
    else:
        groups += [scatter(0.05, LYMPHOBLAST), scatter(generator.uniform(0.45, 0.7), LYMPHOCYTE, 0.2)]
        groups += [scatter(0.015, FIBROBLAST)]
    return Scene(
        label=label,
        extent=extent,
        nuclei=settle(np.concatenate(groups), extent),
        rings=tuple(rings),
        nests=nests,
        fibres=fibres,
        erythrocytes=_draw_erythrocytes(generator, extent, rings),
        debris=_draw_debris(generator, extent),
    )


def _scatter(
    generator: np.random.Generator,
    extent: tuple[float, float],
    anchor: Points,
    coverage: float,
    diameter: float,
    clumping: float,
) -> tuple[Points, Points]:
    """Candidate centres, uniform or gathered in clumps; the first is `anchor`, so that no field is empty."""
    sides = np.array(extent) + 2 * _MARGIN
    number = 1 + generator.poisson(coverage * sides.prod() / (np.pi / 4 * diameter**2))
    points = generator.uniform(-_MARGIN, np.array(extent) + _MARGIN, size=(number, 2))
    clumps = points[: 1 + number // 6]
    near = clumps[generator.integers(len(clumps), size=number)] + generator.normal(0, 1.2 * diameter, (number, 2))
    points = np.where(generator.uniform(size=(number, 1)) < clumping, near, points)
    points[0] = anchor
    return points[:, 0], points[:, 1]


def _line_wall(generator: np.random.Generator, ring: Ring, patient: Patient) -> Nuclei:
    """Nuclei along the wall: upright and crowded in a gland, flat and far apart in a vessel."""
    gland = ring.kind == "gland"
    kind = COLUMNAR if gland else ENDOTHELIAL
    theta = np.linspace(-np.pi, np.pi, 361)
    distance = ring.inner(theta) + (NUCLEAR_LAYER if gland else 0.5) * ring.wall
    y, x = ring.y + distance * np.sin(theta), ring.x + distance * np.cos(theta)
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(y), np.diff(x)))])
    spacing = (0.92 * kind.diameter if gland else 2.2 * kind.diameter) * patient.nucleus_scale
    number = max(3, int(length[-1] / spacing))
    places = (np.arange(number) + generator.uniform()) * length[-1] / number
    places = (places + generator.normal(0, 0.1 * spacing, number)) % length[-1]
    tangent = np.arctan2(np.interp(places, length, np.gradient(y)), np.interp(places, length, np.gradient(x)))
    normal = tangent + np.pi / 2
    shift = generator.normal(0, 1.3 if gland else 0.2, number)
    angle = (normal if gland else tangent) + generator.normal(0, 0.16, number)
    return grow(
        generator,
        kind,
        patient,
        np.interp(places, length, y) + shift * np.sin(normal),
        np.interp(places, length, x) + shift * np.cos(normal),
        angle,
    )


def _outside(nuclei: Nuclei, rings: list[Ring]) -> Nuclei:
    """Those of the nuclei that keep clear of every ring."""
    keep = np.ones(len(nuclei), bool)
    for ring in rings:
        keep &= ring.depth(nuclei["y"], nuclei["x"]) > ring.wall + nuclei["minor"]
    return nuclei[keep]


def _draw_erythrocytes(
    generator: np.random.Generator, extent: tuple[float, float], rings: list[Ring]
) -> NDArray[np.float64]:
    """Red blood cells: inside vessels, and now and then a few that escaped into the tissue."""
    groups = [np.zeros((0, 2))]
    for ring in rings:
        if ring.kind == "vessel":
            number = generator.poisson(0.5 * (ring.radius / 3) ** 2)
            groups.append(np.array([ring.y, ring.x]) + generator.normal(0, 0.4 * ring.radius, (number, 2)))
    for _ in range(generator.poisson(0.35 * np.prod(extent) / 64**2)):
        centre = generator.uniform(0, extent)
        groups.append(centre + generator.normal(0, 5.0, (generator.integers(1, 7), 2)))
    points = np.concatenate(groups)
    return np.column_stack([points, generator.uniform(2.5, 3.3, len(points))])


def _draw_debris(generator: np.random.Generator, extent: tuple[float, float]) -> NDArray[np.float64]:
    """Eosin smudges, and grains of haematoxylin too small for nuclei."""
    number = generator.poisson(3.0 * np.prod(extent) / 64**2)
    points = generator.uniform(0, extent, (number, 2))
    share = (generator.uniform(size=number) < 0.5) * generator.uniform(0.4, 0.9, number)
    radius = np.where(share > 0, generator.uniform(0.5, 1.5, number), generator.uniform(1.5, 4.0, number))
    return np.column_stack([points, radius, share])
