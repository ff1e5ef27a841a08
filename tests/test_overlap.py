"""Images of any size through a network of square tiles: exact where it must be, smooth elsewhere, in bounded memory."""

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from histo.errors import InputError
from histo.overlap import Corner, Grid, at_side, blend, to_image, window_of, windows
from histo.randomness import draws

SIZES = [(1, 1), (5, 70), (16, 16), (17, 16), (100, 37), (64, 130)]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return draws(0, "picture", 0).integers(0, 256, (3, height, width)).astype(np.uint8)


def identity(tiles: Tensor, corners: list[Corner]) -> Tensor:
    return tiles


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("step", "origin"), [(16, (0, 0)), (8, (0, 0)), (8, (3, -5)), (4, (1, 2)), (9, (0, 0)), (13, (0, 0)), (16, (5, 3))]
)
def test_a_network_that_changes_nothing_gives_the_image_back(size: tuple[int, int], step: int, origin: Corner) -> None:
    image = picture(*size)
    bands = list(blend(identity, image, Grid(16, step, origin), batch=3))
    ends = [top + band.shape[1] for top, band in bands]
    assert [top for top, _ in bands] == [0, *ends[:-1]]
    assert ends[-1] == size[0]
    np.testing.assert_array_equal(to_image(bands, size), image)


def test_the_blend_is_the_weighted_mean_of_all_windows() -> None:
    image, grid = picture(45, 60), Grid(16, 4, (3, 2))

    def network(tiles: Tensor, corners: list[Corner]) -> Tensor:
        return tiles[:, :2] * torch.tensor([[row * 0.1 + column for row, column in corners]]).T[..., None, None]

    total, norm = np.zeros((2, 45, 60)), np.zeros((45, 60))
    bump = np.sin(np.pi * (np.arange(16) + 0.5) / 16) ** 2
    for row in range(-13, 45, 4):
        for column in range(-14, 60, 4):
            for i in range(16):
                for j in range(16):
                    y, x = row + i, column + j
                    if 0 <= y < 45 and 0 <= x < 60:
                        weight = bump[i] * bump[j]
                        total[:, y, x] += weight * (image[:2, y, x] / 127.5 - 1) * (row * 0.1 + column)
                        norm[y, x] += weight
    blended = np.concatenate([band for _, band in blend(network, image, grid)], 1)
    np.testing.assert_allclose(blended, total / norm, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [11, 12, 15])
def test_windows_that_overlap_little_fade_where_they_overlap_alone(step: int) -> None:
    """Against a slow sum over windows from the first pixel on; a border that one window has is that window's."""
    image, grid = picture(45, 60), Grid(16, step)

    def network(tiles: Tensor, corners: list[Corner]) -> Tensor:
        return tiles[:, :1] * 0 + torch.tensor([[row * 0.1 + column for row, column in corners]]).T[..., None, None]

    overlap = 16 - step
    fade = [np.sin(np.pi * (k + 0.5) / (2 * overlap)) ** 2 for k in range(overlap)]
    profile = [*fade, *[1.0] * (16 - 2 * overlap), *fade[::-1]]
    total, norm = np.zeros((45, 60)), np.zeros((45, 60))
    for row in range(0, 45 - overlap, step):
        for column in range(0, 60 - overlap, step):
            for i, j in np.ndindex(16, 16):
                if row + i < 45 and column + j < 60:
                    weight = profile[i] * profile[j]
                    total[row + i, column + j] += weight * (row * 0.1 + column)
                    norm[row + i, column + j] += weight
    assert (norm > 0).all()
    blended = np.concatenate([band for _, band in blend(network, image, grid)], 1)[0]
    np.testing.assert_allclose(blended, total / norm, rtol=1e-4, atol=1e-4)
    assert blended[0, 0] == 0
    assert len(grid.starts(60, 1)) < len(Grid(16, 8).starts(60, 1))


def test_tiles_that_disagree_are_blended_without_a_step() -> None:
    def parity(tiles: Tensor, corners: list[Corner]) -> Tensor:
        return torch.tensor([float(column // 16 % 2) for _, column in corners])[:, None, None, None].expand(
            -1, 1, 32, 32
        )

    bands = blend(parity, picture(32, 400), Grid(32, 16))
    blended = np.concatenate([band for _, band in bands], 1)[0, 0]
    assert np.ptp(blended) > 0.9
    assert np.abs(np.diff(blended)).max() < 1.1 * np.pi / 32  # the steepest slope of sin²


def test_what_a_pixel_becomes_does_not_depend_on_the_size_of_the_image() -> None:
    image = picture(90, 90)

    def position(tiles: Tensor, corners: list[Corner]) -> Tensor:
        ramp = torch.arange(16.0)
        return tiles * (1 + ramp[:, None] * 0.1 + ramp * 0.03)

    whole, part = (
        np.concatenate([band for _, band in blend(position, cut, Grid(16, 8))], 1)
        for cut in (image, image[:, :60, :70])
    )
    np.testing.assert_array_equal(whole[:, :44, :54], part[:, :44, :54])


def test_windows_are_mirrored_beyond_the_border() -> None:
    image = picture(5, 7)
    (cut,) = windows(image, [(-4, -3)], 20)
    np.testing.assert_array_equal(cut, np.pad(image, ((0, 0), (4, 11), (3, 10)), mode="symmetric"))


def test_an_image_no_larger_than_a_tile_is_one_window() -> None:
    seen: list[Corner] = []

    def network(tiles: Tensor, corners: list[Corner]) -> Tensor:
        seen.extend(corners)
        return tiles

    list(blend(network, picture(16, 12), Grid(16, 8, (3, 3))))
    assert seen == [(0, 0)]


def test_memory_does_not_grow_with_the_height() -> None:
    def peak(height: int) -> int:
        image = np.zeros((3, height, 96), dtype=np.uint8)
        tracemalloc.start()
        for _ in blend(identity, image, Grid(32, 16)):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(4000) < 2 * peak(400)
    largest = max(band.shape[1] for _, band in blend(identity, np.zeros((3, 400, 96), np.uint8), Grid(32, 16)))
    assert largest <= 32


@pytest.mark.parametrize(("tile", "step"), [(16, 5), (16, 32), (16, 0), (0, 1)])
def test_steps_that_do_not_divide_the_tile_are_refused(tile: int, step: int) -> None:
    with pytest.raises(InputError, match=f"have a step of {step}"):
        Grid(tile, step)


def test_a_network_of_coarser_pixels_sees_them_and_its_maps_come_back() -> None:
    """Of an image that changes slowly, read at a third of its pixels, a network that changes nothing gives it back."""
    rows, columns = np.indices((150, 130))
    image = np.stack([rows, columns, (rows + columns) / 2]).astype(np.uint8)
    seen = []

    def identity(tiles: Tensor, corners: list[Corner]) -> Tensor:
        seen.append(tiles.shape[2:])
        return tiles

    window = window_of(32, 3.01)
    bands = blend(at_side(identity, 32), image, Grid(window, window // 2))
    found = to_image(bands, (150, 130)).astype(int)
    assert window == 96
    assert set(seen) == {(32, 32)}
    inner = np.s_[:, 8:-8, 8:-8]  # where the mirrored border is not averaged in
    assert np.abs(found - image.astype(int))[inner].max() <= 1


def test_windows_of_the_right_size_are_left_alone() -> None:
    tiles = torch.rand(2, 3, 32, 32)
    assert at_side(lambda tiles, corners: tiles, 32)(tiles, []) is tiles


def test_windows_side_by_side_begin_where_they_are_told() -> None:
    assert Grid(16, 16, (5, 3)).starts(40, 0) == [-11, 5, 21, 37]
    assert (Grid(16, 16).weights(40) == 1).all()
