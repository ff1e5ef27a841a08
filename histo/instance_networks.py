"""Networks that find nuclei and do nothing else: an encoder, a decoder and a head, and their instance files.

They read as `histo.segmenters.Segmenter` does, so that `histo.segmenters.segment` finds nuclei with either in images of
any size.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from histo.dense import PIXELS, SHARED, Decoder, DenseNetwork
from histo.encoders import architecture, build_pyramid, read_card, write_card
from histo.errors import InputError
from histo.maskrcnn import MaskRCNNHead, MaskRCNNSettings
from histo.segmenters import DENSE, FoundNuclei, Head, Reading, feature_pyramid, levels_of, segment_typed

KIND = "instances"


@dataclass
class InstanceSettings:
    """A network that finds nuclei."""

    encoder: str = "resnet18"
    """timm model by name, or smp:NAME"""
    norm: Literal["own", "group"] = "own"
    """own: as the model comes; group: GroupNorm instead of batch norm"""
    head: Literal["flows", "distance", "maskrcnn"] = "flows"
    """flows: Cellpose's flows; distance: hills and a watershed (DIST); maskrcnn: boxes and masks"""
    decoder: Decoder = "unet"
    """of segmentation_models_pytorch, for flows and distance"""
    pyramid_width: int = 256
    """channels of the feature pyramid, for maskrcnn; a multiple of 32"""
    maskrcnn: MaskRCNNSettings = field(default_factory=MaskRCNNSettings)
    types: int = 0
    """types of nuclei that it tells apart; 0: none"""

    def __post_init__(self) -> None:
        if self.types and self.head == "maskrcnn":
            raise InputError("Types of nuclei are not told by head maskrcnn, expected flows or distance; choose one.")
        if not 32 <= self.pyramid_width <= 1024 or self.pyramid_width % 32:
            raise InputError(f"pyramid_width is {self.pyramid_width}, expected a multiple of 32 from 32 to 1024.")


class InstanceNetwork(nn.Module):
    """Tissue tile → what the head sees. Height and width must be multiples of 32.

    Args:
        settings: encoder, decoder and head.
        mean, std: of each channel, as the encoder expects levels scaled to [0, 1].

    Raises:
        InputError: an encoder that cannot be built, or has no pyramid.
    """

    def __init__(
        self, settings: InstanceSettings, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3
    ) -> None:
        super().__init__()
        self.settings, self.mean, self.std = settings, tuple(mean), tuple(std)
        self.architecture = architecture(settings.encoder, settings.norm, "encoder")
        if settings.head == "maskrcnn":
            self.backbone, channels = build_pyramid(self.architecture)
            self.pyramid = feature_pyramid(channels, settings.pyramid_width)
            self.detector = MaskRCNNHead(settings.maskrcnn, settings.pyramid_width)
        else:
            self.dense = DenseNetwork(self.architecture, settings.decoder, DENSE[settings.head] + settings.types)

    @property
    def head(self) -> Head:
        """How nuclei are found."""
        return self.settings.head

    @property
    def encoder(self) -> nn.Module:
        """The part that an encoder file starts."""
        return self.backbone.encoder if self.head == "maskrcnn" else self.dense.encoder

    def take(self, weights: dict[str, Tensor]) -> None:
        """Start from an encoder's weights.

        Raises:
            InputError: they do not fit.
        """
        if self.head != "maskrcnn":
            self.dense.take(weights)
            return
        try:
            nn.Module.load_state_dict(self.backbone.encoder, weights)
        except RuntimeError as error:
            raise InputError(f"The encoder's weights do not fit {self.architecture}; name another encoder.") from error

    def forward(self, image: Tensor) -> Reading:
        """image: float [N, 3, H, W] in [-1, 1]."""
        mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        scaled = ((image + 1) / 2 - mean) / std
        if self.head != "maskrcnn":
            dense, types = self.dense(scaled).split([DENSE[self.head], self.settings.types], 1)
            return Reading(None, dense, self.head, types=types if self.settings.types else None)
        pyramid = levels_of(self.pyramid, self.backbone(scaled))
        found = None if self.training else self.detector.detect(pyramid, (image.shape[2], image.shape[3]))
        return Reading(None, None, self.head, pyramid=pyramid, detections=found)


class Flipped(nn.Module):
    """A dense reader that looks at every tile in its four mirrorings and takes the mean.

    Args:
        reader: of head flows or distance; a flow along a mirrored axis changes its sign.

    Raises:
        InputError: another head, whose detections have no mean.
    """

    def __init__(self, reader: InstanceNetwork) -> None:
        super().__init__()
        if reader.head == "maskrcnn":
            raise InputError("Detections of head maskrcnn have no mean over flips; leave the flips out.")
        self.reader = reader

    @property
    def head(self) -> Head:
        """How nuclei are found."""
        return self.reader.head

    def forward(self, image: Tensor) -> Reading:
        """image: float [N, 3, H, W] in [-1, 1]."""
        dense, types = [], []
        for axes in ((), (2,), (3,), (2, 3)):
            reading = self.reader(image.flip(axes))
            seen = reading.dense.flip(axes)
            if self.head == "flows":
                signs = seen.new_ones(1, 3, 1, 1)
                for axis in axes:
                    signs[:, axis - 2] = -1  # dy before dx
                seen = seen * signs
            dense.append(seen)
            if reading.types is not None:
                types.append(reading.types.flip(axes))
        return Reading(None, sum(dense) / 4, self.head, types=sum(types) / 4 if types else None)


def find_nuclei(
    network: InstanceNetwork, image: NDArray[np.uint8], tile: int, *, flips: bool, step: float = 1.0
) -> FoundNuclei:
    """The nuclei of an image of any size, their types and how probable they are; see `histo.segmenters.segment_typed`.

    Args:
        image: uint8 [3, H, W] RGB.
        tile: side of the tiles that the network was trained on; pixels, a multiple of 32.
        flips: look in four mirrorings and take the mean; not for head maskrcnn, whose detections have none.
        step: pixels of the image from one pixel of a window to the next.
    """
    if network.head == "maskrcnn":
        return segment_typed(network, image, tile, step=step)
    batch = max(1, PIXELS // tile**2)
    reader = Flipped(network) if flips else network
    return segment_typed(reader, image, tile, batch, step=step, overlap=tile // SHARED)


def write_network(path: Path, network: InstanceNetwork, card: dict[str, Any]) -> None:
    """Write an instance file: weights, and a card with what is known beyond the network.

    Raises:
        InputError: it cannot be written.
    """
    own = {"kind": KIND, "settings": asdict(network.settings), "mean": network.mean, "std": network.std}
    write_card(path, network.state_dict(), {**card, **own})


def load(path: str | Path) -> tuple[InstanceNetwork, dict[str, Any]]:
    """A network from its instance file, ready to predict, and its card.

    Raises:
        InputError: no instance file, or weights that do not fit its card.
    """
    tensors, card = read_card(Path(path), KIND)
    try:
        settings = dict(card["settings"])
        settings["maskrcnn"] = MaskRCNNSettings(**settings.get("maskrcnn", {}))
        network = InstanceNetwork(InstanceSettings(**settings), card["mean"], card["std"])
        network.load_state_dict(tensors)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        wanted = str(card.get("settings"))[:200]
        raise InputError(f"{path} does not fit its card's settings {wanted}; export it again.") from error
    return network.eval(), card
