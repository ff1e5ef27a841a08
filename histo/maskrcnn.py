"""Mask R-CNN's heads on a feature pyramid (He et al. 2017): boxes, scores and masks of nuclei, and their losses.

As UNITPathSSL's guidance (arXiv 2309.07394, ISG): tissue drawn from a mask is read by the segmenter, and these heads
must find the instances of that mask in the segmenter's pyramid. Boxes are (x1, y1, x2, y2) in pixels, measured at
pixels' edges: a nucleus that is pixel (0, 0) alone has the box (0, 0, 1, 1).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes, roi_align

from histo.errors import InputError
from histo.randomness import draws

STRIDES = (4, 8, 16, 32, 64)  # P2 to P6; P6 is for proposals alone
ASPECTS = (0.5, 1.0, 2.0)  # height / width
BOX_SIDE, MASK_SIDE = 7, 14  # cells of RoIAlign; a mask is drawn at twice that
PRIOR = 0.25  # score of an untrained head, and most of the RoIs it learns from that show a nucleus
LOWEST_SCORE = 0.3  # of a detection; above PRIOR, so that an untrained head does not draw hundreds of masks
MOST_DETECTIONS = 500  # an image: COCO's 100 is less than a tile of lymphocytes holds
TERMS = ("objectness", "rpn_box", "classes", "box", "mask")
BETA = 1 / 9  # torchvision's, where the box losses turn from square to linear


class _Preset(NamedTuple):
    anchors: tuple[int, ...]  # pixels, one a level
    candidates: int  # best anchors a level that non-maximum suppression sees in training
    proposals: int  # an image, left by it in training
    rois: int  # an image, that the losses of boxes and masks are taken at; at most a quarter of them show nuclei
    tested: int  # proposals an image when nuclei are read, of which each costs about a millisecond of a CPU


PRESETS = {
    "paper": _Preset((32, 64, 128, 256, 512), 2000, 1000, 512, 1000),
    "nuclei": _Preset((8, 16, 32, 64, 128), 200, 100, 32, 500),
}


@dataclass
class MaskRCNNSettings:
    """Instance guidance."""

    preset: Literal["paper", "nuclei"] = "nuclei"
    """paper: anchors of 32 to 512 px, 1000 proposals and 512 RoIs an image; nuclei: anchors of 8 to 128 px, 100
    proposals and 32 RoIs, which nuclei of 5 to 60 px need and a CPU can bear"""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"maskrcnn.preset is {self.preset!r}, expected paper or nuclei; choose one of them.")


@dataclass
class Detections:
    """Nuclei found in an image, the surest first.

    boxes: float [K, 4], x1, y1, x2, y2 in pixels, within the image.
    scores: float [K] in (0, 1).
    masks: float [K, 28, 28] in (0, 1), probability of nucleus in the cells of a grid over the box.
    """

    boxes: Tensor
    scores: Tensor
    masks: Tensor


class KeyedSampler:
    """Chooses the anchors or RoIs of each image that losses are taken at, by the image's own draws.

    Stands in for torchvision's BalancedPositiveNegativeSampler, which draws from the global generator.
    """

    def __init__(self, seed: int, stream: str, indices: list[int], number: int, positives: float) -> None:
        """`number` of them an image, of which at most the share `positives` show a nucleus."""
        self.seed, self.stream, self.indices = seed, stream, indices
        self.number, self.most = number, int(number * positives)

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each image's labels [A] (1 and more nucleus, 0 background, -1 neither), bool [A]: positives, negatives."""
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for index, label in zip(self.indices, labels, strict=True):
            generator = draws(self.seed, self.stream, index)
            room = self.most
            for masks, places in zip(chosen, ((label >= 1).nonzero()[:, 0], (label == 0).nonzero()[:, 0]), strict=True):
                taken = generator.choice(len(places), min(room, len(places)), replace=False)
                masks.append(torch.zeros_like(label, dtype=torch.bool))
                masks[-1][places[torch.from_numpy(taken).to(places.device)]] = True
                room = self.number - len(taken)
        return chosen


class _BoxPredictor(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.score, self.deltas = nn.Linear(width, 1), nn.Linear(width, 4)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.constant_(self.score.bias, math.log(PRIOR / (1 - PRIOR)))
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(x)[:, 0].float(), self.deltas(x).float()


class MaskPredictor(nn.Module):
    """Mask R-CNN's last layers: a transposed 2 × 2 convolution of stride 2, ReLU, and a logit.

    As matrix products, since no output of that convolution has two inputs; on a CPU this takes half as long.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enlarge, self.draw = nn.Linear(width, 4 * width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """float [R, width, S, S] → logits, fp32 [R, 2 S, 2 S]."""
        regions, width, side, _ = x.shape
        quarters = self.enlarge(x.flatten(2).transpose(1, 2)).relu().view(regions, side, side, 2, 2, width)
        logits = self.draw(quarters)[..., 0].float()
        return logits.transpose(2, 3).reshape(regions, 2 * side, 2 * side)


class MaskRCNNHead(nn.Module):
    """Proposals, boxes and masks of nuclei from a feature pyramid.

    The pyramid is a list of float [N, width, H/4, W/4], … /8, /16, /32. Convolutions take autocast's precision; boxes,
    RoIAlign and losses are fp32 always. There is one class, hence one logit, one box and one mask an RoI.

    Args:
        width: channels of the pyramid, a multiple of 32.
    """

    def __init__(self, settings: MaskRCNNSettings, width: int) -> None:
        super().__init__()
        self.preset = preset = PRESETS[settings.preset]
        limits = (
            {"training": preset.candidates, "testing": preset.tested},
            {"training": preset.proposals, "testing": preset.tested},
        )
        anchors = AnchorGenerator(tuple((side,) for side in preset.anchors), (ASPECTS,) * len(STRIDES))
        self.rpn = RegionProposalNetwork(anchors, RPNHead(width, len(ASPECTS)), 0.7, 0.3, 256, 0.5, *limits, 0.7)
        self.rois = RoIHeads(
            box_roi_pool=None,
            box_head=nn.Sequential(
                nn.Flatten(),
                nn.Linear(width * BOX_SIDE**2, 4 * width),  # the paper's 1024 at its 256 channels
                nn.ReLU(),
                nn.Linear(4 * width, 4 * width),
                nn.ReLU(),
            ),
            box_predictor=_BoxPredictor(4 * width),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=preset.rois,
            positive_fraction=PRIOR,
            bbox_reg_weights=None,
            score_thresh=LOWEST_SCORE,
            nms_thresh=0.5,
            detections_per_img=MOST_DETECTIONS,
        )
        self.masks = nn.Sequential(
            MaskRCNNHeads(width, [width] * 4, 1, norm_layer=lambda channels: nn.GroupNorm(32, channels)),
            MaskPredictor(width),
        )

    def losses(self, pyramid: list[Tensor], instances: Tensor, seed: int, indices: list[int]) -> dict[str, Tensor]:
        """Mask R-CNN's five losses against the nuclei of instance maps; they flow into the pyramid and the heads.

        Each is the mean over images of the image's own mean over its sampled anchors or RoIs, so that it does not
        matter which images share a batch. An image without nuclei teaches the proposals that all is background, and
        adds 0 to the other terms.

        Args:
            instances: int [N, H, W], 0 is background; H and W are four times those of the pyramid's first level.
            seed: the run's seed; anchors and RoIs are drawn by (seed, image).
            indices: N global indices of the images.

        Returns:
            "objectness" and "rpn_box" of the proposals, "classes" and "box" of the RoIs, "mask": fp32 scalars.
        """
        size = (instances.shape[1], instances.shape[2])
        objectness, deltas, anchors, proposals = self._propose(pyramid, size, training=True)
        nuclei = [boxes_of(image) for image in instances]
        targets = [{"boxes": boxes, "labels": torch.ones_like(ids)} for boxes, ids in nuclei]
        terms: dict[str, list[Tensor]] = {name: [] for name in TERMS}

        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        goals = self.rpn.box_coder.encode(matched, anchors)
        positive, negative = KeyedSampler(seed, "anchors", indices, 256, 0.5)(labels)
        for n, sampled in enumerate(map(torch.bitwise_or, positive, negative)):
            found = _box_terms(objectness[n][sampled], deltas[n][sampled], labels[n][sampled], goals[n][sampled])
            terms["objectness"].append(found[0])
            terms["rpn_box"].append(found[1])

        proposals = [boxes if len(ids) else boxes[:0] for boxes, (_, ids) in zip(proposals, nuclei, strict=True)]
        self.rois.fg_bg_sampler = KeyedSampler(seed, "regions", indices, self.preset.rois, PRIOR)
        regions, owners, labels, goals = self.rois.select_training_samples(proposals, targets)
        counts = [len(boxes) for boxes in regions]
        scores, moves = (part.split(counts) for part in self._read_boxes(pyramid, regions))
        shown = [label > 0 for label in labels]
        drawn = self._draw_masks(pyramid, [boxes[nucleus] for boxes, nucleus in zip(regions, shown, strict=True)])
        for n, logits in enumerate(drawn.split([int(nucleus.sum()) for nucleus in shown])):
            found = _box_terms(scores[n], moves[n], labels[n], goals[n])
            terms["classes"].append(found[0])
            terms["box"].append(found[1])
            target = mask_targets(instances[n], nuclei[n][1][owners[n][shown[n]]], regions[n][shown[n]])
            surprise = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="sum")
            terms["mask"].append(surprise / max(1, target.numel()))
        return {name: torch.stack(parts).mean() for name, parts in terms.items()}

    @torch.no_grad()
    def detect(self, pyramid: list[Tensor], size: tuple[int, int]) -> list[Detections]:
        """The nuclei of each image: those with a score above 0.3, at most 500, after non-maximum suppression at 0.5.

        Args:
            size: height and width of the images in pixels.
        """
        found = []
        for n, proposals in enumerate(self._propose(pyramid, size, training=False)[3]):
            levels = [level[n : n + 1] for level in pyramid]
            logits, moves = self._read_boxes(levels, [proposals])
            scores = logits.sigmoid()
            boxes = clip_boxes_to_image(self.rois.box_coder.decode(moves, [proposals])[:, 0], size)
            likely = torch.where(scores > self.rois.score_thresh)[0]
            likely = likely[remove_small_boxes(boxes[likely], 1e-2)]
            kept = likely[nms(boxes[likely], scores[likely], self.rois.nms_thresh)][: self.rois.detections_per_img]
            masks = self._draw_masks(levels, [boxes[kept]]).sigmoid()
            found.append(Detections(boxes[kept], scores[kept], masks))
        return found

    def _propose(
        self, pyramid: list[Tensor], size: tuple[int, int], training: bool
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Objectness [N, A], deltas [N, A, 4], and for each image anchors [A, 4] and proposals [P, 4]."""
        levels = [*pyramid, F.max_pool2d(pyramid[-1], 1, 2)]
        logits, moves = self.rpn.head(levels)
        counts = [logit[0].numel() for logit in logits]
        objectness, deltas = concat_box_prediction_layers([x.float() for x in logits], [x.float() for x in moves])
        anchors = [self.anchors(levels)] * len(pyramid[0])
        places = self.rpn.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        self.rpn.train(training)  # which of its two limits on proposals holds; nothing else there has a mode
        proposals, _ = self.rpn.filter_proposals(places, objectness, [size] * len(anchors), counts)
        return objectness.view(len(anchors), -1), deltas.view(len(anchors), -1, 4), anchors, proposals

    def anchors(self, levels: list[Tensor]) -> Tensor:
        """Anchors of the levels P2 to P6, centred on their cells: fp32 [A, 4]."""
        generator = self.rpn.anchor_generator
        generator.set_cell_anchors(torch.float32, levels[0].device)
        grids = generator.grid_anchors([level.shape[2:] for level in levels], [(stride, stride) for stride in STRIDES])
        return torch.cat([grid + stride / 2 for grid, stride in zip(grids, STRIDES, strict=True)])

    def _read_boxes(self, pyramid: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [R] and deltas [R, 4] of the boxes of all images."""
        return self.rois.box_predictor(self.rois.box_head(pool(pyramid, boxes, BOX_SIDE)))

    def _draw_masks(self, pyramid: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Logits [R, 28, 28] of the boxes of all images."""
        return self.masks(pool(pyramid, boxes, MASK_SIDE))


def _box_terms(logits: Tensor, deltas: Tensor, labels: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of an image's sampled anchors or RoIs: is it a nucleus [A], and what moves it onto the nucleus [A, 4]."""
    count, nucleus = max(1, len(labels)), labels > 0
    surprise = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
    distance = F.smooth_l1_loss(deltas[nucleus], goals[nucleus], beta=BETA, reduction="sum")
    return surprise / count, distance / count


def pool(pyramid: list[Tensor], boxes: list[Tensor], side: int) -> Tensor:
    """RoIAlign of each box on the level that its size calls for (Lin et al. 2017, equation 1).

    torchvision's MultiScaleRoIAlign samples half a cell beside the place, 2 px on P2, which is much for a nucleus. As
    in the paper's framework, a bin is sampled once for each cell of the level that it reaches over.

    Args:
        pyramid: levels P2 to P5, float [N, C, H/4, W/4] and so on.
        boxes: for each image, fp32 [K, 4].

    Returns:
        fp32 [R, C, side, side], R boxes of all images in order.
    """
    images = torch.cat([found.new_full((len(found), 1), n) for n, found in enumerate(boxes)])
    regions = torch.cat([images, torch.cat(boxes)], 1)
    extent = (regions[:, 3:] - regions[:, 1:3]).prod(1).sqrt()
    chosen = (extent / 224).clamp(min=1e-6).log2().floor().clamp(-2, 1) + 2  # a box of 224 px belongs to P4
    pooled = regions.new_zeros(len(regions), pyramid[0].shape[1], side, side)
    for k, (level, stride) in enumerate(zip(pyramid, STRIDES, strict=False)):
        here = torch.where(chosen == k)[0]
        pooled[here] = roi_align(level.float(), regions[here], side, 1 / stride, aligned=True)
    return pooled


def boxes_of(instances: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes of the nuclei of an instance map, and their ids, ascending.

    Nuclei no more than a pixel high or wide are left out, since a box regression towards them is noise.

    Args:
        instances: int [H, W], 0 is background.

    Returns:
        float32 [n, 4] in pixels, and int64 [n].
    """
    ids, which = instances.unique(return_inverse=True)
    rows, columns = (torch.arange(side, device=instances.device) for side in instances.shape)
    places = torch.stack(torch.broadcast_tensors(columns, rows[:, None]), -1).view(-1, 2)
    which = which.view(-1, 1).expand(-1, 2)
    first = places.new_zeros(len(ids), 2).scatter_reduce(0, which, places, "amin", include_self=False)
    last = places.new_zeros(len(ids), 2).scatter_reduce(0, which, places, "amax", include_self=False)
    kept = (ids > 0) & (last > first).all(1)
    return torch.cat([first, last + 1], 1)[kept].float(), ids[kept].long()


def mask_targets(instances: Tensor, ids: Tensor, boxes: Tensor) -> Tensor:
    """Which cells of a 28 × 28 grid over each box have their centre in the box's nucleus.

    Args:
        instances: int [H, W].
        ids: int [K], the nucleus of each box.
        boxes: float [K, 4], within the image.

    Returns:
        bool [K, 28, 28].
    """
    centres = (torch.arange(2 * MASK_SIDE, device=boxes.device) + 0.5) / (2 * MASK_SIDE)
    corners, extents = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    columns, rows = (corners[..., None] + extents[..., None] * centres).floor().long().unbind(1)
    rows, columns = (at.clamp(0, side - 1) for at, side in zip((rows, columns), instances.shape, strict=True))
    return instances[rows[:, :, None], columns[:, None, :]] == ids[:, None, None]


def paint(
    detections: Detections, size: tuple[int, int], min_score: float = 0.5, min_area: int = 12
) -> NDArray[np.int32]:
    """The instance map of detections: where masks overlap, the surer nucleus has the pixel.

    A pixel belongs to a nucleus if its centre lies in the box and the mask, interpolated bilinearly between the centres
    of its cells, is at least 0.5 there.

    Args:
        size: height and width in pixels.
        min_score: the least score of a nucleus that is drawn.
        min_area: pixels; a nucleus of which fewer are left by surer ones is not drawn.

    Returns:
        int32 [H, W], ids 1, 2, … in the order of scores.
    """
    return paint_scored(detections, size, min_score, min_area)[0]


def paint_scored(
    detections: Detections, size: tuple[int, int], min_score: float = 0.5, min_area: int = 12
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """`paint`, and the score of each nucleus that is drawn: float32 [n + 1] by its id, entry 0 unused."""
    canvas = np.zeros(size, np.int32)
    scores = detections.scores.cpu().numpy()
    boxes = detections.boxes.cpu().numpy().astype(np.float64)
    masks = detections.masks.cpu().numpy()
    painted = [0.0]
    for k in np.argsort(-scores, kind="stable"):
        if scores[k] < min_score:
            break
        x1, y1, x2, y2 = boxes[k]
        rows, down = _weights(y1, y2, size[0], masks.shape[1])
        columns, across = _weights(x1, x2, size[1], masks.shape[2])
        window = canvas[rows, columns]
        nucleus = (down @ masks[k] @ across.T >= 0.5) & (window == 0)
        if nucleus.sum() >= min_area:
            window[nucleus] = len(painted)
            painted.append(float(scores[k]))
    return canvas, np.array(painted, np.float32)


def _weights(first: float, last: float, side: int, cells: int) -> tuple[slice, NDArray[np.float64]]:
    """Pixels of an axis with their centre in a box, and how they mix the mask's cells, float64 [pixels, cells]."""
    start, stop = (int(np.clip(np.ceil(edge - 0.5), 0, side)) for edge in (first, last))
    places = (np.arange(start, stop) + 0.5 - first) / max(last - first, 1e-6) * cells - 0.5
    distance = np.abs(places.clip(0, cells - 1)[:, None] - np.arange(cells))
    return slice(start, stop), (1 - distance).clip(0)


def merged(
    found: list[Detections], corners: list[tuple[int, int]], tile: tuple[int, int], size: tuple[int, int]
) -> Detections:
    """Detections of overlapping tiles as those of the whole image, of each nucleus the surest.

    What touches a tile's edge within the image is left out: where tiles overlap by half, a nucleus smaller than that
    lies whole in another tile.

    Args:
        found: of each tile; corners: its row and column in the image.
        tile, size: height and width of the tiles and of the image in pixels; tiles may reach beyond the image.
    """
    boxes, scores, masks = [], [], []
    for detections, (row, column) in zip(found, corners, strict=True):
        shift = detections.boxes.new_tensor([column, row, column, row])
        x1, y1, x2, y2 = detections.boxes.unbind(1)
        cut = (x1 < 1) & (column > 0) | (y1 < 1) & (row > 0)
        cut |= (x2 > tile[1] - 1) & (column + tile[1] < size[1]) | (y2 > tile[0] - 1) & (row + tile[0] < size[0])
        boxes.append((detections.boxes + shift)[~cut])
        scores.append(detections.scores[~cut])
        masks.append(detections.masks[~cut])
    all_boxes, all_scores, all_masks = torch.cat(boxes), torch.cat(scores), torch.cat(masks)
    kept = nms(all_boxes, all_scores, 0.5)
    return Detections(all_boxes[kept], all_scores[kept], all_masks[kept])
