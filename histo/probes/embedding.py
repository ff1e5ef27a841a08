"""Features of tiles by a frozen encoder, which is left exactly as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from histo.encoders.architectures import Architecture, pooled
from histo.errors import InputError
from histo.tiles import Tile

BATCH = 64


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in encoder.modules()]
    try:
        encoder.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def embed(
    encoder: nn.Module,
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    batch: int = BATCH,
) -> Tensor:
    """Pooled features of tiles.

    Args:
        encoder: maps float [N, 3, H, W] to [N, D], or to maps whose last is averaged over space.
        images: uint8 or float [N, 3, H, W] RGB, levels 0 to 255.
        mean, std: of each channel, of levels scaled to [0, 1].
        device: of the encoder.
        batch: tiles at a time.

    Returns:
        float32 [N, D] on the CPU.

    Raises:
        InputError: features that are no vectors.
    """
    with frozen(encoder):
        found = [pooled(encoder(scaled(part.to(device), mean, std))).float().cpu() for part in images.split(batch)]
    return torch.cat(found)


def scaled(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 or float [N, 3, H, W] of levels 0 to 255 → float32, as an encoder of this mean and std expects it."""
    centre, width = (torch.tensor(list(each), device=images.device).view(1, -1, 1, 1) for each in (mean, std))
    return (images.float() / 255 - centre) / width


def feature_width(encoder: nn.Module, wanted: Architecture, side: int, setting: str) -> int:
    """How many pooled features an encoder gives for a tile of side x side px.

    timm's `num_features` is another number where a model widens them after pooling.

    Args:
        encoder: as `embed` takes it, on the CPU; wanted: what it was built as.
        setting: in which users write the side, for the message.

    Raises:
        InputError: the encoder takes no tiles of this size, or gives features that are no vectors.
    """
    try:
        with frozen(encoder):
            output = encoder(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # timm's models refuse sizes each their way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
        raise InputError(
            f"{wanted} cannot take tiles of {side} px ({reason}); change --{setting}, or choose another encoder."
        ) from error
    return int(pooled(output).shape[1])


def fitted(tile: Tile, size: int, mpp: float | None = None) -> NDArray[np.uint8]:
    """A tile as a square of `size` px: uint8 [3, size, size].

    Without `mpp` the whole tile is resized, whatever its aspect and scale, bilinearly with antialias. With it the tile
    is brought to that scale and its centre cut out.

    Raises:
        InputError: with `mpp`, a tile of unknown scale or one that is smaller than the square.
    """
    image = tile.image
    if mpp is None:
        return image if image.shape[1:] == (size, size) else resized(image, size, size)
    if tile.mpp is None:
        raise InputError(f"tile {tile.key} of {tile.source} has no known µm/px, but --data.mpp asks for {mpp:g}.")
    height, width = (round(side * tile.mpp / mpp) for side in image.shape[1:])
    if min(height, width) < size:
        raise InputError(
            f"tile {tile.key} of {tile.source} has {height} x {width} px at {mpp:g} µm/px, expected {size} or more; "
            "give a finer --data.mpp or a smaller --tile_size."
        )
    if (height, width) != image.shape[1:]:
        image = resized(image, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]


def resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [3, height, width], bilinearly with antialias."""
    levels = torch.from_numpy(image.copy())[None].float()
    result = F.interpolate(levels, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    found: NDArray[np.uint8] = result[0].round().clamp(0, 255).byte().numpy()
    return found
