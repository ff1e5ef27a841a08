"""Features of labelled tiles by a frozen encoder: made once, kept on disk, read again by whoever asks for the same."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from histo.encoders import Architecture, digest
from histo.errors import InputError, writing
from histo.files import written_whole
from histo.probes.embedding import embed, fitted
from histo.slides.streaming import SlideEntry
from histo.tiles import TileSet
from histo.tiles.entries import TileEntry
from histo.tiles.shards import ShardEntry

_CHUNK = 256  # tiles read before the encoder sees them


def features_of(
    encoder: nn.Module,
    architecture: Architecture,
    tiles: TileSet,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: torch.device,
    folder: Path | None,
    bf16: bool = False,
) -> Tensor:
    """Pooled features of whole tiles, resized to side x side pixels (`histo.probes.fitted`).

    Their file is named by the SHA-256 of all that settles them: architecture, weights, scaling, size, arithmetic, and
    of each tile its name, its place on a slide, and size and time of change of the file that it is read from.

    Args:
        encoder: without classifier, on `device`; architecture: what it was built as.
        mean, std: of each channel, of levels scaled to [0, 1].
        folder: of the files; None keeps none.
        bf16: arithmetic of the encoder, instead of fp32.

    Returns:
        float32 [N, D] on the CPU.

    Raises:
        InputError: a tile that cannot be read, features that are not finite, or a folder that cannot be written.
    """
    path = (
        None if folder is None else folder / f"{_key(encoder, architecture, tiles, side, mean, std, bf16)}.safetensors"
    )
    if path is not None and path.is_file():
        with suppress(SafetensorError, OSError, KeyError):  # a damaged one is made again
            return load_file(path)["features"]
    parts = []
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for first in tqdm(range(0, len(tiles), _CHUNK), desc="features", unit_scale=_CHUNK, unit="tile", disable=None):
            some = range(first, min(first + _CHUNK, len(tiles)))
            images = torch.from_numpy(np.stack([fitted(tiles[k], side) for k in some]))
            parts.append(embed(encoder, images, mean, std, device))
    found = torch.cat(parts)
    if not found.isfinite().all():
        raise InputError("The encoder gives features that are not finite; was its training diverging?")
    if path is not None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                file.write(save({"features": found}))
    return found


def _key(
    encoder: nn.Module,
    architecture: Architecture,
    tiles: TileSet,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    bf16: bool,
) -> str:
    basis = f"{architecture!r} {digest(encoder.state_dict())} {side} {list(mean)} {list(std)} {bf16}\n"
    total = hashlib.sha256(basis.encode())
    states: dict[Path, tuple[int, int] | None] = {}  # thousands of tiles may lie in one file
    for entry in tiles.entries:
        path, place = _lies(entry)
        if path not in states:
            file = path.stat() if path.is_file() else None
            states[path] = (file.st_size, file.st_mtime_ns) if file else None
        total.update(f"{entry.source} {entry.key} {states[path]} {place}\n".encode())
    return total.hexdigest()[:32]


def _lies(entry: TileEntry) -> tuple[Path, str]:
    """The file that a tile is read from, and where in it."""
    if isinstance(entry, SlideEntry):
        return entry.row.path, f"{entry.row.mpp} {entry.sampling} {entry.box}"
    if isinstance(entry, ShardEntry):
        return entry.shard, f"{entry.image_at}"
    return entry.path, ""
