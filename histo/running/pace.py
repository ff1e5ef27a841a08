"""The clock of a training: what is due between two image counts, how fast it goes, and means of what was collected."""

import resource
import time

import torch
from accelerate import Accelerator
from torch import Tensor


class Pace:
    """Images per second, share of time spent waiting for data, and memory, between two readings."""

    def __init__(self, images: int) -> None:
        self.images, self.since, self.waited, self.mark = images, time.monotonic(), 0.0, 0.0

    def waits(self, begin: bool) -> None:
        """Waiting for data begins or ends."""
        now = time.monotonic()
        if begin:
            self.mark = now
        else:
            self.waited += now - self.mark

    def scalars(self, images: int) -> dict[str, float]:
        """Figures since the last reading, by name."""
        elapsed = max(time.monotonic() - self.since, 1e-9)
        values = {
            "speed/images_per_second": (images - self.images) / elapsed,
            "speed/wait_share": self.waited / elapsed,
            "memory/peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        if torch.cuda.is_available():
            values["memory/peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
        self.images, self.since, self.waited = images, time.monotonic(), 0.0
        return {name: round(value, 4) for name, value in values.items()}


def passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` images lies after `before`, up to `now`."""
    return now // every > before // every


def mean_losses(sums: dict[str, list[Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """Mean of each loss term since the last reading, over the steps and over all processes."""
    means = accelerator.reduce(torch.stack([torch.stack(values).mean() for values in sums.values()]), "mean")
    return {f"loss/{name}": value for name, value in zip(sums, means.tolist(), strict=True)}
