"""Mask R-CNN's heads: targets, sampling and painting against slow references, and nuclei found after some steps."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import FeaturePyramidNetwork

from histo.encoders import architecture, build_pyramid
from histo.errors import InputError
from histo.maskrcnn import (
    Detections,
    KeyedSampler,
    MaskPredictor,
    MaskRCNNHead,
    MaskRCNNSettings,
    _box_terms,
    boxes_of,
    mask_targets,
    paint,
    paint_scored,
    pool,
)
from histo.metrics import compare
from histo.phantom import PhantomTissue
from histo.randomness import draws

WIDTH = 32
TERMS = ["objectness", "rpn_box", "classes", "box", "mask"]


@pytest.fixture(scope="module")
def head() -> MaskRCNNHead:
    torch.manual_seed(0)
    return MaskRCNNHead(MaskRCNNSettings(), WIDTH)


def features(images: int, size: int = 64, width: int = WIDTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(images, width, -(-size // stride), -(-size // stride)) for stride in (4, 8, 16, 32)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def nuclei(images: int, size: int = 64) -> Tensor:
    tissue = PhantomTissue(0, size=size)
    return torch.from_numpy(np.stack([tissue[index].instances for index in range(images)]))


def alone(pyramid: list[Tensor], n: int) -> list[Tensor]:
    return [level[n : n + 1] for level in pyramid]


@pytest.mark.parametrize(
    ("preset", "sides", "proposals", "rois"),
    [("paper", [32, 64, 128, 256, 512], (2000, 1000), 512), ("nuclei", [8, 16, 32, 64, 128], (200, 100), 32)],
)
def test_presets(preset: str, sides: list[int], proposals: tuple[int, int], rois: int) -> None:
    head = MaskRCNNHead(MaskRCNNSettings(preset), WIDTH)  # type: ignore[arg-type]
    levels = [torch.zeros(1, 1, -(-96 // stride), -(-96 // stride)) for stride in (4, 8, 16, 32, 64)]
    anchors = head.anchors(levels).double()
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    centres = (anchors[:, 2:] + anchors[:, :2]) / 2
    first = 0
    for side, stride, level in zip(sides, (4, 8, 16, 32, 64), levels, strict=True):
        grid = [(stride * (x + 0.5), stride * (y + 0.5)) for y in range(level.shape[2]) for x in range(level.shape[3])]
        here = slice(first, first + 3 * len(grid))
        assert centres[here].tolist() == [list(place) for place in grid for _ in range(3)]
        for k, aspect in enumerate((0.5, 1, 2)):  # torchvision rounds half the sides to whole pixels
            assert (height[here][k::3] - side * aspect**0.5).abs().max() <= 1
            assert (width[here][k::3] - side / aspect**0.5).abs().max() <= 1
        first = here.stop
    assert first == len(anchors)
    assert (head.rpn._pre_nms_top_n["training"], head.rpn._post_nms_top_n["training"]) == proposals
    assert head.preset.rois == rois


def test_an_unknown_preset() -> None:
    with pytest.raises(InputError, match=r"maskrcnn\.preset is 'cells', expected paper or nuclei"):
        MaskRCNNSettings("cells")  # type: ignore[arg-type]


def test_boxes_of_phantom_nuclei() -> None:
    for instances in nuclei(4):
        boxes, ids = boxes_of(instances)
        expected = {}
        for nucleus in range(1, int(instances.max()) + 1):
            rows, columns = np.nonzero(instances.numpy() == nucleus)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if box[2] - box[0] > 1 and box[3] - box[1] > 1:
                expected[nucleus] = box
        assert dict(zip(ids.tolist(), boxes.tolist(), strict=True)) == expected
        assert boxes.dtype == torch.float32


def test_boxes_of_odd_maps() -> None:
    instances = torch.zeros(9, 7, dtype=torch.int32)
    instances[1, 2:6] = 40_000  # one pixel high
    instances[3:8, 1] = 3  # one pixel wide
    instances[0, 0] = 7
    instances[3:5, 5:7] = 9
    instances[8, 4] = 9  # a part of it that lies apart
    boxes, ids = boxes_of(instances)
    assert (boxes.tolist(), ids.tolist()) == ([[4, 3, 7, 9]], [9])
    boxes, ids = boxes_of(torch.full((4, 6), 2))
    assert (boxes.tolist(), ids.tolist()) == ([[0, 0, 6, 4]], [2])
    boxes, ids = boxes_of(torch.zeros(4, 6, dtype=torch.int32))
    assert boxes.shape == (0, 4)
    assert ids.shape == (0,)


def test_mask_targets_pixel_by_pixel() -> None:
    instances = nuclei(1)[0]
    generator = draws(0, "boxes", 0)
    corners = generator.uniform(0, 50, (12, 2))
    boxes = torch.from_numpy(np.hstack([corners, corners + generator.uniform(2, 14, (12, 2))])).float()
    ids = torch.from_numpy(generator.choice(np.unique(instances)[1:], 12)).long()
    ids[:6] = torch.stack([instances[int(y), int(x)] for x, y in (boxes[:6, :2] + boxes[:6, 2:]) / 2])
    targets = mask_targets(instances, ids, boxes)
    for box, nucleus, target in zip(boxes.double().tolist(), ids.tolist(), targets, strict=True):
        for i in range(28):
            for j in range(28):
                row = box[1] + (i + 0.5) / 28 * (box[3] - box[1])
                column = box[0] + (j + 0.5) / 28 * (box[2] - box[0])
                assert bool(target[i, j]) == (int(instances[int(row), int(column)]) == nucleus)
    assert targets[:6].any()


def test_targets_painted_are_the_nuclei() -> None:
    for instances in nuclei(4, 128):
        boxes, ids = boxes_of(instances)
        masks = mask_targets(instances, ids, boxes).float()
        found = paint(Detections(boxes, torch.ones(len(ids)), masks), (128, 128), min_area=1)
        assert compare(instances.numpy(), found).aji > 0.97


@pytest.mark.parametrize("size", [64, 96])
def test_roi_align_reads_the_place_of_the_box(size: int) -> None:
    """Features that are the coordinates of their cells' centres are pooled to the coordinates of the bins' centres."""
    pyramid = []
    for stride in (4, 8, 16, 32):
        centres = stride * (torch.arange(1024 // stride) + 0.5)
        pyramid.append(torch.stack([*torch.meshgrid(centres, centres, indexing="xy")])[None])
    boxes = [torch.tensor([[100.3, 200.5, 108.1, 214.0], [300.0, 200.0, 300.0 + 3 * size, 200.0 + 4 * size]])]
    for side in (7, 14):
        pooled = pool(pyramid, boxes, side)
        for box, (x, y) in zip(boxes[0], pooled, strict=True):
            bins = (torch.arange(side) + 0.5) / side
            torch.testing.assert_close(x, (box[0] + bins * (box[2] - box[0])).expand(side, side), rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(
                y.T, (box[1] + bins * (box[3] - box[1])).expand(side, side), rtol=1e-4, atol=1e-3
            )


def test_size_chooses_the_level_and_order_is_kept() -> None:
    pyramid = [torch.full((2, 1, 512 // stride, 512 // stride), float(stride)) for stride in (4, 8, 16, 32)]
    pyramid = [torch.cat([level[:1], level[1:] + 100]) for level in pyramid]
    sides = [230.0, 5.0, 111.0, 113.0, 223.0, 450.0]
    boxes = [torch.tensor([[10.0, 20.0, 10 + side, 20 + side] for side in sides])] * 2
    levels = pool(pyramid, boxes, 7).mean((1, 2, 3))
    assert levels.tolist() == [16, 4, 4, 8, 8, 32, 116, 104, 104, 108, 108, 132]


def test_sampled_anchors_are_the_images_own() -> None:
    labels = [torch.from_numpy(draws(1, "labels", k).choice([-1, 0, 1], 900, p=[0.2, 0.5, 0.3])) for k in range(3)]
    labels[2] = torch.tensor([-1, 1, 0, 1, 0, 0])
    sampler = KeyedSampler(5, "anchors", [7, 8, 9], 64, 0.25)
    for positive, negative, label in zip(*sampler(labels), labels, strict=True):
        assert positive.sum() == min(16, (label == 1).sum())
        assert negative.sum() == min(64 - int(positive.sum()), (label == 0).sum())
        assert (label[positive] == 1).all()
        assert (label[negative] == 0).all()
    positive, negative = KeyedSampler(5, "anchors", [8], 64, 0.25)(labels[1:2])
    assert torch.equal(positive[0], sampler(labels)[0][1])
    assert torch.equal(negative[0], sampler(labels)[1][1])
    for other in (KeyedSampler(6, "anchors", [8], 64, 0.25), KeyedSampler(5, "regions", [8], 64, 0.25)):
        assert not torch.equal(positive[0], other(labels[1:2])[0][0])


@pytest.mark.parametrize("bf16", [False, True])
def test_losses_do_not_know_the_global_generator(head: MaskRCNNHead, bf16: bool) -> None:
    pyramid, instances = features(2), nuclei(2)
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append(head.losses(pyramid, instances, 4, [10, 11]))
        assert torch.equal(before, torch.get_rng_state())
    assert list(found[0]) == TERMS
    for name, term in found[0].items():
        assert term.dtype == torch.float32
        assert term > 0
        assert torch.equal(term, found[1][name])
    assert found[0]["objectness"] != head.losses(pyramid, instances, 4, [12, 13])["objectness"]


def test_losses_of_a_batch_are_the_mean_of_its_images(head: MaskRCNNHead) -> None:
    pyramid, instances = features(3), nuclei(3)
    instances[1] = 0
    instances[2] *= instances[2] < 4  # fewer nuclei and so fewer RoIs than the first
    together = head.losses(pyramid, instances, 4, [10, 11, 12])
    single = [head.losses(alone(pyramid, n), instances[n : n + 1], 4, [10 + n]) for n in range(3)]
    for name in TERMS:
        mean = torch.stack([found[name] for found in single]).mean()
        torch.testing.assert_close(together[name], mean, rtol=1e-4, atol=1e-5)


def test_one_image_has_torchvisions_losses(head: MaskRCNNHead) -> None:
    pyramid, instances = features(1), nuclei(1)
    found = head.losses(pyramid, instances, 4, [10])
    objectness, deltas, anchors, _ = head._propose(pyramid, (64, 64), training=True)
    labels, matched = head.rpn.assign_targets_to_anchors(anchors, [{"boxes": boxes_of(instances[0])[0]}])
    head.rpn.fg_bg_sampler = KeyedSampler(4, "anchors", [10], 256, 0.5)
    wanted = head.rpn.box_coder.encode(matched, anchors)
    expected = head.rpn.compute_loss(objectness.view(-1, 1), deltas.view(-1, 4), labels, list(wanted))
    torch.testing.assert_close([found["objectness"], found["rpn_box"]], list(expected))

    generator = torch.Generator().manual_seed(1)
    logits, moves, goals = (torch.randn(20, *shape, generator=generator) for shape in ((), (4,), (4,)))
    labels = [(torch.arange(20) % 4 == 0).long()]
    both = torch.stack([torch.zeros(20), logits], 1)
    expected = fastrcnn_loss(both, torch.cat([goals, moves], 1), labels, [goals])
    torch.testing.assert_close(_box_terms(logits, moves, labels[0], goals), expected)


def test_masks_are_enlarged_by_a_transposed_convolution() -> None:
    predictor, x = MaskPredictor(WIDTH), features(3, 56)[0]
    transposed = nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)
    with torch.no_grad():
        predictor.enlarge.bias.view(4, WIDTH)[:] = transposed.bias
        predictor.enlarge.weight.view(2, 2, WIDTH, WIDTH)[:] = transposed.weight.permute(2, 3, 1, 0)
    expected = transposed(x).relu().permute(0, 2, 3, 1) @ predictor.draw.weight[0] + predictor.draw.bias
    assert expected.shape == (3, 28, 28)
    torch.testing.assert_close(predictor(x), expected)


def test_losses_of_a_head_that_says_the_same_everywhere() -> None:
    """Without proposals the RoIs are the nuclei's own boxes, so that all three losses of RoIs have a closed form."""
    head, instances = MaskRCNNHead(MaskRCNNSettings(), WIDTH), nuclei(1)
    instances *= instances <= 5
    head.rpn._post_nms_top_n["training"] = 0
    for layer in (head.rois.box_predictor.score, head.rois.box_predictor.deltas, head.masks[-1].draw):
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
        nn.init.constant_(layer.bias, 0.7)  # type: ignore[arg-type]
    found = head.losses(features(1), instances, 0, [0])
    boxes, ids = boxes_of(instances[0])
    assert len(ids) == 5
    share = mask_targets(instances[0], ids, boxes).float().mean()
    assert found["classes"].item() == pytest.approx(np.log1p(np.exp(-0.7)), rel=1e-5)
    assert found["box"].item() == pytest.approx(4 * (0.7 - 1 / 18), rel=1e-5)
    assert found["mask"].item() == pytest.approx(np.log1p(np.exp(0.7)) - 0.7 * share.item(), rel=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("empty", [[], [1], [0, 1]])
def test_gradients_reach_pyramid_and_heads(head: MaskRCNNHead, bf16: bool, empty: list[int]) -> None:
    """All parameters get one, zero or not, since processes average the gradients of the same parameters."""
    pyramid, instances = features(2), nuclei(2)
    instances[empty] = 0
    head.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        terms = head.losses(pyramid, instances, 0, [0, 1])
    sum(terms.values()).backward()  # type: ignore[union-attr]
    for value in [*pyramid, *head.parameters()]:
        assert value.grad is not None
        assert torch.isfinite(value.grad).all()
    assert all(level.grad[n].any() for level in pyramid for n in range(2))  # type: ignore[index]
    assert [name for name in TERMS if terms[name] == 0] == (TERMS[1:] if len(empty) == 2 else [])
    if not empty:
        assert all(value.grad.any() for value in head.parameters())  # type: ignore[union-attr]


def test_the_nucleus_covers_everything(head: MaskRCNNHead) -> None:
    terms = head.losses(features(1), torch.ones(1, 64, 64, dtype=torch.int32), 0, [0])
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())


def test_features_that_are_not_finite_make_losses_that_are_not(head: MaskRCNNHead) -> None:
    terms = head.losses([level * float("nan") for level in features(1)], nuclei(1), 0, [0])
    assert not torch.isfinite(terms["objectness"])


@pytest.mark.parametrize("size", [32, 64, 96])
def test_detections_of_an_untrained_head(head: MaskRCNNHead, size: int) -> None:
    pyramid = features(2, size)
    assert all(len(found.scores) == 0 for found in head.detect(pyramid, (size, size)))
    state = {name: value.clone() for name, value in head.state_dict().items()}
    eager = MaskRCNNHead(MaskRCNNSettings(), WIDTH)
    eager.load_state_dict(state)
    nn.init.zeros_(eager.rois.box_predictor.score.bias)
    for found in eager.detect(pyramid, (size, size)):
        count = len(found.scores)
        assert 0 < count <= 500
        assert found.boxes.shape == (count, 4)
        assert found.masks.shape == (count, 28, 28)
        assert (found.scores.diff() <= 0).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes <= size).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert ((found.masks > 0) & (found.masks < 1)).all()


def test_a_state_read_back_finds_the_same(head: MaskRCNNHead) -> None:
    torch.manual_seed(9)
    other = MaskRCNNHead(MaskRCNNSettings(), WIDTH)
    pyramid, instances = features(2), nuclei(2)
    mine = head.losses(pyramid, instances, 0, [0, 1])
    assert other.losses(pyramid, instances, 0, [0, 1])["mask"] != mine["mask"]
    other.load_state_dict(head.state_dict())
    again = other.losses(pyramid, instances, 0, [0, 1])
    assert all(torch.equal(mine[name], again[name]) for name in TERMS)


def painted_slowly(detections: Detections, size: tuple[int, int], least: float, area: int) -> NDArray[np.int32]:
    """Every mask on a canvas of its own: bilinear between cells' centres, nothing outside the box."""
    canvas = np.zeros(size, np.int32)
    rows, columns = np.indices(size) + 0.5
    order = sorted(range(len(detections.scores)), key=lambda k: -float(detections.scores[k]))
    for k in order:
        x1, y1, x2, y2 = detections.boxes[k].double().tolist()
        places = [(rows - y1) / (y2 - y1) * 28 - 0.5, (columns - x1) / (x2 - x1) * 28 - 0.5]
        full = map_coordinates(detections.masks[k].double().numpy(), places, order=1, mode="nearest")
        inside = (rows >= y1) & (rows < y2) & (columns >= x1) & (columns < x2)
        nucleus = inside & (full >= 0.5) & (canvas == 0)
        if detections.scores[k] >= least and nucleus.sum() >= area:
            canvas[nucleus] = canvas.max() + 1
    return canvas


def scattered(count: int, size: tuple[int, int]) -> Detections:
    """Random blobs in random boxes, many of them overlapping, in no order."""
    generator = draws(2, "detections", 0)
    extent = generator.uniform(1, 25, (count, 2))
    corner = generator.uniform(0, 1, (count, 2)) * (np.array(size[::-1]) - extent)
    blobs = torch.from_numpy(generator.normal(0, 1, (count, 1, 5, 5))).float()
    masks = nn.functional.interpolate(blobs, size=(28, 28), mode="bilinear")[:, 0].add(0.5).sigmoid()
    scores = torch.from_numpy(generator.uniform(0.2, 1, count)).float()
    return Detections(torch.from_numpy(np.hstack([corner, corner + extent])).float(), scores, masks)


@pytest.mark.parametrize(("least", "area"), [(0.5, 12), (0.0, 1), (0.8, 60)])
def test_paint_against_full_canvases(least: float, area: int) -> None:
    detections = scattered(120, (70, 90))
    painted = paint(detections, (70, 90), least, area)
    assert painted.dtype == np.int32
    assert painted.max() > 5
    np.testing.assert_array_equal(painted, painted_slowly(detections, (70, 90), least, area))


def test_the_surer_nucleus_has_the_overlap() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [8.0, 0.0, 16.0, 10.0]])
    found = Detections(boxes, torch.tensor([0.6, 0.9, 0.7]), torch.ones(3, 28, 28))
    painted, scores = paint_scored(found, (12, 20))
    expected = np.zeros((12, 20), np.int32)
    expected[:10, :5], expected[:10, 5:15] = 2, 1  # of the third, one column is left: less than twelve pixels
    np.testing.assert_array_equal(painted, expected)
    np.testing.assert_array_equal(scores, np.array([0, 0.9, 0.6], np.float32))


def test_nothing_detected_is_an_empty_map() -> None:
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 28, 28))
    assert not paint(nothing, (30, 40)).any()
    assert paint(nothing, (30, 40)).shape == (30, 40)


class Reader(nn.Module):
    """A small encoder with a pyramid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder, channels = build_pyramid(architecture("test_efficientnet_gn", "own"))
        self.pyramid = FeaturePyramidNetwork(channels, width, norm_layer=lambda count: nn.GroupNorm(32, count))

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(self.pyramid(dict(zip("2345", self.encoder(image), strict=True))).values())


def test_heads_learn_to_find_the_nuclei_of_two_tiles() -> None:
    torch.manual_seed(0)
    tissue = PhantomTissue(0, size=64)
    images = torch.from_numpy(np.stack([tissue[k].image for k in range(2)])).float() / 127.5 - 1
    instances = nuclei(2)
    reader, head = Reader(32), MaskRCNNHead(MaskRCNNSettings(), 32)

    def aji() -> float:
        with torch.no_grad():
            found = head.detect(reader(images), (64, 64))
        return float(np.mean([compare(instances[n].numpy(), paint(found[n], (64, 64))).aji for n in range(2)]))

    untrained = aji()
    optimizer = torch.optim.Adam([*reader.parameters(), *head.parameters()])
    for step in range(110):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / 110)
        optimizer.zero_grad()
        loss = sum(head.losses(reader(images), instances, 0, [2 * step, 2 * step + 1]).values())
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    assert untrained < 0.1
    assert aji() > 0.7
