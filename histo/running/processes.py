"""Several processes on one training: what they agree on. Alone, each of these does nothing.

A process that leaves by itself makes the others wait for it until the network times out. So whatever one process alone
may meet (a damaged file, a full disk, a loss that is not a number, a SIGTERM) is told to the others before all leave.
Who belongs together is told by the launcher (accelerate, torchrun) in environment variables, which Accelerate reads.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env, reduce

from histo.errors import InputError

# The others wait while the first process makes pseudo-masks or looks at every file, which takes hours on large sets;
# torch would give up after 10 or 30 minutes. A process that dies is its launcher's to notice, which then ends all.
PATIENCE = timedelta(days=1)


def state() -> PartialState:
    """Rank, number and device of the processes; the first call joins them."""
    # without the flag torchrun's are not seen on a CPU
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)


def anywhere(flag: bool) -> bool:
    """Whether `flag` is true in any process. All must call it, in the same order."""
    if state().num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=state().device), "sum") > 0)


def summed(numbers: list[float]) -> list[float]:
    """Each number's sum over all processes, in fp32 (exact for counts). All must call it, in the same order."""
    if state().num_processes == 1:
        return numbers
    return reduce(torch.tensor(numbers, device=state().device), "sum").tolist()


@contextmanager
def together() -> Iterator[None]:
    """Let all processes go on if none met an InputError in the block; otherwise all leave, and the first one says why.

    Not to be nested, and no process may wait for another between the error and the end of the block.

    Raises:
        InputError: in the first process, its own or that of another.
        SystemExit: of code 2, in the others.
    """
    own: InputError | None = None
    try:
        yield
    except InputError as error:
        own = error
    if not anywhere(own is not None):
        return
    if state().num_processes == 1:
        assert own is not None
        raise own
    sentences = gather_object([str(own) if own else None])
    if not state().is_main_process:
        sys.exit(2)
    raise own or InputError(next(sentence for sentence in sentences if sentence))


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace gradients by their mean over all processes, sent as one flat tensor.

    Used in place of DistributedDataParallel, which does not allow a network to run several times per backward pass,
    nor R1 through the network beneath it. The same parameters must have gradients in every process.
    """
    if state().num_processes == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    mean = reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))  # in place: a fused optimiser expects the layout it has


def part() -> None:
    """End what joined the processes; left to the interpreter's end, its threads sometimes abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
