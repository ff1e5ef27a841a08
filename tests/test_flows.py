"""Flows against slow diffusion, Cellpose and symmetry; instances from true, noisy and senseless flows; the loss."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from histo.errors import InputError
from histo.flows import FLOW_SCALE, flow_loss, flows_of, instances_from
from histo.masks import renumber
from histo.metrics import compare
from histo.phantom import PhantomTissue
from histo.randomness import draws

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]

MIN_AREA = 12


def crowd() -> Ints:
    """Three nuclei: an odd shape, a disc that touches it, and one cut by the border."""
    rows, columns = np.ogrid[:32, :40]
    instances = np.zeros((32, 40), np.int32)
    instances[4:20, 4:12] = instances[14:20, 4:19] = 9
    instances[((rows - 9) ** 2 + (columns - 17) ** 2 <= 30) & (instances == 0)] = 70_000
    instances[(rows - 24) ** 2 + (columns - 38) ** 2 <= 45] = 3
    return instances


def logits_of(instances: Ints) -> NDArray[np.float32]:
    return np.where(instances > 0, 4, -4).astype(np.float32)


def without_slivers(instances: Ints) -> Ints:
    """The map without nuclei that a tile's border cut down to less than `MIN_AREA`."""
    return np.where(np.bincount(instances.ravel())[instances] < MIN_AREA, 0, instances)


def slow_flow(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The flow of one nucleus by the equation, a step of SciPy's filter at a time; [2, H, W]."""
    inside = np.pad(inside, 1)
    rows, columns = np.nonzero(inside)
    distances = (rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2
    nearest = np.flatnonzero(np.isclose(distances, distances.min(), rtol=0, atol=1e-9))
    heat = np.zeros(inside.shape)
    steps = 1
    while steps < 2 * (np.ptp(rows) + 1 + np.ptp(columns) + 1):
        steps *= 2
    for _ in range(steps):
        heat[rows[nearest], columns[nearest]] += 1 / len(nearest)
        heat = ndimage.uniform_filter(heat, 3, mode="constant") * inside
    heat = np.log(1 + heat)
    slopes = np.stack([ndimage.correlate1d(heat, [-1, 0, 1], axis, mode="constant") for axis in (0, 1)])
    return (slopes * inside / np.maximum(np.sqrt((slopes**2).sum(0)), 1e-30))[:, 1:-1, 1:-1]


def test_flow_is_the_slope_of_heat_diffused_in_each_nucleus_alone() -> None:
    instances = crowd()
    flow = flows_of(instances)
    assert flow.dtype == np.float32
    assert flow.shape == (2, *instances.shape)
    expected = np.sum([slow_flow(instances == nucleus) for nucleus in (3, 9, 70_000)], axis=0)
    np.testing.assert_allclose(flow, expected, atol=1e-5)
    lengths = np.hypot(*flow)
    assert not lengths[instances == 0].any()
    assert ((np.abs(lengths - 1) < 1e-5) | (lengths == 0))[instances > 0].all()
    assert (lengths == 0)[instances > 0].sum() <= 1


def test_flow_of_a_square_points_inwards_along_its_diagonals_and_axes() -> None:
    instances = np.pad(np.ones((5, 5), np.int32), 2)
    dy, dx = flows_of(instances)[:, 2:7, 2:7]
    half = np.sqrt(0.5)
    assert (dy[0, 0], dx[0, 0], dy[4, 0], dx[4, 0]) == pytest.approx((half, half, -half, half))
    assert (dy[0, 2], dx[0, 2], dy[2, 4], dx[2, 4]) == pytest.approx((1, 0, 0, -1))
    assert (dy[2, 2], dx[2, 2]) == (0, 0)


@pytest.mark.parametrize(("mpp", "least"), [(0.5, 0.995), (0.25, 0.998)])  # measured: 0.9981 and 0.9992
def test_flow_agrees_with_cellpose(mpp: float, least: float) -> None:
    from cellpose.dynamics import labels_to_flows

    cosines = []
    for tile in PhantomTissue(3, mpp=mpp, count=4):
        instances = tile.instances
        assert instances is not None
        reference = labels_to_flows([instances], device=torch.device("cpu"))[0][2:4]
        cosines.append((flows_of(instances) * reference).sum(0)[instances > 0])
    assert np.concatenate(cosines).mean() > least


@pytest.mark.parametrize("index", range(4))
def test_flow_flips_and_turns_with_the_map(index: int) -> None:
    instances = PhantomTissue(4, size=(96, 128), mpp=0.25)[index].instances
    assert instances is not None
    instances = instances.copy()
    instances[10:20, 30:44] = instances.max() + 1  # its centre of mass is equally near to four pixels
    dy, dx = flows_of(instances)
    np.testing.assert_array_equal(flows_of(instances[::-1]), [-dy[::-1], dx[::-1]])
    np.testing.assert_array_equal(flows_of(instances[:, ::-1]), [dy[:, ::-1], -dx[:, ::-1]])
    np.testing.assert_allclose(flows_of(np.rot90(instances)), [-np.rot90(dx), np.rot90(dy)], atol=1e-5)


def test_each_piece_of_an_id_has_its_own_centre() -> None:
    instances = np.full((20, 30), 5)
    instances[:, 12:16] = 2
    pieces = instances.copy()
    pieces[:, 16:] = 8
    np.testing.assert_array_equal(flows_of(instances), flows_of(pieces))
    corners = np.zeros((8, 8), int)
    corners[:4, :4] = corners[4:, 4:] = 1
    assert (flows_of(corners)[:, 2, 2] > 0).all()  # one nucleus, joined by its corner, with the centre there
    corners[4:, 4:] = 2
    assert (flows_of(corners)[:, 2, 2] < 0).all()


def test_extreme_maps_have_flows() -> None:
    assert not flows_of(np.zeros((7, 5), np.uint8)).any()
    assert not flows_of(np.ones((1, 1), int)).any()
    single = np.zeros((4, 4), np.int64)
    single[0, 3], single[3, 0] = 1, 2**31 - 1
    assert not flows_of(single).any()
    dy, dx = flows_of(np.ones((128, 128), bool))
    assert np.hypot(dy, dx) == pytest.approx(1, abs=1e-5)
    assert (dy[:64] > 0).all()
    assert (dx[:, 64:] < 0).all()
    lines = np.repeat(np.arange(1, 65)[:, None], 300, axis=1)
    assert np.isfinite(flows_of(lines)).all()
    with pytest.raises(InputError, match="integers"):
        flows_of(np.zeros((4, 4)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "mpp"), [(128, 0.5), (128, 0.25), (256, 0.25)])
def test_true_flows_give_the_nuclei_back(size: int, mpp: float) -> None:
    tissue = PhantomTissue(5, size=size, mpp=mpp, count=3)
    for tile in tissue:
        assert tile.instances is not None
        truth = without_slivers(tile.instances)
        found = instances_from(flows_of(truth), logits_of(truth), min_area=MIN_AREA)
        assert found.dtype == np.int32
        assert set(np.unique(found)) == set(range(found.max() + 1))
        assert compare(truth, found).pq > 0.98


# Measured: 0.9998 and 0.952. The second is 0.927 where bins climb to any neighbour and not to the fullest.
@pytest.mark.parametrize(("mpp", "noise", "largest_error", "least"), [(0.25, 0.3, 0.4, 0.98), (0.5, 0.6, None, 0.94)])
def test_noisy_flows_give_the_nuclei_back(mpp: float, noise: float, largest_error: float | None, least: float) -> None:
    scores = []
    for index, tile in enumerate(PhantomTissue(5, size=256, mpp=mpp, count=4)):
        assert tile.instances is not None
        truth = without_slivers(tile.instances)
        flow = flows_of(truth) + draws(0, "noise", index).normal(0, noise, (2, *truth.shape))
        scores.append(compare(truth, instances_from(flow, logits_of(truth), largest_error=largest_error)).pq)
    assert np.mean(scores) > least


def test_instances_agree_with_those_of_cellpose() -> None:
    from cellpose.dynamics import compute_masks

    truth = PhantomTissue(5, size=256, mpp=0.25)[0].instances
    assert truth is not None
    flow = flows_of(truth) + draws(0, "noise", 0).normal(0, 0.2, (2, *truth.shape)).astype(np.float32)
    theirs = compute_masks(FLOW_SCALE * flow, logits_of(truth), min_size=MIN_AREA, device=torch.device("cpu"))
    scores = compare(np.asarray(theirs), instances_from(flow, logits_of(truth), min_area=MIN_AREA))
    assert scores.pq > 0.95


def test_logits_say_which_pixels_are_nuclear() -> None:
    truth = crowd()
    flow, logits = flows_of(truth), logits_of(truth)
    assert not instances_from(flow, np.full_like(logits, -1)).any()
    assert not instances_from(flow, logits, threshold=4).any()
    logits[truth == 3] = 0.5
    found = instances_from(flow, logits, threshold=1)
    np.testing.assert_array_equal(found > 0, np.isin(truth, (9, 70_000)))


def test_small_nuclei_are_left_out() -> None:
    truth = crowd()
    areas = np.bincount(renumber(truth).ravel())[1:]
    for min_area, count in ((min(areas), 3), (min(areas) + 1, 2)):
        assert instances_from(flows_of(truth), logits_of(truth), min_area=min_area).max() == count


def test_nuclei_whose_shape_contradicts_the_flow_are_left_out() -> None:
    truth = crowd()
    flow = flows_of(truth)
    flow[:, truth == 3] *= 0.3  # an error of 0.49 where the flow is a unit vector
    np.testing.assert_array_equal(instances_from(flow, logits_of(truth)) > 0, np.isin(truth, (9, 70_000)))
    for largest_error in (0.5, None):
        assert instances_from(flow, logits_of(truth), largest_error=largest_error).max() == 3


def test_pixels_that_do_not_move_are_no_nucleus_and_join_none() -> None:
    rows, columns = np.ogrid[:40, :60]
    truth = ((rows - 20) ** 2 + (columns - 14) ** 2 <= 64).astype(np.int32)
    everywhere = np.ones(truth.shape, np.float32)
    everywhere[:, :6] = -1
    assert not instances_from(np.zeros((2, *truth.shape)), everywhere, largest_error=None).any()
    found = instances_from(flows_of(truth), everywhere, largest_error=None)
    assert compare(truth, found).pq > 0.9


def test_what_does_not_move_does_not_hang_on_a_peak_beside_it() -> None:
    flow = np.zeros((2, 20, 40))
    flow[1, :, 30:] = -1
    found = instances_from(flow, np.ones((20, 40)), largest_error=None)
    assert (found[:, 30:] == 1).all()
    assert not found[2:-2, :26].any()


def test_pixels_stop_where_nuclei_end() -> None:
    flow = np.zeros((2, 20, 60))
    flow[1] = 1
    logits = np.full((20, 60), -1)
    logits[8:12, 5:15] = logits[8:12, 30:40] = 1
    found = instances_from(flow, logits, largest_error=None)
    np.testing.assert_array_equal(found > 0, logits > 0)
    assert found[8, 5] != found[8, 30]


def test_pixels_further_from_the_centre_than_the_steps_are_not_its_nucleus() -> None:
    flow = np.zeros((2, 20, 60))
    flow[1] = -1
    assert (instances_from(flow, np.ones((20, 60)), steps=60, largest_error=None) == 1).all()
    found = instances_from(flow, np.ones((20, 60)), steps=20, largest_error=None)
    assert (found[:, :21] == found[0, 0]).all()
    assert (found[2:-2, 26:] != found[0, 0]).all()


def test_sides_of_one_pixel_and_whole_images() -> None:
    assert not instances_from(np.ones((2, 1, 1)), np.ones((1, 1))).any()
    line = np.ones((1, 30), np.int32)
    np.testing.assert_array_equal(instances_from(flows_of(line), logits_of(line)), line)
    whole = np.ones((64, 64), np.int32)
    np.testing.assert_array_equal(instances_from(flows_of(whole), logits_of(whole)), whole)


def test_unusable_maps_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 8, 9\)"):
        instances_from(np.zeros((2, 8, 9)), np.zeros((8, 8)))
    with pytest.raises(InputError, match="NaN or infinity"):
        instances_from(np.full((2, 8, 8), np.nan), np.zeros((8, 8)))
    with pytest.raises(InputError, match="NaN or infinity"):
        instances_from(np.zeros((2, 8, 8)), np.full((8, 8), np.inf))


def random_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = draws(0, "loss", 0)
    prediction = torch.from_numpy(generator.normal(0, 3, (2, 3, 6, 5)))
    flow = torch.from_numpy(generator.normal(0, 1, (2, 2, 6, 5)))
    return prediction, flow, torch.from_numpy(generator.random((2, 1, 6, 5)) < 0.5)


def test_loss_is_cellposes_formula() -> None:
    prediction, flow, foreground = random_batch()
    p, t, y = prediction.numpy(), 5 * flow.numpy(), foreground.numpy()[:, 0]
    probability = 1 / (1 + np.exp(-p[:, 2]))
    entropy = -np.where(y, np.log(probability), np.log(1 - probability)).mean()
    loss = flow_loss(prediction, flow, foreground)
    assert loss.item() == pytest.approx(0.5 * ((p[:, :2] - t) ** 2).mean() + entropy, rel=1e-5)
    assert loss.dtype == torch.float32


def test_loss_is_taken_in_float32_and_has_a_gradient() -> None:
    prediction, flow, foreground = random_batch()
    narrow = prediction.to(torch.bfloat16).requires_grad_()
    loss = flow_loss(narrow, flow.to(torch.bfloat16), foreground)
    wide = flow_loss(narrow.detach().float(), flow.to(torch.bfloat16).float(), foreground)
    assert loss.item() == wide.item()
    loss.backward()
    assert narrow.grad is not None
    assert (narrow.grad != 0).all()
