"""Crops against a slow reference: in these tiles the colour of a pixel tells its place or its instance."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from histo.crops import crop
from histo.errors import InputError
from histo.randomness import draws
from histo.tiles import Tile, open_tiles


def tile_of(instances: NDArray[np.int32], types: NDArray[np.uint8] | None = None) -> Tile:
    """A tile whose three channels are the low byte of row, column and id."""
    rows, columns = np.indices(instances.shape)
    image = np.stack([rows, columns, instances]).astype(np.uint8)
    return Tile(image, "key", "source", "patient", 0.25, "label", "train", instances, types)


def nuclei(height: int, width: int, number: int = 12, radius: float = 5) -> NDArray[np.int32]:
    """Discs of random place with ids that leave gaps."""
    generator = np.random.default_rng(0)
    rows, columns = np.indices((height, width))
    instances = np.zeros((height, width), dtype=np.int32)
    for i in range(number):
        y, x = generator.uniform(0, height), generator.uniform(0, width)
        instances[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 3 * i + 2
    return instances


def contiguous(instances: NDArray[np.int32]) -> bool:
    return set(np.unique(instances)) - {0} == set(range(1, int(instances.max()) + 1))


def same_partition(one: NDArray[np.int32], other: NDArray[np.int32]) -> bool:
    """Whether two maps differ by nothing but a one-to-one change of ids that keeps the background."""
    pairs = {(int(a), int(b)) for a, b in zip(one.ravel(), other.ravel(), strict=True)}
    one_to_one = len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    return one_to_one and all((a == 0) == (b == 0) for a, b in pairs)


@pytest.mark.parametrize("shape", [(60, 90), (200, 40), (32, 32)])
def test_plain_crop_is_a_window_of_the_tile(shape: tuple[int, int]) -> None:
    tile = tile_of(nuclei(*shape))
    assert tile.instances is not None
    places = set()
    for index in range(60):
        cut = crop(tile, 32, draws(0, "crop", index), turn=False)
        top, left = int(cut.image[0, 0, 0]), int(cut.image[1, 0, 0])
        places.add((top, left))
        np.testing.assert_array_equal(cut.image, tile.image[:, top : top + 32, left : left + 32])
        assert cut.instances is not None
        assert same_partition(cut.instances, tile.instances[top : top + 32, left : left + 32])
        assert contiguous(cut.instances)
    reached = {(min(i, shape[0] - 32), min(j, shape[1] - 32)) for i, j in places}
    assert places == reached
    assert len(places) == 1 if shape == (32, 32) else len(places) > 20


def test_every_window_is_reached() -> None:
    tile = tile_of(np.zeros((6, 5), dtype=np.int32))
    corners = [crop(tile, 4, draws(0, "crop", i), turn=False).image[:2, 0, 0] for i in range(200)]
    assert {tuple(map(int, corner)) for corner in corners} == {(i, j) for i in range(3) for j in range(2)}


def test_the_eight_turns() -> None:
    tile = tile_of(np.arange(9, dtype=np.int32).reshape(3, 3))
    upright = tile.image
    expected = {np.rot90(side, k, axes=(1, 2)).tobytes() for side in (upright, upright[:, :, ::-1]) for k in range(4)}
    counts: dict[bytes, int] = {}
    for index in range(400):
        cut = crop(tile, 3, draws(0, "crop", index))
        counts[cut.image.tobytes()] = counts.get(cut.image.tobytes(), 0) + 1
        np.testing.assert_array_equal(cut.image[2], cut.instances)
    assert set(counts) == expected
    assert min(counts.values()) > 20


@pytest.mark.parametrize("smallest_side", [1.0, 0.6])
@pytest.mark.parametrize("shape", [(64, 80), (20, 100), (17, 9), (1, 40), (1, 1)])
@pytest.mark.parametrize("turn", [True, False])
def test_image_and_instances_stay_aligned(shape: tuple[int, int], smallest_side: float, turn: bool) -> None:
    instances = nuclei(*shape)
    tile = tile_of(instances)
    # Only two colours, so that bilinear mixing shows on which side of half a pixel lies.
    tile = Tile(
        np.repeat((instances > 0)[None] * np.uint8(255), 3, axis=0), "k", "s", None, None, None, None, instances
    )
    seen = 0
    for index in range(30):
        cut = crop(tile, 48, draws(1, "crop", index), smallest_side=smallest_side, turn=turn)
        assert cut.image.shape == (3, 48, 48)
        assert cut.image.dtype == np.uint8
        assert cut.instances is not None
        assert cut.instances.shape == (48, 48)
        assert cut.instances.dtype == np.int32
        assert contiguous(cut.instances)
        inside = ndimage.binary_erosion(cut.instances > 0, border_value=1)
        outside = ndimage.binary_erosion(cut.instances == 0, border_value=1)
        if smallest_side == 1:
            np.testing.assert_array_equal(cut.image[0] > 127, cut.instances > 0)
        # Away from edges the colours are pure but for the mixing of the outermost pixel.
        assert (cut.image[0][inside] > 60).all()
        assert (cut.image[0][outside] < 195).all()
        assert np.mean((cut.image[0] > 127) == (cut.instances > 0)) > 0.97
        seen += int(inside.sum())
    assert seen > 0 or not instances.any()


def test_jitter_magnifies_and_says_so() -> None:
    tile = Tile(tile_of(np.zeros((250, 250), dtype=np.int32)).image, "k", "s", None, 0.5, None, None)
    sides = []
    for index in range(300):
        cut = crop(tile, 100, draws(2, "crop", index), smallest_side=0.8, turn=False)
        assert cut.mpp is not None
        sides.append(cut.mpp / 0.5 * 100)
        span = int(cut.image[0, -1, 0]) - int(cut.image[0, 0, 0]) + 1
        assert span == pytest.approx(sides[-1], abs=2)
        assert cut.instances is None
    assert min(sides) == pytest.approx(80, abs=1)
    assert max(sides) == pytest.approx(100, abs=1)
    assert np.mean(sides) == pytest.approx(90, abs=1.5)
    assert crop(tile, 100, draws(2, "crop", 0)).mpp == 0.5


def test_nearest_pixel_of_instances_matches_the_pixel_centres() -> None:
    instances = np.arange(1, 17, dtype=np.int32).reshape(4, 4)
    cut = crop(tile_of(instances), 8, FixedSide(0.5), smallest_side=0.5, turn=False)
    np.testing.assert_array_equal(cut.instances, np.kron(instances, np.ones((2, 2), dtype=int)))


class FixedSide(np.random.Generator):
    """A generator whose uniform draws are all the same."""

    def __init__(self, share: float) -> None:
        super().__init__(np.random.Philox(0))
        self._share = share

    def uniform(self, *args: float, **kwargs: float) -> float:  # type: ignore[override]
        return self._share


def reflected(pixels: NDArray[np.generic], top: int, left: int, side: int) -> NDArray[np.generic]:
    """The reference: walk along each axis and turn round at its outermost pixels."""

    def walk(first: int, length: int) -> list[int]:
        positions = []
        for place in range(first, first + side):
            while not 0 <= place < length:
                place = -place if place < 0 else 2 * (length - 1) - place
            positions.append(place)
        return positions

    return pixels[np.ix_(walk(top, pixels.shape[0]), walk(left, pixels.shape[1]))]


@pytest.mark.parametrize("shape", [(10, 40), (40, 10), (13, 7), (5, 3), (2, 50)])
def test_small_tiles_are_continued_by_reflection(shape: tuple[int, int]) -> None:
    tile = tile_of(np.zeros(shape, dtype=np.int32))
    for index in range(20):
        cut = crop(tile, 32, draws(3, "crop", index), turn=False)
        places = [
            (top, left)
            for top in range(min(0, shape[0] - 32), max(0, shape[0] - 32) + 1)
            for left in range(min(0, shape[1] - 32), max(0, shape[1] - 32) + 1)
            if np.array_equal(cut.image[0], reflected(tile.image[0], top, left, 32))
            and np.array_equal(cut.image[1], reflected(tile.image[1], top, left, 32))
        ]
        assert places


def test_mirrored_nuclei_keep_their_id_only_where_they_touch() -> None:
    instances = np.zeros((8, 12), dtype=np.int32)
    instances[3:6, 0:2] = 5  # touches the left border, so its mirror image is the same nucleus
    instances[3:6, 5:7] = 9  # stands free, so its mirror images are others
    types = np.zeros(10, dtype=np.uint8)
    types[5], types[9] = 1, 2
    several = 0
    for index in range(30):
        cut = crop(tile_of(instances, types), 24, draws(4, "crop", index))
        assert cut.instances is not None
        assert cut.types is not None
        assert contiguous(cut.instances)
        colours = cut.image[2]
        for number in range(1, int(cut.instances.max()) + 1):
            _, pieces = ndimage.label(cut.instances == number, structure=np.ones((3, 3)))
            assert pieces == 1
            assert set(colours[cut.instances == number]) == {5 if cut.types[number] == 1 else 9}
        _, expected = ndimage.label(colours > 0, structure=np.ones((3, 3)))
        assert int(cut.instances.max()) == expected
        several += expected > 2
    assert several == 30


def test_types_follow_their_instances() -> None:
    instances = nuclei(60, 60)
    types = np.zeros(int(instances.max()) + 1, dtype=np.uint8)
    types[2::3] = np.arange(len(types[2::3])) % 2 + 1
    for index in range(30):
        cut = crop(tile_of(instances, types), 24, draws(5, "crop", index), smallest_side=0.7)
        assert cut.instances is not None
        assert cut.types is not None
        assert cut.types.dtype == np.uint8
        assert len(cut.types) == cut.instances.max() + 1
        core = ndimage.minimum_filter(cut.image[2], 3) == ndimage.maximum_filter(cut.image[2], 3)
        core &= cut.instances > 0
        np.testing.assert_array_equal(types[cut.image[2][core]], cut.types[cut.instances[core]])


def test_an_empty_crop() -> None:
    instances = np.zeros((40, 40), dtype=np.int32)
    instances[0, 0] = 1
    cut = crop(tile_of(instances, np.array([0, 2], dtype=np.uint8)), 8, draws(6, "crop", 1), turn=False)
    assert cut.image[2].max() == 0
    assert cut.instances is not None
    assert cut.types is not None
    assert cut.instances.max() == 0
    assert cut.types.tolist() == [0]


def test_ids_as_large_as_they_come() -> None:
    instances = np.zeros((20, 20), dtype=np.int32)
    instances[5:15, 5:15] = 2**31 - 1
    cut = crop(tile_of(instances), 12, draws(7, "crop", 0))
    assert cut.instances is not None
    assert cut.instances.max() == 1


def test_the_draws_decide_and_the_tile_is_left_alone() -> None:
    tile = tile_of(nuclei(50, 50))
    assert tile.instances is not None
    before = tile.image.copy(), tile.instances.copy()
    tile.image.flags.writeable = tile.instances.flags.writeable = False
    one, two = (crop(tile, 16, draws(8, "crop", 3), smallest_side=0.8) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.instances, two.instances)
    for size in (16, 50):
        cut = crop(tile, size, draws(8, "crop", 4))
        assert cut.instances is not None
        assert cut.image.flags.c_contiguous
        assert cut.instances.flags.c_contiguous
        cut.image[:] = 0
        cut.instances[:] = 0
    np.testing.assert_array_equal(tile.image, before[0])
    np.testing.assert_array_equal(tile.instances, before[1])
    assert (one.key, one.source, one.patient, one.label, one.split) == ("key", "source", "patient", "label", "train")


@pytest.mark.parametrize(("size", "smallest_side"), [(0, 1.0), (-4, 1.0), (8, 0.0), (8, 1.5), (8, float("nan"))])
def test_wrong_arguments(size: int, smallest_side: float) -> None:
    with pytest.raises(InputError, match="expected"):
        crop(tile_of(nuclei(20, 20)), size, draws(0, "crop", 0), smallest_side=smallest_side)


def test_a_small_crop_of_a_large_tile_is_quick() -> None:
    tile = tile_of(nuclei(1000, 1000, number=40, radius=40))
    best = np.inf
    for index in range(200):
        generator = draws(9, "crop", index)
        start = time.perf_counter()
        crop(tile, 64, generator, smallest_side=0.8)
        best = min(best, time.perf_counter() - start)
    assert best < 3 * 0.3e-3


def test_real_crops() -> None:
    if "NUCLEATE_DATA" not in os.environ:
        pytest.skip("NUCLEATE_DATA is unset")
    tile = open_tiles(Path(os.environ["NUCLEATE_DATA"]) / "nuclei" / "monuseg2018")[0]
    cut = crop(tile, 256, draws(0, "crop", 0), smallest_side=0.8)
    assert cut.image.shape == (3, 256, 256)
    assert cut.instances is not None
    assert contiguous(cut.instances)
    # Nuclei are darker than what surrounds them.
    assert cut.image[0][cut.instances > 0].mean() < cut.image[0][cut.instances == 0].mean()


def test_a_step_shows_so_many_pixels_as_one() -> None:
    """Colours tell the place: neighbours in the crop are three pixels of the tile apart, and µm/px say so."""
    cut = crop(tile_of(nuclei(200, 200)), 32, draws(0, "crop", 0), step=3, turn=False)
    assert cut.image.shape == (3, 32, 32)
    assert cut.mpp == pytest.approx(0.75)
    inner = cut.image[0, 1:-1, 5].astype(int)  # where none of what becomes one pixel lies beyond the crop
    assert set(np.diff(inner)) == {3}
    assert cut.instances is not None
    assert 0 < (cut.instances > 0).mean() < 0.5
    with pytest.raises(InputError, match="step is 0"):
        crop(tile_of(nuclei(200, 200)), 32, draws(0, "crop", 0), step=0)
