"""Whole tiles in batches, decoded by worker processes.

Memory is shared with the workers before they start and used over and over: new shared memory for every batch would cost
a third of a worker's time on getting its pages, and copying a batch out as much again.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from histo.errors import InputError
from histo.tiles import TileSet


def image_batches(
    tiles: TileSet, order: Iterable[Sequence[int]], *, workers: int = 2, ahead: int = 2
) -> Iterator[Tensor]:
    """The images of tiles, batch by batch.

    Args:
        tiles: all of one size within a batch.
        order: the positions of each batch, as a batch sampler gives them.
        workers: processes that decode, 1 or more.
        ahead: batches that each of them makes before they are asked for.

    Yields:
        uint8 [N, 3, H, W], N being the length of the batch's positions. Its memory is used again: take what is needed,
        as moving it to a device or scaling it does, before asking for the next batch.

    Raises:
        InputError: a tile that cannot be read, or tiles of several sizes in a batch.
    """
    batches = (list(positions) for positions in order)
    first = next(batches, None)
    if first is None:
        return
    slots = ahead + 1  # of each worker: those made ahead, and the one that is looked at
    blocks = torch.empty(workers * slots, len(first) * tiles.image(first[0]).size, dtype=torch.uint8).share_memory_()
    loader = DataLoader(
        _Images(tiles, blocks, slots),
        batch_sampler=itertools.chain([first], batches),
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=_as_it_is,
    )
    for found in loader:
        if isinstance(found, Tensor):
            yield found
        else:
            block, shape = found
            yield _view(blocks[block], shape)


class _Images(Dataset[Any]):
    """Batches as (number of the block they are in, shape), or as they are where a block is too small."""

    def __init__(self, tiles: TileSet, blocks: Tensor, slots: int) -> None:
        self._tiles, self._blocks, self._slots = tiles, blocks, slots
        self._turn = 0

    def __getitems__(self, positions: Sequence[int]) -> Any:
        first = self._tiles.image(positions[0])
        shape = (len(positions), *first.shape)
        self._turn = (self._turn + 1) % self._slots
        worker = get_worker_info()
        assert worker is not None
        block = worker.id * self._slots + self._turn
        fits = len(positions) * first.size <= self._blocks.shape[1]
        batch = _view(self._blocks[block], shape) if fits else torch.empty(shape, dtype=torch.uint8)
        pixels = batch.numpy()
        for k, position in enumerate(positions):
            image = self._tiles.image(position) if k else first
            if image.shape != first.shape:
                entry, other = self._tiles.entries[position], self._tiles.entries[positions[0]]
                raise InputError(
                    f"tile {entry.key} of {entry.source} is {_size(image.shape)} pixels but {other.key} of "
                    f"{other.source} is {_size(first.shape)}, expected one size in a batch; crop them first."
                )
            pixels[k] = image
        return (block, shape) if fits else batch


def _view(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    return block[: math.prod(shape)].view(shape)


def _as_it_is(batch: Any) -> Any:
    return batch


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[2]}"
