"""Views of tiles for self-supervised learning: crops, stains, colours and blur of a batch, on its own device.

No loop runs over images, and everything is drawn by an image's global index: a view is the same bit for bit whatever
batch its tile is in. Images are RGB with levels of 0 to 255, uint8 or float32 coming in, float32 going out.

| module | |
|---|---|
| `settings` | how strong each change is and how often it happens |
| `geometry` | the part of the tile and its symmetry, for images and instance maps |
| `colour` | HED jitter, stain augmentation, brightness, contrast, saturation, hue, grey |
| `blur` | Gaussian blur |
"""

import torch
from torch import Tensor

from histo.stains.depth import check_images
from pretrain.views.blur import blur, draw_blur
from pretrain.views.colour import Colour, draw_colour, recolour, turn_hue
from pretrain.views.geometry import draw_geometry, warp, warp_instances
from pretrain.views.settings import ViewSettings

BLOCK = (
    2**18
)  # pixels of views that a thread of a CPU works on at a time: more take longer to get memory for than to compute

__all__ = [
    "Colour",
    "ViewSettings",
    "blur",
    "draw_blur",
    "draw_colour",
    "draw_geometry",
    "recolour",
    "turn_hue",
    "view",
    "warp",
    "warp_instances",
]


def view(
    images: Tensor, settings: ViewSettings, seed: int, stream: str, indices: list[int], size: int | None = None
) -> Tensor:
    """One view of each image; in float32, also under autocast.

    The geometry is that of `draw_geometry` for the same arguments, so that instance maps can follow.

    Args:
        images: uint8 or float32 [N, 3, S, S] RGB, levels 0 to 255, in any memory format.
        settings: what happens.
        seed: of the run.
        stream: what the views are for; two views of an image have two streams.
        indices: global index of each image.
        size: side of the views in pixels; None for S.

    Returns:
        float32 [N, 3, size, size] RGB, levels 0 to 255.

    Raises:
        InputError: when `images` is no batch of square RGB images.
    """
    check_images(images)
    size = images.shape[-1] if size is None else size
    views = torch.empty(len(images), 3, size, size, device=images.device)
    block = max(1, len(images))
    if images.device.type == "cpu":
        block = torch.get_num_threads() * max(1, BLOCK // size**2)
    for start in range(0, len(images), block):
        part = slice(start, start + block)
        drawn = (settings, seed, stream, indices[part])
        shown = recolour(warp(images[part], draw_geometry(*drawn), size), draw_colour(*drawn))
        torch.clamp(blur(shown, draw_blur(*drawn)), 0, 255, out=views[part])  # means of white may round above it
    return views
