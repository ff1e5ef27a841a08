"""The networks that a run of any method left in its `export/` folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from histo import segmenters
from histo.errors import InputError
from histo.segmenters import Reader
from translate.networks import generators
from translate.reading import MaskReader


@dataclass(frozen=True)
class Networks:
    """What a run learned, ready to use; None what its method does not learn.

    generator: draws target tissue of masks, or of source tissue; inverse: the way back, where that is an image network.
    reader: finds nuclei in tissue.
    card: of the generator, or else of what there is: `tile_size`, `mpp`, `images_seen` and others.
    """

    generator: nn.Module | None
    inverse: nn.Module | None
    reader: Reader | None
    card: dict[str, Any]

    @property
    def between_tissues(self) -> bool:
        """Whether it translates tissue to other tissue, not masks and tissue."""
        return "target" in self.card


def open_networks(export: Path, device: torch.device) -> Networks:
    """Load what is there, onto the device.

    Raises:
        InputError: nothing is there, or a damaged file.
    """
    files = {name: export / f"{name}.safetensors" for name in ("segmenter", "inverse", "generator")}
    if not any(file.is_file() for file in files.values()):
        raise InputError(f"{export} holds no exports; let the run's training end, or name another run folder.")
    card: dict[str, Any] = {}
    networks: dict[str, nn.Module] = {}
    for name, file in files.items():
        if file.is_file():
            network, card = segmenters.load(file) if name == "segmenter" else generators.load(file)
            order = segmenters.layout(device) if name == "segmenter" else torch.channels_last
            networks[name] = network.requires_grad_(False).to(device).to(memory_format=order)
    reader: Any = networks.get("segmenter")
    if reader is None and "inverse" in networks and "target" not in card:
        reader = MaskReader(networks["inverse"], card.get("mask_form", "paper"))
    return Networks(networks.get("generator"), networks.get("inverse"), reader, card)
