"""Image-to-image networks that draw masks, read as segmenters are."""

from torch import Tensor, nn

from histo.codec import Form
from histo.segmenters import Head, Reading


class MaskReader(nn.Module):
    """A tissue → mask image network whose nuclei are those of the mask image alone."""

    def __init__(self, network: nn.Module, form: Form) -> None:
        super().__init__()
        self.network, self.form = network, form

    head: Head = "none"

    def forward(self, image: Tensor) -> Reading:
        """image: float [N, 3, H, W] in [-1, 1]."""
        return Reading(self.network(image).float(), None, self.head, self.form)
