"""Flows: nuclei as a field of unit vectors that lead every pixel to the centre of its nucleus, after Cellpose.

A network that predicts this field and which pixels are nuclear predicts instances: touching nuclei have flows that
part, and pixels that gather in one place are one nucleus. From Stringer, Wang, Michaelos and Pachitariu, "Cellpose: a
generalist algorithm for cellular segmentation" (Nature Methods, 2021); components are ordered (dy, dx).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label
from torch import Tensor
from torch.nn import functional as F

from histo.errors import InputError
from histo.masks import as_instances, renumber

# A network's outputs are flows times this, which brings their loss to the scale of the cross-entropy (Cellpose).
FLOW_SCALE = 5.0
# Points are looked at after so many steps; one that is this near (pixels) to where it was two steps ago has arrived.
_STEPS_BETWEEN_LOOKS = 6
_AT_REST = 0.02
# A histogram bin belongs with the fullest one within so many pixels, the window of Cellpose's peaks.
_WINDOW = 2
# Points in 3 x 3 bins before any has moved; a peak has more.
_UNGATHERED = 9


def flows_of(instances: NDArray[np.integer]) -> NDArray[np.float32]:
    """The flow of an instance map: the direction of the gradient of heat that spreads from each nucleus's centre.

    In every step the centre gains one unit of heat T and each pixel takes the mean over its 3 x 3 neighbourhood, in
    which everything outside the nucleus is 0. The flow is the central difference of log(1 + T) over its length. There
    are at least twice as many steps as the nucleus has height plus width (the next power of two; Cellpose takes those
    of the largest nucleus for all), so the flow of a nucleus depends on no other.

    The centre is the pixel of the nucleus nearest to its centre of mass, and several equally near share the heat, so
    flips and quarter turns of the map flip and turn the flow. Each piece of an id in several pieces (joined by edges or
    corners) counts as a nucleus of its own, since a flow cannot cross what lies between them.

    Args:
        instances: integer [H, W], 0 = background; ids need not be contiguous.

    Returns:
        float32 [2, H, W], dy and dx: unit vectors inside nuclei, except 0 where there is no slope, as at the centre of
        a symmetric nucleus; 0 in the background.

    Raises:
        InputError: not an instance map.
    """
    pieces = label(as_instances(instances), background=0, connectivity=2)
    flow = np.zeros((2, *pieces.shape), np.float32)
    pixels = np.flatnonzero(pieces)
    if len(pixels) == 0:
        return flow
    boxes = np.array([(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(pieces)])
    doublings = np.ceil(np.log2(2 * (boxes[:, 2:] - boxes[:, :2]).sum(1))).astype(np.intp)
    owner = pieces.ravel()[pixels] - 1
    for exponent in np.unique(doublings):
        some = np.flatnonzero(doublings == exponent)
        number = np.full(len(boxes), -1)
        number[some] = np.arange(len(some))
        own = number[owner] >= 0
        rows, columns = np.divmod(pixels[own], pieces.shape[1])
        flow.reshape(2, -1)[:, pixels[own]] = _slopes(rows, columns, number[owner[own]], boxes[some], 2**exponent)
    return flow


def _slopes(
    rows: NDArray[np.intp], columns: NDArray[np.intp], nucleus: NDArray[np.intp], boxes: NDArray[np.intp], steps: int
) -> NDArray[np.float64]:
    """The flow at the pixels of some nuclei, float64 [2, P].

    Args:
        rows, columns: intp [P], all pixels of these nuclei.
        nucleus: intp [P], the nucleus of each, 0 to N - 1.
        boxes: intp [N, 4], first row and column of each nucleus, and the row and column after its last.
        steps: of diffusion.
    """
    corners, canvas = _shelves(boxes[:, 2:] - boxes[:, :2])
    shift = (corners - boxes[:, :2])[nucleus]
    places = (rows + shift[:, 0]) * canvas[1] + columns + shift[:, 1]
    centres = _centres(rows, columns, nucleus)
    shares = 1 / np.bincount(nucleus[centres])[nucleus[centres]]
    heat = np.log1p(_diffused(places, canvas, places[centres], shares, steps))
    slopes = np.stack([heat[places + step] - heat[places - step] for step in (canvas[1], 1)])
    lengths = np.hypot(*slopes)
    lengths[lengths == 0] = np.inf
    return slopes / lengths


def _shelves(sizes: NDArray[np.integer]) -> tuple[NDArray[np.intp], tuple[int, int]]:
    """Where boxes stand on shelves of one canvas, apart from each other and from its border.

    Heat then spreads in all nuclei at once by sums over the whole canvas: no two of them touch there.

    Args:
        sizes: int [N, 2], height and width of each box.

    Returns:
        intp [N, 2], row and column of each box's first pixel; (height, width) of the canvas.
    """
    width = 1 + max(int(sizes[:, 1].max()) + 1, int(np.sqrt((sizes + 1).prod(1).sum())))
    corners = np.empty(sizes.shape, np.intp)
    row, column, bottom = 1, 1, 0
    for box in np.argsort(-sizes[:, 0], kind="stable"):
        tall, wide = sizes[box].tolist()
        if column + wide >= width:
            row, column = bottom + 1, 1
        corners[box] = row, column
        column += wide + 1
        bottom = max(bottom, row + tall)
    return corners, (bottom + 1, width)


def _centres(rows: NDArray[np.intp], columns: NDArray[np.intp], nucleus: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether each pixel is nearest to its nucleus's centre of mass; integers throughout, so that ties are exact."""
    areas, down, right = (np.bincount(nucleus, of).astype(np.int64)[nucleus] for of in (None, rows, columns))
    distances = areas * (rows**2 + columns**2) - 2 * (rows * down + columns * right)  # areas times (squares - constant)
    nearest = np.full(int(nucleus.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(nearest, nucleus, distances)
    return distances == nearest[nucleus]


def _diffused(
    places: NDArray[np.intp],
    canvas: tuple[int, int],
    sources: NDArray[np.intp],
    shares: NDArray[np.float64],
    steps: int,
) -> NDArray[np.float64]:
    """Heat on the flattened canvas: `steps` times, add `shares` at `sources` and take 3 x 3 means at `places`."""
    height, width = canvas
    heat, ninth = np.zeros(height * width), np.zeros(height * width)
    ninth[places] = 1 / 9
    ninth = ninth[width + 1 : -width - 1]
    of_three, of_nine = np.empty((height - 2) * width), np.empty(len(ninth))
    for _ in range(steps):
        heat[sources] += shares
        # Opposite neighbours first: so the sum is the same to the last bit on the flipped map, and slopes are exactly 0
        # where symmetry makes them so.
        np.add(heat[: -2 * width], heat[2 * width :], out=of_three)
        np.add(of_three, heat[width:-width], out=of_three)
        np.add(of_three[:-2], of_three[2:], out=of_nine)
        np.add(of_nine, of_three[1:-1], out=of_nine)
        np.multiply(of_nine, ninth, out=heat[width + 1 : -width - 1])
    return heat


def instances_from(
    flow: NDArray[np.floating],
    logits: NDArray[np.floating],
    *,
    threshold: float = 0.0,
    min_area: int = 12,
    steps: int = 200,
    largest_error: float | None = 0.4,
) -> NDArray[np.int32]:
    """The instance map that a flow describes: nuclear pixels follow it, and those that gather are one nucleus.

    Each pixel moves by the flow under it, bilinear between pixels and 0 outside nuclei, step by step. Ends are counted
    in a histogram of one bin a pixel, summed over 3 x 3 bins. Every bin climbs to the fullest of its 5 x 5 window until
    it is itself the fullest, a peak; the bins that reach a peak are a nucleus. (Cellpose grows its peaks by five
    dilations instead.) A peak needs ten points, more than stand there when nothing moves.

    Args:
        flow: float [2, H, W], dy and dx at unit scale: a network's output over FLOW_SCALE.
        logits: float [H, W], above `threshold` in nuclei.
        threshold: logit; 0 is a probability of one half.
        min_area: px; smaller nuclei are left out, and those below ten pixels always.
        steps: of up to one pixel each; nuclei whose pixels are further from their centre fall apart.
        largest_error: nuclei are left out if the squared difference of `flow` from their own flow, summed over dy and
            dx, has a mean above this; None keeps all.

    Returns:
        int32 [H, W], ids 1, 2, …, n.

    Raises:
        InputError: shapes that do not fit each other, or values that are not finite.
    """
    if logits.ndim != 2 or logits.size == 0 or flow.shape != (2, *logits.shape):
        raise InputError(
            f"The flow has shape {flow.shape} and the logits {logits.shape}, expected [2, height, width] and "
            "[height, width]; pass the maps of one image."
        )
    if not (np.isfinite(flow).all() and np.isfinite(logits).all()):
        raise InputError(
            "The flow or the logits hold NaN or infinity, expected finite values; look at the network that made them."
        )
    foreground = logits > threshold
    instances = np.zeros(logits.shape, np.int32)
    if not foreground.any():
        return instances
    cluster = _clusters(_ends(flow, foreground, steps), logits.shape)
    cluster[np.bincount(cluster)[cluster] < min_area] = 0
    instances[foreground] = cluster
    instances = renumber(instances)
    if largest_error is not None:
        squares = ((flows_of(instances) - flow) ** 2).sum(0)
        areas = np.bincount(instances.ravel())
        errors = np.bincount(instances.ravel(), squares.ravel()) / np.maximum(areas, 1)
        instances = renumber(np.where(errors <= largest_error, np.arange(len(errors), dtype=np.int32), 0)[instances])
    return instances


def _ends(flow: NDArray[np.floating], foreground: NDArray[np.bool_], steps: int) -> NDArray[np.intp]:
    """The pixel where each pixel of the foreground, in their order, is after `steps`: flat index, intp [P]."""
    sides = torch.tensor(foreground.shape[::-1], dtype=torch.float32)  # of an image, as in grid_sample: x before y
    inside = torch.from_numpy(np.where(foreground, flow, 0)[::-1].astype(np.float32))
    field = (inside * (2 / sides)[:, None, None])[None]
    pixels = torch.from_numpy(np.argwhere(foreground)[:, ::-1].astype(np.float32))
    bound = 1 - 1 / sides
    ends = (2 * pixels + 1) / sides - 1
    moving, points = torch.arange(len(ends)), ends
    for begin in range(0, steps, _STEPS_BETWEEN_LOOKS):
        trail = [points]
        for _ in range(min(_STEPS_BETWEEN_LOOKS, steps - begin)):
            moved = F.grid_sample(field, points[None, None], padding_mode="border", align_corners=False)
            points = torch.clamp(points + moved[0, :, 0].T, -bound, bound)
            trail = [trail[-1], points]
        ends[moving] = points
        # Steps of one pixel may jump to and fro across a centre, so two of them are looked at.
        going = ((points - trail[0]).abs() * sides > 2 * _AT_REST).any(1)
        moving, points = moving[going], points[going]
        if len(moving) == 0:
            break
    x, y = ((ends + 1) * sides / 2).long().unbind(1)
    return (y * foreground.shape[1] + x).numpy()


def _clusters(ends: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.intp]:
    """A number from 1 for the cluster of each end, 0 for those that did not gather: intp [P]."""
    width = shape[1] + 2 * _WINDOW
    rows, columns = np.divmod(ends, shape[1])
    ends = (rows + _WINDOW) * width + columns + _WINDOW
    histogram = np.bincount(ends, minlength=(shape[0] + 2 * _WINDOW) * width)
    bins = np.flatnonzero(histogram)
    window = np.arange(-_WINDOW, _WINDOW + 1)
    nearby = bins + (window[:, None] * width + window).reshape(-1, 1)
    gathered = histogram[nearby].reshape(len(window), len(window), -1)[1:-1, 1:-1].sum((0, 1))
    order = np.argsort(gathered, kind="stable")  # a strict one: of two equals the later counts as the fuller
    rank = np.zeros_like(histogram)
    rank[bins[order]] = np.arange(1, len(bins) + 1)
    fullest = np.concatenate([[0], rank[nearby[:, order]].max(0)])
    # Points that never moved make a plateau; it has no peak, and does not hang on one it touches.
    gathered = np.concatenate([[0], gathered[order]])
    fullest[(gathered <= _UNGATHERED) & (gathered[fullest] <= gathered)] = 0
    while not np.array_equal(fullest, higher := fullest[fullest]):
        fullest = higher
    return fullest[rank[ends]]


def flow_loss(prediction: Tensor, flow: Tensor, foreground: Tensor) -> Tensor:
    """Cellpose's loss: half the mean squared error of the flow, and the binary cross-entropy of the foreground.

    Args:
        prediction: float [N, 3, H, W]: dy and dx times FLOW_SCALE, and the logit of being nuclear.
        flow: float [N, 2, H, W], what `flows_of` gives.
        foreground: bool [N, 1, H, W].

    Returns:
        float32, a scalar.
    """
    error = F.mse_loss(prediction[:, :2].float(), FLOW_SCALE * flow.float())
    return 0.5 * error + F.binary_cross_entropy_with_logits(prediction[:, 2:].float(), foreground.float())
