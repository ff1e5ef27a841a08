"""Nuclei as shapes in µm: their kinds, their variation, and how they make room for each other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from histo.phantom.patients import Patient

STROMAL, EPITHELIAL = 1, 2

# One row per nucleus. The outline in its own frame is r(θ) = 1 + Re Σ h_k exp(ikθ), k = 2…5, on an ellipse of
# semi-axes major and minor, bent by `bend`; angle is that of the long axis, from x to y.
NUCLEUS = np.dtype(
    [
        ("y", "f8"),
        ("x", "f8"),
        ("major", "f8"),
        ("minor", "f8"),
        ("angle", "f8"),
        ("harmonics", "c16", 4),
        ("bend", "f8"),
        ("type", "u1"),
        ("density", "f4"),
        ("contrast", "f4"),
        ("rim", "f4"),
        ("nucleoli", "u1"),
    ]
)
Nuclei = NDArray[np.void]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Morphology:
    """A kind of nucleus.

    Attributes:
        type: STROMAL or EPITHELIAL.
        diameter: median equivalent diameter, µm.
        spread: standard deviation of the diameter's logarithm.
        aspect: least and greatest ratio of the axes.
        roughness: amplitude of the outline's harmonics, as a share of the radius.
        density: optical density of the chromatin.
        contrast: relative amplitude of its texture.
        rim: optical density added along the membrane.
        pale, pyknotic: shares of nuclei that are vesicular with half the density, or small and dark.
        nucleolus: mean number of nucleoli, at most 2.
    """

    type: int
    diameter: float
    spread: float
    aspect: tuple[float, float]
    roughness: float
    density: float
    contrast: float
    rim: float
    pale: float
    pyknotic: float
    nucleolus: float


# fmt: off
FIBROBLAST = Morphology(
    type=STROMAL, diameter=5.6, spread=0.14, aspect=(2.6, 5.5), roughness=0.05,
    density=0.60, contrast=0.30, rim=0.08, pale=0.35, pyknotic=0.06, nucleolus=0.0,
)
STROMAL_OVAL = Morphology(
    type=STROMAL, diameter=6.6, spread=0.14, aspect=(1.25, 2.2), roughness=0.06,
    density=0.48, contrast=0.40, rim=0.16, pale=0.45, pyknotic=0.03, nucleolus=0.3,
)
ENDOTHELIAL = Morphology(
    type=STROMAL, diameter=5.0, spread=0.12, aspect=(2.2, 4.0), roughness=0.04,
    density=0.66, contrast=0.25, rim=0.08, pale=0.1, pyknotic=0.03, nucleolus=0.0,
)
LYMPHOCYTE = Morphology(
    type=STROMAL, diameter=5.7, spread=0.08, aspect=(1.02, 1.25), roughness=0.04,
    density=0.86, contrast=0.34, rim=0.10, pale=0.05, pyknotic=0.05, nucleolus=0.0,
)
LYMPHOBLAST = Morphology(
    type=STROMAL, diameter=7.8, spread=0.12, aspect=(1.05, 1.5), roughness=0.06,
    density=0.40, contrast=0.45, rim=0.22, pale=0.6, pyknotic=0.0, nucleolus=0.7,
)
COLUMNAR = Morphology(
    type=EPITHELIAL, diameter=6.7, spread=0.11, aspect=(1.35, 2.2), roughness=0.05,
    density=0.50, contrast=0.45, rim=0.18, pale=0.45, pyknotic=0.03, nucleolus=0.3,
)
TUMOUR = Morphology(
    type=EPITHELIAL, diameter=8.6, spread=0.20, aspect=(1.1, 1.9), roughness=0.08,
    density=0.48, contrast=0.50, rim=0.24, pale=0.4, pyknotic=0.05, nucleolus=0.75,
)
# fmt: on


def grow(
    generator: np.random.Generator, kind: Morphology, patient: Patient, y: Points, x: Points, angle: Points
) -> Nuclei:
    """Give every centre a nucleus of one kind: normal, pale and vesicular, or small, dark and pyknotic."""
    number = len(y)
    spread = kind.spread * patient.pleomorphism
    diameter = kind.diameter * patient.nucleus_scale * np.exp(generator.normal(0, spread, number).clip(-0.5, 0.5))
    aspect = generator.uniform(*kind.aspect, number)
    fate = generator.uniform(size=number)
    pyknotic = fate < kind.pyknotic
    pale = ~pyknotic & (fate < kind.pyknotic + kind.pale)
    diameter = np.where(pyknotic, 0.75 * diameter, diameter)
    waves = generator.normal(0, 1, (number, 4)) + 1j * generator.normal(0, 1, (number, 4))
    nuclei = np.zeros(number, NUCLEUS)
    nuclei["y"], nuclei["x"], nuclei["angle"] = y, x, angle
    nuclei["major"], nuclei["minor"] = diameter / 2 * np.sqrt(aspect), diameter / 2 / np.sqrt(aspect)
    nuclei["harmonics"] = waves * kind.roughness * patient.pleomorphism / np.array([1.5, 2, 3, 4])
    nuclei["bend"] = generator.normal(0, 0.18, number) * (aspect - 1)
    nuclei["type"] = kind.type
    density = kind.density * np.exp(generator.normal(0, 0.2, number))
    nuclei["density"] = np.select([pyknotic, pale], [np.maximum(density, 1.0), 0.5 * density], density)
    nuclei["contrast"] = np.where(pyknotic, 0.2, patient.contrast) * kind.contrast
    nuclei["rim"] = np.select([pyknotic, pale], [0.0, kind.rim + 0.12], kind.rim)
    nuclei["nucleoli"] = generator.binomial(2, kind.nucleolus / 2, number) * ~pyknotic
    return nuclei


def settle(nuclei: Nuclei, extent: tuple[float, float]) -> Nuclei:
    """Drop what lies outside the field, and each nucleus that would press into an earlier one.

    A nucleus is taken as five circles along its long axis, so that neighbours may touch along any side.
    """
    height, width = extent
    reach = nuclei["major"]
    inside = (np.abs(nuclei["y"] - height / 2) < height / 2 + reach) & (
        np.abs(nuclei["x"] - width / 2) < width / 2 + reach
    )
    nuclei = nuclei[inside]
    centres = np.stack([nuclei["y"], nuclei["x"]], axis=1)
    pairs = cKDTree(centres).query_pairs(2 * nuclei["major"].max(initial=0), output_type="ndarray")
    axis = np.stack([np.sin(nuclei["angle"]), np.cos(nuclei["angle"])], axis=1)
    along = np.linspace(-1, 1, 5)[:, None] * (nuclei["major"] - nuclei["minor"])[:, None, None]
    circles = centres[:, None] + along * axis[:, None]
    first, second = circles[pairs[:, 0], :, None], circles[pairs[:, 1], None, :]
    gap = np.sqrt(((first - second) ** 2).sum(-1).min((1, 2)))
    pressed = gap < 0.93 * (nuclei["minor"][pairs[:, 0]] + nuclei["minor"][pairs[:, 1]])
    keep = np.ones(len(nuclei), bool)
    for early, late in sorted(pairs[pressed].tolist()):
        if keep[early]:
            keep[late] = False
    return nuclei[keep]
