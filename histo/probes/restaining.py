"""How far an embedding moves when a tile is stained otherwise.

One tile in several stains should be one point. The stains are matrices drawn from a seed, or those of given tiles.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from histo.dyes import HED
from histo.errors import InputError
from histo.randomness import draws
from histo.stains import StainEstimate, macenko, normalise, picked, restain
from histo.stains.status import usable

# Optical density of haematoxylin and eosin on the slides of Macenko et al., ISBI 2009; beside the pure dyes' of `HED`.
SLIDES = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
DEVIATION = 0.05  # of an entry of a stain's colour
STRENGTHS = (0.75, 1.33)
_LOW, _HIGH = np.log(STRENGTHS).tolist()


class Restained(NamedTuple):
    """Tiles in k stains.

    Attributes:
        images: uint8 [k, N, 3, H, W].
        usable: bool [N], whether the tile has stains; the others are the same in all k.
    """

    images: Tensor
    usable: Tensor


class Sensitivity(NamedTuple):
    """Cosine distances (1 - cosine similarity).

    Attributes:
        cosine: mean between embeddings of one tile in two stains; 0 for an encoder that does not see stains.
        scale: mean between embeddings of two tiles in one stain.
        ratio: cosine / scale; 1 where another stain moves a tile as far as another tile is. NaN where scale is 0.
    """

    cosine: float
    scale: float
    ratio: float


def draw_stains(seed: int, k: int) -> Tensor:
    """k stain matrices: float32 [k, 3, 3], rows haematoxylin, eosin, third.

    A stain's colour lies anywhere between that of Ruifrok & Johnston's pure dye and that of Macenko's slides, and a
    number within ± `DEVIATION` is added to each entry, all evenly drawn; it is brought to length 1 and multiplied by a
    strength drawn evenly (by its logarithm) from `STRENGTHS`. The third row is perpendicular to both and of length 1.
    Pure in the seed and the number of the stain.
    """
    dyes, slides = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in map(np.array, (HED[:2], SLIDES)))
    matrices = []
    for index in range(k):
        generator = draws(seed, "probe stains", index)
        share = generator.uniform(0, 1, (2, 1))
        pair = share * dyes + (1 - share) * slides + generator.uniform(-DEVIATION, DEVIATION, (2, 3))
        pair = pair.clip(min=0.02)
        pair /= np.linalg.norm(pair, axis=1, keepdims=True)
        third = np.cross(pair[0], pair[1])
        strengths = np.exp(generator.uniform(_LOW, _HIGH, (2, 1)))
        matrices.append(np.vstack([pair * strengths, third / np.linalg.norm(third)]))
    return torch.from_numpy(np.stack(matrices)).float()


def in_stains(images: Tensor, matrices: Tensor) -> Restained:
    """Every tile in every one of given stains, with its own amounts of stain (by Macenko).

    Args:
        images: uint8 [N, 3, H, W] RGB.
        matrices: float [k, 3, 3], as of `draw_stains`.
    """
    source = macenko(images)
    made = [restain(images, matrix.to(images.device), source).images for matrix in matrices]
    return Restained(torch.stack(made), source.ok)


def like_targets(images: Tensor, targets: Tensor) -> Restained:
    """Every tile normalised (Macenko) to every one of given tiles.

    Args:
        images: uint8 [N, 3, H, W] RGB.
        targets: uint8 [k, 3, H, W] RGB.

    Raises:
        InputError: a target without stains.
    """
    wanted: StainEstimate = macenko(targets)
    if not usable(wanted.status).all():
        number = int((~usable(wanted.status)).nonzero()[0, 0])
        raise InputError(
            f"Target {number} of {len(targets)} has no stains to normalise to, expected H&E tissue; choose other tiles."
        )
    source = macenko(images)
    made = [normalise(images, picked(wanted, k), "macenko", source).images for k in range(len(targets))]
    return Restained(torch.stack(made), source.ok)


def stain_sensitivity(embeddings: Tensor) -> Sensitivity:
    """How far embeddings follow the stain.

    Args:
        embeddings: float [k, N, D], of N tiles in each of k stains.

    Raises:
        InputError: fewer than 2 stains or 2 tiles.
    """
    stains, tiles = embeddings.shape[:2]
    if stains < 2 or tiles < 2:
        raise InputError(
            f"There are {tiles} tiles with stains in {stains} stains, expected 2 or more of each; give more."
        )
    unit = normalize(embeddings.double(), dim=2)
    cosine = 1 - _mean_cosine(unit.transpose(0, 1))
    scale = 1 - _mean_cosine(unit)
    return Sensitivity(cosine, scale, cosine / scale if scale > 1e-12 else float("nan"))


def _mean_cosine(groups: Tensor) -> float:
    """Over all pairs within each group [G, M, D] of unit vectors: |Σ v|² counts each pair twice, and each one once."""
    members = groups.shape[1]
    together = groups.sum(dim=1).square().sum(dim=1)
    own = groups.square().sum(dim=(1, 2))
    return float(((together - own) / (members * (members - 1))).mean())
