"""Seconds of a SimCLR step: `python benchmarks/pretrain_speed.py [--device cuda] [--size 224] [--batch 32]`.

A step is whole: both views of every tile made from crops on the device, encoder, projector, NT-Xent, backward pass and
optimiser. Beside it the same step as a plain script has it: views made image by image with torchvision, everything in
fp32. `floor` is what the arithmetic of the encoder would take at the rate of a 3×3 convolution of the same run.
"""

import argparse
from collections.abc import Callable
from typing import Any, Literal

import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from machine import describe, quickest, rates
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from histo.phantom import PhantomTissue
from pretrain.learner import Learner
from pretrain.losses.nt_xent import nt_xent
from pretrain.objective import Batch
from pretrain.pool import DataSettings, open_pool
from pretrain.projector import projector
from pretrain.recipe import EncoderSettings, Recipe, TrainSettings
from pretrain.views import view

SEVERAL = 3


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, default=224, help="pixels a side of a view; default %(default)s")
    parser.add_argument("--batch", type=int, default=32, help="tiles; default %(default)s")
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--plain", action="store_true", help="measure the plain script too")
    chosen = parser.parse_args()
    size, batch, device = chosen.size, chosen.batch, chosen.device
    kinds = {True: rates(device, torch.bfloat16), False: rates(device, torch.float32)}
    print(describe(device, kinds))
    crop = round(size * 8 / 7)
    phantom = PhantomTissue(0, size=crop, count=batch)
    tiles = torch.stack([torch.from_numpy(phantom[k].image.copy()) for k in range(batch)]).to(device)
    print("| step | s | floor | of it views | of it encoder |\n|---|---|---|---|---|")
    precisions: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32")
    for precision in precisions:
        whole, views, encoder, flops = measured(precision, tiles, size, chosen.architecture)
        floor = flops / kinds[precision == "bf16"][1]
        print(f"| nucleate, {precision} | {whole:.2f} | {floor:.2f} | {views:.2f} | {encoder:.2f} |", flush=True)
    if chosen.plain:
        print(f"| plain, fp32 | {quickest(plain(tiles, size, chosen.architecture), SEVERAL, device):.2f} | | | |")


def measured(
    precision: Literal["bf16", "fp32"], tiles: torch.Tensor, size: int, architecture: str
) -> tuple[float, float, float, int]:
    """Seconds of a step, of its views and of its encoder, and FLOP of the encoder."""
    batch, device = len(tiles), tiles.device.type
    indices = list(range(batch))
    recipe = Recipe(
        data=DataSettings(tile_size=tiles.shape[-1], view_size=size),
        encoder=EncoderSettings(architecture=architecture),
        train=TrainSettings(batch_size=batch, precision=precision),
    )
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the first precision of a process
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=device == "cpu")
    learner = Learner(recipe, open_pool(recipe.data, 0, batch), accelerator)
    given = Batch(tiles, indices, torch.zeros(batch, dtype=torch.long, device=device))
    shown = torch.randint(0, 256, (2 * batch, 3, size, size), device=device).float()

    def encode() -> None:
        with accelerator.autocast():
            features = learner.encoder(shown)
        features.float().square().mean().backward()

    with FlopCounterMode(display=False) as counter:
        encode()
    return (
        quickest(lambda: learner.step(given), SEVERAL, device),
        quickest(lambda: [view(tiles, recipe.view, 0, name, indices, size) for name in "ab"], SEVERAL, device),
        quickest(encode, SEVERAL, device),
        counter.get_total_flops(),
    )


def plain(tiles: torch.Tensor, size: int, architecture: str) -> Callable[[], None]:
    """A SimCLR step image by image, as most scripts have it."""
    jitter = v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8)
    blur = v2.RandomApply([v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))], 0.5)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            jitter,
            v2.RandomGrayscale(0.2),
            blur,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    encoder: Any = timm.create_model(architecture, num_classes=0).to(tiles.device)
    network = nn.Sequential(encoder, projector([encoder.num_features, encoder.num_features, 128]).to(tiles.device))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        first, second = (network(torch.stack([transform(tile) for tile in tiles])) for _ in range(2))
        optimizer.zero_grad(set_to_none=True)
        nt_xent(first, second, 0.5).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
