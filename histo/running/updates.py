"""One update of weights: named terms, their weighted sum, and the step, over the parts of a batch and all processes."""

from collections import defaultdict

import torch
from torch import Tensor

from histo.errors import InputError
from histo.running.processes import average_gradients, together


class NonFiniteLoss(InputError):
    """A loss term became infinite or not a number: too high a learning rate, mostly."""

    def __init__(self, term: str, value: float) -> None:
        super().__init__(f"the loss term {term} became {value}")


class Update:
    """One update of an optimiser's weights by the mean loss over the parts of a batch."""

    def __init__(self, optimizer: torch.optim.Optimizer, parts: int) -> None:
        self.optimizer, self.parts = optimizer, parts
        self.terms: dict[str, list[Tensor]] = defaultdict(list)
        optimizer.zero_grad(set_to_none=True)

    def add(self, terms: dict[str, Tensor], weights: dict[str, float]) -> None:
        """Take in one part's loss, the weighted sum of named terms, and go back through its graph.

        Raises:
            InputError: a term is not finite, here or in another process.
        """
        with together():
            loss = weighted_sum(terms, weights)
        (loss / self.parts).backward()
        for name, term in terms.items():
            self.terms[name].append(term.detach())

    def apply(self) -> dict[str, Tensor]:
        """Change the weights; returns the unweighted terms by name, means over the parts."""
        average_gradients(self.optimizer)
        self.optimizer.step()
        return {name: torch.stack(values).mean() for name, values in self.terms.items()}


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Σ weight · term over the named scalar terms: the only place where losses are added.

    Raises:
        NonFiniteLoss: naming the first term that is infinite or not a number.
    """
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    if not torch.isfinite(total):
        for name, term in terms.items():
            if not torch.isfinite(term):
                raise NonFiniteLoss(name, term.item())
        raise NonFiniteLoss("total", total.item())
    return total
