"""Which part of a tile a view shows, and which way round.

A geometry maps places in the view to places in the tile, both counted from -1 to 1 between the outer borders (as
`grid_sample` has it with align_corners=False), x to the right, y down. Image and instance map follow the same one.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from histo.errors import InputError
from histo.randomness import draws
from pretrain.views.settings import ViewSettings

_QUARTERS = np.array([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]], dtype=float)
SYMMETRIES = np.concatenate([_QUARTERS, _QUARTERS * [1, -1]])  # of the square, [8, 2, 2]; the first is the identity


def draw_geometry(settings: ViewSettings, seed: int, stream: str, indices: list[int]) -> Tensor:
    """Draw the geometry of views by global image index; pure in (settings, seed, stream, index).

    The share of the area is uniform. The logarithm of the ratio of sides is uniform among those with which that area
    fits into the tile, where others draw again until it fits. The place is uniform.

    Returns:
        float32 [N, 2, 3] on the CPU: (x, y) in the tile of (x, y, 1) in the view.
    """
    numbers = np.array([draws(seed, f"{stream}/geometry", k).random(5) for k in indices]).reshape(-1, 5)
    area = settings.smallest_area + (1 - settings.smallest_area) * numbers[:, 0]
    ratio = np.minimum(settings.stretch, 1 / area) ** (2 * numbers[:, 1] - 1)
    share = np.sqrt(np.stack([area * ratio, area / ratio], 1))  # of the tile's width, of its height
    place = (2 * numbers[:, 2:4] - 1) * (1 - share)
    which = (8 * numbers[:, 4]).astype(int) if settings.turn else np.zeros(len(indices), dtype=int)
    linear = share[:, :, None] * SYMMETRIES[which]
    return torch.from_numpy(np.concatenate([linear, place[:, :, None]], 2)).float()


def warp(images: Tensor, geometry: Tensor, size: int) -> Tensor:
    """Views of images, bilinear; what lies beyond the border is the border.

    A view smaller than the part it shows by a factor of 2 or more reads a tile halved so often that no pixel is passed
    over; below 2, antialiasing would change phantom tissue by less than 2 levels on average. Where pixels fall on
    pixels (a symmetry alone at the tile's own size) they are exact.

    Args:
        images: uint8 or float32 [N, C, S, S].
        geometry: float32 [N, 2, 3], on the CPU.
        size: side of the views, in pixels.

    Returns:
        float32 [N, C, size, size], contiguous.

    Raises:
        InputError: when `images` are no square tiles.
    """
    _check_square(images)
    side = images.shape[-1]
    halvings = _halvings(geometry, side / size)
    exact = _is_symmetry(geometry) & (size == side)
    views = torch.empty(*images.shape[:2], size, size, device=images.device)
    for level in halvings.masked_fill(exact, -1).unique().tolist():
        (rows,) = (exact if level < 0 else ~exact & (halvings == level)).nonzero(as_tuple=True)
        there = rows.to(images.device)
        tiles = images.index_select(0, there).to(torch.float32, memory_format=torch.contiguous_format)
        maps = geometry[rows].to(images.device)
        if level < 0:
            views[there] = _read_off(tiles.flatten(2), maps, size, side)
            continue
        if level:
            tiles = F.adaptive_avg_pool2d(tiles, max(1, side >> level))
        places = torch.stack(_places(maps, size), dim=3)
        views[there] = F.grid_sample(tiles, places, "bilinear", "border", align_corners=False)
    return views


def warp_instances(instances: Tensor, geometry: Tensor, size: int) -> Tensor:
    """Views of instance maps: each pixel has the id of the pixel that its middle falls on.

    Args:
        instances: int32 [N, S, S].
        geometry: float32 [N, 2, 3], on the CPU.
        size: side of the views, in pixels.

    Returns:
        int32 [N, size, size] with ids as they were; some nuclei are cut and some absent.

    Raises:
        InputError: when `instances` are no square maps.
    """
    _check_square(instances)
    return _read_off(instances.flatten(1)[:, None], geometry.to(instances.device), size, instances.shape[-1])[:, 0]


def _check_square(images: Tensor) -> None:
    if images.shape[-1] != images.shape[-2]:
        raise InputError(
            f"views got tiles of {images.shape[-1]} x {images.shape[-2]} px, expected squares, since views are square:"
            " cut square tiles."
        )


def _is_symmetry(geometry: Tensor) -> Tensor:
    """bool [N]: whether a geometry shows the whole tile, maybe mirrored or rotated."""
    linear = geometry[:, :, :2].abs()
    return ((linear.sum(dim=2) == 1) & (linear.amax(dim=2) == 1) & (geometry[:, :, 2] == 0)).all(dim=1)


def _halvings(geometry: Tensor, ratio: float) -> Tensor:
    """How often a tile is halved before it is read, int64 [N]; `ratio` of the sides of tile and view."""
    linear = geometry[:, :, :2]
    smaller = torch.linalg.det(linear).abs().sqrt() * ratio
    return smaller.log2().floor().clamp(min=0).long()


def _places(geometry: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where in the tile the middles of a view's pixels lie: x and y, each [N, size, size]."""
    line = (torch.arange(size, device=geometry.device) * 2 + (1 - size)) / size
    across, down, shift = geometry[:, :, :, None, None].unbind(2)
    places = across * line + (down * line[:, None] + shift)
    return places[:, 0], places[:, 1]


def _read_off(pixels: Tensor, geometry: Tensor, size: int, side: int) -> Tensor:
    """The pixel at each place: [N, C, side²] → [N, C, size, size] of the same dtype."""
    x, y = (((1 + place) * (side / 2)).floor().long().clamp(0, side - 1) for place in _places(geometry, size))
    chosen = (y * side + x).flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
    return pixels.gather(2, chosen).unflatten(2, (size, size))
