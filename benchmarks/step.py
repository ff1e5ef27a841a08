"""Time one G + D step of StyleGAN2 built from the layers of translate/: `python benchmarks/step.py [--device cuda]`.

On the CPU at 128² (batch 4) and 64² (batch 8), each measurement in a fresh process; on a GPU at 256² (batch 16).
Non-saturating loss, no R1. `StyleGAN2` is the plain generator, `co-modulated` has the mask encoder too; `shared`
judges the fakes once for both networks instead of once in each half of the step.
"""

import argparse
import multiprocessing
import resource
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from machine import describe, quickest, rates
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from translate.losses.adversarial import logistic, non_saturating
from translate.networks.comod import CoModGenerator, CoModSettings, Style
from translate.networks.discriminators import DiscriminatorSettings, TissueDiscriminator
from translate.networks.stylegan import Mapping, StyledConv, ToRGB, channels_at, upsample

CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::_convolution")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    generator: str
    resolution: int
    batch: int
    channel_base: int
    bf16: bool
    shared: bool = False
    compile: bool = False
    device: str = "cpu"
    steps: int = 3

    @property
    def name(self) -> str:
        words = [self.generator, f"{self.resolution}²", f"batch {self.batch}", "bf16" if self.bf16 else "fp32"]
        return ", ".join(words + ["shared"] * self.shared + ["compiled"] * self.compile)


class PlainGenerator(nn.Module):
    """StyleGAN2 without condition: mapping of z and synthesis from a learnt constant, with skips of RGB images."""

    def __init__(self, settings: CoModSettings, resolution: int) -> None:
        super().__init__()
        sides = [2**k for k in range(2, resolution.bit_length())]
        width = [channels_at(side, settings.channel_base, settings.channel_max) for side in sides]
        style = settings.style_width
        self.start = nn.Parameter(torch.randn(1, width[0], 4, 4))
        self.mapping = Mapping(style, settings.mapping_layers)
        self.first = StyledConv(width[0], width[0], style)
        pairs = list(pairwise(width))
        self.enlarge = nn.ModuleList(StyledConv(low, high, style, up=True) for low, high in pairs)
        self.refine = nn.ModuleList(StyledConv(high, high, style) for _, high in pairs)
        self.to_rgb = nn.ModuleList(ToRGB(channels, style) for channels in width)

    def forward(self, mask: Tensor, z: Tensor, keep: Tensor, noise: list[Tensor]) -> Tensor:
        """Takes what the co-modulated generator takes; mask and keep are not used."""
        style = self.mapping(z)
        x = self.first(self.start.expand(len(z), -1, -1, -1), style, noise[0])
        rgb = self.to_rgb[0](x, style)
        for k, (enlarge, refine, to_rgb) in enumerate(zip(self.enlarge, self.refine, self.to_rgb[1:], strict=True)):
            x = refine(enlarge(x, style, noise[2 * k + 1]), style, noise[2 * k + 2])
            rgb = upsample(rgb) + to_rgb(x, style)
        return rgb.float()


class Step:
    """Two networks, two optimisers and one batch, ready to train again and again."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        settings = CoModSettings(channel_base=case.channel_base)
        comod = CoModGenerator(settings, case.resolution)
        style = comod.style(0, "benchmark", list(range(case.batch)), training=True)
        generator = comod if case.generator == "co-modulated" else PlainGenerator(settings, case.resolution)
        judge = TissueDiscriminator(DiscriminatorSettings(channel_base=case.channel_base), case.resolution)
        self.case, self.device = case, torch.device(case.device)
        self.style: Style = style.to(self.device)
        self.mask, self.real = (
            torch.rand(case.batch, 3, case.resolution, case.resolution)
            .mul_(2)
            .sub_(1)
            .to(self.device, memory_format=torch.channels_last)
            for _ in range(2)
        )
        networks: list[nn.Module] = [generator, judge]
        for network in networks:
            network.to(self.device).to(memory_format=torch.channels_last)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.99), fused=True) for network in networks
        ]
        self.weights = list(judge.parameters())
        self.generator, self.judge = (torch.compile(network) if case.compile else network for network in networks)

    def __call__(self) -> None:
        self._shared() if self.case.shared else self._alternating()

    def _render(self) -> Tensor:
        with self._autocast():
            return self.generator(self.mask, self.style.z, self.style.keep, self.style.noise)

    def _alternating(self) -> None:
        """G against D, then D on the same fakes."""
        self._judge_learns(False)
        fake = self._render()
        with self._autocast():
            loss = non_saturating(self.judge(fake))
        loss.backward()
        self._move(0)
        self._judge_learns(True)
        with self._autocast():
            loss = logistic(self.judge(self.real), self.judge(fake.detach()))
        loss.backward()
        self._move(1)

    def _shared(self) -> None:
        """The same gradients from one verdict on the fakes: D does not move between the two uses."""
        fake = self._render()
        shown = fake.detach().requires_grad_()
        with self._autocast():
            verdict = self.judge(shown)
        non_saturating(verdict).backward(inputs=[shown], retain_graph=True)
        fake.backward(shown.grad)
        self._move(0)
        with self._autocast():
            loss = logistic(self.judge(self.real), verdict)
        loss.backward(inputs=self.weights)
        self._move(1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.bf16)

    def _judge_learns(self, learn: bool) -> None:
        for weight in self.weights:
            weight.requires_grad_(learn)

    def _move(self, which: int) -> None:
        self.optimizers[which].step()
        self.optimizers[which].zero_grad(set_to_none=True)


def convolution_share(step: Step) -> float:
    """Share of a step's time that goes into convolutions; the depthwise ones of the low-pass filter do not count."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        step()
    total = dense = 0.0
    for event in recorded.key_averages(group_by_input_shape=True):
        total += event.self_cpu_time_total
        depthwise = [4, 4] in (shape[2:] for shape in event.input_shapes)
        if event.key in CONVOLUTIONS and not depthwise:
            dense += event.self_cpu_time_total
    return dense / total


def measure_on_cpu(case: Case) -> tuple[float, float, float, float]:
    """Seconds, seconds in convolutions, FLOP of a step, and this process's peak memory in GB."""
    step = Step(case)
    seconds = quickest(step, case.steps, case.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    share = convolution_share(step)
    return seconds, share * seconds, flop_of(step), peak


def flop_of(step: Step) -> float:
    """Floating-point operations of a step in convolutions and matrix products, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def on_cpu(steps: int) -> None:
    measured = {bf16: rates("cpu", torch.bfloat16 if bf16 else torch.float32) for bf16 in (True, False)}
    print(describe("cpu", measured))
    print(f"{'step':<44}{'seconds':>9}{'conv':>7}{'rest':>7}{'TFLOP':>8}{'of conv rate':>14}{'peak GB':>9}", flush=True)
    for generator in ("StyleGAN2", "co-modulated"):
        for resolution, batch, base in ((128, 4, 16384), (64, 8, 8192)):
            for bf16, shared in ((True, False), (True, True), (False, False), (False, True)):
                case = Case(generator, resolution, batch, base, bf16, shared, steps=steps)
                with multiprocessing.get_context("spawn").Pool(1) as fresh:
                    seconds, convolutions, flop, peak = fresh.apply(measure_on_cpu, (case,))
                print(
                    f"{case.name:<44}{seconds:9.2f}{convolutions:7.2f}{seconds - convolutions:7.2f}{flop / 1e12:8.2f}"
                    f"{flop / seconds / measured[bf16][1]:14.0%}{peak:9.2f}",
                    flush=True,
                )


def on_gpu(steps: int) -> None:
    measured = {bf16: rates("cuda", torch.bfloat16 if bf16 else torch.float32) for bf16 in (True, False)}
    print(describe("cuda", measured))
    print(f"{'step':<52}{'images/s':>9}{'peak GB':>9}{'of bf16 matrix rate':>21}", flush=True)
    cases = [
        Case("co-modulated", 256, 16, 16384, True, shared, compiled, "cuda", steps)
        for compiled in (False, True)
        for shared in (False, True)
    ]
    for case in cases:
        flop = flop_of(Step(replace(case, compile=False)))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step = Step(case)
        seconds = quickest(step, steps, "cuda")  # the first call, which is not timed, compiles
        peak = torch.cuda.max_memory_allocated() / 1e9
        share = flop / seconds / measured[True][0]
        print(f"{case.name:<52}{case.batch / seconds:9.1f}{peak:9.2f}{share:21.0%}", flush=True)
        del step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--steps", type=int, default=3, help="steps to time; the quickest counts (default: 3)")
    arguments = parser.parse_args()
    (on_gpu if arguments.device == "cuda" else on_cpu)(arguments.steps)


if __name__ == "__main__":
    main()
