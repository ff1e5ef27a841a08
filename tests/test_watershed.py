"""Pseudo-masks on drawn nuclei with a known map, on tiles without nuclei, and above a floor on real tiles."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from histo import stains
from histo.errors import InputError
from histo.metrics import compare, mean_scores
from histo.randomness import draws
from histo.tiles import open_tiles
from histo.watershed import Watershed, segment

NUCLEI = Path(os.environ.get("NUCLEATE_DATA", "unset")) / "nuclei"


def render(truth: NDArray[np.int32], index: int = 0) -> NDArray[np.uint8]:
    """Haematoxylin where there are nuclei, eosin elsewhere, blurred and with sensor noise: uint8 [3, H, W]."""
    rng = draws(0, "render", index)
    inside = ndimage.gaussian_filter((truth > 0).astype(np.float32), 1.0)
    amounts = np.stack([0.08 + 0.5 * inside, 0.30 - 0.12 * inside, np.zeros_like(inside)])
    image = stains.recompose(torch.from_numpy(amounts)[None])[0].numpy().astype(np.float32)
    return (image + rng.normal(0, 4, image.shape)).round().clip(0, 255).astype(np.uint8)


def discs(size: int, centres: list[tuple[int, int]], radius: int) -> NDArray[np.int32]:
    y, x = np.ogrid[:size, :size]
    truth = np.zeros((size, size), np.int32)
    for number, (row, column) in enumerate(centres, start=1):
        truth[((y - row) ** 2 + (x - column) ** 2 <= radius**2) & (truth == 0)] = number
    return truth


def lattice(size: int = 256) -> NDArray[np.int32]:
    rng = draws(0, "lattice", 0)
    centres = [
        (r + int(rng.integers(-4, 5)), c + int(rng.integers(-4, 5)))
        for r in range(24, size, 42)
        for c in range(24, size, 42)
    ]
    return discs(size, centres, 12)


def test_separate_nuclei_are_found_with_their_outlines() -> None:
    truth = lattice()
    scores = compare(truth, segment(render(truth), 0.25))
    assert scores.pq > 0.85
    assert scores.dice > 0.92


def test_touching_nuclei_are_split() -> None:
    centres = [(r, c + d) for r in (40, 110, 180) for c in (40, 110, 180) for d in (0, 23)]
    truth = discs(224, centres, 12)
    nuclei = segment(render(truth), 0.25)
    assert ndimage.label(truth > 0)[1] == len(centres) // 2
    assert nuclei.max() == len(centres)
    assert compare(truth, nuclei).pq > 0.75


def test_nuclei_are_found_beside_much_darker_ones() -> None:
    truth = lattice()
    dark = np.where(truth % 2 == 0, truth, 0)
    pale, deep = render(truth).astype(np.float32), render(dark).astype(np.float32)
    image = (pale * deep / 230).clip(0, 255).astype(np.uint8)
    assert compare(truth, segment(image, 0.25)).pq > 0.7


def test_the_same_tissue_at_twice_the_magnification_gives_nearly_the_same_nuclei() -> None:
    truth = lattice()
    image = render(truth)
    larger = torch.nn.functional.interpolate(torch.from_numpy(image)[None].float(), scale_factor=2, mode="bilinear")
    enlarged = larger[0].round().clamp(0, 255).to(torch.uint8).numpy()
    scores = compare(segment(image, 0.25), segment(enlarged, 0.125)[::2, ::2])
    assert scores.pq > 0.85


def test_mpp_sets_the_size_of_a_nucleus() -> None:
    image = render(lattice())
    assert segment(image, 0.25).max() > 30
    assert segment(image, 0.10).max() == 0


def test_map_is_int32_numbered_without_gaps_and_reproducible() -> None:
    image = render(lattice())
    before = image.copy()
    nuclei = segment(image, 0.25)
    assert nuclei.dtype == np.int32
    assert nuclei.shape == image.shape[1:]
    np.testing.assert_array_equal(np.unique(nuclei), np.arange(nuclei.max() + 1))
    np.testing.assert_array_equal(nuclei, segment(image, 0.25))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (1, 40), (7, 200)])
@pytest.mark.parametrize("level", [0, 128, 244, 255])
def test_blank_tiles_give_an_empty_map(shape: tuple[int, int], level: int) -> None:
    nuclei = segment(np.full((3, *shape), level, np.uint8), 0.25)
    assert nuclei.shape == shape
    assert nuclei.max() == 0


def test_noise_on_empty_glass_is_no_nucleus() -> None:
    noise = draws(0, "glass", 0).normal(240, 2, (3, 128, 128)).round().clip(0, 255).astype(np.uint8)
    assert segment(noise, 0.25).max() == 0


def test_a_pen_stroke_far_larger_than_a_nucleus_is_none() -> None:
    image = np.full((3, 200, 200), 245, np.uint8)
    image[:, :, 40:160] = np.array([20, 60, 190], np.uint8)[:, None, None]
    assert segment(image, 0.25).max() == 0


@pytest.mark.parametrize("size", [64, 48, 33])
def test_small_crops_work(size: int) -> None:
    truth = lattice()[:size, :size]
    assert compare(truth, segment(render(lattice())[:, :size, :size], 0.25)).dice > 0.8


def test_unknown_mpp_is_refused_and_says_what_to_do() -> None:
    for mpp in (None, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"mpp is .*pass an assumed value"):
            segment(render(lattice(64)), mpp)


def test_wrong_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[3, H, W\]"):
        segment(np.zeros((64, 64), np.uint8), 0.25)
    with pytest.raises(InputError, match=r"\[3, H, W\]"):
        segment(np.zeros((64, 64, 3), np.uint8), 0.25)
    with pytest.raises(InputError, match="uint8"):
        segment(np.zeros((3, 64, 64), np.float32), 0.25)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("levels", 0),
        ("blur", 0.0),
        ("background", -1.0),
        ("background_share", 1.5),
        ("smallest", 0.0),
        ("largest", 3.0),
        ("hole", -1.0),
        ("split", 0.0),
        ("quality", 2.0),
        ("overlap", -0.1),
        ("reach", -1.0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"watershed\.{name} is {value}"):
        Watershed(**{name: value})  # type: ignore[arg-type]


@pytest.mark.skipif(not NUCLEI.is_dir(), reason="NUCLEATE_DATA is unset")
@pytest.mark.parametrize(
    ("name", "aji", "pq", "dice"),
    [
        ("monuseg2018", 0.40, 0.35, 0.70),
        ("tnbc_naylor", 0.45, 0.40, 0.65),
        ("consep_patches", 0.25, 0.20, 0.45),
        ("tcga_lgg_zhang", 0.60, 0.58, 0.82),
        ("dsb2018_he", 0.45, 0.42, 0.74),
    ],
)
def test_floor_on_real_tiles(name: str, aji: float, pq: float, dice: float) -> None:
    tiles = open_tiles(NUCLEI / name, mpp=0.25, split="train")
    scores = []
    for k in range(0, len(tiles), max(1, len(tiles) // 6)):
        tile = tiles[k]
        assert tile.instances is not None
        scores.append(compare(tile.instances[:400, :400], segment(tile.image[:, :400, :400], 0.25)))
    mean = mean_scores(scores)
    assert mean["aji"] > aji
    assert mean["pq"] > pq
    assert mean["dice"] > dice
