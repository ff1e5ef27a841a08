"""Time an image of 1000 x 1000 pixels through a ResNet-18 U-Net with flows in bf16, to nuclei and to their maps alone.

    OMP_NUM_THREADS=2 python benchmarks/predict_speed.py

Phantom tissue of 0.25 µm/px. A network that has learned nothing finds nothing, so that the way from true flows with
white noise (standard deviation 0.2) to nuclei is timed beside it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from machine import cpu_model, quickest
from numpy.typing import NDArray
from torch import Tensor

from histo.dense import PIXELS, SHARED
from histo.encoders import memory_layout
from histo.flows import flows_of, instances_from
from histo.instance_networks import Flipped, InstanceNetwork, InstanceSettings
from histo.overlap import Corner, Grid, blend
from histo.phantom import PhantomTissue
from histo.randomness import draws
from histo.segmenters import Reading

SIDE, REPEATS = 1000, 3


def maps_of(reader: Callable[[Tensor], Reading], image: NDArray[np.uint8], grid: Grid) -> None:
    """Every pixel's flow and logit, as they are made before nuclei are read from them."""

    def look(tiles: Tensor, corners: list[Corner]) -> Tensor:
        dense = reader(tiles).dense
        assert dense is not None
        return dense

    for _ in blend(look, image, grid, PIXELS // grid.tile**2):
        pass


def main() -> None:
    tile = PhantomTissue(0, size=SIDE, mpp=0.25)[0]
    assert tile.instances is not None
    torch.manual_seed(0)
    network = InstanceNetwork(InstanceSettings("resnet18")).eval().requires_grad_(False)
    network.to(memory_format=memory_layout(network, torch.device("cpu")))
    noise = draws(0, "flow noise", 0).normal(0, 0.2, (2, SIDE, SIDE))
    flow, logits = flows_of(tile.instances) + noise, (tile.instances > 0) * 8.0 - 4
    decoded = quickest(lambda: instances_from(flow, logits), REPEATS)
    print(f"{cpu_model()}, {torch.get_num_threads()} threads; s, quickest of {REPEATS}\n")
    print("| windows | arithmetic | flips | network | flows to nuclei | both |\n|---|---|---|---|---|---|")
    for side in (128, 256):
        grid = Grid(side, side - side // SHARED)
        for bf16, flips in ((True, False), (True, True), (False, False)):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                reader = Flipped(network) if flips else network
                seen = quickest(partial(maps_of, reader, tile.image, grid), REPEATS)
            name = "bf16" if bf16 else "fp32"
            print(f"| {side}² | {name} | {flips} | {seen:.2f} | {decoded:.2f} | {seen + decoded:.2f} |", flush=True)


if __name__ == "__main__":
    main()
