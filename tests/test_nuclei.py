"""Which nuclei two views show, where, and their flows there, against slow versions and symmetries."""

import numpy as np
import pytest
import torch
from torch import Tensor

from histo.flows import flows_of
from histo.phantom import PhantomTissue
from pretrain.nuclei import extents, marked, seen_in_both, warp_flows
from pretrain.views import ViewSettings, draw_geometry, warp_instances
from pretrain.views.geometry import SYMMETRIES


@pytest.fixture(scope="module")
def maps() -> Tensor:
    """Three maps of 64 px with several nuclei, and one without any: int32 [4, 64, 64]."""
    tissue = PhantomTissue(5, size=64, count=3)
    found = [torch.from_numpy(np.array(tissue[k].instances)) for k in range(3)]
    return torch.stack([*found, torch.zeros(64, 64, dtype=torch.int32)])


def test_areas_and_boxes(maps: Tensor) -> None:
    largest = int(maps.max())
    areas, boxes = extents(maps, largest)
    for image, area, box in zip(maps, areas, boxes, strict=True):
        for number in range(1, largest + 1):
            rows, columns = torch.where(image == number)
            assert area[number - 1] == len(rows)
            if len(rows):
                expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert box[number - 1].tolist() == [float(value) for value in expected]


def views_of(maps: Tensor) -> tuple[Tensor, Tensor]:
    settings = ViewSettings(smallest_area=0.3)
    indices = list(range(len(maps)))
    first, second = (warp_instances(maps, draw_geometry(settings, 0, name, indices), 64) for name in ("one", "two"))
    return first, second


def large(view: Tensor, number: int) -> Tensor | None:
    """The box of a nucleus in a view, where it is seen."""
    rows, columns = torch.where(view == number)
    if len(rows) < 12 or rows.min() == rows.max() or columns.min() == columns.max():
        return None
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def test_nuclei_seen_in_both_views(maps: Tensor) -> None:
    first, second = views_of(maps)
    boxes, valid = seen_in_both(first, second, 3, "nuclei", [0, 1, 2, 3], 50)
    assert boxes.shape == (4, 2, 50, 4)
    assert not valid[3].any()
    for n in range(3):
        found = {tuple(pair.flatten().tolist()) for pair in boxes[n][:, valid[n]].transpose(0, 1)}
        pairs = [(large(first[n], k), large(second[n], k)) for k in range(1, int(maps.max()) + 1)]
        expected = {(*a.tolist(), *b.tolist()) for a, b in pairs if a is not None and b is not None}
        assert found == expected
        assert len(found) == int(valid[n].sum()) > 1
    assert (boxes.transpose(1, 2)[~valid] == 0).all()


def test_the_nuclei_drawn_depend_on_the_image_alone(maps: Tensor) -> None:
    first, second = views_of(maps)
    boxes, valid = seen_in_both(first, second, 3, "nuclei", [0, 1, 2, 3], 2)
    assert valid[:3].all()
    for n in (2, 0, 3):
        alone = seen_in_both(first[n : n + 1], second[n : n + 1], 3, "nuclei", [n], 2)
        assert torch.equal(alone[0][0], boxes[n])
        assert torch.equal(alone[1][0], valid[n])
    drawn = {tuple(seen_in_both(first[:1], second[:1], 3, "nuclei", [k], 1)[0].flatten().tolist()) for k in range(30)}
    assert len(drawn) == int(seen_in_both(first[:1], second[:1], 3, "nuclei", [0], 50)[1].sum())


def test_flows_turn_with_the_view(maps: Tensor) -> None:
    """Flows are the same whether they are computed before a symmetry of the square or after it."""
    flows = torch.from_numpy(np.stack([flows_of(image.numpy()) for image in maps]))
    for linear in SYMMETRIES:
        geometry = torch.from_numpy(np.concatenate([linear, np.zeros((2, 1))], 1)).float().expand(4, 2, 3)
        seen = warp_instances(maps, geometry, 64)
        expected = torch.from_numpy(np.stack([flows_of(image.numpy()) for image in seen]))
        assert (warp_flows(flows, geometry, 64) - expected).abs().max() < 1e-5


def test_flows_of_a_stretched_view_lead_where_they_led() -> None:
    """A step along the flow of a view is, in the tile, a step along the tile's flow; its length is 1."""
    flows = torch.zeros(1, 2, 16, 16)
    flows[:, 0], flows[:, 1] = 0.6, -0.8
    geometry = torch.tensor([[[0.0, -0.5, 0.1], [0.8, 0.0, -0.2]]])
    seen = warp_flows(flows, geometry, 8)
    assert torch.allclose(seen.square().sum(1), torch.ones(1, 8, 8))
    step = geometry[0, :, :2] @ seen[0, :, 3, 3].flip(0)  # (x, y) in the tile
    assert torch.allclose(step / step.norm(), torch.tensor([-0.8, 0.6]))


def test_marks_lie_on_nuclei_alone() -> None:
    views = torch.full((1, 3, 16, 16), 200.0)
    instances = torch.zeros(1, 16, 16, dtype=torch.int32)
    instances[0, 2:6, 3:9] = 1
    boxes = torch.tensor([[[3.0, 2.0, 9.0, 6.0], [0.0, 0.0, 0.0, 0.0]]])
    page = marked(views, instances, boxes)
    changed = (page != 200).any(1)[0]
    assert changed.any()
    assert not changed[instances[0] == 0].any()
    assert not changed[3:5, 4:8].any()
