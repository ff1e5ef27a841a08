"""An encoder with everything that changes while it learns: heads, optimiser, and one step over all objectives."""

from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F

from histo.batch_norm import kept_statistics, share, unremembered
from histo.encoders import memory_layout
from histo.errors import InputError
from histo.running.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from histo.running.processes import average_gradients, together
from histo.running.updates import weighted_sum
from pretrain.objective import Batch, Context, Objective, Tensors
from pretrain.objectives import open_objectives
from pretrain.pool import Pool
from pretrain.recipe import Recipe
from pretrain.start import open_backbone


class Learner:
    """The encoder of a recipe, at its start.

    Args:
        pseudo_masks: folder where pseudo-masks of the pool are kept, if an objective needs some; None: none are made.

    Raises:
        InputError: an encoder that cannot be built or started as asked, or an objective that misses what it needs.
    """

    def __init__(self, recipe: Recipe, pool: Pool, accelerator: Accelerator, pseudo_masks: Path | None = None) -> None:
        self.recipe, self.train, self.accelerator, self.pool = recipe, recipe.train, accelerator, pool
        share_of_each = recipe.train.batch_size // accelerator.num_processes
        if share_of_each % recipe.train.accumulation:
            raise InputError(
                f"train.accumulation is {recipe.train.accumulation}, expected a divisor of the {share_of_each} tiles "
                "that each process takes of a batch."
            )
        self.encoder, self.parent, self.inherited, self.origin = open_backbone(recipe)
        torch.manual_seed(recipe.seed)  # initial weights of the heads; every later draw is keyed by image index
        device = accelerator.device
        self.encoder.to(device).to(memory_format=memory_layout(self.encoder, device))
        if self.train.checkpointing:
            self._recompute()
        share(self.encoder)
        seen = torch.compile(self.encoder) if self.train.compile else self.encoder
        maps = torch.compile(self.encoder.maps) if self.train.compile else self.encoder.maps
        self.objectives: dict[str, Objective] = open_objectives(
            recipe.objectives, Context(recipe, self.encoder, seen, maps, pool, accelerator, pseudo_masks)
        )
        self.networks: dict[str, nn.Module] = {"encoder": self.encoder.model}
        for name, objective in self.objectives.items():
            for head, network in objective.heads().items():
                self.networks[f"{name}_{head}"] = network.to(device)
        self.optimizer = self._optimizer()
        self.spreads: dict[str, float] = {}
        self.images = 0

    def step(self, batch: Batch) -> Tensors:
        """Learn from one batch; returns the unweighted terms by name ("simclr/contrast"), detached.

        Raises:
            InputError: a loss is not finite, here or in another process; raised before it moves a weight.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        terms: Tensors = {}
        for name, objective in self.objectives.items():
            found = self._learn(name, objective, batch)
            terms |= {f"{name}/{term}": value for term, value in found.items()}
        average_gradients(self.optimizer)
        self.optimizer.step()
        self.images += self.train.batch_size
        return terms

    def _learn(self, name: str, objective: Objective, batch: Batch) -> Tensors:
        """Add one objective's gradients; returns its terms.

        The embeddings of all parts and processes are compared at once, and the gradient of the loss by each embedding
        goes back through the part it came from (Gao et al. 2021, "Scaling deep contrastive learning batch size"). With
        several parts each is run twice, first without a graph.
        """
        with torch.no_grad():
            shown = objective.show(batch)
        parts = self._parts(shown)
        whole = len(parts) == 1
        if whole:
            embedded, own = self._embed(objective, parts[0])
        else:
            with torch.no_grad(), unremembered(list(self.networks.values())):
                before = [self._embed(objective, part)[0] for part in parts]
            embedded = {key: torch.cat([each[key] for each in before]) for key in before[0]}
        everyones = {
            key: self.accelerator.gather(value.detach().contiguous()).requires_grad_(value.is_floating_point())
            for key, value in embedded.items()
        }
        learned = [key for key, value in embedded.items() if value.is_floating_point()]
        terms: Tensors = {}
        gradients: Tensors = {}
        if everyones:
            terms, vectors = objective.compare(everyones)
            with together():
                loss = objective.weight * weighted_sum(terms, self._weights(objective, terms))
            loss.backward()
            self._look(name, vectors)
            gradients = {key: self._mine(everyones[key].grad, len(embedded[key])) for key in learned}
        alone: dict[str, list[Tensor]] = {}
        start = 0
        for part in parts:
            if not whole:
                embedded, own = self._embed(objective, part)
            size = len(next(iter(part.values())))
            rows = slice(start, start + size)
            start += size
            if own:
                with together():
                    loss = objective.weight * weighted_sum(own, self._weights(objective, own)) / len(parts)
            roots = [embedded[key] for key in learned] + ([loss] if own else [])
            with kept_statistics(list(self.networks.values()) if self.train.checkpointing else []):
                torch.autograd.backward(roots, [gradients[key][rows] for key in learned] + ([None] if own else []))
            for key, value in own.items():
                alone.setdefault(key, []).append(value.detach())
        terms = {key: value.detach() for key, value in terms.items()}
        return terms | {key: torch.stack(values).mean() for key, values in alone.items()}

    def _embed(self, objective: Objective, part: Tensors) -> tuple[Tensors, Tensors]:
        with self.accelerator.autocast():
            embedded, own = objective.embed(part)
        return {key: value.float() if value.is_floating_point() else value for key, value in embedded.items()}, own

    def _weights(self, objective: Objective, terms: Tensors) -> dict[str, float]:
        return {name: 1.0 for name in terms} | objective.weights()

    def _parts(self, shown: Tensors) -> list[Tensors]:
        split = {key: value.chunk(self.train.accumulation) for key, value in shown.items()}
        return [{key: values[k] for key, values in split.items()} for k in range(self.train.accumulation)]

    def _mine(self, gradient: Tensor | None, count: int) -> Tensor:
        """This process's rows; times the processes, since gradients will be averaged over them."""
        assert gradient is not None
        first = self.accelerator.process_index * count
        return gradient[first : first + count] * self.accelerator.num_processes

    def _look(self, name: str, embedded: Tensor) -> None:
        """How far apart embeddings lie: the mean deviation of their numbers, in units of that of random directions."""
        if len(embedded) < 2:
            return
        first = F.normalize(embedded.detach(), dim=1)
        self.spreads[f"embedding/{name}_spread"] = float(first.std(dim=0).mean() * first.shape[1] ** 0.5)

    @property
    def scales(self) -> list[float] | None:
        """µm/px of the smallest and of the largest part of a tile that a view shows; None where the pool has none."""
        data, mpp = self.recipe.data, self.pool.mpp
        if mpp is None:
            return None
        largest = mpp * data.tile_size / data.view_size
        return [round(largest * self.recipe.view.smallest_area**0.5, 4), round(largest, 4)]

    def rate(self) -> float:
        """The learning rate now: a line up over the warm-up, then a cosine down to 0."""
        done = (self.images + self.train.batch_size) / self.train.images
        if done < self.train.warmup:
            return self.train.peak_rate * done / self.train.warmup
        past = (self.images / self.train.images - self.train.warmup) / (1 - self.train.warmup)
        return self.train.peak_rate * 0.5 * (1 + cos(pi * min(1.0, max(0.0, past))))

    def scalars(self) -> dict[str, float]:
        """What else to log."""
        values = {"rate": self.rate(), **self.spreads}
        for name, objective in self.objectives.items():
            values |= {f"{name}/{key}": value for key, value in objective.scalars().items()}
        return values

    def _recompute(self) -> None:
        """Compute inner values of the encoder again for the backward pass."""
        try:
            self.encoder.model.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:
            raise InputError(
                f"{self.encoder.architecture} cannot compute its inner values again; leave --train.checkpointing out, "
                "or choose another encoder."
            ) from error

    def _optimizer(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        for network in self.networks.values():
            named = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
            spared: set[str] = getattr(network, "no_weight_decay", set)()  # by timm: position embeddings
            bare = {name for name, value in named if value.ndim <= 1 or name.endswith(".bias") or name in spared}
            for kind, decay in ((True, 0.0), (False, self.train.decay)):
                # timm's LARS adapts only what decays: without a word, weight decay 0 would make it plain SGD.
                group = [value for name, value in named if (name in bare) is kind]
                groups.append({"params": group, "weight_decay": decay, "always_adapt": not kind})
        groups = [group for group in groups if group["params"]]
        if self.train.optimizer == "lars":
            return Lars(groups, lr=self.train.peak_rate, momentum=self.train.momentum)
        return torch.optim.AdamW(groups, lr=self.train.peak_rate, betas=(self.train.momentum, 0.999), fused=True)

    def checkpoint(self, facts: dict[str, Any]) -> Checkpoint:
        """Everything that a resumed run needs."""
        tensors = {name: network.state_dict() for name, network in self.networks.items()}
        tensors["optimizer"] = optimizer_tensors(self.optimizer)
        return Checkpoint(tensors, {**facts, "images": self.images})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of a learner with the same settings.

        Raises:
            InputError: networks of another shape, or a state that is missing.
        """
        try:
            for name, network in self.networks.items():
                network.load_state_dict(checkpoint.tensors[name])
            restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"])
        except (LookupError, ValueError, RuntimeError) as error:
            text = str(error).splitlines()
            first = text[1].strip() if len(text) > 1 else str(error)
            raise InputError(
                f"The checkpoint does not fit these settings ({first}); use those it was trained with, or start a new "
                "run."
            ) from error
        self.images = checkpoint.facts["images"]
