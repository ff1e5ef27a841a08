"""Batch norms of one batch over several processes, and batch norms that look without remembering.

With statistics of its own, each process would train another network than one process alone, and contrastive objectives
could tell the processes' tiles apart by them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from histo.errors import InputError
from histo.running import processes


class _Mean(torch.autograd.Function):
    """The mean of a tensor over all processes; so is its gradient, since each of them uses it."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _mean(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _mean(gradients[0])


def _mean(values: Tensor) -> Tensor:
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / processes.state().num_processes


class _Shared:
    """Forward pass of a batch norm whose mean and variance are those of all processes' tiles; of one size in each."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self, nn.BatchNorm1d | nn.BatchNorm2d)
        if not self.training:
            return super().forward(x)  # type: ignore[misc]
        count = processes.state().num_processes
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        values = x.float()
        mean = _Mean.apply(values.mean(axes))
        centred = values - mean.view(shape)
        variance = _Mean.apply(centred.square().mean(axes))
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            seen = count * x.numel() // x.shape[1]
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * seen / max(seen - 1, 1), self.momentum)
                self.num_batches_tracked.add_(1)
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


class SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """As `nn.BatchNorm1d`, over all processes."""


class SharedBatchNorm2d(_Shared, nn.BatchNorm2d):
    """As `nn.BatchNorm2d`, over all processes; unlike `nn.SyncBatchNorm` on a CPU too."""


class SharedBatchNormAct2d(_Shared, BatchNormAct2d):
    """As timm's batch norm with an activation, over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x))) if self.training else super().forward(x)


KINDS = {nn.BatchNorm1d: SharedBatchNorm1d, nn.BatchNorm2d: SharedBatchNorm2d, BatchNormAct2d: SharedBatchNormAct2d}


def share(network: nn.Module) -> None:
    """Let the batch norms of a network take the statistics of all processes; alone, nothing changes."""
    if processes.state().num_processes == 1:
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if type(module) not in KINDS:
                raise InputError(
                    f"The network has layers of type {type(module).__name__}, whose statistics several processes "
                    "cannot share; use --encoder.norm group, another encoder, or one process."
                )
            module.__class__ = KINDS[type(module)]  # keeps weights, statistics and whatever else it has


@contextmanager
def unremembered(networks: list[nn.Module]) -> Iterator[None]:
    """Batch norms in training use their batch's statistics, but do not add them to the running ones."""
    norms = [
        module
        for network in networks
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def kept_statistics(networks: list[nn.Module]) -> Iterator[None]:
    """Running statistics are afterwards what they were: values computed again for a backward pass do not count twice.

    `unremembered` will not do there, since gradient checkpointing wants what it saved the first time.
    """
    kept = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
