"""Hills of instance maps: a closed form, a slow reference, and nuclei found again."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from histo.distances import distance_loss, distances_of, instances_from_distances
from histo.errors import InputError
from histo.metrics import compare
from histo.phantom import PhantomTissue


def test_a_square_is_a_pyramid() -> None:
    instances = np.zeros((9, 9), np.int32)
    instances[1:8, 1:8] = 7
    ring = np.minimum.outer(
        np.minimum(np.arange(1, 8), np.arange(7, 0, -1)), np.minimum(np.arange(1, 8), np.arange(7, 0, -1))
    )
    assert np.allclose(distances_of(instances)[0, 1:8, 1:8], ring / 4)
    assert distances_of(instances)[0, 0].max() == 0


def test_against_one_transform_a_nucleus() -> None:
    tile = PhantomTissue(0, size=96)[0]
    assert tile.instances is not None
    found = distances_of(tile.instances)[0]
    wanted = np.zeros(tile.instances.shape)
    for number in np.unique(tile.instances)[1:]:
        inside = np.pad(tile.instances == number, 40, mode="edge")
        depth = ndimage.distance_transform_edt(inside)[40:-40, 40:-40] * (tile.instances == number)
        wanted += depth / depth.max()
    assert np.allclose(found, wanted, atol=1e-6)


def test_nuclei_are_found_again() -> None:
    tissue = PhantomTissue(0, size=128)
    for place in range(4):
        tile = tissue[place]
        assert tile.instances is not None
        hills = distances_of(tile.instances)[0]
        found = instances_from_distances(hills, np.where(tile.instances > 0, 4.0, -4.0))
        assert compare(tile.instances, found).aji > 0.9


def test_touching_nuclei_are_parted() -> None:
    instances = np.zeros((24, 40), np.int32)
    rows, columns = np.mgrid[:24, :40]
    for number, centre in enumerate((12, 27), start=1):
        instances[((rows - 12) ** 2 + (columns - centre) ** 2 < 64) & (instances == 0)] = number
    found = instances_from_distances(distances_of(instances)[0], np.where(instances > 0, 1.0, -1.0))
    assert found.max() == 2
    assert compare(instances, found).pq > 0.9


def test_the_loss_falls_to_that_of_the_truth() -> None:
    tile = PhantomTissue(1, size=64)[0]
    assert tile.instances is not None
    hills, foreground = (
        torch.from_numpy(distances_of(tile.instances))[None],
        torch.from_numpy(tile.instances > 0)[None, None],
    )
    right = torch.cat([hills, torch.where(foreground, 9.0, -9.0)], 1)
    wrong = torch.cat([hills + 0.1, torch.where(foreground, 9.0, -9.0)], 1)
    assert distance_loss(right, hills, foreground) < 1e-3
    assert float(distance_loss(wrong, hills, foreground) - distance_loss(right, hills, foreground)) == pytest.approx(
        0.1, rel=1e-4
    )


def test_empty_flat_and_hostile_maps() -> None:
    flat = np.zeros((20, 20))
    assert instances_from_distances(flat, flat - 1).max() == 0
    assert instances_from_distances(flat + 0.5, flat + 1).max() == 1  # one nucleus without a summit
    assert distances_of(np.ones((5, 5), int)).min() == 1  # nothing but nucleus
    with pytest.raises(InputError, match=r"shape \(3, 3\) and the logits \(20, 20\)"):
        instances_from_distances(np.zeros((3, 3)), flat)
    with pytest.raises(InputError, match="NaN"):
        instances_from_distances(flat + np.nan, flat)
