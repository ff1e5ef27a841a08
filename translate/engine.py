"""What every method of translation shares: networks, averages, optimisers, their state, and one update of weights."""

from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from histo.errors import InputError
from histo.running.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from histo.running.updates import Update
from histo.segmenters import Reader, Segmenter, layout
from translate.recipe import Recipe
from translate.replay import ReplayBuffer


@dataclass
class Batch:
    """This process's tiles of one step, on the device.

    source: float [N, 3, r, r] in [-1, 1], mask images or tissue to translate; target: the same of tissue.
    indices: global image index of each.
    instances: int32 [N, r, r], those that the mask images show; None where the source is tissue.
    flows: float [N, 2, r, r] of these instances, where the guidance needs them.
    """

    source: Tensor
    target: Tensor
    indices: list[int]
    instances: Tensor | None = None
    flows: Tensor | None = None

    @classmethod
    def of(cls, items: dict[str, Any], device: torch.device) -> "Batch":
        """From what the loader collates (see `translate.stream.UnpairedCrops`)."""

        def image(name: str) -> Tensor:
            scaled = items[name].to(device, non_blocking=True).float() / 127.5 - 1
            return scaled.contiguous(memory_format=torch.channels_last)

        known = {name: items[name].to(device, non_blocking=True) for name in ("instances", "flows") if name in items}
        return cls(image("source"), image("target"), items["index"].tolist(), **known)

    def split(self, parts: int) -> list["Batch"]:
        """Runs of neighbours, all of one size.

        Raises:
            InputError: that cannot be.
        """
        size = len(self.indices) // parts
        if size * parts != len(self.indices):
            raise InputError(
                f"train.accumulation is {parts}, expected a divisor of the {len(self.indices)} tiles that each process "
                "takes of a batch."
            )
        runs = [slice(k * size, (k + 1) * size) for k in range(parts)]
        return [
            Batch(
                self.source[run],
                self.target[run],
                self.indices[run],
                *(None if tensor is None else tensor[run] for tensor in (self.instances, self.flows)),
            )
            for run in runs
        ]


@dataclass(frozen=True)
class Export:
    """A network that a run hands on: the name and kind of its file, and what rebuilds it."""

    name: str
    kind: str
    network: nn.Module
    settings: dict[str, Any]


class Translator(ABC):
    """The networks of a method with everything that changes while they train.

    A method says which networks there are and what a step does with them; see translate/methods/.
    """

    TRANSLATORS: ClassVar[tuple[str, ...]]  # networks trained at train.learning_rate
    JUDGES: ClassVar[tuple[str, ...]]  # discriminators, trained at train.judge_learning_rate
    AVERAGED: ClassVar[tuple[str, ...]]  # those whose averages over the training are looked at and handed on
    KEPT: ClassVar[tuple[str, ...]] = ()  # by the second stage; none: the method has no second stage

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.train, self.accelerator = recipe, recipe.train, accelerator
        self.seed, self.tile_size = recipe.seed, recipe.data.tile_size
        torch.manual_seed(self.seed)  # initial weights only; every later draw is keyed by image index
        self.networks = self.build()
        for network in self.networks.values():
            order = layout(accelerator.device) if isinstance(network, Segmenter) else torch.channels_last
            network.to(accelerator.device, memory_format=order)  # type: ignore[call-overload]
        self.averages = {name: deepcopy(self.networks[name]).requires_grad_(False).eval() for name in self.AVERAGED}
        self.passes = {
            name: torch.compile(network) if self.train.compile else network for name, network in self.networks.items()
        }
        self.optimizers = {
            "translators": self._adam(recipe.learning_rate(self.train.learning_rate), self.TRANSLATORS),
            "judges": self._adam(recipe.learning_rate(self.train.judge_learning_rate), self.JUDGES),
        }
        self.rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        self.images = 0

    # What a method gives

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """All networks by name, with their initial weights."""

    @abstractmethod
    def update(self, parts: list[Batch]) -> dict[str, Tensor]:
        """Train all networks on a batch in parts; returns the unweighted terms by name."""

    @abstractmethod
    def to_target(self, source: Tensor, stream: str, indices: list[int]) -> Tensor | None:
        """Source images, float [N, 3, r, r], as the averaged networks translate them, each in the style of its index
        where there are styles. None: the method does not learn this direction."""

    @abstractmethod
    def to_source(self, target: Tensor) -> Tensor | None:
        """Target images as the averaged networks translate them; None: the method does not learn this direction."""

    @property
    @abstractmethod
    def reader(self) -> Reader | None:
        """The averaged network that finds nuclei in tissue; None: there is none."""

    @abstractmethod
    def exports(self) -> list[Export]:
        """The averaged networks that users load."""

    @property
    def needs_flows(self) -> bool:
        """Whether batches must bring the flows of their instances."""
        return False

    def buffers(self) -> dict[str, ReplayBuffer]:
        """Replay buffers by name, for checkpoints."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What else changes while training, for checkpoints: what JSON can hold."""
        return {}

    def restore_facts(self, facts: dict[str, Any]) -> None:
        """Put back what `facts` gave out.

        Raises:
            InputError: it is not such a state.
        """
        assert not self.facts(), "a method that gives facts out takes them back"

    def scalars(self) -> dict[str, float]:
        """What else to log."""
        return {}

    # What all share

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train all networks on one batch; returns the unweighted terms by name, detached.

        Raises:
            InputError: a loss or a statistic is not finite, here or in another process; raised before it moves a
                weight or a probability.
        """
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * self._decay()
        terms = self.update(batch.split(self.train.accumulation))
        self._average(self.train.batch_size)
        return terms

    def run(self, name: str, *inputs: Any, method: str = "__call__") -> Any:
        """What a network makes of its inputs in training, or another of its methods than its forward pass."""
        called = getattr(self.passes[name], method)
        if self.train.checkpointing:
            return recomputed(called, *inputs, use_reentrant=False, preserve_rng_state=False)
        return called(*inputs)

    def begin(self, optimizer: str, parts: int) -> Update:
        """Begin an update of the "translators" or the "judges"; only the latter let judges' weights have gradients."""
        for name in self.JUDGES:
            self.networks[name].requires_grad_(optimizer == "judges")
        return Update(self.optimizers[optimizer], parts)

    def replayed(self, buffer: ReplayBuffer, fakes: list[Tensor]) -> list[Tensor]:
        """Old and new fakes for the parts of this process's batch; all processes keep the same buffer."""
        mine = torch.cat(fakes)
        share, rank = len(mine), self.accelerator.process_index
        step = list(range(self.images, self.images + self.train.batch_size))
        judged = buffer.swap(self.accelerator.gather(mine), step)
        return list(judged[rank * share : (rank + 1) * share].chunk(len(fakes)))

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.images // self.train.batch_size

    def _adam(self, rate: float, names: tuple[str, ...]) -> torch.optim.Optimizer:
        parameters = [p for name in names for p in self.networks[name].parameters()]
        betas = (self.train.momentum, self.train.beta2)
        return torch.optim.Adam(parameters, lr=rate, betas=betas, eps=1e-8, fused=True)

    def _decay(self) -> float:
        """Factor of the learning rates: 1, and from `decay_from` on a line to 0 at the end."""
        left = 1 - self.images / self.train.images
        return min(1.0, left / (1 - self.train.decay_from)) if self.train.decay_from < 1 else 1.0

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

    # State

    def checkpoint(self, facts: dict[str, Any]) -> Checkpoint:
        """Everything that a resumed run needs, on the CPU."""
        tensors = {name: network.state_dict() for name, network in self.networks.items()}
        tensors |= {f"{name}_average": average.state_dict() for name, average in self.averages.items()}
        tensors |= {f"optimizer_{name}": optimizer_tensors(o) for name, o in self.optimizers.items()}
        tensors |= {name: buffer.tensors() for name, buffer in self.buffers().items()}
        return Checkpoint(tensors, {**facts, **self.facts(), "images": self.images})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of a translator with the same settings.

        Raises:
            InputError: the checkpoint's networks have another shape, its other tensors other names, or a state is
                missing.
        """
        self._load(checkpoint, tuple(self.networks))
        try:
            for name, optimizer in self.optimizers.items():
                restore_optimizer(optimizer, checkpoint.tensors[f"optimizer_{name}"])
            for name, buffer in self.buffers().items():
                buffer.restore(checkpoint.tensors[name], self.accelerator.device)
        except (LookupError, ValueError, RuntimeError) as error:
            raise InputError(
                f"The checkpoint's optimisers or replayed images do not fit ({type(error).__name__}: {error}); "
                "resume from another checkpoint."
            ) from error
        self.restore_facts(checkpoint.facts)
        self.images = checkpoint.facts["images"]

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Begin with the networks of another run: all of them, in the second stage those of `KEPT` alone.

        Raises:
            InputError: networks of another shape, or no second stage.
        """
        if self.recipe.run.stage == 2 and not self.KEPT:
            raise InputError(f"run.stage is 2, but {self.recipe.method} has one stage only; leave it out.")
        self._load(checkpoint, self.KEPT if self.recipe.run.stage == 2 else tuple(self.networks))

    def _load(self, checkpoint: Checkpoint, names: tuple[str, ...]) -> None:
        groups = {name: self.networks[name] for name in names}
        groups |= {f"{name}_average": self.averages[name] for name in names if name in self.averages}
        for name, network in groups.items():
            try:
                network.load_state_dict(checkpoint.tensors.get(name, {}))
            except RuntimeError as error:
                first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
                raise InputError(
                    f"The checkpoint's {name} is of another architecture ({first}); "
                    "use the settings it was trained with, or start a new run."
                ) from error
