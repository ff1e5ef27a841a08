"""Whole tiles in batches, decoded by worker processes at nearly the rate of the decoder alone.

A worker that makes new shared memory for every batch spends a third of its time on getting the pages. Here each worker
decodes into a few blocks of its own, over and over, and the batch is copied out before its block's turn comes again.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from histo.errors import InputError
from histo.tiles import Tiles
from histo.tiles.entries import Tile


def image_batches(
    tiles: Tiles, order: Iterable[Sequence[int]], *, workers: int = 2, ahead: int = 2
) -> Iterator[Tensor]:
    """The images of tiles, batch by batch.

    Args:
        tiles: all of one size within a batch.
        order: the positions of each batch, as a batch sampler gives them.
        workers: processes that decode, 1 or more.
        ahead: batches that each of them makes before they are asked for.

    Yields:
        uint8 [N, 3, H, W], N being the length of the batch's positions.

    Raises:
        InputError: a tile that cannot be read, or tiles of several sizes in a batch.
    """
    blocks = ahead + 1  # those made ahead, and the one that is being copied out
    loader = DataLoader(
        _Images(tiles, blocks),
        batch_sampler=(list(positions) for positions in order),
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=_as_it_is,
    )
    recent: deque[Tensor] = deque(maxlen=workers * blocks)  # keeps the blocks mapped in this process as well
    for batch in loader:
        recent.append(batch)
        yield batch.clone()


class _Images(Dataset[Tensor]):
    def __init__(self, tiles: Tiles, blocks: int) -> None:
        self._tiles = tiles
        self._blocks = [torch.empty(0, dtype=torch.uint8)] * blocks
        self._turn = 0

    def __getitems__(self, positions: Sequence[int]) -> Tensor:
        first = self._tiles[positions[0]]
        batch = self._block(len(positions), first)
        pixels = batch.numpy()
        for k, position in enumerate(positions):
            tile = self._tiles[position] if k else first
            if tile.image.shape != first.image.shape:
                raise InputError(
                    f"tile {tile.key} of {tile.source} is {_size(tile)} pixels but {first.key} of {first.source} is "
                    f"{_size(first)}, expected one size in a batch; crop them first."
                )
            pixels[k] = tile.image
        return batch

    def _block(self, count: int, tile: Tile) -> Tensor:
        """uint8 [count, 3, H, W] in the memory whose turn it is."""
        self._turn = (self._turn + 1) % len(self._blocks)
        size = count * tile.image.size
        if self._blocks[self._turn].numel() < size:
            self._blocks[self._turn] = torch.empty(size, dtype=torch.uint8).share_memory_()
        return self._blocks[self._turn][:size].view(count, *tile.image.shape)


def _as_it_is(batch: Any) -> Any:
    return batch


def _size(tile: Tile) -> str:
    return f"{tile.image.shape[1]} x {tile.image.shape[2]}"
