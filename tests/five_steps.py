"""Five fp32 steps of a toy translator, to be run by one process or by several: python five_steps.py OUT.safetensors.

The first process writes the reduced gradients of the first step ("gradient/…"), the weights before it ("start/…") and
after the fifth ("weight/…"), by optimiser and position, the image indices each process has seen ("shown/…"),
and the probability of augmentation ("ada").
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file

from histo.running import updates
from histo.running.loading import ImageClock, loader
from histo.running.processes import average_gradients, part, state
from translate.ada import AdaSettings
from translate.domains import DataSettings, open_domains
from translate.engine import Batch, Translator
from translate.methods.unitpath import Method, Recipe
from translate.networks.discriminators import DiscriminatorSettings
from translate.networks.generators import GeneratorSettings
from translate.recipe import TrainSettings
from translate.replay import ReplayBuffer
from translate.stream import UnpairedCrops

STEPS = 5


def recipe() -> Recipe:
    """Batches of 4 with deviation groups of 2, so that groups are the same in one and in two processes; R1 twice.

    Augmentations happen with probability 0.6, and after the fourth step with another. (At 0.5 a unit of the tissue
    discriminator happens to be within 1e-6 of its kink in the first step, where gradients may differ by 1e-3.)

    Learning rates are low because GAN training is chaotic: at 1e-3 a change of 1e-6 in the starting weights becomes one
    of a third of all movement in five steps.
    """
    wanted = Recipe(
        data=DataSettings(tissue="phantom", masks="phantom", tile_size=64, workers=0),
        generator=GeneratorSettings(channel_base=512, channel_max=16, style_width=16, mapping_layers=2, code_width=32),
        discriminator=DiscriminatorSettings(channel_base=512, channel_max=16, deviation_group=2, mask_width=8),
        ada=AdaSettings(probability=0.6, speed=64),
        train=TrainSettings(batch_size=4, precision="fp32", learning_rate=1e-5, judge_learning_rate=1e-5),
    )
    wanted.segmenter.encoder, wanted.segmenter.pyramid_width = "test_efficientnet_gn", 32
    wanted.loss.r1_every = 3
    return wanted


def main(out: Path) -> None:
    torch.set_num_threads(1)
    processes = state()
    wanted = recipe()
    translator = Method(wanted, Accelerator(mixed_precision="no"))
    translator.replay = ReplayBuffer(wanted.seed, capacity=6)  # swaps begin in the second step
    start = weights(translator, "start")
    gradients: dict[str, torch.Tensor] = {}

    def recorded(optimizer: torch.optim.Optimizer) -> None:
        average_gradients(optimizer)
        if translator.images == 0:
            name = next(name for name, other in translator.optimizers.items() if other is optimizer)
            gradients.update(
                {f"gradient/{name}/{k}": p.grad.clone() for k, p in parameters(optimizer) if p.grad is not None}
            )

    updates.average_gradients = recorded
    domains = open_domains(wanted.data, wanted.seed, None, progress=False)
    clock = ImageClock(
        0, STEPS * wanted.train.batch_size, wanted.train.batch_size, processes.process_index, processes.num_processes
    )
    shown = []
    for batch in loader(UnpairedCrops(domains, wanted.data, wanted.seed), clock, 0, out.parent):
        shown += batch["index"].tolist()
        translator.step(Batch.of(batch, processes.device))
    everywhere = {f"shown/{k}": torch.tensor(one) for k, one in enumerate(gather_object([shown]))}
    if processes.is_main_process:
        tensors = gradients | start | weights(translator, "weight") | everywhere
        tensors["ada"] = torch.tensor(translator.ada.p, dtype=torch.float64)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)


def weights(translator: Translator, kind: str) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}/{k}": p.detach().clone()
        for name, optimizer in translator.optimizers.items()
        for k, p in parameters(optimizer)
    }


def parameters(optimizer: torch.optim.Optimizer) -> enumerate[torch.nn.Parameter]:
    return enumerate(p for group in optimizer.param_groups for p in group["params"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    part()
