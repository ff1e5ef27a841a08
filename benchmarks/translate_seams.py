"""How far the rendering of a large mask depends on where tiles begin: python benchmarks/translate_seams.py RUN

Prints a table: for every overlap, the difference in grey levels between two renderings of a 1000 x 700 layout whose
tiles begin half a step apart, and the time of one.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

import translate
from histo.codec import encode
from histo.layouts import Layouts
from histo.randomness import draws
from translate.canvas import image_code, render_image
from translate.networks.comod import CoModGenerator


def main() -> None:
    torch.set_num_threads(1)
    translator = translate.load(Path(sys.argv[1]))
    generator, tile = translator.require_generator(), translator.tile_size
    assert isinstance(generator, CoModGenerator)
    layout = Layouts(translator.layout, 0, size=(700, 1000), mpp=translator.mpp or 0.5, count=1)[0]
    assert layout.instances is not None
    mask = encode(layout.instances, layout.types if translator.typed else None, draws(0, "fill", 0))
    code = image_code(generator, mask)
    print(f"{'overlap':>8}{'shift px':>10}{'mean':>8}{'99.9 %':>8}{'max':>6}{'seconds':>10}")
    for overlap in (1, 2, 4):
        shift = tile // overlap // 2
        began = time.perf_counter()
        one, other = (
            render_image(generator, mask, 0, 0, origin=(start, start), code=code, overlap=overlap)
            for start in (0, shift)
        )
        seconds = (time.perf_counter() - began) / 2
        apart = np.abs(one.astype(int) - other)
        level = np.percentile(apart, 99.9)
        row = f"{1 - 1 / overlap:>8.0%}{shift:>10}{apart.mean():>8.2f}{level:>8.0f}{apart.max():>6}{seconds:>10.1f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
