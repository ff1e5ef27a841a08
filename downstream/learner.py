"""A task's network with everything that changes while it learns: averages, optimiser, and one step."""

from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from downstream.recipe import Recipe
from downstream.task import Evaluation, Task, Tensors
from histo.batch_norm import share
from histo.encoders import memory_layout
from histo.errors import InputError
from histo.randomness import draws
from histo.running.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from histo.running.updates import Update
from histo.stains.jitter import draw_jitter, jitter_hed
from histo.tiles import Tile, TileSet


class Learner:
    """The network of a task, at its start.

    Attributes:
        average: the running mean of its weights, which is scored and exported.
    """

    def __init__(self, recipe: Recipe, task: Task, accelerator: Accelerator, seed: int) -> None:
        self.recipe, self.train, self.task, self.accelerator, self.seed = recipe, recipe.train, task, accelerator, seed
        device = accelerator.device
        task.network.to(device).to(memory_format=memory_layout(task.network, device))
        task.network.train()
        share(task.network)
        self.optimizer = self._optimizer()
        self.average = AveragedModel(task.network, multi_avg_fn=self._mean, use_buffers=True)
        self.images = 0
        self.best: dict[str, Tensor] | None = None
        self.best_score, self.best_images = float("-inf"), 0

    @property
    def frozen(self) -> bool:
        """Whether the encoder stays as it is."""
        return self.recipe.encoder.frozen or self.train.encoder_rate == 0

    def step(self, batch: Tensors) -> Tensors:
        """Learn from one batch of crops; returns the unweighted terms by name, detached.

        Raises:
            InputError: a loss is not finite, here or in another process; raised before it moves a weight.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self.rate()
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        place = self.images + self.accelerator.process_index  # dropout of some decoders draws alike after a resume
        torch.manual_seed(int(draws(self.seed, "dropout", place).integers(2**63)))
        with torch.no_grad():
            images = self._shown(batch.pop("image"), batch["index"].tolist())
        with self.accelerator.autocast():
            terms = self.task.losses(images, batch)
        update = Update(self.optimizer, 1)
        update.add(terms, dict.fromkeys(terms, 1.0))
        found = update.apply()
        self.average.update_parameters(self.task.network)
        self.images += self.train.batch_size
        return found

    def _mean(self, means: Any, weights: Any, steps: Tensor | int) -> None:
        """One step of the running means, which keep less while there are few steps to take the mean of."""
        kept = min(self.train.average, (1 + int(steps)) / (10 + int(steps)))
        for mean, weight in zip(means, weights, strict=True):
            if mean.is_floating_point():
                mean.lerp_(weight, 1 - kept)
            else:
                mean.copy_(weight)

    def rate(self) -> float:
        """The learning rate now: a line up over the warm-up, then a cosine down to 0."""
        done = (self.images + self.train.batch_size) / self.train.images
        if done < self.train.warmup:
            return self.train.learning_rate * done / self.train.warmup
        past = (self.images / self.train.images - self.train.warmup) / (1 - self.train.warmup)
        return self.train.learning_rate * 0.5 * (1 + cos(pi * min(1.0, max(0.0, past))))

    def _shown(self, images: Tensor, indices: list[int]) -> Tensor:
        """Crops in other amounts of stain, float levels."""
        amount = self.recipe.crop.stain
        if not amount:
            return images.float()
        return jitter_hed(images.float(), draw_jitter(self.seed, "stain", indices, amount, 0.05 * amount))

    def _optimizer(self) -> torch.optim.Optimizer:
        own = {id(weight) for weight in self.task.encoder.parameters()}
        groups: list[dict[str, Any]] = []
        for of_encoder, rate in ((True, self.train.encoder_rate), (False, 1.0)):
            if of_encoder and self.frozen:
                self.task.encoder.requires_grad_(False).eval()  # eval: batch norm would learn without gradients
                continue
            if of_encoder and self.train.layer_decay < 1:
                groups += self._by_layer()
                continue
            weights = [
                (name, weight)
                for name, weight in self.task.network.named_parameters()
                if weight.requires_grad and (id(weight) in own) is of_encoder
            ]
            for bare in (True, False):
                chosen = [weight for name, weight in weights if (weight.ndim <= 1 or name.endswith(".bias")) is bare]
                decay = 0.0 if bare else self.train.weight_decay
                groups.append({"params": chosen, "weight_decay": decay, "share": rate})
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.train.learning_rate, fused=True)

    @torch.no_grad()
    def scored(self, tiles: TileSet) -> Evaluation:
        """The averaged network's scores on whole tiles."""
        with self.accelerator.autocast():
            return self.task.evaluate(self._averaged(), tiles)

    @torch.no_grad()
    def drawn(self, tile: Tile) -> NDArray[np.uint8]:
        """What the averaged network makes of a tile, for people."""
        with self.accelerator.autocast():
            return self.task.draw(self._averaged(), tile)

    def export(self, facts: dict[str, Any], folder: Path) -> Path:
        """Write the averaged network for users; returns the file.

        Raises:
            InputError: it cannot be written.
        """
        card = {
            "images_seen": self.images,
            "seed": self.seed,
            **facts,
        }
        return self.task.export(self._averaged(), card, folder)

    def _averaged(self) -> nn.Module:
        return self.average.module.eval()

    def keep_best(self, score: float) -> None:
        """Keep the averaged network of now if it is better than those before it, the later of two that are alike."""
        if score >= self.best_score:
            self.best = {name: weight.clone() for name, weight in self.average.module.state_dict().items()}
            self.best_score, self.best_images = score, self.images

    def take_best(self) -> str:
        """Let the best network be the one that is scored and exported; says for people which it is."""
        if self.best is None:
            return f"the last one, after {self.images} crops"
        self.average.module.load_state_dict(self.best)
        return (
            f"that of {self.best_images} crops, the best by {self.task.CHOSEN} of the validation part "
            f"({self.best_score:.3f})"
        )

    def _by_layer(self) -> list[dict[str, Any]]:
        """The encoder's weights by timm's layers, the lower the slower (Bao et al. 2022, BEiT)."""
        encoder: Any = getattr(self.task.network, "encoder", None)
        if not hasattr(encoder, "group_matcher"):
            raise InputError(
                f"train.layer_decay is {self.train.layer_decay:g}, but task {self.recipe.task} does not keep its "
                "encoder in timm's layers; give 1, or --train.encoder_rate."
            )
        found = param_groups_layer_decay(encoder, self.train.weight_decay, layer_decay=self.train.layer_decay)
        for group in found:
            group["share"] = group.pop("lr_scale") * self.train.encoder_rate
        return found

    def checkpoint(self, facts: dict[str, Any]) -> Checkpoint:
        """Everything that a resumed run needs."""
        tensors = {
            "network": self.task.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        if self.best is None:
            return Checkpoint(tensors, {**facts, "images": self.images})
        best = {"best_score": self.best_score, "best_images": self.best_images}
        return Checkpoint({**tensors, "best": self.best}, {**facts, "images": self.images, **best})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of a learner with the same settings.

        Raises:
            InputError: networks of another shape, or a state that is missing.
        """
        try:
            self.task.network.load_state_dict(checkpoint.tensors["network"])
            self.average.load_state_dict(checkpoint.tensors["average"])
            restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"])
            if "best" in checkpoint.tensors:
                self.best = checkpoint.tensors["best"]
                self.best_score, self.best_images = checkpoint.facts["best_score"], checkpoint.facts["best_images"]
        except (LookupError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{checkpoint.path} does not fit these settings; use those it was trained with, or start a new run."
            ) from error
        self.images = checkpoint.facts["images"]
