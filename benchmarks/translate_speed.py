"""Seconds of a training step of every method in one table: `python benchmarks/translate_speed.py [--only TEXT]`.

Random batches, each row in a process of its own. A step is whole: all networks, losses and optimisers; R1 in none of
the timed ones. `floor` is what the arithmetic of its convolutions and products would take at the rate of a 3×3
convolution of 128 channels, measured in the same run; `peak` the process's memory.
"""

import argparse
import multiprocessing
import resource
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from machine import describe, quickest, rates
from torch.utils.flop_counter import FlopCounterMode

from histo.flows import flows_of
from histo.phantom import PhantomTissue
from histo.running.settings import read_settings
from translate.engine import Batch
from translate.methods import asked_kind, open_method
from translate.recipe import PRESET

CONFIGS = PRESET.parent


@dataclass(frozen=True)
class Case:
    """One row of the table: a preset, flags, and whether it computes in bf16."""

    name: str
    preset: str
    flags: tuple[str, ...] = ()
    bf16: bool = True


AT_128 = ("--data.tile_size", "128")
ONE = (*AT_128, "--train.batch_size", "1")
FOUR = (*AT_128, "--train.batch_size", "4")
AUGMENTED = ("--ada.kind", "fixed", "--ada.probability", "0.5")


def head(name: str, every: int = 1) -> tuple[str, ...]:
    """Flags of S's head."""
    return "--segmenter.head", name, "--loss.guidance_every", str(every)


CASES = (
    Case("CycleGAN without identity, 128², 1, bf16", "cyclegan", (*ONE, "--loss.identity", "0")),
    Case("CycleGAN, 128², 1, bf16", "cyclegan", ONE),
    Case("CycleGAN, 128², 1, fp32", "cyclegan", ONE, bf16=False),
    Case("CUT, 128², 1, bf16", "cut", ONE),
    Case("CUT, 128², 1, fp32", "cut", ONE, bf16=False),
    Case("FastCUT, 128², 1, bf16", "cut", (*ONE, "--loss.nce", "10", "--loss.nce_identity", "0")),
    Case("unitpath tiny, 64², 8: no ADA, no head", "tiny", head("none")),
    Case("unitpath tiny, 64², 8: no ADA, semantic", "tiny", head("semantic")),
    Case("unitpath tiny, 64², 8: ADA at p 0.5, flows", "tiny", (*AUGMENTED, *head("flows"))),
    Case("unitpath tiny, 64², 8: ADA at p 0.5, Mask R-CNN", "tiny", (*AUGMENTED, *head("maskrcnn"))),
    Case("unitpath, 128², 4: no head", "unitpath", (*FOUR, *head("none"))),
    Case("unitpath, 128², 4: Mask R-CNN in the step", "unitpath", (*FOUR, *head("maskrcnn"))),
    Case("unitpath, 128², 4: recomputing", "unitpath", (*FOUR, *head("none"), "--train.checkpointing", "true")),
    Case("unitpath, 128², 4: in 4 parts", "unitpath", (*FOUR, *head("none"), "--train.accumulation", "4")),
)


def measure(case: Case, steps: int) -> tuple[float, float, float]:
    """Seconds of the quickest step, its FLOP, and the process's peak memory in GB."""
    precision = "bf16" if case.bf16 else "fp32"
    argv = ["--config", str(CONFIGS / f"{case.preset}.yaml"), *case.flags, "--train.precision", precision]
    recipe = read_settings(asked_kind(argv), "", "", argv).settings
    translator = open_method(recipe, Accelerator(mixed_precision="bf16" if case.bf16 else "no", cpu=True))
    size, side = recipe.train.batch_size, recipe.data.tile_size
    tissue = PhantomTissue(0, size=side)
    tiles = [tissue[index] for index in range(size)]
    instances = torch.stack([torch.from_numpy(tile.instances) for tile in tiles if tile.instances is not None])
    flows = torch.stack([torch.from_numpy(flows_of(one.numpy())) for one in instances])
    images = (torch.rand(size, 3, side, side).mul_(2).sub_(1) for _ in range(2))
    source, target = (image.contiguous(memory_format=torch.channels_last) for image in images)
    batch = Batch(source, target, list(range(size)), instances, flows)

    def step() -> None:
        translator.images = 3 * size  # neither R1's turn nor, with a head every third step, another's
        translator.step(batch)

    seconds = quickest(step, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with FlopCounterMode(display=False) as counter:
        step()
    return seconds, counter.get_total_flops(), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps to time; the quickest counts (default: 5)")
    parser.add_argument("--only", default="", help="rows whose name holds this text (default: all)")
    arguments = parser.parse_args()
    measured = {bf16: rates("cpu", torch.bfloat16 if bf16 else torch.float32) for bf16 in (True, False)}
    print(describe("cpu", measured))
    print(f"{'method, tile, batch':<50}{'step':>8}{'TFLOP':>8}{'floor':>9}{'peak':>9}", flush=True)
    for case in CASES:
        if arguments.only in case.name:
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                seconds, flop, peak = fresh.apply(measure, (case, arguments.steps))
            floor = flop / measured[case.bf16][1]
            print(f"{case.name:<50}{seconds:7.3f}s{flop / 1e12:8.3f}{floor:8.3f}s{peak:6.2f} GB", flush=True)


if __name__ == "__main__":
    main()
