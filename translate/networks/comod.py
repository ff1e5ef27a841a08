"""The co-modulated StyleGAN2 generator: mask → tissue with conditional and stochastic style.

An encoder reads the mask image; its global code and a mapped noise vector together modulate every layer of the
synthesis network (Zhao et al. 2021, arXiv 2103.10428, figure 3; widths and skips as in UNITPathSSL, arXiv 2309.07394).
"""

from dataclasses import dataclass
from math import log2

import numpy as np
import torch
from torch import Tensor, nn

from histo.errors import InputError
from histo.randomness import draws
from translate.networks.stylegan import (
    EqualConv,
    EqualLinear,
    Mapping,
    StyledConv,
    ToRGB,
    activate,
    channels_at,
    upsample,
)

SIDES = tuple(2**k for k in range(4, 11))  # pixels


@dataclass
class CoModSettings:
    """Co-modulated StyleGAN2."""

    channel_base: int = 16384
    """channels at resolution r are min(channel_base / r, channel_max)"""
    channel_max: int = 512
    """ceiling on the channels of a layer"""
    style_width: int = 512
    """width of the noise vector z and of the mapped style w"""
    mapping_layers: int = 8
    """fully connected layers from z to w"""
    code_width: int = 1024
    """width of the global code of the mask that modulates together with w"""
    dropout: float = 0.5
    """share of the global code dropped in training"""
    skip_resolution: int = 64
    """encoder features are added to the decoder at this resolution and below; pixels"""
    mixing: float = 0.0
    """share of training images whose coarse layers take one style and whose fine layers another (StyleGAN: 0.9)"""

    def __post_init__(self) -> None:
        for name in ("channel_base", "channel_max", "style_width", "mapping_layers", "code_width"):
            if getattr(self, name) < 1:
                raise InputError(f"generator.{name} is {getattr(self, name)}, expected 1 or more.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"generator.dropout is {self.dropout}, expected a share in [0, 1).")
        if not 0 <= self.mixing <= 1:
            raise InputError(f"generator.mixing is {self.mixing}, expected a share in [0, 1].")


@dataclass
class Style:
    """Everything random in one rendering, as tensors, so that a rendering is a pure function of its inputs.

    z: float [N, style_width]; keep: float [N, code_width], 0 or 1/(1 - dropout), all ones at inference;
    noise: one float [N, 1, r, r] for every synthesis layer.
    other: float [N, style_width], a second z; crossover: int64 [N], the layer from which on it holds, the number of
        layers where it never does. None without mixing.
    """

    z: Tensor
    keep: Tensor
    noise: list[Tensor]
    other: Tensor | None = None
    crossover: Tensor | None = None

    def to(self, device: torch.device) -> "Style":
        second = (None if one is None else one.to(device) for one in (self.other, self.crossover))
        return Style(self.z.to(device), self.keep.to(device), [n.to(device) for n in self.noise], *second)


class CoModGenerator(nn.Module):
    """Mask image → tissue tile.

    Args:
        settings: widths and depths.
        resolution: side of the tile in pixels, a power of two from 16 to 1024.
    """

    def __init__(self, settings: CoModSettings, resolution: int) -> None:
        super().__init__()
        self.settings, self.resolution = settings, resolution
        self.sides = [2**k for k in range(2, int(log2(resolution)) + 1)]  # 4, 8, … resolution
        width = {side: channels_at(side, settings.channel_base, settings.channel_max) for side in self.sides}
        style = settings.style_width + settings.code_width

        self.from_mask = EqualConv(3, width[resolution], 1)
        descending = self.sides[::-1]
        self.encode = nn.ModuleList(EqualConv(width[side], width[side], 3) for side in descending)
        self.halve = nn.ModuleList(EqualConv(width[side], width[side // 2], 3, down=True) for side in descending[:-1])
        self.to_code = EqualLinear(width[4] * 16, settings.code_width)
        self.from_code = EqualLinear(settings.code_width, width[4] * 16)
        self.mapping = Mapping(settings.style_width, settings.mapping_layers)
        self.first = StyledConv(width[4], width[4], style)
        self.enlarge = nn.ModuleList(
            StyledConv(width[side // 2], width[side], style, up=True) for side in self.sides[1:]
        )
        self.refine = nn.ModuleList(StyledConv(width[side], width[side], style) for side in self.sides[1:])
        self.to_rgb = nn.ModuleList(ToRGB(width[side], style) for side in self.sides)

    def forward(
        self,
        mask: Tensor,
        z: Tensor,
        keep: Tensor,
        noise: list[Tensor],
        code: Tensor | None = None,
        w: Tensor | None = None,
    ) -> Tensor:
        """One image for each mask.

        Args:
            mask: float [N, 3, r, r] in [-1, 1].
            z, keep, noise: as in `Style`.
            code: float [N, code_width], global codes in place of the masks' own.
            w: float [N, 1 or layers, style_width], mapped styles in place of that of z, from `mixed` or `truncated`.

        Returns:
            float [N, 3, r, r] in about [-1, 1].
        """
        skips, x = self._features(mask)
        code = (self._code(x) if code is None else code) * keep
        w = self.mapping(z)[:, None] if w is None else w
        styles = [torch.cat([w[:, k], code.to(w.dtype)], 1) for k in range(w.shape[1])]
        styles = styles if len(styles) == self.layers else styles * self.layers
        x = activate(self.from_code(code)).view_as(x) + x
        x = self.first(x, styles[0], noise[0])
        rgb = self.to_rgb[0](x, styles[0])
        for k, side in enumerate(self.sides[1:]):
            skip = skips[side] if side <= self.settings.skip_resolution else None
            x = self.enlarge[k](x, styles[2 * k + 1], noise[2 * k + 1], skip)
            x = self.refine[k](x, styles[2 * k + 2], noise[2 * k + 2])
            rgb = upsample(rgb) + self.to_rgb[k + 1](x, styles[2 * k + 2])
        return rgb.float()

    @property
    def layers(self) -> int:
        """Synthesis layers, each with a style and a plane of noise."""
        return len(self.noise_sides)

    def mixed(self, style: Style) -> Tensor:
        """Mapped styles of a style with two z (style mixing, Karras et al. 2019, section 3.1): float [N, layers, W]."""
        assert style.other is not None
        assert style.crossover is not None
        layer = torch.arange(self.layers, device=style.z.device)
        coarse = (layer < style.crossover[:, None])[..., None]
        return torch.where(coarse, self.mapping(style.z)[:, None], self.mapping(style.other)[:, None])

    @torch.no_grad()
    def truncated(self, z: Tensor, share: float) -> Tensor:
        """Mapped styles drawn towards the mean style, w̄ + share (w − w̄): float [N, 1, W].

        1 keeps them, 0 is the mean style alone (truncation, Karras et al. 2019, appendix B).
        """
        average = self.mean_style()
        return torch.lerp(average.expand_as(z), self.mapping(z), share)[:, None]

    @torch.no_grad()
    def mean_style(self) -> Tensor:
        """The mean of the mapped styles of 4096 z, the same in every call: float [1, W]."""
        z = draws(0, "mean style", 0).standard_normal((4096, self.settings.style_width), dtype=np.float32)
        device = next(self.parameters()).device
        return self.mapping(torch.from_numpy(z).to(device)).mean(0, keepdim=True)

    def code(self, mask: Tensor) -> Tensor:
        """The global code of masks, float [N, 3, r, r] in [-1, 1] → float [N, code_width]."""
        return self._code(self._features(mask)[1])

    def _features(self, mask: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Features of the mask by side, and those of side 4 alone."""
        skips: dict[int, Tensor] = {}
        x = self.from_mask(mask)
        for side, conv, halve in zip(self.sides[::-1], self.encode, [*self.halve, None], strict=True):
            x = conv(x)
            skips[side] = x
            if halve is not None:
                x = halve(x)
        return skips, x

    def _code(self, x: Tensor) -> Tensor:
        return activate(self.to_code(x.flatten(1)))

    @property
    def noise_sides(self) -> list[int]:
        """Side of the noise of every synthesis layer."""
        return [4] + [side for side in self.sides[1:] for _ in range(2)]

    def style(self, seed: int, stream: str, indices: list[int], training: bool) -> Style:
        """Draw a style for each global image index; pure in (seed, stream, index), made on the CPU."""
        sides = self.noise_sides
        settings = self.settings
        dropout = settings.dropout if training else 0.0
        z, keep, noise, other, crossover = [], [], [], [], []
        for index in indices:
            generator = draws(seed, stream, index)
            z.append(generator.standard_normal(settings.style_width, dtype=np.float32))
            kept = generator.random(settings.code_width, dtype=np.float32) >= dropout
            keep.append(kept.astype(np.float32) / (1 - dropout))
            noise.append(generator.standard_normal(sum(side * side for side in sides), dtype=np.float32))
            other.append(generator.standard_normal(settings.style_width, dtype=np.float32))
            mixes = generator.random() < settings.mixing
            crossover.append(int(generator.integers(1, len(sides))) if mixes else len(sides))
        planes = torch.from_numpy(np.stack(noise)).split([side * side for side in sides], 1)
        return Style(
            torch.from_numpy(np.stack(z)),
            torch.from_numpy(np.stack(keep)),
            [plane.reshape(len(indices), 1, side, side) for plane, side in zip(planes, sides, strict=True)],
            *((torch.from_numpy(np.stack(other)), torch.tensor(crossover)) if training and settings.mixing else ()),
        )
