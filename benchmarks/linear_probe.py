"""Time the training of a linear layer on cached features.

    OMP_NUM_THREADS=2 python benchmarks/linear_probe.py

20 000 features of 512 numbers (ResNet-18's) and of 2048 (ResNet-50's), eight classes, batches of 256, 2 000 steps
without looks at a validation part.
"""

from time import perf_counter

import torch
from machine import cpu_model

from downstream.linear import LinearSettings, fit

TILES, CLASSES, STEPS, REPEATS = 20_000, 8, 2_000, 3


def main() -> None:
    print(f"{cpu_model()}, {torch.get_num_threads()} threads; quickest of {REPEATS}\n")
    print("| numbers a tile | samples a second |\n|---|---|")
    settings = LinearSettings(steps=STEPS)
    for width in (512, 2048):
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(TILES, width, generator=generator)
        numbers = torch.randint(CLASSES, (TILES,), generator=generator)
        spent = []
        for _ in range(REPEATS):
            start = perf_counter()
            fit(features, numbers, CLASSES, settings, 0)
            spent.append(perf_counter() - start)
        print(f"| {width} | {STEPS * settings.batch_size / min(spent):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
