"""Tiles of known stains, tiles without any, and stains found slowly, pixel by pixel."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from histo.randomness import draws

HAEMATOXYLIN = np.array([0.60, 0.72, 0.35])
EOSIN = np.array([0.15, 0.95, 0.27])


def noise(index: int, low: int = 1, size: int = 32) -> torch.Tensor:
    pixels = draws(0, "stains", index).integers(low, 256, (2, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(pixels)


def mixture(index: int, strength: float = 0.8, size: int = 96) -> tuple[torch.Tensor, np.ndarray]:
    """A tile whose pixels mix two known stains, and the unit rows of these two."""
    rng = draws(0, "mixture", index)
    rows = np.stack([HAEMATOXYLIN, EOSIN]) / np.linalg.norm([HAEMATOXYLIN, EOSIN], axis=1, keepdims=True)
    amounts = rng.beta(0.4, 0.4, (size * size, 1)) * rng.uniform(0.6, 1.4, (size * size, 1))
    amounts = np.concatenate([amounts, np.clip(1.2 - amounts, 0, None)], axis=1) * strength
    pixels = (240 * 10 ** -(amounts @ rows)).round().clip(0, 255).astype(np.uint8)
    return torch.from_numpy(pixels.T.reshape(1, 3, size, size)), rows


def angle(one: np.ndarray, other: np.ndarray) -> float:
    return math.degrees(math.acos(min(1.0, float(one @ other))))


def pen_tile(size: int = 96) -> torch.Tensor:
    """A tile of green and blue pen on glass."""
    pen = torch.full((1, 3, size, size), 250, dtype=torch.uint8)
    rng = draws(0, "pen", 0)
    for channel, levels in enumerate([(0, 20), (60, 160), (20, 160)]):
        pen[0, channel, 20:60] = torch.from_numpy(rng.integers(*levels, (40, size), dtype=np.uint8))
    return pen


def plain_tile(colour: tuple[int, int, int], size: int = 96) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).reshape(1, 3, 1, 1).repeat(1, 1, size, size)


def odd_tiles() -> torch.Tensor:
    """float32 [10, 3, 96, 96]: tissue, then nine that break normalisers, NaN, inf and impossible levels last."""
    tissue = mixture(0)[0].float()
    plain = [plain_tile(c).float() for c in ((255, 255, 255), (0, 0, 0), (180, 90, 160), (128, 128, 128))]
    nan, infinite, all_nan = tissue.clone(), tissue.clone(), torch.full_like(tissue, torch.nan)
    nan[0, 1, 5, 7] = torch.nan
    infinite[0, 0, 3, 3] = torch.inf
    return torch.cat([tissue, *plain, pen_tile().float(), nan, infinite, all_nan, 1e30 * (tissue - 128)])


def torchstain_macenko(
    image: NDArray[np.uint8], beta: float = 0.15
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What torchstain publishes, for one image [3, H, W]: Io 240, alpha 1, beta 0.15, nearest percentiles.

    Returns stains [2, 3], concentrations [P, 2] and their 99th percentiles [2]. Eigenvectors are turned towards the
    tissue, which torchstain leaves to chance.
    """
    depth = -np.log((image.reshape(3, -1).T.astype(float) + 1) / 240)
    tissue = depth[~(depth < beta).any(axis=1)]
    plane = np.linalg.eigh(np.cov(tissue.T))[1][:, [1, 2]]
    plane *= np.where(tissue.mean(axis=0) @ plane < 0, -1, 1)
    first, second = (tissue @ plane).T
    angles = np.arctan2(second, first)
    rows = [plane @ [np.cos(a), np.sin(a)] for a in (nearest(angles, 1), nearest(angles, 99))]
    pair = np.stack(sorted(rows, key=lambda row: -row[0]))
    amounts = np.linalg.lstsq(pair.T, depth.T, rcond=None)[0].T
    return pair, amounts, np.array([nearest(amounts[:, k], 99) for k in range(2)])


def torchstain_normalised(image: NDArray[np.uint8], target: NDArray[np.uint8]) -> NDArray[np.float64]:
    """torchstain's Macenko normalisation of one image [3, H, W], before it cuts levels to integers."""
    _, amounts, strongest = torchstain_macenko(image)
    pair, _, wanted = torchstain_macenko(target)
    levels = 240 * np.exp(-(amounts * (wanted / strongest)) @ pair)
    return np.minimum(levels, 255).T.reshape(image.shape)


def nearest(values: NDArray[np.float64], percent: float) -> float:
    return float(np.sort(values)[round(percent / 100 * (len(values) - 1))])
