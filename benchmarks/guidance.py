"""Time what Mask R-CNN guidance adds to a step: `OMP_NUM_THREADS=2 python benchmarks/guidance.py [--device cuda]`.

Losses of the heads on phantom nuclei at 128², batch 4, a pyramid of 256 channels, and their gradients down to the
pyramid and the heads; the segmenter's own forward and backward pass (ResNet-50, its mask and semantic head) for
comparison. `detect` and `paint` are of one such batch, by untrained heads that draw a quarter of what they could.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from machine import describe, quickest, rates
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from histo.maskrcnn import STRIDES, Detections, MaskRCNNHead, MaskRCNNSettings, paint
from histo.phantom import PhantomTissue
from histo.segmenters import Segmenter, SegmenterSettings

SIZE, BATCH, WIDTH = 128, 4, 256


def heads(preset: Literal["paper", "nuclei"], device: str, bf16: bool) -> Callable[[], object]:
    """One forward and backward pass through the heads."""
    torch.manual_seed(0)
    head = MaskRCNNHead(MaskRCNNSettings(preset), WIDTH).to(device)
    tissue = PhantomTissue(0, size=SIZE)
    instances = torch.from_numpy(
        np.stack([tile.instances for k in range(BATCH) if (tile := tissue[k]).instances is not None])
    ).to(device)
    pyramid = features(device, bf16)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            terms = head.losses(pyramid, instances, 0, list(range(BATCH)))
        torch.stack(list(terms.values())).sum().backward()
        for leaf in (*pyramid, *head.parameters()):
            leaf.grad = None

    return step


def features(device: str, bf16: bool) -> list[Tensor]:
    """A pyramid as the segmenter makes it under autocast."""
    precision = torch.bfloat16 if bf16 else torch.float32
    shapes = [(BATCH, WIDTH, SIZE // stride, SIZE // stride) for stride in STRIDES[:4]]
    return [torch.randn(shape, device=device, dtype=precision, requires_grad=True) for shape in shapes]


def segmenter(device: str, bf16: bool) -> Callable[[], object]:
    """One forward and backward pass through the segmenter."""
    network = Segmenter(SegmenterSettings(pyramid_width=WIDTH)).to(device)
    images = torch.rand(BATCH, 3, SIZE, SIZE, device=device) * 2 - 1

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            reading = network(images)
        (reading.mask.square().mean() + reading.foreground.square().mean()).backward()
        network.zero_grad(set_to_none=True)

    return step


def detection(device: str) -> tuple[Callable[[], object], Callable[[], object], int]:
    """Finding and painting the nuclei of a batch, and how many are found."""
    torch.manual_seed(0)
    head, pyramid = MaskRCNNHead(MaskRCNNSettings(), WIDTH).to(device), features(device, True)

    def detect() -> list[Detections]:
        with torch.autocast(device, torch.bfloat16):
            return head.detect(pyramid, (SIZE, SIZE))

    head.rois.score_thresh = 0.0
    scores = torch.cat([found.scores for found in detect()])
    head.rois.score_thresh = float(scores.quantile(0.75))
    found = detect()
    return detect, lambda: [paint(part, (SIZE, SIZE), 0.0) for part in found], sum(len(part.scores) for part in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--steps", type=int, default=3, help="steps to time; the quickest counts (default: 3)")
    arguments = parser.parse_args()
    device, steps = arguments.device, arguments.steps
    measured = {bf16: rates(device, torch.bfloat16 if bf16 else torch.float32) for bf16 in (True, False)}
    print(describe(device, measured))
    print(f"{f'{SIZE}², batch {BATCH}, width {WIDTH}':<44}{'seconds':>9}{'TFLOP':>8}{'of conv rate':>14}", flush=True)
    for name, build, bf16 in (
        ("Mask R-CNN's heads, nuclei, bf16", partial(heads, "nuclei"), True),
        ("Mask R-CNN's heads, nuclei, fp32", partial(heads, "nuclei"), False),
        ("the segmenter, bf16", segmenter, True),
        ("Mask R-CNN's heads, paper, bf16", partial(heads, "paper"), True),
    ):
        step = build(device, bf16)
        seconds = quickest(step, steps, device)
        with FlopCounterMode(display=False) as counter:
            step()
        flop = counter.get_total_flops()
        print(f"{name:<44}{seconds:9.3f}{flop / 1e12:8.3f}{flop / seconds / measured[bf16][1]:14.0%}", flush=True)
    detect, painting, count = detection(device)
    print(f"{f'detect, {count} nuclei, bf16':<44}{quickest(detect, steps, device):9.3f}")
    print(f"{f'paint, {count} nuclei':<44}{quickest(painting, steps, device):9.3f}")


if __name__ == "__main__":
    main()
