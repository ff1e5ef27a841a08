"""Size of a checkpoint, and the time to write and to read it: `python benchmarks/checkpoints.py [PRESET …]`.

The networks, averages, optimisers and replay buffers of a preset, as large as they are after the first steps, are saved
and loaded as a training does it: hashed, synced, renamed. Nothing is trained: optimisers step once on gradients of 0.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from nuclei import cpu_model

from histo.running import checkpoints
from histo.running.settings import read_settings
from translate.methods import asked_kind, open_method

TURNS = 3


def row(preset: str, folder: Path) -> str:
    """Megabytes and seconds of one preset."""
    argv = ["--config", preset]
    recipe = read_settings(asked_kind(argv), "benchmark", "", argv).settings
    translator = open_method(recipe, Accelerator(cpu=True))
    for optimizer in translator.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    side = recipe.data.tile_size
    for buffer in translator.buffers().values():
        buffer.images = [torch.zeros(3, side, side) for _ in range(buffer.capacity)]
    written, read = [], []
    for _ in range(TURNS):
        translator.images += recipe.train.batch_size
        start = time.perf_counter()
        path = checkpoints.save(folder, translator.checkpoint({}), keep=1)
        written.append(time.perf_counter() - start)
        start = time.perf_counter()
        checkpoint = checkpoints.load(path)
        read.append(time.perf_counter() - start)
    sizes = {group: sum(t.nbytes for t in tensors.values()) for group, tensors in checkpoint.tensors.items()}
    kinds = {
        "networks": sum(size for name, size in sizes.items() if name in translator.networks),
        "averages": sum(size for name, size in sizes.items() if name.endswith("_average")),
        "optimisers": sum(size for name, size in sizes.items() if name.startswith("optimizer_")),
    }
    kinds["replay"] = sum(sizes.values()) - sum(kinds.values())
    parameters = sum(p.numel() for network in translator.networks.values() for p in network.parameters())
    total = sum(file.stat().st_size for file in path.iterdir())
    parts = " + ".join(f"{name} {size / 1e6:.0f}" for name, size in kinds.items())
    return (
        f"{Path(preset).stem:<10} {parameters / 1e6:7.1f} M parameters {total / 1e6:8.1f} MB ({parts}), written in "
        f"{min(written):.2f} to {max(written):.2f} s, read in {min(read):.2f} to {max(read):.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = [f"configs/translate/{name}.yaml" for name in ("tiny", "unitpath", "cyclegan")]
    parser.add_argument("preset", nargs="*", default=presets, help="configs; default: %(default)s")
    parser.add_argument("--dir", type=Path, help="folder to write to; default: one of the system's temporary ones")
    options = parser.parse_args()
    print(f"{cpu_model()}, {os.cpu_count()} cores")
    for preset in options.preset:
        with tempfile.TemporaryDirectory(dir=options.dir) as name:
            print(row(preset, Path(name)), flush=True)


if __name__ == "__main__":
    main()
