"""One style over a mask image of any size, by a generator that draws squares.

Three things would differ from tile to tile and show as seams; each is made one for the whole image. The style z. The
global code of the mask: the mean of the codes of tiles side by side, as every tile alone has another. And the noise of
each layer: a field over the plane, of which a tile takes the stretch it lies on, so that tiles overlap in equal noise.
What is left, that a generator draws the same thing otherwise at another place of its tile, the overlap evens out:
every doubling of it to about a quarter (`benchmarks/translate_seams.py`).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from histo.overlap import Corner, Grid, blend, to_image, windows
from histo.randomness import draws
from translate.networks.comod import CoModGenerator

OVERLAP = 4  # tiles over a pixel, along each axis; also the pixels of the coarsest layer along a tile


class NoiseField:
    """White noise on the points of a lattice over the plane; a row of it is pure in (seed, stream, row).

    Args:
        before: points above and left of the image that are drawn as well.
        width: points from left to right, those `before` the image included.
    """

    def __init__(self, seed: int, stream: str, before: int, width: int) -> None:
        self._seed, self._stream, self._before, self._width = seed, stream, before, width
        self._rows: dict[int, NDArray[np.float32]] = {}

    def at(self, row: int, column: int, side: int) -> NDArray[np.float32]:
        """float32 [side, side]; rows above, which a walk downwards has passed, are forgotten."""
        for passed in [known for known in self._rows if known < row]:
            del self._rows[passed]
        start = column + self._before
        return np.stack([self._row(k)[start : start + side] for k in range(row, row + side)])

    def _row(self, row: int) -> NDArray[np.float32]:
        if row not in self._rows:
            generator = draws(self._seed, self._stream, row + self._before)
            self._rows[row] = generator.standard_normal(self._width, dtype=np.float32)
        return self._rows[row]


@torch.no_grad()
def render_image(
    generator: CoModGenerator,
    mask: NDArray[np.uint8],
    style: int,
    seed: int,
    *,
    truncation: float = 1.0,
    origin: Corner = (0, 0),
    code: Tensor | None = None,
    overlap: int = OVERLAP,
    batch: int = 16,
) -> NDArray[np.uint8]:
    """Tissue of a mask image of any size, uint8 [3, H, W] → uint8 [3, H, W].

    An image no larger than the generator's tile is drawn at once; a larger one takes 16 times its area in tiles.

    Args:
        style: number of the style; with the seed it settles z and the noise.
        truncation: 1 keeps the style, less draws it towards the mean style, which is likelier and less varied.
        origin: row and column of any one tile's first pixel; multiples of a quarter of the tile give the same tiles.
        code: as `image_code` gives it; None computes it.
        overlap: tiles over a pixel, along each axis.
        batch: tiles at a time.
    """
    tile = generator.resolution
    device = next(generator.parameters()).device
    drawn = draws(seed, "render style", style).standard_normal(generator.settings.style_width, dtype=np.float32)
    z = torch.from_numpy(drawn)[None].to(device)
    w = generator.truncated(z, truncation)
    code = image_code(generator, mask, batch) if code is None else code
    keep = torch.ones_like(code)
    sides = generator.noise_sides
    fields = [
        NoiseField(seed, f"render noise {layer} of style {style}", side, (mask.shape[2] * side) // tile + 3 * side)
        for layer, side in enumerate(sides)
    ]

    def draw(tiles: Tensor, corners: list[Corner]) -> Tensor:
        noise = []
        for side, field in zip(sides, fields, strict=True):
            pitch = tile // side
            planes = np.stack([field.at(row // pitch, column // pitch, side) for row, column in corners])
            noise.append(torch.from_numpy(planes)[:, None].to(device))
        n = len(tiles)
        tissue: Tensor = generator(
            tiles.to(device), z.expand(n, -1), keep.expand(n, -1), noise, code.expand(n, -1), w.expand(n, -1, -1)
        )
        return tissue

    grid = Grid(tile, tile // overlap, origin)
    return to_image(blend(draw, mask, grid, batch), (mask.shape[1], mask.shape[2]))


@torch.no_grad()
def image_code(generator: CoModGenerator, mask: NDArray[np.uint8], batch: int = 16) -> Tensor:
    """The global code of a mask image uint8 [3, H, W], float [1, code_width]: the mean over tiles side by side."""
    tile = generator.resolution
    device = next(generator.parameters()).device
    grid = Grid(tile, tile)
    corners = [(row, column) for row in grid.starts(mask.shape[1], 0) for column in grid.starts(mask.shape[2], 1)]
    total = torch.zeros(1, generator.settings.code_width, device=device)
    for first in range(0, len(corners), batch):
        tiles = windows(mask, corners[first : first + batch], tile)
        total += generator.code(torch.from_numpy(tiles).to(device).float() / 127.5 - 1).float().sum(0, keepdim=True)
    return total / len(corners)


def translate_image(network: nn.Module, image: NDArray[np.uint8], tile: int, batch: int = 16) -> NDArray[np.uint8]:
    """An image of any size through an image network that has no style, uint8 [3, H, W] → uint8 [3, H, W].

    Args:
        tile: side of the tiles it was trained on; pixels.
        batch: tiles at a time.
    """
    device = next(network.parameters()).device

    def draw(tiles: Tensor, corners: list[Corner]) -> Tensor:
        return network(tiles.to(device))

    bands = blend(draw, image, Grid(tile, tile // OVERLAP), batch)
    return to_image(bands, (image.shape[1], image.shape[2]))
