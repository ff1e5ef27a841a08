"""Randomness as a pure function: every draw is keyed by (seed, stream name, global index).

No global generator is ever used, so resuming, loader workers, several processes and mixed sources agree by
construction: image 12 345 of a run sees the same crop, style and noise whoever computes it and whenever.
"""

import hashlib

import numpy as np


def draws(seed: int, stream: str, index: int) -> np.random.Generator:
    """A generator of its own for one (seed, stream, index).

    Philox is counter-based: (seed, stream) make its key and `index` the high half of its counter, so two indices never
    share a block and making one costs microseconds.

    Args:
        seed: the run's seed, any integer.
        stream: what the draws are for, e.g. "crop" or "style"; streams are independent of each other.
        index: global index of the image, tile or epoch, 0 or more.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    counter = np.array([0, 0, index, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
