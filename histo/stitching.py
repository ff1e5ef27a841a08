"""Nuclei of large images from dense maps that come in bands of rows: decoded piece by piece, none cut or doubled."""

from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histo.overlap import Band


def stitch(
    bands: Iterable[Band],
    shape: tuple[int, int],
    decode: Callable[[NDArray[np.float32]], NDArray[np.int32]],
    *,
    core: int = 512,
    margin: int = 128,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Decode dense maps in pieces: a core of rows with a margin on either side.

    A nucleus is the core's that holds its first pixel; since neighbouring pieces read the same values, they agree on
    it. One that reaches out of a piece is continued by the next under its id. The map is that of decoding everything
    at once wherever `decode` looks no further than `margin` and nuclei that touch one another form no cluster higher
    than it.

    Args:
        bands: as `histo.overlap.blend` yields them.
        shape: (height, width) of the image.
        decode: maps float32 [C, rows, W] → instance map int32 [rows, W].
        core: rows of a core in pixels.
        margin: rows beside it in pixels, more than the height of a nucleus.

    Returns:
        Instance map int32 [H, W], ids 1, 2, …, n in the order of the nuclei's first pixels; float32 [n + 1, C] by these
        ids, the mean of every map over the pixels of each nucleus, entry 0 unused.
    """
    height, width = shape
    stitched = np.zeros(shape, dtype=np.int32)
    rows = _Rows(bands)
    starts = [-1]  # of the background, which stays first, and of the nuclei so far, as a flat position
    areas, sums = [1], list[NDArray[np.float64]]()  # of the same
    seen = 0  # rows that pieces have read
    for first in range(0, height, core):
        last = min(first + core, height)
        top, bottom = max(first - margin, 0), min(last + margin, height)
        maps = rows.read(top, bottom)
        labels = decode(maps)
        sums = sums or [np.zeros(len(maps))]
        for number, place in enumerate(ndimage.find_objects(labels), start=1):
            if place is None or top + place[0].start >= last:
                continue
            inside = labels[place] == number
            begin = top + place[0].start
            target = stitched[begin : top + place[0].stop, place[1]]
            known = max(seen - begin, 0)
            owner = _owner(target[:known][inside[:known]])
            free = inside & (target == 0)
            if owner:
                free[:known] = False
            # Close to the piece's upper end may lie what is left of a nucleus that an earlier piece saw whole.
            elif begin >= first - margin // 2 and free.any():
                row, column = np.unravel_index(int(free.argmax()), free.shape)
                owner = len(starts)
                starts.append((begin + int(row)) * width + place[1].start + int(column))
                areas.append(0)
                sums.append(np.zeros(len(maps)))
            else:
                continue
            target[free] = owner
            areas[owner] += int(free.sum())
            sums[owner] += maps[:, *place][:, free].sum(1, dtype=np.float64)
        seen = bottom
    order = np.argsort(starts)
    table = np.zeros(len(starts), dtype=np.int32)
    table[order] = np.arange(len(starts))
    for number in range(height):
        stitched[number] = table[stitched[number]]
    return stitched, (np.stack(sums) / np.array(areas)[:, None])[order].astype(np.float32)


def _owner(ids: NDArray[np.int32]) -> int:
    """The nucleus that has most of these pixels, 0 where most are nobody's."""
    owned = ids[ids > 0]
    if 2 * len(owned) <= len(ids):
        return 0
    numbers, counts = np.unique(owned, return_counts=True)
    return int(numbers[counts.argmax()])


class _Rows:
    """Bands as they come, held until a later stretch is read."""

    def __init__(self, bands: Iterable[Band]) -> None:
        self._bands = iter(bands)
        self._held: deque[Band] = deque()
        self._end = 0

    def read(self, top: int, bottom: int) -> NDArray[np.float32]:
        """float32 [C, bottom - top, W]; rows above `top` are let go."""
        while self._end < bottom:
            band = next(self._bands)
            self._held.append(band)
            self._end = band[0] + band[1].shape[1]
        while self._held[0][0] + self._held[0][1].shape[1] <= top:
            self._held.popleft()
        start = self._held[0][0]
        return np.concatenate([band for _, band in self._held], 1)[:, top - start : bottom - start]
