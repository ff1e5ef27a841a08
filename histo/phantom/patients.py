"""Synthetic patients: what all tiles of one person share, the dyes of the laboratory and the shape of the cells."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histo.randomness import draws

# Optical density directions (R, G, B). Each pair spans what laboratories make of the dye: haematoxylin from blue to
# purple, eosin from magenta to orange. Ruifrok & Johnston (2001) give the method and vectors within these ranges.
_HAEMATOXYLIN = np.array([[0.71, 0.66, 0.25], [0.57, 0.75, 0.33]])
_EOSIN = np.array([[0.10, 0.95, 0.30], [0.20, 0.81, 0.55]])
_ERYTHROCYTE = np.array([0.11, 0.76, 0.62])


@dataclass(frozen=True)
class Patient:
    """One synthetic patient.

    Attributes:
        name: e.g. "phantom-03".
        split: "test" for every fifth patient, "train" for the others.
        stains: float64 [3, 3], rows are the unit optical density vectors (R, G, B) of haematoxylin, eosin and red
            blood cells.
        strength: float64 [3], concentration gain of each row, about 1.
        glass: float64 [3], RGB intensity of empty glass, 0 to 255.
        nucleus_scale: factor on nuclear diameters.
        pleomorphism: factor on the variation of size and outline.
        contrast: factor on chromatin texture.
        fibrosis: factor on the density of stromal fibres.
        blur: standard deviation of the optical blur, µm.
    """

    name: str
    split: str
    stains: NDArray[np.float64]
    strength: NDArray[np.float64]
    glass: NDArray[np.float64]
    nucleus_scale: float
    pleomorphism: float
    contrast: float
    fibrosis: float
    blur: float


def draw_patient(seed: int, number: int) -> Patient:
    """Patient `number` (0 or more) of a seed, whatever the number of patients."""
    generator = draws(seed, "phantom patient", number)
    hue = generator.uniform(size=2)
    stains = np.stack(
        [
            (1 - hue[0]) * _HAEMATOXYLIN[0] + hue[0] * _HAEMATOXYLIN[1],
            (1 - hue[1]) * _EOSIN[0] + hue[1] * _EOSIN[1],
            _ERYTHROCYTE,
        ]
    )
    stains = np.clip(stains + generator.normal(0, 0.02, size=(3, 3)), 0.01, None)
    return Patient(
        name=f"phantom-{number:02d}",
        split="test" if number % 5 == 4 else "train",
        stains=stains / np.linalg.norm(stains, axis=1, keepdims=True),
        strength=np.exp(generator.normal(0, [0.18, 0.22, 0.12])),
        glass=generator.uniform(234, 250) + generator.normal(0, 1.5, size=3),
        nucleus_scale=generator.uniform(0.9, 1.12),
        pleomorphism=generator.uniform(0.7, 1.4),
        contrast=generator.uniform(0.7, 1.3),
        fibrosis=generator.uniform(0.75, 1.25),
        blur=generator.uniform(0.2, 0.42),
    )
