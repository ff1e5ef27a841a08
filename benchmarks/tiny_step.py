"""Where a training step of the tiny preset spends its time: `python benchmarks/tiny_step.py [--steps N]`.

Phantom tissue, all four networks, on the CPU. Three tables: phases of a step by the clock, kinds of operators by their
own time in torch.profiler (the profiler itself adds a little), and the pace with the loader running.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from machine import describe, rates
from torch import nn
from torch.profiler import ProfilerActivity, profile

from histo.running.loading import ImageClock, loader
from histo.running.settings import read_settings
from translate.domains import open_domains
from translate.engine import Batch
from translate.methods.unitpath import Method, Recipe
from translate.recipe import PRESET
from translate.stream import UnpairedCrops

# First match counts; what matches nothing is "rest".
KINDS = {
    "convolution": ("mkldnn_convolution", "convolution_backward", "_convolution", "slow_conv"),
    "matrix product": ("::mm", "::addmm", "::bmm", "::baddbmm"),
    "normalisation": ("group_norm", "batch_norm", "instance_norm", "::var"),
    "optimiser": ("_fused_adam", "Optimizer."),
    "average": ("::lerp_",),
    "resampling, low-pass": ("upsample", "pool", "_Blur", "_Downsample", "Upsample"),
    "copies and layout": ("::copy_", "::cat", "::fill_", "::zero_", "::empty", "::clone", "::stack", "constant_pad"),
    "elementwise and sums": (
        *("::mul", "::add", "::sub", "::div", "::neg", "::abs", "::pow", "::sqrt", "::rsqrt", "::square", "::sgn"),
        *("relu", "::threshold", "::addcmul", "::sum", "::mean", "softplus", "binary_cross_entropy", "::sigmoid"),
    ),
}


def kind_of(name: str, shapes: list[list[int]]) -> str:
    """The kind of an operator; the low-pass filter is a depthwise convolution with 4×4 taps."""
    if "conv" in name and any(shape[1:] == [1, 4, 4] for shape in shapes):
        return "resampling, low-pass"
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "rest")


class Phases:
    """Seconds in each phase of a step, by the clock."""

    def __init__(self, translator: Method) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.side = ""
        for name, network in translator.networks.items():
            self._watch_forward(name.replace("_", " "), network)
        translator.begin = self._noting(translator.begin)  # type: ignore[method-assign]
        translator._average = self._timed("weight averages", translator._average)  # type: ignore[method-assign]
        translator.style = self._timed("drawing styles", translator.style)  # type: ignore[method-assign]
        for name, optimizer in translator.optimizers.items():
            optimizer.step = self._timed(f"optimiser of {name}", optimizer.step)  # type: ignore[method-assign]
        backward = torch.Tensor.backward
        torch.Tensor.backward = lambda *a, **k: self._timed(f"backward, {self.side}", backward)(*a, **k)  # type: ignore

    def _watch_forward(self, name: str, network: nn.Module) -> None:
        starts: list[float] = []
        network.register_forward_pre_hook(lambda module, inputs: starts.append(perf_counter()))

        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            self.seconds[f"forward, {name}"] += perf_counter() - starts.pop()

        network.register_forward_hook(stop)

    def _timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = perf_counter()
            result = call(*arguments, **named)
            self.seconds[phase] += perf_counter() - start
            return result

        return timed

    def _noting(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        def noting(optimizer: str, parts: int) -> Any:
            self.side = optimizer
            return begin(optimizer, parts)

        return noting


def table(rows: dict[str, float], steps: int) -> str:
    """Milliseconds a step and shares, largest first."""
    total = sum(rows.values())
    lines = [
        f"  {name:<36}{1000 * seconds / steps:9.1f} ms{seconds / total:8.1%}"
        for name, seconds in sorted(rows.items(), key=lambda row: -row[1])
    ]
    return "\n".join([*lines, f"  {'sum':<36}{1000 * total / steps:9.1f} ms"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps of each table (default: 10)")
    steps = parser.parse_args().steps
    recipe = read_settings(Recipe, "", "", [], PRESET).settings
    accelerator = Accelerator(mixed_precision=recipe.train.precision.replace("fp32", "no"), cpu=True)
    bf16 = recipe.train.precision == "bf16"
    print(describe("cpu", {bf16: rates("cpu", torch.bfloat16 if bf16 else torch.float32)}))

    with tempfile.TemporaryDirectory() as folder:
        domains = open_domains(recipe.data, recipe.seed, Path(folder), progress=False)
        translator = Method(recipe, accelerator)
        size = recipe.train.batch_size
        clock = ImageClock(0, (2 + steps) * size, size, 0, 1)
        crops = UnpairedCrops(domains, recipe.data, recipe.seed)
        batches = iter(loader(crops, clock, recipe.data.workers, Path(folder)))
        for _ in range(2):  # the first ones are slow: memory is taken, kernels are chosen
            translator.step(Batch.of(next(batches), accelerator.device))
        waited, begin = 0.0, perf_counter()
        for _ in range(steps):
            start = perf_counter()
            items = next(batches)
            waited += perf_counter() - start
            batch = Batch.of(items, accelerator.device)
            translator.step(batch)
        elapsed = perf_counter() - begin
        del batches

    # From here on the same batch again and again, with R1 in none of the steps or in all of them.
    def train(with_r1: bool) -> float:
        every = recipe.loss.r1_every * size
        start = perf_counter()
        for _ in range(steps):
            translator.images = every if with_r1 else every + size
            translator.step(batch)
        return perf_counter() - start

    plain = train(with_r1=False)
    r1 = (train(with_r1=True) - plain) / recipe.loss.r1_every
    phases = Phases(translator)
    whole = train(with_r1=False)
    rows = dict(phases.seconds)
    rows["rest (losses, replay, zeroing)"] = whole - sum(rows.values())
    print(f"\nphases of a step; R1 every {recipe.loss.r1_every} steps, a step's share of it")
    print(table({**rows, "R1": r1}, steps))

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        train(with_r1=False)
    kinds: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages(group_by_input_shape=True):
        kinds[kind_of(event.key, event.input_shapes)] += event.self_cpu_time_total / 1e6
    print("\nkinds of operators, by their own time, without R1")
    print(table(kinds, steps))
    print(f"\nwith the loader ({recipe.data.workers} worker): {steps * size / elapsed:.1f} images/s, ", end="")
    print(f"{waited / elapsed:.1%} of the time spent waiting for data")


if __name__ == "__main__":
    main()
