"""Nuclei by one of our own networks: an instance file, such as the S of a translation run."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from histo import segmenters
from histo.errors import InputError


@dataclass
class NetworkSettings:
    """Our own network as a finder of nuclei."""

    model: str | None = None
    """instance file (segmenter.safetensors), or a run folder that has one in its export/"""


class NetworkFinder:
    """A segmenter from its instance file, at the µm/px it was trained at.

    Raises:
        InputError: no instance file there, or a damaged one.
    """

    batch = 1  # a tile gives several windows, which go through the network together

    def __init__(self, settings: NetworkSettings, device: torch.device) -> None:
        if settings.model is None:
            raise InputError("flows.model is not given, expected an instance file or a run folder; name it.")
        file = _instance_file(Path(settings.model))
        segmenter, self._card = segmenters.load(file)
        self._segmenter = segmenter.requires_grad_(False).to(device).to(memory_format=segmenters.layout(device))
        with file.open("rb") as weights:
            self._sha256 = hashlib.file_digest(weights, "sha256").hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        card = self._card
        return {
            "method": "flows",
            "head": self._segmenter.head,
            "weights_sha256": self._sha256,
            "licence": card.get("licences", "unknown"),
            **{name: card.get(name) for name in ("tile_size", "mpp", "images_seen", "tissue", "masks", "revision")},
        }

    def __call__(self, images: Sequence[NDArray[np.uint8]], mpp: Sequence[float | None]) -> list[NDArray[np.int32]]:
        trained = self._card.get("mpp")
        for scale in mpp:
            if (
                trained is not None
                and scale is not None
                and not math.isclose(scale, trained, rel_tol=segmenters.MPP_TOLERANCE)
            ):
                raise InputError(
                    f"The tissue has {scale:g} µm/px, but the network of flows.model learned at {trained:g}; resize "
                    "the tiles to that, or correct --data.mpp."
                )
        return [segmenters.segment(self._segmenter, image, self._card["tile_size"]) for image in images]


def _instance_file(path: Path) -> Path:
    if not path.is_dir():
        return path  # whether there is such a file is told by what reads it
    for file in (path / "export" / "segmenter.safetensors", path / "segmenter.safetensors"):
        if file.is_file():
            return file
    raise InputError(
        f"flows.model {path} has no export/segmenter.safetensors; expected an instance file or a run folder whose "
        "method learns a segmenter: name another."
    )
