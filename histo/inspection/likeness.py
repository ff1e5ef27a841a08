"""Tiles that are alike: a perceptual hash that survives compression, scaling, quarter turns and mirroring.

The hash is the signs of the low frequencies of the cosine transform of the grey thumbnail (pHash, Zauner 2010, without
its median). Mirroring an image changes the signs of every second coefficient and turning it transposes them, so that
all eight orientations follow from one transform. Of 255 signs two unlike tiles share half, give or take 8: among a
billion pairs none differs in fewer than `ALIKE` by chance.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from histo.images import MAX_PIXELS

THUMBNAIL = 64  # pixels a side
FREQUENCIES = 16  # of each axis
ALIKE = 70  # of 255 signs differ at most
LEAST_CONTRAST = 2.0  # grey levels; the signs of emptier tiles are noise
MOST_COMPARED = 30_000  # tiles; time grows with the square
_BLOCK = 2048


def spectrum(image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Low frequencies of an image, uint8 [3, H, W], as float32 [16, 16]; None for one of almost a single colour."""
    assert image.shape[1] * image.shape[2] <= MAX_PIXELS
    grey = Image.fromarray(image.transpose(1, 2, 0)).convert("L")
    thumbnail = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)
    if thumbnail.std() < LEAST_CONTRAST:
        return None
    found: NDArray[np.float32] = dctn(thumbnail, norm="ortho")[:FREQUENCIES, :FREQUENCIES].astype(np.float32)
    return found


def alike(spectra: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of spectra [N, 16, 16] that differ in at most `ALIKE` signs in some orientation."""
    signs = _signs(spectra)
    bits = signs.shape[1]
    pairs: set[tuple[int, int]] = set()
    for turned in (_signs(oriented) for oriented in _orientations(spectra)):
        for start in range(0, len(signs), _BLOCK):
            # A product of signs counts those that agree less those that do not.
            differing = (bits - signs[start : start + _BLOCK] @ turned.T) / 2
            rows, columns = np.nonzero(differing <= ALIKE)
            rows += start
            pairs |= {(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if i < j}
    return sorted(pairs)


def _signs(spectra: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [N, 255] of -1 and 1, without the mean of the image."""
    flat = spectra.reshape(len(spectra), -1)[:, 1:]
    return np.where(flat >= 0, np.float32(1), np.float32(-1))


def _orientations(spectra: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    odd = np.where(np.arange(FREQUENCIES) % 2, np.float32(-1), np.float32(1))
    found = []
    for turned in (spectra, spectra.transpose(0, 2, 1)):
        found += [turned, turned * odd, turned * odd[:, None], turned * odd * odd[:, None]]
    return found
