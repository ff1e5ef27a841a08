"""Nuclei decoded in pieces: the same as those of the whole image, whatever lies on a border."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from histo.codec import encode
from histo.overlap import Band
from histo.phantom import PhantomTissue
from histo.segmenters import Reading, instances_of
from histo.stitching import stitch


def in_bands(maps: NDArray[np.float32], rows: int) -> Iterator[Band]:
    for top in range(0, maps.shape[1], rows):
        yield top, maps[:, top : top + rows]


def components(maps: NDArray[np.float32]) -> NDArray[np.int32]:
    return ndimage.label(maps[0] > 0)[0].astype(np.int32)


def read(maps: NDArray[np.float32]) -> NDArray[np.int32]:
    both = torch.from_numpy(maps)[None]
    return instances_of(Reading(both[:, :3], both[:, 3:]), 0)


def same_nuclei(one: NDArray[np.int32], other: NDArray[np.int32]) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(len(np.unique(row)) == len(row) for row in pairs) and np.array_equal(one > 0, other > 0)


@pytest.fixture(scope="module")
def phantom() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Dense maps float32 [4, H, W] as a perfect segmenter would draw them, and what they decode to at once."""
    tile = PhantomTissue(3, size=384, count=1)[0]
    assert tile.instances is not None
    drawn = encode(tile.instances).astype(np.float32) / 127.5 - 1
    inside = ndimage.distance_transform_edt(tile.instances > 0) - ndimage.distance_transform_edt(tile.instances == 0)
    maps = np.concatenate([drawn, inside[None].astype(np.float32)])
    return maps, read(maps)


@pytest.mark.parametrize(("core", "rows"), [(384, 384), (64, 16), (96, 7), (50, 48)])
def test_pieces_of_a_phantom_give_the_nuclei_of_the_whole(
    phantom: tuple[NDArray[np.float32], NDArray[np.int32]], core: int, rows: int
) -> None:
    maps, whole = phantom
    stitched, _ = stitch(in_bands(maps, rows), whole.shape, read, core=core, margin=64)
    assert whole.max() > 100
    assert stitched.max() == whole.max()
    assert same_nuclei(stitched, whole)


def test_ids_follow_the_first_pixels(phantom: tuple[NDArray[np.float32], NDArray[np.int32]]) -> None:
    maps, whole = phantom
    stitched, _ = stitch(in_bands(maps, 16), whole.shape, read, core=64, margin=64)
    ids, first = np.unique(stitched, return_index=True)
    np.testing.assert_array_equal(ids, np.arange(stitched.max() + 1))
    assert (np.diff(first[1:]) > 0).all()


def test_a_nucleus_longer_than_pieces_is_one() -> None:
    maps = np.full((1, 400, 60), -1, dtype=np.float32)
    maps[0, 10:390, 10:20] = 1  # runs through all pieces
    maps[0, 30:34, 30:34] = 1
    maps[0, 62:67, 30:34] = 1  # across a core's end
    maps[0, 64:70, 40:44] = 1  # begins with a core
    maps[0, 395:, 40:44] = 1
    stitched, _ = stitch(in_bands(maps, 10), (400, 60), components, core=64, margin=16)
    assert same_nuclei(stitched, components(maps))


def test_means_are_those_of_the_stitched_nuclei() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 400, 60)).astype(np.float32)
    maps[0] = -1
    maps[0, 10:390, 10:20] = maps[0, 62:67, 30:34] = maps[0, 5:9, 40:44] = 1  # one through all pieces, one across two
    stitched, means = stitch(in_bands(maps, 10), (400, 60), components, core=64, margin=16)
    assert (means.dtype, means.shape) == (np.float32, (4, 2))
    for number in (1, 2, 3):
        np.testing.assert_allclose(means[number], maps[:, stitched == number].mean(1), atol=1e-6)


def test_nothing_and_everything() -> None:
    for value, nuclei in ((-1, 0), (1, 1)):
        maps = np.full((1, 100, 20), value, dtype=np.float32)
        stitched, _ = stitch(in_bands(maps, 30), (100, 20), components, core=32, margin=8)
        assert stitched.dtype == np.int32
        assert len(np.unique(stitched)) == 1
        assert stitched.max() == nuclei


def test_what_decoding_gets_wrong_at_the_edge_of_a_piece_stays_out() -> None:
    maps = np.full((1, 300, 60), -1, dtype=np.float32)
    for k, row in enumerate(range(5, 285, 7)):
        maps[0, row : row + 5, 5 + 9 * (k % 5) : 10 + 9 * (k % 5)] = 1

    def decode(piece: NDArray[np.float32]) -> NDArray[np.int32]:
        """Components, and a speck in the first and in the last row, where nothing is."""
        labels = components(piece)
        for row in (0, -1):
            labels[row, 55:58] = labels.max() + 1
        return labels

    stitched, _ = stitch(in_bands(maps, 300), (300, 60), decode, core=64, margin=16)
    specks = stitched[:, 55:58].any(axis=1)
    assert np.flatnonzero(specks).tolist() == [0, 299]  # the image's own edges
    stitched[:, 55:58] = 0
    assert same_nuclei(stitched, components(maps))


def test_a_nucleus_is_kept_whose_first_row_is_in_doubt() -> None:
    maps = np.full((1, 128, 20), -1, dtype=np.float32)
    maps[0, 63:75, 5:12] = 1

    def decode(piece: NDArray[np.float32]) -> NDArray[np.int32]:
        """Components without their first row in the lower half of a piece."""
        labels = components(piece)
        (place,) = ndimage.find_objects(labels)
        if place[0].start > len(labels) // 2:
            labels[place[0].start] = 0
        return labels

    stitched, _ = stitch(in_bands(maps, 32), (128, 20), decode, core=64, margin=16)
    assert stitched.max() == 1
    np.testing.assert_array_equal(stitched > 0, maps[0] > 0)
