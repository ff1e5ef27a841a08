"""Features of one encoder on one set, made once: tiles as they are and restained, kept in a file for the next time."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from histo.errors import InputError, writing
from histo.features import digest
from histo.files import written_whole
from pretrain.candidates import Candidate
from pretrain.restaining import Restaining

_CHUNK = 64  # tiles restained at a time


class Features(NamedTuple):
    """plain: float32 [N, D]; stained: float32 [k, N, D]; usable: bool [N], whether a tile has stains."""

    plain: Tensor
    stained: Tensor
    usable: Tensor


def features_of(candidate: Candidate, images: Tensor, restaining: Restaining, folder: Path | None) -> Features:
    """The features, read where they were made before.

    Their file is named by the SHA-256 of all that settles them: weights, scaling, pixels of the tiles, and stains.

    Args:
        images: uint8 [N, 3, side, side].
        folder: of the files; None keeps none.

    Raises:
        InputError: features that are not finite, or a folder that cannot be written.
    """
    path = None if folder is None else folder / f"{_key(candidate, images, restaining)}.safetensors"
    if path is not None and path.is_file():
        with suppress(SafetensorError, OSError, TypeError):  # a damaged one is made again
            return Features(**load_file(path))
    stained, usable = [], []
    for chunk in images.split(_CHUNK):
        made = restaining(chunk)
        stained.append(torch.stack([candidate(each) for each in made.images]))
        usable.append(made.usable)
    found = Features(candidate(images), torch.cat(stained, dim=1), torch.cat(usable))
    if not (found.plain.isfinite().all() and found.stained.isfinite().all()):
        raise InputError(f"{candidate.name} gives features that are not finite; was its training diverging?")
    if path is not None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                file.write(save({name: each.contiguous() for name, each in found._asdict().items()}))
    return found


def _key(candidate: Candidate, images: Tensor, restaining: Restaining) -> str:
    scaling = torch.tensor([candidate.mean, candidate.std])
    parts = f"{candidate.facts['weights_sha256']} {candidate.architecture} " + digest(
        {"scaling": scaling, "images": images, "stains": restaining.to}
    )
    return hashlib.sha256(parts.encode()).hexdigest()[:32]
