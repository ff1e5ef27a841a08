"""Stain-invariant learning (Tiard et al., arXiv 2211.07590): a tile and the same tile in the colours of another one
together, all other tiles apart.

The paper's abstract is all that is public of it; loss, temperature and targets are ours. With normaliser fourier it
stands where Batch Styles Standardization does (arXiv 2303.06088), but for its first view, which stays as it is.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from histo.errors import InputError
from histo.randomness import draws
from histo.running.processes import summed
from histo.stains import Status
from histo.stains.normalisation import MethodName
from pretrain.appearance import NormaliserName, gathered, look, rerendered, rows
from pretrain.losses.margin import margin_loss
from pretrain.losses.nt_xent import nt_xent
from pretrain.objective import Batch, Context, Tensors
from pretrain.pairs import PairObjective
from pretrain.targets import Mode, Seen, Targets

MIXED: tuple[MethodName, ...] = get_args(MethodName)


@dataclass
class StainInvariantSettings:
    """Settings of objective stain_invariant."""

    weight: float = 1.0
    """of the loss, where several objectives are combined"""
    normaliser: Literal["macenko", "vahadane", "reinhard", "histogram", "fourier", "mix"] = "macenko"
    """how tiles get the target's colours; fourier: low frequencies of amplitudes; mix: one of the first four a step"""
    mode: Mode = "batch"
    """where the target of a step is from. batch; dataset; bank: 16 typical tiles in turn; fixed: the image
    stain_invariant.target; center: a tile of the batch of another source"""
    target: str | None = None
    """image whose colours mode fixed takes"""
    loss: Literal["nt_xent", "margin"] = "nt_xent"
    """nt_xent: all other tiles repel, close ones most; margin: those nearer than stain_invariant.margin do"""
    temperature: float = 0.1
    """τ of NT-Xent"""
    margin: float = 1.0
    """distance of embeddings of length 1 from which on they no longer repel; at most 2"""
    width: int = 128
    """numbers of an embedding"""

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"stain_invariant.{name} is {getattr(self, name)}, expected a finite number above 0.")
        if not 0 < self.margin <= 2:
            raise InputError(f"stain_invariant.margin is {self.margin}, expected a distance above 0 and at most 2.")
        if self.width < 1:
            raise InputError(f"stain_invariant.width is {self.width}, expected 1 or more numbers.")
        if (self.mode == "fixed") != (self.target is not None):
            raise InputError(
                f"stain_invariant.mode is {self.mode} and stain_invariant.target is {self.target}, expected an image "
                "for mode fixed and null for all others; change one of the two."
            )

    @property
    def normalisers(self) -> tuple[NormaliserName, ...]:
        """Those that steps draw from."""
        return MIXED if self.normaliser == "mix" else (self.normaliser,)


class Objective(PairObjective):
    """One view of each tile as it is and one in the colours of the step's target, and the loss between the two."""

    def __init__(self, context: Context) -> None:
        recipe, self.settings = context.recipe, context.recipe.stain_invariant
        super().__init__(context, [context.encoder.width, self.settings.width], self.settings.weight)
        self.targets = Targets(
            self.settings.mode,
            self.settings.target,
            self.settings.normalisers,
            context.pool,
            recipe.data,
            recipe.seed,
            recipe.train.batch_size,
            context.accelerator.device,
        )
        self.statuses = torch.zeros(len(Status), dtype=torch.long, device=context.accelerator.device)
        self.steps = self.redrawn = 0

    def show(self, batch: Batch) -> Tensors:
        return {
            "first": self.view(batch.tiles, "stain_invariant first view", batch),
            "second": self.view(self.rerender(batch), "stain_invariant second view", batch),
        }

    def rerender(self, batch: Batch) -> Tensor:
        """The tiles in the colours of the step's target, uint8 [N, 3, t, t]; those of B.3 as they are, and counted.

        A network that only looks, as for panels, does so in one process alone, and then its tiles are the whole batch.
        """
        looks_only = not self.projector.training
        size = len(batch.indices)
        mine = 0 if looks_only else self.context.accelerator.process_index * size
        step = batch.indices[0] - mine
        names = self.settings.normalisers
        name = names[int(draws(self.context.recipe.seed, "stain normaliser", step).integers(len(names)))]
        stains, own = look(batch.tiles, name)
        whole = Seen(stains, own, batch.sources)
        if not looks_only:
            gather = self.context.accelerator.gather
            whole = Seen(gathered(stains, gather), gathered(own, gather), gather(batch.sources))
        chosen = self.targets.choose(step, name, whole)
        target = rows(chosen.look, torch.arange(mine, mine + size, device=batch.tiles.device))
        images, status = rerendered(batch.tiles, target, name, own)
        if not looks_only:
            self.statuses += status.bincount(minlength=len(Status))
            self.steps += 1
            self.redrawn += chosen.redrawn
        return images

    def between(self, first: Tensor, second: Tensor) -> Tensors:
        if self.settings.loss == "nt_xent":
            return {"contrast": nt_xent(first, second, self.settings.temperature)}
        pull, push = margin_loss(first, second, self.settings.margin)
        return {"pull": pull, "push": push}

    def scalars(self) -> dict[str, float]:
        """Share of tiles of each status but normal, and share of steps whose first target was not fit to be one."""
        counts = summed(self.statuses.tolist())
        tiles, steps = max(1.0, sum(counts)), max(1, self.steps)
        values = {status.name.lower(): counts[status] / tiles for status in Status if status != Status.NORMAL}
        values["target_redrawn"] = self.redrawn / steps
        self.statuses.zero_()
        self.steps = self.redrawn = 0
        return values
