"""What learns along with an encoder to find nuclei: the pyramid and head of a segmenter, on any encoder's maps."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from histo.maskrcnn import MaskRCNNHead, MaskRCNNSettings
from histo.segmenters import DENSE, Head, SemanticHead, feature_pyramid, layout, levels_of


@dataclass
class Sight:
    """What the head sees in tiles; the fields are those of `histo.segmenters.Reading`."""

    head: Head
    dense: Tensor | None = None
    pyramid: list[Tensor] | None = None


class NucleusFinder(nn.Module):
    """Feature pyramid and head, as `histo.segmenters.Segmenter` has them.

    Args:
        channels: of the encoder's maps of strides 4, 8, 16 and 32.
        width: channels of the pyramid, a multiple of 32.
        head: none: the pyramid alone.
    """

    def __init__(self, channels: list[int], width: int, head: Head, maskrcnn: MaskRCNNSettings) -> None:
        super().__init__()
        self.head = head
        self.pyramid = feature_pyramid(channels, width)
        if head in DENSE:
            self.dense = SemanticHead(width, DENSE[head])
        elif head == "maskrcnn":
            self.detector = MaskRCNNHead(maskrcnn, width)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The pyramid, P2 to P5, float [N, width, H/4, W/4] and so on."""
        order = layout(maps[0].device)
        return levels_of(self.pyramid, [level.contiguous(memory_format=order) for level in maps])

    def sight(self, pyramid: list[Tensor], size: torch.Size) -> Sight:
        """What the head sees in tiles of this height and width in their pyramid."""
        if self.head in DENSE:
            return Sight(self.head, self.dense.full(pyramid, size))
        return Sight(self.head, pyramid=pyramid)
