"""Time stain normalisation of 32 tiles of 256², and compare quick with exact: `python benchmarks/stains.py [FOLDER …]`.

Tiles are squares from the middle of the images in the folders, the first of them the target; phantom tissue without
any. The quick estimate looks at some pixels of a tile, the exact one at all: their difference is in grey levels, the
mean over pixels and channels of what both normalise, and the worst tile's. Processor time is that of all threads.
"""

import argparse
import os
from collections import Counter
from pathlib import Path
from time import process_time
from typing import get_args

import numpy as np
import torch
from machine import describe, quickest
from PIL import Image
from torch import Tensor

from histo import stains
from histo.phantom import PhantomTissue
from histo.stains.estimation import PIXELS
from histo.stains.normalisation import MethodName
from histo.stains.status import usable

SIDE, BATCH = 256, 32


def tiles(folders: list[Path]) -> Tensor:
    """uint8 [BATCH, 3, SIDE, SIDE], evenly from all folders, repeated where these hold fewer."""
    if not folders:
        scenes = PhantomTissue(0, size=SIDE, count=BATCH)
        return torch.from_numpy(np.stack([scenes[k].image for k in range(BATCH)]))
    found = []
    for folder in folders:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".tif"))
        share = -(-BATCH // len(folders))
        for file in files[:: max(1, len(files) // share)][:share]:
            image = Image.open(file).convert("RGB")
            left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
            if left >= 0 and top >= 0:
                found.append(np.asarray(image.crop((left, top, left + SIDE, top + SIDE))).transpose(2, 0, 1))
    return torch.from_numpy(np.stack([found[k % len(found)] for k in range(BATCH)])).contiguous()


def difference(images: Tensor, target: stains.Appearance, method: MethodName) -> str:
    """Grey levels between quick and exact on tiles that either normalises; and what became of the tiles."""
    quick, exact = (stains.normalise(images, target, method, pixels=pixels) for pixels in (PIXELS, None))
    kept = usable(quick.status) & usable(exact.status)
    away = (quick.images[kept].float() - exact.images[kept].float()).abs().flatten(1).mean(dim=1)
    counts = Counter(stains.Status(code).name for code in quick.status.tolist())
    agreed = int((quick.status == exact.status).sum())
    return (
        f"mean {away.mean():.2f}, worst tile {away.max():.2f} | {dict(counts)}, same when exact {agreed}/{len(images)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="*", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--method", nargs="*", default=list(get_args(MethodName)), choices=get_args(MethodName))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = tiles(options.folder).to(options.device)
    print(f"{describe(options.device, {})}, load {os.getloadavg()[0]:.1f}\n")
    print(
        "| method | quick, ms per tile | CPU ms per tile | exact, ms per tile | quick from exact, grey levels | tiles |"
    )
    print("|---|---|---|---|---|---|")
    for method in options.method:
        target = stains.target_of(images[0], method)

        def call(pixels: int | None = PIXELS) -> None:
            stains.normalise(images, target, method, pixels=pixels)  # noqa: B023

        quick = quickest(call, options.repeats, options.device)
        start = process_time()
        call()
        spent = process_time() - start
        exact = quickest(lambda: call(None), 1, options.device)
        cells = " | ".join(f"{1000 * seconds / BATCH:.2f}" for seconds in (quick, spent, exact))
        print(f"| {method} | {cells} | {difference(images, target, method)} |", flush=True)


if __name__ == "__main__":
    main()
