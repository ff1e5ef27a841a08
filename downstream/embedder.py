"""A network that makes of an image a vector of length 1, near those of its class, and of that its classes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.magnifications import views
from histo.encoders import Architecture, pooled, write_card
from histo.probes.embedding import scaled

BATCH = 64
KIND = "similarity"


class Embedder(nn.Module):
    """Image → embedding of length 1, and logits of classes by a linear layer on it.

    Args:
        encoder: without classifier.
        width: of its pooled features.
        embedding: numbers of the embedding.
        mean, std: of each channel, of levels scaled to [0, 1].
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        embedding: int,
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder, mean, std
        self.project, self.head = nn.Linear(width, embedding), nn.Linear(embedding, classes)
        # The cosine at which two images are as likely of one class as not is ½ at the start.
        self.slope, self.offset = nn.Parameter(torch.tensor(8.0)), nn.Parameter(torch.tensor(-4.0))

    def embed(self, images: Tensor) -> Tensor:
        """float or uint8 [N, 3, H, W], levels 0 to 255 → float32 [N, embedding] of length 1."""
        features = pooled(self.encoder(scaled(images, self.mean, self.std)))
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self.project(features.float()), dim=1)

    def classes(self, embeddings: Tensor) -> Tensor:
        """float32 [N, embedding] of length 1 → logits, float32 [N, classes].

        The layer sees numbers of mean square 1, for which its initial weights and the learning rate are meant.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.head(embeddings * self.head.in_features**0.5)

    def forward(self, images: Tensor) -> Tensor:
        """float or uint8 [N, 3, H, W], levels 0 to 255 → float32 [N, classes]."""
        return self.classes(self.embed(images))


def looked(network: Embedder, images: Iterable[NDArray[np.uint8]], side: int) -> tuple[Tensor, Tensor]:
    """What a network makes of images of any size: means over their views.

    Args:
        images: uint8 [3, H, W] each, of `side` px or more a side.

    Returns:
        Embeddings, float32 [N, D] of length 1, and probabilities, float32 [N, C], both on the CPU.

    Raises:
        InputError: an image smaller than a view.
    """
    device = next(network.parameters()).device
    found: list[Tensor] = []
    counts: list[int] = []
    waiting: list[NDArray[np.uint8]] = []

    def look(batch: list[NDArray[np.uint8]]) -> None:
        embeddings = network.embed(torch.from_numpy(np.stack(batch)).to(device))
        found.append(torch.cat([embeddings, network.classes(embeddings).softmax(1)], 1).cpu())

    for image in images:
        cut = views(image, side)
        counts.append(len(cut))
        waiting.extend(cut)
        while len(waiting) >= BATCH:
            look(waiting[:BATCH])
            waiting = waiting[BATCH:]
    if waiting:
        look(waiting)
    seen = torch.cat(found)
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    means = torch.zeros(len(counts), seen.shape[1]).index_add(0, owner, seen) / torch.tensor(counts)[:, None]
    width = network.head.in_features
    return F.normalize(means[:, :width], dim=1), means[:, width:]


def write_embedder(network: Embedder, wanted: Architecture, card: dict[str, Any], folder: Path) -> Path:
    """Write it with its encoder for users; returns the file.

    Raises:
        InputError: it cannot be written.
    """
    path = folder / "similarity.safetensors"
    own = {
        "kind": KIND,
        "embedding": network.head.in_features,
        "mean": list(network.mean),
        "std": list(network.std),
    }
    write_card(path, network.state_dict(), {**card, **wanted.card, **own})
    return path
