"""Encoders to be compared, by the names that users give them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from histo import encoders
from histo.errors import InputError
from histo.features import digest, open_extractor
from histo.probes.embedding import BATCH, embed

UNKNOWN_SIDE = 224  # pixels; of random weights, which know no tile size


@dataclass(frozen=True)
class Candidate:
    """A frozen encoder.

    Attributes:
        name: short, for tables.
        network: without classifier, on `device`.
        architecture: its name in its library.
        side: pixels a side of the tiles it sees.
        mean, std: of each channel, of levels scaled to [0, 1].
        facts: where its weights come from, their SHA-256, and the card of an encoder file; as JSON can hold them.
    """

    name: str
    network: nn.Module
    architecture: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    facts: dict[str, Any]

    def __call__(self, images: Tensor, batch: int = BATCH) -> Tensor:
        """uint8 [N, 3, side, side] → float32 [N, D] on the CPU."""
        return embed(self.network, images, self.mean, self.std, self.device, batch)


def open_candidate(
    named: str,
    *,
    norm: Literal["group", "own"],
    seed: int,
    download: bool,
    tile_size: int | None,
    device: torch.device,
) -> Candidate:
    """One encoder.

    Args:
        named: the path of an encoder file; random:NAME, timm's model of that name with random weights; timm:NAME, the
            same with the weights that timm publishes.
        norm: normalisation of random:NAME, see `histo.encoders.architecture`.
        seed: of random weights.
        download: fetch the weights of timm:NAME.
        tile_size: pixels a side of the tiles it sees; None for what it was trained with, or 224.

    Raises:
        InputError: as of `histo.features.open_extractor`, or timm:NAME without `download`.
    """
    if named.startswith("random:"):
        wanted = encoders.architecture(named.removeprefix("random:"), norm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # timm draws weights from the global generator, which is put back
            network = encoders.build(wanted)
        side = tile_size or UNKNOWN_SIDE
        origin = f"random, seed {seed}, norm {norm}"
        facts = {"encoder": named, "weights": origin, "weights_sha256": digest(network.state_dict())}
        network = network.requires_grad_(False).eval().to(device)
        return Candidate(named, network, wanted.name, side, (0.5,) * 3, (0.5,) * 3, device, facts)
    if named.startswith("timm:") and not download:
        raise InputError(
            f"{named} means the weights that timm publishes: add --download to fetch them, or name "
            f"random:{named.removeprefix('timm:')} for random ones."
        )
    found = open_extractor(named, download=download and named.startswith("timm:"), device=device)
    about: dict[str, Any] = {"encoder": named, "weights": found.origin, "weights_sha256": found.sha256}
    if named.endswith(".safetensors"):
        about["card"] = encoders.read_card(Path(named), "encoder")[1]
    architecture = about["card"]["architecture"] if "card" in about else named
    return Candidate(
        short_name(named), found.network, architecture, tile_size or found.side, found.mean, found.std, device, about
    )


def short_name(named: str) -> str:
    """The folder of an encoder file, without `export`, which every run has; other names as they are."""
    if not named.endswith(".safetensors"):
        return named
    folder = Path(named).resolve().parent
    return folder.parent.name if folder.name == "export" else folder.name


def distinct_names(candidates: Sequence[Candidate]) -> list[str]:
    """Their names, in full where the short ones of two are the same."""
    short = [candidate.name for candidate in candidates]
    return [
        name if short.count(name) == 1 else str(candidate.facts["encoder"])
        for name, candidate in zip(short, candidates, strict=True)
    ]
