"""Time the generators of the classic baselines at 128², batch 1, width 64: `python benchmarks/generators.py`.

Forward alone, and forward with backward, each row in a fresh process. `conv` is the profiler's share of dense
convolutions; `floor` is what their arithmetic would take at the rate of a 3×3 convolution of 128 channels.
"""

import argparse
import multiprocessing
from dataclasses import dataclass

import torch
from machine import describe, quickest, rates
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from translate.networks.resnet import ResNetGenerator
from translate.networks.unet import UNetGenerator

RESOLUTION = 128
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::_convolution")
GENERATORS = ("ResNet-9", "ResNet-9 anti-aliased", "U-Net")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    generator: str
    bf16: bool
    channels_last: bool
    steps: int

    @property
    def name(self) -> str:
        layout = "channels last" if self.channels_last else "contiguous"
        return f"{self.generator}, {'bf16' if self.bf16 else 'fp32'}, {layout}"


class Pass:
    """A generator and an image, ready for one forward and backward pass after the other."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        layout = torch.channels_last if case.channels_last else torch.contiguous_format
        self.case = case
        self.generator = self._generator().to(memory_format=layout)
        self.image = torch.rand(1, 3, RESOLUTION, RESOLUTION).mul_(2).sub_(1).contiguous(memory_format=layout)

    def _generator(self) -> nn.Module:
        if self.case.generator == "U-Net":
            return UNetGenerator(RESOLUTION)
        return ResNetGenerator(anti_aliased=self.case.generator != "ResNet-9")

    def forward(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.case.bf16):
            return self.generator(self.image)

    def forward_alone(self) -> None:
        with torch.no_grad():
            self.forward()

    def __call__(self) -> None:
        self.generator.zero_grad(set_to_none=True)
        self.forward().abs().mean().backward()


def convolution_share(step: Pass) -> float:
    """Share of the time that goes into dense convolutions; depthwise ones, of low-pass filters, do not count."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        step()
    total = dense = 0.0
    for event in recorded.key_averages(group_by_input_shape=True):
        total += event.self_cpu_time_total
        depthwise = any(shape[1:] == [1, 3, 3] for shape in event.input_shapes)
        if event.key in CONVOLUTIONS and not depthwise:
            dense += event.self_cpu_time_total
    return dense / total


def measure(case: Case) -> tuple[float, float, float, float]:
    """Seconds forward, seconds forward and backward, share of convolutions in these, their FLOP."""
    step = Pass(case)
    forward, both = quickest(step.forward_alone, case.steps), quickest(step, case.steps)
    share = convolution_share(step)
    with FlopCounterMode(display=False) as counter:
        step()
    return forward, both, share, counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="passes to time; the quickest counts (default: 5)")
    steps = parser.parse_args().steps
    measured = {bf16: rates("cpu", torch.bfloat16 if bf16 else torch.float32) for bf16 in (True, False)}
    print(describe("cpu", measured))
    print(f"{'generator':<44}{'forward':>9}{'+ backward':>12}{'conv':>7}{'GFLOP':>7}{'floor':>8}", flush=True)
    for generator in GENERATORS:
        for bf16, channels_last in ((True, True), (True, False), (False, True)):
            case = Case(generator, bf16, channels_last, steps)
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                forward, both, share, flop = fresh.apply(measure, (case,))
            print(
                f"{case.name:<44}{forward:8.3f}s{both:11.3f}s{share:7.0%}{flop / 1e9:7.0f}"
                f"{flop / measured[bf16][1]:7.3f}s",
                flush=True,
            )


if __name__ == "__main__":
    main()
