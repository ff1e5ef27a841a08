"""Finders of nuclei: tissue in, instance maps out, whatever does the finding.

A finder takes several tiles at a time, because networks are quicker that way; what it finds in a tile does not depend
on the others. Its facts say what settles the masks: with the same facts and the same tile they are the same.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from histo.finders.cellpose_sam import CellposeFinder, CellposeSettings
from histo.finders.network import NetworkFinder, NetworkSettings
from histo.watershed import segment

Method = Literal["cellpose", "flows", "watershed"]


class Finder(Protocol):
    """What finds nuclei in tissue.

    batch: how many tiles to give it at a time.
    facts: what settles its masks, as JSON holds it; `method` and, of networks, `weights_sha256` and `licence` among it.
    """

    @property
    def batch(self) -> int: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    def __call__(self, images: Sequence[NDArray[np.uint8]], mpp: Sequence[float | None], /) -> list[NDArray[np.int32]]:
        """Instance maps int32 [H, W], ids 1, 2, …, n, of tiles uint8 [3, H, W] at their µm/px, in their order.

        Raises:
            InputError: µm/px unknown where they are needed, or not those of the finder.
        """
        ...


class WatershedFinder:
    """The watershed of `histo.watershed`, which needs no weights."""

    batch = 1

    @property
    def facts(self) -> dict[str, Any]:
        return {"method": "watershed", "licence": "none: no weights"}

    def __call__(self, images: Sequence[NDArray[np.uint8]], mpp: Sequence[float | None]) -> list[NDArray[np.int32]]:
        return [segment(image, scale) for image, scale in zip(images, mpp, strict=True)]


def open_finder(method: Method, cellpose: CellposeSettings, flows: NetworkSettings, device: torch.device) -> Finder:
    """A finder by name, ready on a device; the settings of the others are not looked at.

    Raises:
        InputError: its weights are not there, damaged, or not named.
    """
    if method == "cellpose":
        return CellposeFinder(cellpose, device)
    return NetworkFinder(flows, device) if method == "flows" else WatershedFinder()
