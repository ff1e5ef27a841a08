"""Nuclei as two views show them: which are seen in both and where, and their flows in a view.

Instance maps have ids of 1 and more, 0 is background. Boxes are (x1, y1, x2, y2) in pixels, at pixels' edges.
"""

import colorsys
from itertools import cycle

import numpy as np
import torch
from skimage.segmentation import find_boundaries
from torch import Tensor
from torch.nn import functional as F

from histo.randomness import draws
from histo.segmenters import SMALLEST
from pretrain.views import warp_instances

OUTLINE = np.array([60, 255, 90], np.uint8)
COLOURS = [np.array([255 * part for part in colorsys.hsv_to_rgb(k / 7, 1, 1)], np.uint8) for k in range(7)]


def extents(instances: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Area and box of the ids 1 to `largest` in each map, without a loop over maps or ids.

    Args:
        instances: int [N, H, W], ids up to `largest`.

    Returns:
        int64 [N, largest], in pixels; float32 [N, largest, 4], without meaning where the area is 0.
    """
    count, height, width = instances.shape
    device = instances.device
    shelf = torch.arange(count, device=device)[:, None, None] * (largest + 1)
    owner = (instances.long() + shelf).flatten()
    areas = torch.zeros(count * (largest + 1), dtype=torch.int64, device=device)
    areas.index_add_(0, owner, torch.ones_like(owner))
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    places = torch.stack([columns, rows], -1).expand(count, -1, -1, -1).reshape(-1, 2)
    which = owner[:, None].expand(-1, 2)
    empty = places.new_zeros(len(areas), 2)
    first = empty.scatter_reduce(0, which, places, "amin", include_self=False)
    last = empty.scatter_reduce(0, which, places, "amax", include_self=False)
    boxes = torch.cat([first, last + 1], 1).float().view(count, largest + 1, 4)
    return areas.view(count, largest + 1)[:, 1:], boxes[:, 1:]


def seen_in_both(
    first: Tensor, second: Tensor, seed: int, stream: str, indices: list[int], number: int
) -> tuple[Tensor, Tensor]:
    """Nuclei of each tile that two views both show, `number` of them at most, drawn by the image's index.

    A nucleus is seen where it has `SMALLEST` pixels or more and more than one row and column: a view may cut it.

    Args:
        first, second: int [N, H, W], maps of two views with the ids of one tile.
        seed, stream, indices: of the draws, pure in (seed, stream, index).

    Returns:
        float32 [N, 2, number, 4], the box of each nucleus in the first view and in the second, 0 where there are fewer
        nuclei; bool [N, number], where there is one.
    """
    largest = max(1, int(torch.maximum(first.amax(), second.amax())))
    found = [extents(view, largest) for view in (first, second)]
    seen = torch.ones_like(found[0][0], dtype=torch.bool)
    for areas, boxes in found:
        seen &= (areas >= SMALLEST) & (boxes[..., 2:] - boxes[..., :2] > 1).all(-1)
    # A longer draw begins as a shorter one does, so it does not matter which other tiles are in the batch.
    lots = np.stack([draws(seed, stream, index).random(largest, dtype=np.float32) for index in indices])
    order = torch.from_numpy(lots).to(first.device).masked_fill(~seen, -1).argsort(dim=1, descending=True, stable=True)
    chosen = order[:, :number]
    valid = seen.gather(1, chosen)
    both = torch.stack([boxes for _, boxes in found], 1)
    boxes = both.gather(2, chosen[:, None, :, None].expand(-1, 2, -1, 4)) * valid[:, None, :, None]
    missing = number - chosen.shape[1]
    return F.pad(boxes, (0, 0, 0, missing)), F.pad(valid, (0, missing))


def warp_flows(flows: Tensor, geometry: Tensor, size: int) -> Tensor:
    """Flows of a tile as a view shows them: at the pixels of `warp_instances`, turned and of unit length again.

    A flow leads to the centre of the whole nucleus, also where a view cuts it, as in Cellpose's training.

    Args:
        flows: float32 [N, 2, S, S], dy and dx, of `histo.flows.flows_of`.
        geometry: float32 [N, 2, 3], of `pretrain.views.draw_geometry`.
        size: side of the view in pixels.

    Returns:
        float32 [N, 2, size, size].
    """
    planes = warp_instances(flows.flatten(0, 1), geometry.repeat_interleave(2, 0), size).unflatten(0, (-1, 2))
    into_view = torch.linalg.inv(geometry[:, :, :2]).to(flows.device)  # of steps (x, y), so of the flow turned over
    turned = torch.einsum("nij,njhw->nihw", into_view, planes.flip(1)).flip(1)
    return turned / turned.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)


def marked(views: Tensor, instances: Tensor | None, boxes: Tensor | None) -> Tensor:
    """Views with what is learned of their nuclei: outlines in green, and boxes in a colour for each nucleus.

    Args:
        views: RGB levels [N, 3, s, s].
        instances: int [N, s, s], those a head learns to find; None: no outlines.
        boxes: float [N, K, 4]; empty ones are no nuclei. None: no boxes.

    Returns:
        uint8 [N, 3, s, s], on the CPU.
    """
    pages = views.detach().clamp(0, 255).round().byte().cpu().numpy().copy()
    for k, page in enumerate(pages):
        if instances is not None:
            page[:, find_boundaries(instances[k].cpu().numpy(), mode="inner")] = OUTLINE[:, None]
        for colour, box in zip(cycle(COLOURS), boxes[k].int().tolist() if boxes is not None else (), strict=False):
            x1, y1, x2, y2 = box
            if x2 > x1 and y2 > y1:
                page[:, y1:y2, [x1, x2 - 1]] = colour[:, None, None]
                page[:, [y1, y2 - 1], x1:x2] = colour[:, None, None]
    return torch.from_numpy(pages)
