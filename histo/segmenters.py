"""Nucleus segmenters: the tissue → mask network, its instance files, and prediction on images of any size.

The network is the S of UNITPathSSL (arXiv 2309.07394): a ResNet with a feature pyramid, a translation decoder to a
3-channel mask image, and a head that finds nuclei, by which translation guides it and by which its nuclei are read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit
from skimage.segmentation import watershed
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from histo.codec import Form, decode
from histo.distances import instances_from_distances
from histo.encoders import Architecture, architecture, build_pyramid, read_card
from histo.errors import InputError
from histo.flows import FLOW_SCALE, instances_from
from histo.maskrcnn import Detections, MaskRCNNHead, MaskRCNNSettings, merged, paint, paint_scored
from histo.masks import renumber
from histo.overlap import Band, Corner, Grid, at_side, blend, window_of, windows
from histo.stitching import stitch

SMALLEST = 12  # pixels; what a network draws smaller than this is noise at any magnification in use
MPP_TOLERANCE = 0.1  # training shows tiles at 0.8 to 1 of their size, so a tenth is nothing new to a network

Head = Literal["maskrcnn", "flows", "distance", "semantic", "none"]
DENSE = {"semantic": 1, "distance": 2, "flows": 3}  # values for every pixel


@dataclass
class SegmenterSettings:
    """Tissue → mask network; its encoder is what pretraining hands on."""

    encoder: str = "resnet50_gn"
    """timm model by name, or smp:NAME; must have features of strides 4, 8, 16, 32"""
    norm: Literal["group", "own"] = "group"
    """group: GroupNorm instead of the timm model's batch norm; own: as the model comes"""
    pyramid_width: int = 256
    """channels of the feature pyramid"""
    head: Literal["maskrcnn", "flows", "semantic", "none"] = "semantic"
    """what finds nuclei beside the mask image. maskrcnn: boxes and masks; flows: Cellpose's flows; semantic: nucleus or
    not, at stride 4; none: only the mask image tells"""
    maskrcnn: MaskRCNNSettings = field(default_factory=MaskRCNNSettings)

    def __post_init__(self) -> None:
        if not 32 <= self.pyramid_width <= 1024 or self.pyramid_width % 32:
            raise InputError(
                f"segmenter.pyramid_width is {self.pyramid_width}, expected a multiple of 32 from 32 to 1024."
            )


@dataclass
class Reading:
    """What a segmenter sees in a batch of tiles, and how its nuclei are to be read.

    mask: float [N, 3, H, W], mask image in about [-1, 1] (linear output), drawn in the form `form`; None from a network
        that draws none.
    dense: the head's output for every pixel; None where it has none or was left out. semantic: float [N, 1, H, W],
        logits of "this pixel is nucleus"; flows: float [N, 3, H, W], flows times `FLOW_SCALE` and these logits;
        distance: float [N, 2, H, W], hills (see `histo.distances`) and these logits.
    types: float [N, T, H, W], logits of the nuclei's types at every pixel; None from a network that tells none.
    pyramid: of head maskrcnn, the features it reads; detections: what it finds in each tile, when not training.
    """

    mask: Tensor | None
    dense: Tensor | None
    head: Head = "semantic"
    form: Form = "paper"
    types: Tensor | None = None
    pyramid: list[Tensor] | None = None
    detections: list[Detections] | None = None


@dataclass
class FoundNuclei:
    """What a reader finds in an image of any size; by ids, entry 0 is unused.

    Attributes:
        instances: int32 [H, W], 0 = background.
        types: uint8 [n + 1], from 1, the type of most pixels of each nucleus; None where the reader tells none.
        probabilities: float32 [n + 1] in [0, 1]. Of head maskrcnn the detection's score, of another the mean over the
            nucleus's pixels of the probability of being nuclear; None where the mask image alone tells.
        type_probabilities: float32 [n + 1, T], the mean over the nucleus's pixels of the types' probabilities, which
            add up to 1; None where the reader tells no types.
    """

    instances: NDArray[np.int32]
    types: NDArray[np.uint8] | None = None
    probabilities: NDArray[np.float32] | None = None
    type_probabilities: NDArray[np.float32] | None = None


def _group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width)


def layout(device: torch.device) -> torch.memory_format:
    """Order of the axes in memory in which a segmenter is quickest: give it to `Segmenter.to`.

    Convolutions like channels last, but on the CPU PyTorch's group normalisation then takes up to 15 times as long,
    which costs more than they gain.
    """
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


def feature_pyramid(channels: list[int], width: int) -> FeaturePyramidNetwork:
    """The pyramid (Lin et al. 2017) in which heads find nuclei, over an encoder's maps of so many channels."""
    return FeaturePyramidNetwork(channels, width, norm_layer=_group_norm)


def levels_of(pyramid: nn.Module, maps: list[Tensor]) -> list[Tensor]:
    """P2 to P5, float [N, width, H/4, W/4] and so on, of an encoder's maps of strides 4 to 32."""
    return list(pyramid(dict(zip("2345", maps, strict=True))).values())


class SemanticHead(nn.Module):
    """Panoptic FPN's semantic branch (Kirillov et al. 2019): each level to stride 4, sum, some values."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), _group_norm(width), nn.ReLU())
                for _ in range(max(1, doublings))
            )
            for doublings in range(4)
        )
        self.predict = nn.Conv2d(width, outputs, 1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        total: Tensor | None = None
        for doublings, (x, steps) in enumerate(zip(pyramid, self.levels, strict=True)):
            for step in steps:  # type: ignore[attr-defined]
                x = step(x)
                if doublings:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            total = x if total is None else total + x
        return self.predict(total)

    def full(self, pyramid: list[Tensor], size: torch.Size) -> Tensor:
        """The values at every pixel of tiles of a height and width, float32 [N, outputs, H, W]."""
        return F.interpolate(self(pyramid).float(), size=size, mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """Tissue tile → mask image and what the head sees. Height and width must be multiples of 32.

    Args:
        settings: encoder, pyramid and head.
        form: of the mask images it draws, see `histo.codec`.
    """

    def __init__(self, settings: SegmenterSettings, form: Form = "paper") -> None:
        super().__init__()
        self.settings, self.form = settings, form
        self.architecture: Architecture = architecture(settings.encoder, settings.norm)
        width = settings.pyramid_width
        self.encoder, channels = build_pyramid(self.architecture)
        self.pyramid = feature_pyramid(channels, width)
        self.decoder = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.InstanceNorm2d(width // 2),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(width // 2, width // 4, 3, padding=1),
            nn.InstanceNorm2d(width // 4),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(width // 4, 3, 3, padding=1),
        )
        if settings.head in DENSE:
            self.dense = SemanticHead(width, DENSE[settings.head])
        elif settings.head == "maskrcnn":
            self.detector = MaskRCNNHead(settings.maskrcnn, width)

    @property
    def head(self) -> Head:
        """How nuclei are found."""
        return self.settings.head

    def forward(self, image: Tensor, guided: bool = True) -> Reading:
        """image: float [N, 3, H, W] in [-1, 1]; `guided=False` leaves the head out."""
        image = image.contiguous(memory_format=layout(image.device))
        pyramid = levels_of(self.pyramid, self.encoder(image))
        size = pyramid[0].shape[2:]
        merged = pyramid[0]
        for level in pyramid[1:]:
            merged = merged + F.interpolate(level, size=size, mode="bilinear", align_corners=True)
        reading = Reading(self.decoder(merged).float(), None, self.settings.head, self.form)
        if guided and reading.head in DENSE:
            reading.dense = self.dense.full(pyramid, image.shape[2:])
        elif guided and reading.head == "maskrcnn":
            reading.pyramid = pyramid
            if not self.training:
                reading.detections = self.detector.detect(pyramid, (image.shape[2], image.shape[3]))
        return reading


class Reader(Protocol):
    """A network that finds nuclei in tissue: a `Segmenter`, or another that gives a `Reading` by its `head`."""

    @property
    def head(self) -> Head:
        """How nuclei are found."""
        ...

    def __call__(self, image: Tensor, /) -> Reading:
        """image: float [N, 3, H, W] in [-1, 1]."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any torch module."""
        ...


def load(path: str | Path) -> tuple[Segmenter, dict[str, Any]]:
    """A nucleus segmenter from an instance file, ready to predict, and its card.

    Raises:
        InputError: no instance file, or weights that do not fit its card.
    """
    tensors, card = read_card(Path(path), "segmenter")
    try:
        settings = dict(card["settings"])
        settings["maskrcnn"] = MaskRCNNSettings(**settings.get("maskrcnn", {}))
        segmenter = Segmenter(SegmenterSettings(**settings), card.get("mask_form", "paper"))
        segmenter.load_state_dict(tensors)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        wanted = str(card.get("settings"))[:200]
        raise InputError(f"{path} does not fit its card's settings {wanted}; export it again.") from error
    return segmenter.eval(), card


@torch.no_grad()
def segment(
    reader: Reader, image: NDArray[np.uint8], tile: int, batch: int = 16, *, step: float = 1.0
) -> NDArray[np.int32]:
    """The nuclei of an image of any size.

    The image is read in windows of the size the network was trained at, which overlap by half. Outputs for every pixel
    are blended with weights that fall towards the windows' edges and decoded in stitched bands; detections that reach
    a window's edge are left to the window that has them whole. So no nucleus is cut at a window's border.

    Args:
        image: uint8 [3, H, W] RGB.
        tile: side of the windows in pixels as the reader sees them, a multiple of 32.
        step: pixels of the image from one pixel of a window to the next: the reader's µm/px over the image's.

    Returns:
        Instance map, int32 [H, W].
    """
    return segment_typed(reader, image, tile, batch, step=step).instances


@torch.no_grad()
def segment_typed(
    reader: Reader,
    image: NDArray[np.uint8],
    tile: int,
    batch: int = 16,
    *,
    step: float = 1.0,
    overlap: int | None = None,
) -> FoundNuclei:
    """The nuclei of an image of any size, see `segment`, their types and how probable they are.

    Args:
        overlap: of neighbouring windows; pixels as the reader sees them, less than half a window. None: half.
    """
    device = next(reader.parameters()).device
    window = window_of(tile, step)
    apart = window // 2 if overlap is None else window - round(overlap * step)
    size, grid = (image.shape[1], image.shape[2]), Grid(window, apart)
    if reader.head == "maskrcnn":
        corners = [(row, column) for row in grid.starts(size[0], 0) for column in grid.starts(size[1], 1)]
        found: list[Detections] = []
        for first in range(0, len(corners), batch):
            cut = torch.from_numpy(windows(image, corners[first : first + batch], window)).to(device).float()
            if window != tile:
                cut = F.interpolate(cut, (tile, tile), mode="bilinear", antialias=True, align_corners=False)
            some = reader(cut / 127.5 - 1).detections or []
            found += [replace(one, boxes=one.boxes * (window / tile)) for one in some]
        instances, scores = paint_scored(merged(found, corners, (window, window), size), size, min_area=SMALLEST)
        return FoundNuclei(instances, probabilities=scores)
    type_map: NDArray[np.uint8] | None = None
    last: Reading | None = None

    def look(tiles: Tensor, corners: list[Corner]) -> Tensor:
        nonlocal last
        last = reader(tiles.to(device))
        types = None if last.types is None else last.types.float().softmax(1)
        return torch.cat([maps for maps in (last.mask, last.dense, types) if maps is not None], 1)

    def noted(bands: Iterator[Band]) -> Iterator[Band]:
        """Bands with the probability of being nuclear before those of types; each pixel's likeliest type is noted."""
        nonlocal type_map
        for top, band in bands:
            assert last is not None
            before = len(band) - _depth(last.types)
            if last.types is not None:
                type_map = np.zeros(size, np.uint8) if type_map is None else type_map
                type_map[top : top + band.shape[1]] = 1 + band[before:].argmax(0)
            yield top, band if last.dense is None else np.insert(band, before, expit(band[before - 1]), axis=0)

    def decoded(maps: NDArray[np.float32]) -> NDArray[np.int32]:
        assert last is not None
        drawn, seen = _depth(last.mask), _depth(last.dense)
        mask, dense = torch.from_numpy(maps[None, : drawn + seen]).split([drawn, seen], 1)
        return instances_of(replace(last, mask=mask, dense=dense), 0)

    instances, means = stitch(noted(blend(at_side(look, tile), image, grid, batch)), size, decoded)
    assert last is not None
    before = means.shape[1] - _depth(last.types)
    return FoundNuclei(
        instances,
        None if type_map is None else _majority(instances, type_map),
        None if last.dense is None else means[:, before - 1],
        None if last.types is None else means[:, before:],
    )


def _depth(maps: Tensor | None) -> int:
    """How many values a pixel has."""
    return 0 if maps is None else maps.shape[1]


def _majority(instances: NDArray[np.int32], type_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The type of most pixels of each nucleus, the lower of two that are alike; uint8 [n + 1]."""
    types = int(type_map.max(initial=0)) + 1
    votes = np.bincount(instances.ravel().astype(np.int64) * types + type_map.ravel()).astype(np.int64)
    votes = np.pad(votes, (0, -len(votes) % types)).reshape(-1, types)
    votes[0] = 0
    return votes.argmax(1).astype(np.uint8)


def instances_of(reading: Reading, index: int) -> NDArray[np.int32]:
    """The nuclei of one tile of a reading, as an instance map, int32 [H, W].

    head none: what the mask image shows. flows: where the flows lead. distance: a watershed from the hills. maskrcnn:
    the masks of what was detected.

    head semantic: the interiors of the drawn mask are seeds, which the drawn outlines part; the logits say how far a
    seed may grow. Foreground without a seed becomes a nucleus of its own.
    """
    if reading.head == "maskrcnn":
        assert reading.detections is not None
        assert reading.pyramid is not None
        side = reading.pyramid[0].shape[2:]  # P2, of stride 4
        return paint(reading.detections[index], (4 * side[0], 4 * side[1]), min_area=SMALLEST)
    if reading.head == "flows":
        assert reading.dense is not None
        dense = reading.dense[index].float().cpu().numpy()
        return instances_from(dense[:2] / FLOW_SCALE, dense[2], min_area=SMALLEST)
    if reading.head == "distance":
        assert reading.dense is not None
        hills, logits = reading.dense[index].float().cpu().numpy()
        return instances_from_distances(hills, logits, min_area=SMALLEST)
    assert reading.mask is not None
    drawn = ((reading.mask[index].float() + 1) / 2).clamp(0, 1).cpu().numpy()
    if reading.head == "none":
        return decode(drawn, min_area=SMALLEST, form=reading.form)
    assert reading.dense is not None
    logits = reading.dense[index, 0].float().cpu().numpy()
    nucleus = logits > 0
    seeds = decode(drawn * nucleus, min_area=SMALLEST, form=reading.form)
    unseeded, _ = ndimage.label(nucleus & ~ndimage.binary_dilation(seeds > 0, iterations=2))
    seeds = np.where(unseeded > 0, unseeded + seeds.max(), seeds)
    grown = watershed(-logits, seeds, mask=nucleus)
    areas = np.bincount(grown.ravel())
    return renumber(np.where(areas[grown] >= SMALLEST, grown, 0))
