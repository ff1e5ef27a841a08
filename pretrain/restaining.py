"""The stains in which a comparison shows its tiles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from histo.errors import InputError
from histo.probes import Restained, draw_stains, fitted, in_stains, like_targets
from histo.randomness import draws
from histo.tiles import open_tiles


@dataclass(frozen=True)
class Restaining:
    """From tiles uint8 [N, 3, H, W] to the same in k stains.

    Attributes:
        said: what it does, for people.
        to: stain matrices, float32 [k, 3, 3], or tiles to normalise to, uint8 [k, 3, s, s].
    """

    said: str
    to: Tensor

    def __call__(self, images: Tensor) -> Restained:
        return in_stains(images, self.to) if self.to.ndim == 3 else like_targets(images, self.to)


def open_restaining(targets: str | None, k: int, seed: int, side: int) -> Restaining:
    """k stains drawn from the seed, or those of k tiles drawn from a set.

    Args:
        targets: the set; None for stains of no tile.
        side: pixels a side that the targets are resized to.

    Raises:
        InputError: a set that cannot be opened, or has fewer tiles than k.
    """
    if targets is None:
        return Restaining(f"{k} stain matrices drawn from seed {seed}", draw_stains(seed, k))
    tiles = open_tiles(targets)
    if len(tiles) < k:
        raise InputError(f"--stain_targets has {len(tiles)} tiles, expected {k} or more; see --stains.")
    chosen = draws(seed, "probe targets", 0).permutation(len(tiles))[:k]
    images = torch.stack([torch.from_numpy(fitted(tiles[int(index)], side).copy()) for index in chosen])
    return Restaining(f"{k} tiles of {targets}, drawn from seed {seed}, by Macenko", images)
