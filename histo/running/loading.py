"""Batches by global image index: which indices a process takes, and worker processes that a training can rely on."""

import multiprocessing.queues
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from histo.errors import InputError


class ImageClock(Sampler[list[int]]):
    """Global image indices of this process, batch by batch, from `start` to `stop`: a pure function of images seen.

    A batch of all processes is a run of `batch` indices; process `rank` takes its share of neighbours.
    """

    def __init__(self, start: int, stop: int, batch: int, rank: int, processes: int) -> None:
        if batch % processes:
            raise InputError(f"train.batch_size is {batch}, expected a multiple of the {processes} processes.")
        self.start, self.stop, self.batch = start, stop, batch
        self.rank, self.share = rank, batch // processes

    def __len__(self) -> int:
        return max(0, -(-(self.stop - self.start) // self.batch))

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, self.stop, self.batch):
            mine = first + self.rank * self.share
            yield list(range(mine, mine + self.share))


def _begin_worker(scratch: Path, worker: int) -> None:
    tempfile.tempdir = str(scratch)  # for the sockets through which batches go to the parent
    # A Ctrl-C or a SIGTERM to the whole group must not kill a worker under a parent that is about to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    # A batch that cannot be sent, as when shared memory is full, would be lost and the parent wait for it for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_leave)  # type: ignore[attr-defined]


def _leave(error: Exception, batch: object) -> None:
    print(f"loader worker: {error}", file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def sound_workers() -> Iterator[None]:
    """Say in one sentence that a loader worker died, at the next batch or, by torch's signal handler, anywhere.

    Raises:
        InputError: the system killed one, mostly for its memory, or shared memory is full.
    """
    try:
        yield
    except (RuntimeError, ConnectionResetError, ConnectionRefusedError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[-1].rstrip(". ")
        raise InputError(
            f"A loader worker died ({reason}), probably for want of memory or of room in /dev/shm; lower "
            "--data.workers or --data.cache_mb and run the same command again."
        ) from error


def loader(items: Dataset[Any], clock: ImageClock, workers: int, scratch: Path) -> DataLoader:
    """Batches in the clock's order, decoded by `workers` processes whose sockets lie in the folder `scratch`."""
    return DataLoader(
        items,
        batch_sampler=clock,
        num_workers=workers,
        worker_init_fn=partial(_begin_worker, scratch),
        pin_memory=torch.cuda.is_available(),
    )
