"""Time two views of 224² of each of 32 tiles of 256², and the same by torchvision: `python benchmarks/views.py`.

All of SimCLR's changes are on: crop with a symmetry, colour jitter, grey, blur. torchvision's are those of the usual
recipe, on one float image after the other. Parts are timed on what comes before them, all views at once.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from time import process_time

import numpy as np
import torch
from machine import describe, quickest
from torch import Tensor

from histo.phantom import PhantomTissue
from pretrain import views
from pretrain.views import ViewSettings

TILE, SIDE, BATCH = 256, 224, 32
INDICES = list(range(BATCH))


def tiles(device: str) -> Tensor:
    """uint8 [BATCH, 3, TILE, TILE]."""
    scenes = PhantomTissue(0, size=TILE, count=8)
    return torch.from_numpy(np.stack([scenes[k % 8].image for k in range(BATCH)])).to(device)


def by_torchvision(images: Tensor) -> Callable[[], None]:
    """The recipe for one image at a time."""
    from torchvision.transforms import v2

    recipe = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, (0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
        ]
    )

    def call() -> None:
        for image in images:
            recipe(image / 255), recipe(image / 255)

    return call


def two_views(images: Tensor, settings: ViewSettings) -> Callable[[], None]:
    def call() -> None:
        for stream in ("first", "second"):
            views.view(images, settings, 0, stream, INDICES, SIDE)

    return call


def parts(images: Tensor, settings: ViewSettings) -> dict[str, Callable[[], object]]:
    """What one view of each tile is made by."""
    drawn = (settings, 0, "first", INDICES)
    geometry, colour, width = views.draw_geometry(*drawn), views.draw_colour(*drawn), views.draw_blur(*drawn)
    shown = views.warp(images, geometry, SIDE)
    instances = torch.zeros(BATCH, TILE, TILE, dtype=torch.int32, device=images.device)
    return {
        "draws": lambda: (views.draw_geometry(*drawn), views.draw_colour(*drawn), views.draw_blur(*drawn)),
        "crop": lambda: views.warp(images, geometry, SIDE),
        "colour and grey": lambda: views.recolour(shown, colour),
        "blur": lambda: views.blur(shown, width),
        "instance maps (beside a view)": lambda: views.warp_instances(instances, geometry, SIDE),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, settings = tiles(options.device), ViewSettings()
    print(f"{describe(options.device, {})}, load {os.getloadavg()[0]:.1f}\n")
    print(f"| {2 * BATCH} views of {SIDE}² | ms | CPU ms |\n|---|---|---|")
    rows = {
        "all": two_views(images, settings),
        "all, with HED jitter": two_views(images, replace(settings, hed=0.05)),
        "all, with stain augmentation": two_views(images, replace(settings, stain=0.2)),
        "torchvision, image by image": by_torchvision(images),
    }
    for name, call in rows.items():
        print(f"| {name} | {row(call, options.repeats, options.device)} |", flush=True)
    print(f"\n| {BATCH} views, its parts | ms | CPU ms |\n|---|---|---|")
    for name, part in parts(images, settings).items():
        print(f"| {name} | {row(part, options.repeats, options.device)} |", flush=True)


def row(call: Callable[[], object], repeats: int, device: str) -> str:
    """Milliseconds of the quickest call, and of the processor in one."""
    seconds = quickest(call, repeats, device)
    start = process_time()
    call()
    return f"{1000 * seconds:.1f} | {1000 * (process_time() - start):.1f}"


if __name__ == "__main__":
    main()
