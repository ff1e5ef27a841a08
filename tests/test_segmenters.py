"""Segmenters: shapes, tiles that leave no seam, and nuclei read from drawn masks."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.measure import label
from torch import Tensor, nn

from histo.codec import Form, decode, encode
from histo.encoders import write_card
from histo.errors import InputError
from histo.flows import FLOW_SCALE, flows_of
from histo.maskrcnn import Detections, MaskRCNNSettings, boxes_of, mask_targets
from histo.metrics import compare
from histo.phantom import PhantomTissue
from histo.randomness import draws
from histo.segmenters import Head, Reading, Segmenter, SegmenterSettings, instances_of, load, segment

SMALL = SegmenterSettings(encoder="resnet18", pyramid_width=32)


@pytest.fixture(scope="module")
def untrained() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SMALL).eval()


def tissue(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


class Transparent(nn.Module):
    """Reads every pixel by itself: the image is the mask image, and what is not black is nucleus."""

    head = "semantic"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Reading:
        self.seen.append(tuple(image.shape))
        brightest = image.amax(1, keepdim=True)
        return Reading(image, torch.where(brightest > -0.9, 2.0, -2.0))


def discs(height: int, width: int, centres: list[tuple[float, float]], radius: float) -> NDArray[np.int32]:
    """Each pixel belongs to the nearest centre within the radius, so that discs that meet share a straight border."""
    rows, columns = np.indices((height, width))
    distances = np.stack([np.hypot(rows - y, columns - x) for y, x in centres])
    return np.where(distances.min(0) < radius, distances.argmin(0) + 1, 0).astype(np.int32)


def scattered(height: int, width: int) -> NDArray[np.int32]:
    centres = [(y + (x // 14) % 2 * 3.0, x + 0.0) for y in range(4, height, 15) for x in range(5, width, 14)]
    return discs(height, width, centres, 6)


def reading_of(instances: NDArray[np.int32], texture: np.random.Generator | None = None) -> Reading:
    """What a perfect segmenter would see."""
    drawn = torch.from_numpy(encode(instances, None, texture))[None].float() / 127.5 - 1
    return Reading(drawn, torch.from_numpy(np.where(instances > 0, 4.0, -4.0)).float()[None, None])


def contiguous(instances: NDArray[np.int32]) -> bool:
    return set(np.unique(instances)) - {0} == set(range(1, int(instances.max()) + 1))


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (32, 32)])
def test_shapes(untrained: Segmenter, size: tuple[int, int]) -> None:
    with torch.no_grad():
        reading = untrained(tissue(2, 3, *size))
    assert reading.mask.shape == (2, 3, *size)
    assert reading.dense.shape == (2, 1, *size)
    assert reading.mask.dtype == reading.dense.dtype == torch.float32
    assert torch.isfinite(reading.mask).all()
    assert reading.dense.std() > 0


def test_unguided_leaves_the_mask_as_it_is(untrained: Segmenter) -> None:
    x = tissue(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(untrained(x, False).mask, untrained(x).mask)
        assert untrained(x, False).dense is None


def test_outputs_are_fp32_under_autocast(untrained: Segmenter) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reading = untrained(tissue(1, 3, 64, 64))
    assert reading.mask.dtype == reading.dense.dtype == torch.float32


def test_a_tile_does_not_depend_on_its_batch_mates(untrained: Segmenter) -> None:
    x = tissue(3, 3, 64, 64)
    untrained.train()
    try:
        with torch.no_grad():
            together, alone = untrained(x), untrained(x[1:2])
    finally:
        untrained.eval()
    torch.testing.assert_close(together.mask[1:2], alone.mask, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together.dense[1:2], alone.dense, rtol=1e-3, atol=1e-4)


def test_every_parameter_learns() -> None:
    torch.manual_seed(1)
    segmenter = Segmenter(SMALL)
    reading = segmenter(tissue(2, 3, 64, 64))
    (reading.mask.square().mean() + reading.dense.square().mean()).backward()
    assert [name for name, p in segmenter.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("width", [0, 16, 40])
def test_widths_that_group_norm_cannot_divide(width: int) -> None:
    with pytest.raises(InputError, match=rf"segmenter\.pyramid_width is {width}"):
        SegmenterSettings(pyramid_width=width)


@pytest.mark.parametrize("size", [(50, 70), (64, 64), (200, 130), (20, 200), (1, 1)])
def test_images_of_any_size(untrained: Segmenter, size: tuple[int, int]) -> None:
    image = draws(0, "image", 0).integers(0, 256, (3, *size)).astype(np.uint8)
    nuclei = segment(untrained, image, tile=64)
    assert nuclei.shape == size
    assert nuclei.dtype == np.int32
    assert contiguous(nuclei)


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (200, 130), (65, 97)])
@pytest.mark.parametrize("batch", [1, 16])
def test_tiles_leave_no_seam(size: tuple[int, int], batch: int) -> None:
    """A segmenter that reads pixels by themselves finds in tiles exactly what it finds in the whole image."""
    instances = scattered(*size)
    image = encode(instances, None, draws(0, "fill", 0))
    reader = Transparent()
    nuclei = segment(reader, image, tile=64, batch=batch)  # type: ignore[arg-type]
    whole = reader(torch.from_numpy(image)[None].float() / 127.5 - 1)
    np.testing.assert_array_equal(nuclei, instances_of(whole, 0))
    assert compare(instances, nuclei).pq > 0.95
    assert all(shape[0] <= batch and shape[2:] == (64, 64) for shape in reader.seen[:-1])


def test_every_pixel_is_seen_off_a_tiles_edge() -> None:
    """A segmenter that is wrong along the edges of its tiles is outvoted in the interior of the image."""

    class BlindEdges(Transparent):
        def forward(self, image: Tensor) -> Reading:
            reading = super().forward(image)
            for edge in (np.s_[..., :4, :], np.s_[..., -4:, :], np.s_[..., :4], np.s_[..., -4:]):
                reading.dense[edge] = -2
            return reading

    instances = scattered(200, 130)
    inside = np.zeros(instances.shape, bool)
    inside[4:-4, 4:-4] = True
    instances[np.isin(instances, instances[~inside])] = 0  # what no tile shows off its edge
    nuclei = segment(BlindEdges(), encode(instances), tile=64)  # type: ignore[arg-type]
    assert compare(instances, nuclei).matched_nuclei == len(np.unique(instances)) - 1
    np.testing.assert_array_equal(nuclei > 0, instances > 0)


def test_perfect_masks_of_phantom_tissue_are_read_back() -> None:
    tiles = PhantomTissue(0, size=192, mpp=0.5)
    for index in range(4):
        instances = tiles[index].instances
        assert instances is not None
        for texture in (None, draws(0, "fill", index)):
            found = instances_of(reading_of(instances, texture), 0)
            assert compare(instances, found).pq > 0.95
            assert contiguous(found)


def test_touching_nuclei_stay_apart() -> None:
    instances = discs(64, 64, [(30, 20), (30, 31), (41, 26)], 7)
    found = instances_of(reading_of(instances), 0)
    assert compare(instances, found).matched_nuclei == 3
    np.testing.assert_array_equal(found > 0, instances > 0)
    blurred = reading_of(instances)
    blurred.mask = nn.functional.avg_pool2d(blurred.mask, 3, 1, 1)
    assert compare(instances, instances_of(blurred, 0)).matched_nuclei == 3


def test_the_index_chooses_the_tile() -> None:
    one, two = (reading_of(discs(64, 64, [(20.0, 20.0), (45.0, 45.0)][1 - k :], 7)) for k in (0, 1))
    both = Reading(torch.cat([one.mask, two.mask]), torch.cat([one.dense, two.dense]))
    assert [int(instances_of(both, k).max()) for k in (0, 1)] == [1, 2]


def test_foreground_without_a_drawn_nucleus_is_a_nucleus() -> None:
    instances = discs(64, 64, [(20, 20), (45, 45)], 7)
    reading = reading_of(instances)
    reading.mask[..., 32:, 32:] = -1
    assert compare(instances, instances_of(reading, 0)).matched_nuclei == 2


def test_drawn_nuclei_that_are_not_foreground_and_specks_are_left_out() -> None:
    instances = discs(64, 64, [(20, 20), (45, 45)], 7)
    reading = reading_of(instances)
    reading.dense[..., 32:, 32:] = -4
    reading.dense[..., 5:8, 50:53] = 4  # nine pixels
    found = instances_of(reading, 0)
    assert found.max() == 1
    assert found[20, 20] == 1


def test_nothing_found_is_an_empty_map() -> None:
    empty = instances_of(reading_of(np.zeros((64, 64), np.int32)), 0)
    assert empty.shape == (64, 64)
    assert empty.dtype == np.int32
    assert not empty.any()


def test_an_instance_file_is_read_back(tmp_path: Path, untrained: Segmenter) -> None:
    path = tmp_path / "segmenter.safetensors"
    write_card(path, untrained.state_dict(), {"kind": "segmenter", "settings": asdict(SMALL), "tile_size": 64})
    segmenter, card = load(path)
    assert card["tile_size"] == 64
    assert not segmenter.training
    x = tissue(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(segmenter(x).mask, untrained(x).mask)
        assert torch.equal(segmenter(x).dense, untrained(x).dense)


@pytest.mark.parametrize(
    "settings",
    [{**asdict(SMALL), "pyramid_width": 64}, {**asdict(SMALL), "encoder": "resnet34"}, {**asdict(SMALL), "new": 1}],
)
def test_weights_that_do_not_fit_the_card(tmp_path: Path, untrained: Segmenter, settings: dict[str, object]) -> None:
    path = tmp_path / "segmenter.safetensors"
    write_card(path, untrained.state_dict(), {"kind": "segmenter", "settings": settings})
    with pytest.raises(InputError, match=r"segmenter\.safetensors"):
        load(path)


def test_an_encoder_file_is_no_instance_file(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    write_card(path, {"a": torch.ones(1)}, {"kind": "encoder"})
    with pytest.raises(InputError, match="holds 'encoder', expected 'segmenter'"):
        load(path)


@pytest.mark.slow
def test_compiled_whole_it_gives_the_same_reading() -> None:
    network, images = Segmenter(SegmenterSettings("test_efficientnet_gn", pyramid_width=32)), torch.randn(2, 3, 64, 64)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    mine, other = network(images), compiled(images)
    torch.testing.assert_close(other.mask, mine.mask)
    torch.testing.assert_close(other.dense, mine.dense)
    (other.mask.sum() + other.dense.sum()).backward()


# Heads


@pytest.mark.parametrize("head", ["maskrcnn", "flows", "semantic", "none"])
def test_what_each_head_gives(head: Head) -> None:
    torch.manual_seed(0)
    network = Segmenter(replace(SMALL, encoder="test_efficientnet_gn", head=head), "grey")
    x = tissue(2, 3, 64, 96)
    for training in (True, False):
        network.train(training)
        with torch.no_grad():
            reading, unread = network(x), network(x, False)
        assert (reading.head, reading.form) == (unread.head, unread.form) == (head, "grey")
        assert reading.mask.shape == (2, 3, 64, 96)
        assert torch.equal(unread.mask, reading.mask)
        assert unread.dense is unread.pyramid is unread.detections is None
        values = {"semantic": 1, "flows": 3}.get(head)
        assert (None if reading.dense is None else reading.dense.shape) == (values and (2, values, 64, 96))
        sides = [level.shape[1:] for level in reading.pyramid or []]
        assert sides == [(32, 16, 24), (32, 8, 12), (32, 4, 6), (32, 2, 3)] * (head == "maskrcnn")
        assert (reading.detections is not None) is (head == "maskrcnn" and not training)
    assert [instances_of(reading, k).shape for k in (0, 1)] == [(64, 96)] * 2
    image = draws(0, "image", 0).integers(0, 256, (3, 100, 70)).astype(np.uint8)
    assert segment(network, image, tile=64).shape == (100, 70)


@pytest.mark.parametrize("form", ["paper", "grey", "binary", "two_channel"])
def test_without_a_head_the_mask_image_tells(form: Form) -> None:
    """Whole, and in tiles of a larger image."""

    class Copy(Transparent):
        head = "none"

        def forward(self, image: Tensor) -> Reading:
            return Reading(image, None, "none", form)

    instances = scattered(150, 130)
    image = encode(instances, None, draws(0, "fill", 0), form)
    found = segment(Copy(), image, tile=64)
    np.testing.assert_array_equal(found, decode(image, min_area=12, form=form))
    assert compare(instances, found).pq > 0.95


class Knowing(Transparent):
    """Reads from the first two channels of each pixel which place of the image it is, mirror images included."""

    def places(self, image: Tensor) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        self.seen.append(tuple(image.shape))
        coordinates = ((image[:, :2] + 1) * 127.5).round().to(torch.int64).numpy()
        return [(rows, columns) for rows, columns in coordinates]


def places_of(size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.stack([*np.indices(size), np.zeros(size)]).astype(np.uint8)


def test_flows_are_read_in_tiles_as_in_the_whole_image() -> None:
    instances = discs(150, 130, [(20, 20), (62, 60), (62, 75), (100, 33), (96, 97), (130, 64)], 9)
    dense = np.concatenate([FLOW_SCALE * flows_of(instances), np.where(instances > 0, 4.0, -4.0)[None]])

    class Flows(Knowing):
        head = "flows"

        def forward(self, image: Tensor) -> Reading:
            cut = np.stack([dense[:, rows, columns] for rows, columns in self.places(image)])
            return Reading(image, torch.from_numpy(cut).float(), "flows")

    found = segment(Flows(), places_of(instances.shape), tile=64)
    assert compare(instances, found).matched_nuclei == 6
    assert compare(instances, found).pq > 0.9
    assert found.max() == 6


@pytest.mark.parametrize("size", [(200, 130), (64, 64), (97, 65), (50, 40)])
@pytest.mark.parametrize("batch", [1, 4])
def test_detections_of_tiles_are_the_nuclei_of_the_image_each_once(size: tuple[int, int], batch: int) -> None:
    """A reader that knows what each tile shows, cut at its borders; nuclei lie across all of them."""
    truth = scattered(*size)

    class Boxes(Knowing):
        head = "maskrcnn"

        def forward(self, image: Tensor) -> Reading:
            tiles = [truth[rows, columns] for rows, columns in self.places(image)]
            return Reading(image, None, "maskrcnn", detections=[self.detect(tile) for tile in tiles])

        @staticmethod
        def detect(tile: NDArray[np.int32]) -> Detections:
            tile = label(tile, background=0, connectivity=2).astype(np.int32)  # a mirror image is another nucleus
            boxes, ids = boxes_of(torch.from_numpy(tile))
            masks = mask_targets(torch.from_numpy(tile), ids, boxes).float()
            return Detections(boxes, torch.full((len(ids),), 0.9), masks)

    reader = Boxes()
    found = segment(reader, places_of(size), tile=64, batch=batch)
    assert found.shape == size
    assert all(shape[0] <= batch for shape in reader.seen)
    areas = np.bincount(truth.ravel())[truth]
    kept = np.where(areas >= 20, truth, 0)  # what the image's edge leaves of some is small
    scores = compare(kept, found)
    assert scores.matched_nuclei == len(np.unique(kept)) - 1
    assert scores.sq > 0.85
    assert len(np.unique(truth[areas >= 14])) <= found.max() + 1 <= len(np.unique(truth[areas >= 10])), "each once"


def test_nothing_detected_is_an_empty_map() -> None:
    class Blind(Transparent):
        head = "maskrcnn"

        def forward(self, image: Tensor) -> Reading:
            none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 28, 28))
            return Reading(image, None, "maskrcnn", detections=[none] * len(image))

    found = segment(Blind(), np.zeros((3, 100, 80), np.uint8), tile=64)
    assert found.shape == (100, 80)
    assert not found.any()


def test_files_from_before_there_were_heads_are_read(tmp_path: Path, untrained: Segmenter) -> None:
    path = tmp_path / "segmenter.safetensors"
    old = {name: getattr(SMALL, name) for name in ("encoder", "norm", "pyramid_width")}
    write_card(path, untrained.state_dict(), {"kind": "segmenter", "settings": old, "tile_size": 64})
    segmenter, _ = load(path)
    assert (segmenter.settings.head, segmenter.form) == ("semantic", "paper")
    x = tissue(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(segmenter(x).dense, untrained(x).dense)


@pytest.mark.parametrize("head", ["maskrcnn", "flows", "none"])
def test_a_file_of_each_head_is_read_back(head: Head, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = replace(SMALL, encoder="test_efficientnet_gn", head=head, maskrcnn=MaskRCNNSettings("paper"))
    network, path = Segmenter(settings, "binary").eval(), tmp_path / "segmenter.safetensors"
    write_card(path, network.state_dict(), {"kind": "segmenter", "settings": asdict(settings), "mask_form": "binary"})
    segmenter, _ = load(path)
    assert (segmenter.settings, segmenter.form) == (settings, "binary")
    x = tissue(1, 3, 64, 64)
    with torch.no_grad():
        mine, other = segmenter(x), network(x)
    assert torch.equal(mine.mask, other.mask)
    assert mine.dense is other.dense is None or torch.equal(mine.dense, other.dense)
    assert (mine.detections is None) or torch.equal(mine.detections[0].boxes, other.detections[0].boxes)
