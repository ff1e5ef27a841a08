"""A weight file for Cellpose-SAM whose answer is known: the real network, set by hand, without any download.

All weights are random as the library makes them, except that its 24 blocks are switched off (their output projections
are 0, so each passes on what it gets) and the layers before and after read pixels: a pixel is nuclear where its red is
below half of the scale, and its flow is the slope of its darkness. Cones of darkness, whose slope has one length and
leads to the centre, are therefore nuclei with true flows.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

PATCH = 8
DARK = 0.5  # of the scale from the 1st to the 99th percentile
STEEPER = 8.0  # slopes, beside the rounding of bf16
BALLAST = 32.0  # of constant features, beside which those of pixels hardly change a token's deviation


def write_weights(path: Path, slope: float) -> None:
    """Write the weights in bf16, 0.6 GB.

    Args:
        slope: of the scale a pixel, in the tile as the network sees it, whose flow has length 1.
    """
    from cellpose.vit import CPSAM

    network = CPSAM()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith(("attn.proj.weight", "attn.proj.bias", "mlp.lin2.weight", "mlp.lin2.bias", "pos_embed")):
            tensor.zero_()
    pixels = torch.arange(PATCH * PATCH)
    # A token holds the red of its 64 pixels, the same negated, and ballast: its mean is 0.
    embed = state["encoder.patch_embed.proj.weight"].zero_()
    embed.view(len(embed), 3, -1)[pixels, 0, pixels] = 1
    embed.view(len(embed), 3, -1)[64 + pixels, 0, pixels] = -1
    bias = state["encoder.patch_embed.proj.bias"].zero_()
    bias[128:192], bias[192:256] = BALLAST, -BALLAST
    first, second = state["encoder.neck.0.weight"].zero_(), state["encoder.neck.2.weight"].zero_()
    channels = torch.arange(256)
    first[channels, channels, 0, 0] = 1
    # The second convolution turns what is 0 to 64 into pixels, 64 to 128 into dy, 128 to 192 into dx. What the first
    # normalisation divided by, sqrt(1/2) of the ballast, is multiplied back.
    scale = BALLAST * 0.5**0.5
    second[pixels, pixels, 1, 1] = scale
    for row in range(PATCH):
        for column in range(PATCH):
            here = row * PATCH + column
            for block, (down, right) in ((64, (1, 0)), (128, (0, 1))):
                for sign in (-1, 1):
                    tile_row, y = divmod(row + sign * down, PATCH)
                    tile_column, x = divmod(column + sign * right, PATCH)
                    # darkness rises where red falls
                    second[block + here, y * PATCH + x, 1 + tile_row, 1 + tile_column] -= sign * scale / 2 * STEEPER
    # The second normalisation must not change anything: large constants in the last channels, less what stands in the
    # others, so that the mean is 0.
    second[192:] -= second[:64] + second[64:128] + second[128:192]
    second[192:224, 128:192, 1, 1] += BALLAST / 64 / 2**0.5
    second[224:256, 192:256, 1, 1] += BALLAST / 64 / 2**0.5
    for name in ("encoder.neck.1", "encoder.neck.3"):
        state[f"{name}.weight"].fill_(1)
        state[f"{name}.bias"].zero_()
    out, offset = state["out.weight"].zero_(), state["out.bias"].zero_()
    back = BALLAST / 2  # deviation over the channels: a quarter of them is ± the ballast
    for block, (channel, gain) in enumerate(((2, -20.0), (0, 5 / slope / STEEPER), (1, 5 / slope / STEEPER))):
        out[channel * 64 + pixels, block * 64 + pixels, 0, 0] = gain * back
    offset[2 * 64 + pixels] = 20.0 * DARK
    torch.save({name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, path)


def cones(size: int, spacing: int, radius: float) -> tuple[NDArray[np.uint8], NDArray[np.int32], float]:
    """Dark cones on a lattice, as wide as twice `radius` before they reach the background.

    Returns:
        Tissue uint8 [3, size, size]; the instance map of what is darker than half of its scale; and the slope of the
        cones, of that scale a pixel.
    """
    rows, columns = np.mgrid[:size, :size]
    places = range(spacing // 2, size, spacing)
    distance = np.stack([np.hypot(rows - r, columns - c) for r in places for c in places])
    red = (30 + 200 * np.clip(distance.min(0) / (2 * radius), 0, 1)).round().astype(np.uint8)
    low, high = np.percentile(red, [1, 99])
    truth = np.where(red < low + DARK * (high - low), distance.argmin(0) + 1, 0).astype(np.int32)
    return np.stack([red, red // 2, np.full_like(red, 150)]), truth, 100 / radius / (high - low)
