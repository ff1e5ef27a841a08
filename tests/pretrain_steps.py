"""Five fp32 steps of a toy pretraining, to be run by one process or by several:

    python pretrain_steps.py OUT.safetensors OBJECTIVE ENCODER PARTS TISSUE...

The first process writes the mean gradients of the first step ("gradient/…"), the weights before it ("start/…") and
after the fifth ("weight/…"), the running statistics of batch norms after the fifth ("running/…"), the image indices
each process has seen ("shown/…"), and of stain_invariant the colours of the second views' tiles ("colours").
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file

from histo.running.loading import ImageClock, loader
from histo.running.processes import part, state
from pretrain import learner as learning
from pretrain.learner import Learner
from pretrain.objective import Batch
from pretrain.pool import DataSettings, PooledCrops, open_pool
from pretrain.recipe import EncoderSettings, Recipe, TrainSettings

STEPS, BATCH = 5, 8


def main(out: Path, objective: str, encoder: str, parts: int, tissue: list[str]) -> None:
    torch.set_num_threads(1)
    processes = state()
    wanted = Recipe(
        objective=objective,
        data=DataSettings(tissue=tissue, tile_size=64, view_size=64, workers=0),
        encoder=EncoderSettings(architecture=encoder),
        train=TrainSettings(
            batch_size=BATCH,
            images=STEPS * BATCH,
            accumulation=parts,
            precision="fp32",
            optimizer="lars",
            learning_rate=1e-3,
        ),
    )
    wanted.barlow.width = 32
    if objective == "instance":
        wanted.data.masks, wanted.instance.generated = "tissue", 0.0
        wanted.instance.pyramid_width, wanted.instance.nuclei = 64, 4
    if objective == "stain_invariant":
        wanted.stain_invariant.mode = "center" if len(tissue) > 1 else "batch"
        wanted.stain_invariant.normaliser = "mix"
    accelerator = Accelerator(mixed_precision="no")
    pool = open_pool(wanted.data, wanted.seed, BATCH)
    learner = Learner(wanted, pool, accelerator)
    start = {f"start/{k}": p.detach().clone() for k, p in parameters(learner)}
    gradients: dict[str, torch.Tensor] = {}
    average = learning.average_gradients

    def recorded(optimizer: torch.optim.Optimizer) -> None:
        average(optimizer)
        if learner.images == 0:
            gradients.update({f"gradient/{k}": p.grad.clone() for k, p in parameters(learner) if p.grad is not None})

    learning.average_gradients = recorded
    more = [items for one in learner.objectives.values() if (items := one.items()) is not None]
    crops = PooledCrops(pool, wanted.data, wanted.seed, more)
    clock = ImageClock(0, STEPS * BATCH, BATCH, processes.process_index, processes.num_processes)
    shown, colours = [], []
    for items in loader(crops, clock, 0, out.parent):
        shown += items["index"].tolist()
        batch = Batch.of(items, processes.device)
        if objective == "stain_invariant":
            rerendered = learner.objectives[objective].rerender(batch)  # type: ignore[attr-defined]
            colours.append(accelerator.gather(rerendered.float().mean(dim=(2, 3))))
        learner.step(batch)
    everywhere = {f"shown/{k}": torch.tensor(one) for k, one in enumerate(gather_object([shown]))}
    if processes.is_main_process:
        tensors = gradients | start | everywhere
        tensors |= {f"weight/{k}": p.detach().clone() for k, p in parameters(learner)}
        tensors |= {
            f"running/{name}": value.float() for name, value in learner.encoder.named_buffers() if "running" in name
        }
        if colours:
            tensors["colours"] = torch.stack(colours)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)


def parameters(learner: Learner) -> enumerate[torch.nn.Parameter]:
    return enumerate(p for group in learner.optimizer.param_groups for p in group["params"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:])
    part()
