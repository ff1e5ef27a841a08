"""One training step of translation: the networks, their optimisers and averages, and the order of the passes.

Data flow of a step (UNITPathSSL, figure 2): x → G → ŷ → S → x_rec and nuclei;  y → S → x̂ → G → y_rec;  D_tissue judges
ŷ against y, D_mask judges x̂ against x. What D_tissue sees, real or generated, is augmented (translate/ada.py).
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from histo.errors import InputError
from histo.running.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from histo.running.processes import average_gradients, together
from histo.segmenters import Segmenter, layout
from translate.ada import AdaptiveAugmentation
from translate.losses import weighted_sum
from translate.losses.adversarial import (
    least_squares,
    least_squares_generator,
    logistic,
    non_saturating,
    r1_penalty,
)
from translate.losses.cycle import cycle
from translate.losses.guidance import semantic
from translate.networks.comod import CoModGenerator
from translate.networks.discriminators import PatchDiscriminator, TissueDiscriminator
from translate.recipe import Recipe
from translate.replay import ReplayBuffer

BETA2 = 0.99


@dataclass
class Batch:
    """This process's tiles of one step, on the device.

    tissue: float [N, 3, r, r] in [-1, 1]; mask: float [N, 3, r, r] in [-1, 1]; foreground: bool [N, 1, r, r];
    indices: global image index of each.
    """

    tissue: Tensor
    mask: Tensor
    foreground: Tensor
    indices: list[int]


class Translator:
    """G, S, D_tissue and D_mask with everything that changes while they train."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.loss, self.train, self.seed, self.accelerator = recipe.loss, recipe.train, recipe.seed, accelerator
        self.tile_size = recipe.data.tile_size
        torch.manual_seed(self.seed)  # initial weights only; every later draw is keyed by image index
        self.networks: dict[str, nn.Module] = {
            "generator": CoModGenerator(recipe.generator, self.tile_size),
            "segmenter": Segmenter(recipe.segmenter),
            "tissue_discriminator": TissueDiscriminator(recipe.discriminator, self.tile_size),
            "mask_discriminator": PatchDiscriminator(recipe.discriminator, self.tile_size),
        }
        for name, network in self.networks.items():
            order = layout(accelerator.device) if name == "segmenter" else torch.channels_last
            network.to(accelerator.device, memory_format=order)  # type: ignore[call-overload]
        self.generator_average: CoModGenerator = deepcopy(self.networks["generator"])  # type: ignore[assignment]
        self.segmenter_average: Segmenter = deepcopy(self.networks["segmenter"])  # type: ignore[assignment]
        self.averages: dict[str, nn.Module] = {
            "generator": self.generator_average,
            "segmenter": self.segmenter_average,
        }
        for average in self.averages.values():
            average.requires_grad_(False).eval()
        self.generator, self.segmenter, self.tissue_judge, self.mask_judge = (
            torch.compile(network) if self.train.compile else network for network in self.networks.values()
        )
        self.optimizers = {
            "translators": self._adam(self.train.learning_rate, "generator", "segmenter"),
            "judges": self._adam(self.train.judge_learning_rate, "tissue_discriminator", "mask_discriminator"),
        }
        self.replay = ReplayBuffer(self.seed)
        self.ada = AdaptiveAugmentation(recipe.ada, self.seed)
        self.images = 0

    def _adam(self, rate: float, *names: str) -> torch.optim.Optimizer:
        parameters = [p for name in names for p in self.networks[name].parameters()]
        betas = (self.train.momentum, BETA2)
        return torch.optim.Adam(parameters, lr=rate, betas=betas, eps=1e-8, fused=True)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train all four networks on one batch; returns the unweighted terms by name, detached.

        Raises:
            InputError: a loss or ADA's statistic is not finite, here or in another process; raised before it moves a
                weight or a probability.
        """
        terms, fake_tissue, fake_mask = self._train_translators(batch)
        terms |= self._train_judges(batch, fake_tissue, fake_mask)
        self._average(self.train.batch_size)
        return {name: term.detach() for name, term in terms.items()}

    def _train_translators(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        self._judges_learn(False)
        guided = self.loss.guidance_kind == "semantic"
        render, render_again = (self.style(stream, batch.indices) for stream in ("style", "style of cycle"))
        with self.accelerator.autocast():
            fake_tissue = self.generator(batch.mask, *render)
            seen = self.segmenter(fake_tissue, guided)
            fake_mask = self.segmenter(batch.tissue, False).mask
            tissue_again = self.generator(fake_mask, *render_again)
            terms = {
                "tissue_adversarial": non_saturating(
                    self.tissue_judge(self.ada.augmented(fake_tissue, "G's tissue", batch.indices))
                ),
                "mask_adversarial": least_squares_generator(self.mask_judge(fake_mask)),
                "cycle_mask": cycle(seen.mask, batch.mask),
                "cycle_tissue": cycle(tissue_again, batch.tissue),
            }
            if guided:
                terms["guidance"] = semantic(seen.foreground, batch.foreground)
        weights = {name: getattr(self.loss, name) for name in terms}
        self._descend("translators", terms, weights)
        return terms, fake_tissue.detach(), fake_mask.detach()

    def _train_judges(self, batch: Batch, fake_tissue: Tensor, fake_mask: Tensor) -> dict[str, Tensor]:
        self._judges_learn(True)
        tissue = self.ada.augmented(batch.tissue, "real tissue", batch.indices)
        fake_tissue = self.ada.augmented(fake_tissue, "generated tissue", batch.indices)
        with self.accelerator.autocast():
            real_logits = self.tissue_judge(tissue)
            terms = {
                "tissue_judge": logistic(real_logits, self.tissue_judge(fake_tissue)),
                "mask_judge": least_squares(self.mask_judge(batch.mask), self.mask_judge(self._replayed(fake_mask))),
            }
        step = self.images // self.train.batch_size
        if self.loss.r1 > 0 and step % self.loss.r1_every == 0:
            # Of D at the images it sees; StyleGAN2-ADA takes it at the images before augmentation, through the warp,
            # which needs a second derivative that grid_sample does not have.
            terms["r1"] = r1_penalty(self.networks["tissue_discriminator"], tissue)
        weights = {"tissue_judge": 1.0, "mask_judge": 1.0, "r1": self.loss.r1 * self.loss.r1_every}
        with together():
            self.ada.observe(real_logits)
        self._descend("judges", terms, weights)
        return terms

    def style(self, stream: str, indices: list[int], training: bool = True) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Random inputs of the generator for global image indices, on the device."""
        style = self.generator_average.style(self.seed, stream, indices, training).to(self.accelerator.device)
        return style.z, style.keep, style.noise

    def _replayed(self, fake_mask: Tensor) -> Tensor:
        """This process's share of old and new fakes; all keep the same buffer, so that any number of them resumes."""
        share, rank = len(fake_mask), self.accelerator.process_index
        step = list(range(self.images, self.images + self.train.batch_size))
        judged = self.replay.swap(self.accelerator.gather(fake_mask), step)
        return judged[rank * share : (rank + 1) * share]

    def _judges_learn(self, learn: bool) -> None:
        for name in ("tissue_discriminator", "mask_discriminator"):
            self.networks[name].requires_grad_(learn)

    def _descend(self, name: str, terms: dict[str, Tensor], weights: dict[str, float]) -> None:
        with together():
            loss = weighted_sum(terms, weights)
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(optimizer)
        optimizer.step()

    def _average(self, images: int) -> None:
        self.images += images
        decay = 0.5 ** (images / min(self.train.ema_images, max(self.images, 1)))
        for name, average in self.averages.items():
            pairs = zip(average.parameters(), self.networks[name].parameters(), strict=True)
            with torch.no_grad():
                for mean, current in pairs:
                    mean.lerp_(current, 1 - decay)
                for kept, buffer in zip(average.buffers(), self.networks[name].buffers(), strict=True):
                    kept.copy_(buffer)

    def checkpoint(self, facts: dict[str, Any]) -> Checkpoint:
        """Everything that a resumed run needs, on the CPU."""
        tensors = {name: network.state_dict() for name, network in self.networks.items()}
        tensors |= {f"{name}_average": average.state_dict() for name, average in self.averages.items()}
        tensors |= {f"optimizer_{name}": optimizer_tensors(o) for name, o in self.optimizers.items()}
        tensors["replay"] = self.replay.tensors()
        return Checkpoint(tensors, {**facts, "images": self.images, "ada": self.ada.facts()})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of a translator with the same settings.

        Raises:
            InputError: the checkpoint's networks have another shape, its other tensors other names, or ADA no state.
        """
        groups = {**self.networks, **{f"{name}_average": average for name, average in self.averages.items()}}
        for name, network in groups.items():
            try:
                network.load_state_dict(checkpoint.tensors.get(name, {}))
            except RuntimeError as error:
                first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
                raise InputError(
                    f"The checkpoint's {name} is of another architecture ({first}); "
                    "use the settings it was trained with, or start a new run."
                ) from error
        try:
            for name, optimizer in self.optimizers.items():
                restore_optimizer(optimizer, checkpoint.tensors[f"optimizer_{name}"])
            self.replay.restore(checkpoint.tensors["replay"], self.accelerator.device)
        except (LookupError, ValueError, RuntimeError) as error:
            raise InputError(
                f"The checkpoint's optimisers or replayed masks do not fit ({type(error).__name__}: {error}); "
                "resume from another checkpoint."
            ) from error
        self.ada.restore(checkpoint.facts.get("ada"))
        self.images = checkpoint.facts["images"]
