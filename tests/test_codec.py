"""Mask images: what is drawn, and what is read back."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from histo.codec import decode, encode, foreground
from histo.errors import InputError
from histo.masks import read_instances
from histo.metrics import compare
from histo.randomness import draws

DATA = os.environ.get("NUCLEATE_DATA")


def ellipses(seed, size=(160, 200), nuclei=40):
    """Ellipses that touch and cut each other and the border, with ids that leave gaps."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[: size[0], : size[1]]
    instances = np.zeros(size, dtype=np.int32)
    for nucleus in rng.permutation(500)[:nuclei] + 1:
        row, column = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        height, width = rng.uniform(4, 14, 2)
        inside = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1
        instances[inside & (instances == 0)] = nucleus
    return instances


def outline_by_loops(instances):
    height, width = instances.shape
    outline = np.zeros(instances.shape, dtype=bool)
    for row in range(height):
        for column in range(width):
            for below, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                other = (row + below, column + right)
                if instances[row, column] and 0 <= other[0] < height and 0 <= other[1] < width:
                    outline[row, column] |= instances[other] != instances[row, column]
    return outline


def test_channels_against_loops():
    instances = ellipses(0, size=(60, 70), nuclei=12)
    types = np.random.default_rng(0).integers(1, 3, instances.max() + 1).astype(np.uint8)
    outline = outline_by_loops(instances)
    image = encode(instances, types)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0], 255 * outline)
    for channel in (1, 2):
        np.testing.assert_array_equal(image[channel] == 112, (types[instances] == channel) & (instances > 0) & ~outline)
    assert set(np.unique(image[1:])) == {0, 112}
    np.testing.assert_array_equal(encode(instances)[1], image[1] + image[2])


def test_texture_is_smooth_within_its_range_and_repeatable():
    instances = np.ones((400, 420), dtype=np.int32)
    fill = encode(instances, texture=draws(0, "texture", 3))[1].astype(float) / 255
    assert fill.min() >= 0.2 - 1 / 255
    assert fill.max() <= 0.75 + 1 / 255
    assert fill.mean() == pytest.approx(0.44, abs=0.02)
    assert fill.std() == pytest.approx(0.13, abs=0.02)
    near, far = (np.corrcoef(fill[:, :-step].ravel(), fill[:, step:].ravel())[0, 1] for step in (1, 16))
    assert near > 0.9
    assert abs(far) < 0.1
    np.testing.assert_array_equal(
        encode(instances, texture=draws(0, "texture", 3)), encode(instances, texture=draws(0, "texture", 3))
    )
    assert (encode(instances, texture=draws(0, "texture", 4))[1] != encode(instances)[1]).any()


@pytest.mark.parametrize("seed", range(8))
def test_round_trip_of_ellipses(seed):
    instances = ellipses(seed)
    for image in (encode(instances), encode(instances, texture=draws(seed, "texture", 0))):
        np.testing.assert_array_equal(foreground(image), instances > 0)
        decoded = decode(image)
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded > 0, instances > 0)
        assert compare(instances, decoded).pq > 0.9  # many are slivers cut off by a neighbour
        assert np.unique(decoded).tolist() == list(range(decoded.max() + 1))


@pytest.mark.parametrize("seed", range(8))
def test_interiors_and_the_pixels_beside_them_never_change_nucleus(seed):
    # Blocks of random ids meet in every way two regions can: along sides, at corners, around holes.
    rng = np.random.default_rng(seed)
    instances = np.kron(rng.integers(0, 4, (12, 12)), np.ones((3, 3), dtype=int))
    instances = np.where(rng.random(instances.shape) < 0.05, 0, instances)
    decoded = decode(encode(instances))
    interior = (instances > 0) & ~outline_by_loops(instances)
    certain = ndimage.binary_dilation(interior) & (instances > 0)
    assert interior.sum() > 20
    for nucleus in np.unique(decoded[interior]):
        assert len(np.unique(instances[certain & (decoded == nucleus)])) == 1


def test_nuclei_that_meet_along_a_diagonal_come_back_exactly():
    rows, columns = np.indices((12, 12))
    instances = np.where(rows <= columns, 1, 2)
    np.testing.assert_array_equal(decode(encode(instances)), instances)


def test_touching_squares_stay_apart():
    instances = np.zeros((20, 30), dtype=np.int32)
    instances[4:12, 3:10], instances[4:12, 10:20], instances[12:18, 6:14] = 9, 4, 30
    decoded = decode(encode(instances))
    assert decoded.max() == 3
    assert compare(instances, decoded).sq > 0.95


def test_tiny_and_thin_nuclei_survive():
    instances = np.zeros((12, 20), dtype=np.int32)
    instances[1, 1] = 5
    instances[4:6, 4:6] = 6
    instances[9, 2:15] = 7
    instances[0:2, 18:20] = 8
    assert compare(instances, decode(encode(instances))).pq == 1.0


def test_nuclei_cut_by_the_border_have_no_outline_along_it():
    instances = np.ones((6, 6), dtype=np.int32)
    assert not encode(instances)[0].any()
    whole = ellipses(3)
    crop = (slice(40, 104), slice(50, 114))
    inner = np.s_[:, 1:-1, 1:-1]
    np.testing.assert_array_equal(encode(whole)[:, *crop][inner], encode(whole[crop])[inner])


def test_a_pixel_claimed_twice_goes_to_the_higher_id():
    image = np.zeros((3, 1, 3), dtype=np.uint8)
    image[0, 0, 1] = 255
    image[1, 0, [0, 2]] = 112
    assert decode(image).tolist() == [[1, 2, 2]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_soft_images_decode_like_exact_ones(dtype):
    rng = np.random.default_rng(0)
    instances = ellipses(1)
    exact = encode(instances, texture=draws(0, "texture", 0))
    soft = (exact / 255 + rng.uniform(-0.04, 0.04, exact.shape)).astype(dtype)
    np.testing.assert_array_equal(decode(soft), decode(exact))
    np.testing.assert_array_equal(foreground(soft), foreground(exact))


def test_a_blurred_image_keeps_most_nuclei_apart():
    instances = ellipses(2)
    blurred = ndimage.gaussian_filter(encode(instances) / 255, (0, 0.5, 0.5))
    assert compare(instances, decode(blurred, outline_threshold=0.3)).dq > 0.9


def test_an_image_that_is_nearly_all_red_is_decoded_whole_and_soon():
    image = np.zeros((3, 600, 600), dtype=np.float32)
    image[0] = 0.9
    image[0, 5, 5], image[1, 5, 5] = 0.0, 0.5
    start = time.perf_counter()
    decoded = decode(image)
    assert time.perf_counter() - start < 5
    assert decoded.all()
    assert decoded[5, 5] != decoded[599, 599]


def test_thresholds_act_on_the_same_scale_for_bytes_and_floats():
    image = np.zeros((3, 4, 4), dtype=np.uint8)
    image[1] = np.arange(16).reshape(4, 4) * 17
    for threshold in (0.1, 0.4, 0.99):
        np.testing.assert_array_equal(
            foreground(image, fill_threshold=threshold), foreground(image / 255, fill_threshold=threshold)
        )


def test_min_area_drops_only_specks_and_renumbers():
    instances = np.zeros((20, 20), dtype=np.int32)
    instances[0, 0], instances[3:9, 3:9], instances[12, 12:15], instances[14:19, 3:8] = 1, 2, 3, 4
    decoded = decode(encode(instances), min_area=4)
    assert np.unique(decoded).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(decoded > 0, np.isin(instances, [2, 4]))


def test_empty_map():
    image = encode(np.zeros((5, 7), dtype=np.int32), types=np.zeros(1, np.uint8), texture=draws(0, "texture", 0))
    assert not image.any()
    assert not decode(image).any()


@pytest.mark.parametrize("form", ["two_channel", "grey", "binary"])
def test_channels_of_the_forms_without_outline(form):
    instances = ellipses(0)
    types = np.random.default_rng(0).integers(1, 3, instances.max() + 1).astype(np.uint8)
    image, nucleus = encode(instances, types, form=form), instances > 0
    if form == "two_channel":
        expected = [np.zeros_like(nucleus), nucleus & (types[instances] == 1), nucleus & (types[instances] == 2)]
        np.testing.assert_array_equal(image, 112 * np.stack(expected))
    else:
        np.testing.assert_array_equal(image, np.stack([nucleus] * 3) * (112 if form == "grey" else 255))
    mottled = encode(instances, types, draws(0, "texture", 0), form)
    assert ((mottled > 0) == (image > 0)).all()
    assert (len(np.unique(mottled)) > 20) is (form != "binary")


@pytest.mark.parametrize("texture", [False, True])
@pytest.mark.parametrize("form", ["two_channel", "grey", "binary"])
def test_forms_without_outline_give_back_pieces_of_foreground(form, texture):
    """Nuclei that stand alone exactly, those that touch as one: the 8-connected components of the foreground."""
    instances = ellipses(1)
    types = np.random.default_rng(0).integers(1, 3, instances.max() + 1).astype(np.uint8)
    pieces, count = ndimage.label(instances > 0, structure=np.ones((3, 3)))
    image = encode(instances, types, draws(0, "texture", 0) if texture else None, form)
    assert 3 < count < len(np.unique(instances)) - 1, "some must touch and some stand alone"
    for read in (image, image / 255, (image / 255).astype(np.float32) + np.float32(0.02)):
        np.testing.assert_array_equal(decode(read, form=form), pieces)
    alone = np.isin(pieces, [k for k in range(1, count + 1) if len(np.unique(instances[pieces == k])) == 1])
    assert compare(np.where(alone, instances, 0), np.where(alone, pieces, 0)).pq == 1.0


def test_the_form_paper_is_the_one_without_a_name():
    instances = ellipses(4)
    image = encode(instances, texture=draws(0, "texture", 0))
    np.testing.assert_array_equal(encode(instances, texture=draws(0, "texture", 0), form="paper"), image)
    np.testing.assert_array_equal(decode(image, form="paper"), decode(image))
    assert decode(image).max() > decode(encode(instances, form="binary"), form="binary").max()


def test_binary_is_read_at_half_of_full_brightness():
    image = np.zeros((3, 4, 9))
    image[:, 1:3, 1:3], image[:, 1:3, 5:8] = 0.49, 0.51
    assert np.unique(decode(image, form="binary")[:, :5]).tolist() == [0]
    assert np.unique(decode(image, form="binary")[:, 5:]).tolist() == [0, 1]
    assert decode(image, form="grey").max() == 2


@pytest.mark.parametrize(
    ("types", "words"), [([0, 1], "largest nucleus id is 5"), ([0, 0, 0, 0, 0, 3], "Nucleus 5 has type 3")]
)
def test_wrong_types_are_refused(types, words):
    with pytest.raises(InputError, match=words):
        encode(np.array([[0, 5]]), np.array(types, dtype=np.uint8))


@pytest.mark.parametrize(
    ("image", "thresholds", "words"),
    [
        (np.zeros((4, 4, 3), np.uint8), {}, r"\(4, 4, 3\)"),
        (np.zeros((3, 4, 4), np.int32), {}, "int32"),
        (np.full((3, 4, 4), np.nan), {}, "NaN"),
        (np.zeros((3, 4, 4), np.uint8), {"fill_threshold": 0}, "fill_threshold is 0"),
        (np.zeros((3, 4, 4), np.uint8), {"outline_threshold": 128}, "outline_threshold is 128"),
        (np.zeros((1, 4, 4), np.uint8), {"form": "grey"}, r"\(1, 4, 4\)"),
        (np.zeros((3, 4, 4), np.int32), {"form": "two_channel"}, "int32"),
        (np.full((3, 4, 4), np.nan), {"form": "grey"}, "NaN"),
        (np.zeros((3, 4, 4), np.uint8), {"form": "binary", "fill_threshold": 0}, "fill_threshold is 0"),
    ],
)
def test_wrong_mask_images_are_refused(image, thresholds, words):
    with pytest.raises(InputError, match=words):
        decode(image, **thresholds)


def test_time_for_a_large_tile_and_a_crop():
    instances = ellipses(0, size=(1000, 1000), nuclei=500)
    both = crop = np.inf
    for _ in range(5):
        start = time.perf_counter()
        decode(encode(instances))
        both = min(both, time.perf_counter() - start)
        start = time.perf_counter()
        encode(instances[:128, :128], texture=draws(0, "texture", 0))
        crop = min(crop, time.perf_counter() - start)
    assert both < 0.06
    assert crop < 0.006


@pytest.mark.skipif(not DATA, reason="NUCLEATE_DATA is not set")
def test_round_trip_of_real_labels():
    paths = sorted(Path(DATA, "nuclei/monuseg2018/labels").glob("*.png"))
    scores = []
    for path in paths:
        instances = read_instances(path)
        scores.append(compare(instances, decode(encode(instances))))
        assert scores[-1].pq >= 0.95, path.name
        assert scores[-1].dice == 1.0, path.name
    assert np.mean([score.pq for score in scores]) >= 0.985
