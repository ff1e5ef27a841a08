"""Time scores and mask-image codec on a 1000 x 1000 tile with 500 nuclei: `python benchmarks/nuclei.py`."""

import numpy as np
from machine import cpu_model, quickest
from numpy.typing import NDArray

from histo.codec import decode, encode
from histo.metrics import compare
from histo.randomness import draws

SIDE, NUCLEI, REPEATS = 1000, 500, 15


def nuclei_map() -> NDArray[np.int32]:
    """Discs of 5 to 17 pixels radius, many of them touching: int32 [SIDE, SIDE]."""
    generator = draws(0, "benchmark", 0)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    instances = np.zeros((SIDE, SIDE), dtype=np.int32)
    for nucleus in range(1, NUCLEI + 1):
        row, column = generator.uniform(0, SIDE, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= generator.uniform(5, 17) ** 2
        instances[disc & (instances == 0)] = nucleus
    return instances


def main() -> None:
    instances = nuclei_map()
    moved = np.roll(instances, 2, axis=0)
    types = draws(0, "types", 0).integers(1, 3, NUCLEI + 1).astype(np.uint8)
    texture = draws(0, "texture", 0)
    image = encode(instances, types)
    crop = instances[:128, :128]
    timings = {
        "compare": lambda: compare(instances, moved),
        "encode": lambda: encode(instances, types),
        "encode with texture": lambda: encode(instances, types, texture),
        "decode": lambda: decode(image),
        "encode + decode": lambda: decode(encode(instances, types)),
        "encode 128 x 128": lambda: encode(crop, types),
        "encode 128 x 128 with texture": lambda: encode(crop, types, texture),
    }
    print(f"{cpu_model()}; {SIDE} x {SIDE} pixels, {NUCLEI} nuclei over {(instances > 0).mean():.0%} of them")
    for name, call in timings.items():
        print(f"{name:<30} {1000 * quickest(call, REPEATS):7.2f} ms")


if __name__ == "__main__":
    main()
