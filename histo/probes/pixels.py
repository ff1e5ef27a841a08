"""A linear head on every pixel: how much of where the nuclei are lies open in a frozen encoder's maps.

Maps of strides 4 to 32 are brought to the pixel grid bilinearly and laid over each other, so that a pixel has as many
features as they have channels together; logistic regression tells nuclei from the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from histo.encoders import STRIDES, SmpPyramid, TimmPyramid
from histo.probes.embedding import frozen, scaled
from histo.probes.linear import Linear, fit_linear
from histo.randomness import draws

PIXELS = 500  # of each training tile that the head learns from
PENALTY = 0.001  # pixels are many, so that little has to hold the head back


class PixelCounts(NamedTuple):
    """Pixels of nuclei: found and true, found or true."""

    intersection: int
    union: int


def pyramid_of(encoder: nn.Module) -> nn.Module | None:
    """The encoder's maps of strides 4, 8, 16 and 32: float [N, 3, H, W] → four maps; None where it lacks one."""
    if hasattr(encoder, "out_channels") and not hasattr(encoder, "feature_info"):
        return SmpPyramid(encoder)
    strides = [level["reduction"] for level in getattr(encoder, "feature_info", [])]
    if not hasattr(encoder, "forward_intermediates") or any(strides.count(stride) != 1 for stride in STRIDES):
        return None
    return TimmPyramid(encoder, [strides.index(stride) for stride in STRIDES])


class PixelProbe:
    """Fits and applies the head.

    Args:
        pyramid: of `pyramid_of`.
        mean, std: of the encoder's input.
        device: of the encoder.
        seed: of the pixels it learns from.
    """

    def __init__(
        self, pyramid: nn.Module, mean: Sequence[float], std: Sequence[float], device: torch.device | str, seed: int
    ) -> None:
        self.pyramid, self.mean, self.std, self.device, self.seed = pyramid, mean, std, device, seed

    def sample(self, image: Tensor, nuclei: NDArray[np.bool_], index: int) -> tuple[Tensor, Tensor]:
        """Some pixels of a training tile, drawn by its index without regard to the nuclei.

        Args:
            image: uint8 [3, H, W].
            nuclei: bool [H, W].

        Returns:
            float32 [P, D] features and int64 [P] classes (1 nucleus), on the device.
        """
        height, width = nuclei.shape
        chosen = draws(self.seed, "probe pixels", index).permutation(height * width)[:PIXELS]
        rows, columns = np.divmod(chosen, width)
        # Centres of pixels in [-1, 1], which is how grid_sample counts; border padding is what interpolate does.
        grid = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], axis=1)
        places = torch.from_numpy(grid).float().to(self.device)[None, None]
        found = [
            F.grid_sample(level, places, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0]
            for level in self._maps(image)
        ]
        classes = torch.from_numpy(nuclei.reshape(-1)[chosen].astype(np.int64)).to(self.device)
        return torch.cat(found).T, classes

    def fit(self, samples: Sequence[tuple[Tensor, Tensor]]) -> Linear:
        """The head that the samples of the training tiles give."""
        features, classes = (torch.cat(parts) for parts in zip(*samples, strict=True))
        return fit_linear(features, classes, 2, PENALTY)

    def find(self, image: Tensor, head: Linear) -> NDArray[np.bool_]:
        """Pixels of nuclei, bool [H, W], in an image uint8 [3, H, W].

        The head goes before the interpolation, with which it commutes: two channels are enlarged and not hundreds.
        """
        size = tuple(image.shape[1:])
        margin = head.bias[1] - head.bias[0]
        weight = (head.weight[1] - head.weight[0])[None, :, None, None]
        logits = torch.full(size, float(margin), device=self.device)
        maps = self._maps(image)
        for level, part in zip(maps, weight.split([level.shape[1] for level in maps], dim=1), strict=True):
            small = F.conv2d(level, part)
            logits += F.interpolate(small, size=size, mode="bilinear", align_corners=False)[0, 0]
        found: NDArray[np.bool_] = (logits > 0).cpu().numpy()
        return found

    def _maps(self, image: Tensor) -> list[Tensor]:
        with frozen(self.pyramid):
            levels = self.pyramid(scaled(image[None].to(self.device), self.mean, self.std))
        return [level.float() for level in levels]


def count(found: NDArray[np.bool_], nuclei: NDArray[np.bool_]) -> PixelCounts:
    """Of one tile, to be added up over the held-out tiles."""
    return PixelCounts(int((found & nuclei).sum()), int((found | nuclei).sum()))


def iou(counts: Sequence[PixelCounts]) -> float:
    """Intersection over union of all pixels of several tiles; 1 where there is no nucleus and none was found."""
    union = sum(each.union for each in counts)
    return sum(each.intersection for each in counts) / union if union else 1.0
