"""Dense networks: an encoder and a decoder of segmentation_models_pytorch, with values for every pixel."""

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn

from histo.encoders import Architecture, build
from histo.encoders.layouts import renamed
from histo.errors import InputError

LARGEST = 1024  # side of a window; pixels. Larger ones save little and take more memory
OVERLAP = 128  # of windows of a network that may read any size; pixels, more than what its maps depend on in practice

PIXELS = 2**20  # that a network reads at a time

Decoder = Literal["unet", "unetplusplus", "manet", "linknet", "fpn", "pan", "deeplabv3", "deeplabv3plus", "upernet"]


class DenseNetwork(nn.Module):
    """Tile → values of every pixel. Height and width must be multiples of 32.

    Args:
        wanted: the encoder.
        decoder: of smp, with smp's own settings.
        outputs: values of a pixel.

    Raises:
        InputError: an encoder that smp cannot read at several strides, or not with this decoder.
    """

    def __init__(self, wanted: Architecture, decoder: Decoder, outputs: int) -> None:
        import segmentation_models_pytorch as smp  # imported here: it takes seconds and few runs need it

        super().__init__()
        self.architecture, self.decoder_name = wanted, decoder
        name = f"tu-{wanted.name}" if wanted.library == "timm" else wanted.name
        build(wanted)  # which says what is wrong with a name, and smp does not
        try:
            self.network = smp.create_model(
                decoder, encoder_name=name, encoder_weights=None, classes=outputs, **wanted.arguments
            )
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0][:120]
            raise InputError(
                f"smp cannot put its decoder {decoder} on {wanted} ({reason}); choose another of "
                f"{', '.join(get_args(Decoder))}, or a convolutional encoder such as resnet18."
            ) from error

    @property
    def encoder(self) -> nn.Module:
        """The encoder, as smp reads it."""
        return self.network.encoder

    def forward(self, image: Tensor) -> Tensor:
        """float [N, 3, H, W], scaled as the encoder expects → float32 [N, outputs, H, W]."""
        return self.network(image).float()

    def reading(self, size: tuple[int, int], tile: int, step: float = 1.0) -> tuple[int, int | None]:
        """In which windows an image is best read: their side and their overlap in pixels of a window; None is half.

        A network whose values depend on the pixels around them alone reads windows as large as the image or 1024
        pixels, and few pixels twice. One that takes means over its window reads those of its training.

        Args:
            size: height and width of the image in its own pixels.
            tile: side of the tiles that the network was trained on; pixels, a multiple of 32.
            step: pixels of the image from one pixel of a window to the next.
        """
        if any(isinstance(part, (nn.GroupNorm, nn.InstanceNorm2d, nn.AdaptiveAvgPool2d)) for part in self.modules()):
            return tile, None
        shorter = 32 * -(-round(min(size) / step) // 32)
        side = max(tile, min(shorter, LARGEST))
        return side, min(OVERLAP, side // 4)

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Start from an encoder's weights, all of them; what the decoder does not read of them is left out.

        Raises:
            InputError: weights that lack some of the encoder's, or of other shapes.
        """
        encoder: nn.Module = self.network.encoder
        prefix = "model." if self.architecture.library == "timm" else ""
        tensors = renamed(weights, encoder.state_dict(), prefix, f"{self.architecture} under smp's {self.decoder_name}")
        # smp's encoders override load_state_dict; the module's own does the same for all.
        nn.Module.load_state_dict(encoder, tensors)
