"""Dense networks: an encoder and a decoder of segmentation_models_pytorch, with values for every pixel."""

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn

from histo.encoders import Architecture, build
from histo.encoders.layouts import renamed
from histo.errors import InputError

# Neighbouring windows share 1/4 of their side. They are as large as the crops of the training and no larger: most of
# what an encoder's pixels depend on lies beyond a crop, so it has learned with borders, and without them it misses
# nuclei (docs/results.md). Sharing 1/2 takes twice the time and gains little.
SHARED = 4

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
