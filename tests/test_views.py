"""Views of tiles against torchvision image by image, and what a view may never do: depend on its batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision

from histo.errors import InputError
from histo.phantom import PhantomTissue
from histo.randomness import draws
from pretrain import views
from pretrain.views import Colour, ViewSettings

STILL = ViewSettings(smallest_area=1, stretch=1, turn=False, jitter=0, grey=0, blur=0)
BASELINES = {  # of stain-invariant learning, beside normalisation
    "no colour": ViewSettings(jitter=0, grey=0),
    "colour jitter": ViewSettings(),
    "light colour jitter": ViewSettings(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, grey=0),
    "HED jitter": ViewSettings(jitter=0, grey=0, hed=0.2),
    "stain augmentation": ViewSettings(jitter=0, grey=0, stain=0.2),
    "everything": ViewSettings(hed=0.1, stain=0.1),
}


def tissue(count: int, size: int = 96) -> Tensor:
    scenes = PhantomTissue(3, size=size, count=count)
    return torch.from_numpy(np.stack([scenes[k].image for k in range(count)]))


def noise(count: int, size: int) -> Tensor:
    """Colours of every kind, greys and single colours among them."""
    images = torch.from_numpy(draws(1, "noise", size).uniform(0, 255, (count, 3, size, size))).float()
    images[0, :, 0], images[0, 1:, 1], images[0, :, 2] = 77, 0, 255
    images[0, :, 3], images[0, :2, 4] = 0, images[0, 0, 4]
    return images


def colour(count: int) -> Colour:
    """Nothing happens."""
    return Colour(
        torch.ones(count, 3),
        torch.arange(3).expand(count, 3),
        torch.zeros(count),
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, dtype=torch.bool),
        None,
        None,
    )


def crop_geometry(top: int, left: int, height: int, width: int, side: int) -> Tensor:
    return torch.tensor(
        [[[width / side, 0, (2 * left + width) / side - 1], [0, height / side, (2 * top + height) / side - 1]]]
    )


def test_still_settings_show_the_tile_itself() -> None:
    tiles = tissue(3)
    for images in (tiles, tiles.float(), tiles.contiguous(memory_format=torch.channels_last)):
        before = images.clone()
        found = views.view(images, STILL, 0, "still", [4, 5, 6])
        assert found.dtype == torch.float32
        assert torch.equal(found, tiles.float())
        assert torch.equal(images, before)


@pytest.mark.parametrize("size", [75, 160])  # odd rows; more pixels than a block of `histo.stains`
@pytest.mark.parametrize("name", BASELINES)
def test_a_view_is_the_same_whatever_its_batch(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, indices = tissue(7), [3, 900, 4, 17, 18, 2**31, 5]
    arguments = (BASELINES[name], 11, "first")
    together = views.view(tiles, *arguments, indices, size)
    assert together.shape == (7, 3, size, size)
    assert together.dtype == torch.float32
    assert together.min() >= 0
    assert together.max() <= 255
    assert not torch.equal(together, views.view(tiles, BASELINES[name], 11, "second", indices, size))
    assert not torch.equal(together, views.view(tiles, BASELINES[name], 12, "first", indices, size))
    for split in (1, 2):
        parts = [views.view(tiles[p], *arguments, indices[p], size) for p in (slice(split), slice(split, None))]
        assert torch.equal(torch.cat(parts), together)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views.view(tiles, *arguments, indices, size), together)
    channels_last = tiles.contiguous(memory_format=torch.channels_last)
    assert torch.equal(views.view(channels_last, *arguments, indices, size), together)
    monkeypatch.setattr(views, "BLOCK", size**2)
    assert torch.equal(views.view(tiles.float(), *arguments, indices, size), together)


def test_a_view_is_its_parts_in_turn() -> None:
    tiles, drawn = tissue(4).float(), (BASELINES["everything"], 2, "parts", [0, 1, 2, 3])
    shown = views.warp(tiles, views.draw_geometry(*drawn), 64)
    expected = views.blur(views.recolour(shown, views.draw_colour(*drawn)), views.draw_blur(*drawn))
    assert torch.equal(views.view(tiles, *drawn, 64), expected.clamp(0, 255))


def test_white_stays_within_levels() -> None:
    white = torch.full((16, 3, 50, 50), 255, dtype=torch.uint8)
    found = views.view(white, ViewSettings(jitter=0, grey=0, blur=1), 0, "white", list(range(16)), 37)
    assert found.max() == 255
    assert found.min() > 254.99


def test_no_images_have_no_views() -> None:
    assert views.view(torch.zeros(0, 3, 32, 32), ViewSettings(), 0, "none", [], 16).shape == (0, 3, 16, 16)


def test_geometry_is_drawn_from_its_ranges() -> None:
    settings = ViewSettings()
    geometry = views.draw_geometry(settings, 0, "ranges", list(range(4000))).double()
    linear, place = geometry[:, :, :2], geometry[:, :, 2]
    share = linear.abs().sum(dim=2)  # of width and height
    area, ratio = share.prod(dim=1), share[:, 0] / share[:, 1]
    np.testing.assert_allclose(area.sort().values, np.linspace(0.2, 1, 4000), atol=0.03)  # uniform
    roomy = area < 3 / 4  # the ratio is not bound by the tile
    np.testing.assert_allclose(
        ratio[roomy].log().sort().values, np.linspace(-1, 1, int(roomy.sum())) * np.log(4 / 3), atol=0.03
    )
    assert (place.abs() + share).max() <= 1 + 1e-6  # inside the tile
    relative = (place / (1 - share).clamp(min=1e-9))[area < 0.9]
    np.testing.assert_allclose(relative.mean(dim=0), 0, atol=0.04)
    np.testing.assert_allclose(relative.std(dim=0), 1 / np.sqrt(3), atol=0.03)
    kinds, counts = linear.sign().flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert counts.min() > 400
    upright = views.draw_geometry(replace(settings, turn=False), 0, "ranges", list(range(9)))
    assert (upright[:, [0, 1], [0, 1]] > 0).all()


def test_symmetries_take_pixels_to_pixels_exactly() -> None:
    tiles = tissue(1, 33 * 2).expand(64, -1, -1, -1)
    geometry = views.draw_geometry(ViewSettings(smallest_area=1, stretch=1), 5, "turns", list(range(64)))
    expected = [torch.rot90(t, k, (1, 2)).float() for t in (tiles[0], tiles[0].flip(2)) for k in range(4)]
    found = views.warp(tiles, geometry, 66)
    assert {k for view in found for k in range(8) if torch.equal(view, expected[k])} == set(range(8))
    assert all(any(torch.equal(view, one) for one in expected) for view in found)
    beside_a_crop = torch.cat([geometry[:5], views.draw_geometry(ViewSettings(), 5, "crop", [0])])
    assert torch.equal(views.warp(tiles[:6], beside_a_crop, 66)[:5], found[:5])


def test_crops_are_those_of_torchvision() -> None:
    """Within 0.02 levels; torchvision continues the crop by its border, here the tile goes on."""
    images = noise(1, 64)
    for top, left, height, width, size in ((0, 0, 64, 64, 56), (0, 0, 64, 64, 100), (5, 9, 40, 32, 48)):
        found = views.warp(images, crop_geometry(top, left, height, width, 64), size)
        expected = torchvision.resized_crop(images, top, left, height, width, [size, size], antialias=False)
        inside = slice(None) if height == 64 else slice(2, -2)
        assert (found - expected)[..., inside, inside].abs().max() < 0.02


def test_smaller_views_pass_over_no_pixel() -> None:
    """Fine stripes are grey from afar, and tissue is nearer torchvision's antialiased crop than without halving."""
    stripes = (torch.arange(256) % 2 * 255.0).expand(1, 3, 256, 256)
    whole = crop_geometry(0, 0, 256, 256, 256)
    assert (views.warp(stripes, whole, 60) - 127.5).abs().max() < 1e-3
    tiles = tissue(2, 256)
    found = views.warp(tiles, whole.expand(2, -1, -1), 64)
    expected = torchvision.resize(tiles.float(), [64, 64], antialias=True)
    pointwise = torchvision.resize(tiles.float(), [64, 64], antialias=False)
    assert (found - expected).abs().mean() < 0.5 * (pointwise - expected).abs().mean()
    mixed = torch.cat([whole, crop_geometry(10, 20, 70, 60, 256)])  # halved twice and not at all
    together = views.warp(tiles, mixed, 64)
    assert torch.equal(together, torch.cat([views.warp(tiles[k : k + 1], mixed[k : k + 1], 64) for k in range(2)]))


@pytest.mark.parametrize("size", [48, 80])
def test_instances_follow_their_image(size: int) -> None:
    """Ids that name their pixel, and an image that is its own coordinates."""
    side, count = 64, 12
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    instances = (row * side + column).int().expand(count, -1, -1)
    images = torch.stack([column, row, row * 0]).float().expand(count, -1, -1, -1)
    geometry = views.draw_geometry(ViewSettings(), 0, "both", list(range(count)))
    ids, places = views.warp_instances(instances, geometry, size), views.warp(images, geometry, size)
    assert ids.dtype == torch.int32
    assert (ids % side - places[:, 0]).abs().max() < 0.501
    assert (ids // side - places[:, 1]).abs().max() < 0.501
    for k, (i, j) in ((0, (0, 0)), (3, (7, 40)), (8, (size - 1, 5))):
        x, y = geometry[k].double() @ torch.tensor([(2 * j + 1) / size - 1, (2 * i + 1) / size - 1, 1]).double()
        assert ids[k, i, j] == int((y + 1) * side / 2) * side + int((x + 1) * side / 2)


def test_instances_keep_large_ids() -> None:
    instances = torch.full((1, 32, 32), 2**31 - 1, dtype=torch.int32)
    geometry = views.draw_geometry(ViewSettings(), 0, "ids", [0])
    assert (views.warp_instances(instances, geometry, 40) == 2**31 - 1).all()


@pytest.mark.parametrize(
    ("change", "factor", "adjust"),
    [(k, f, a) for k, a in enumerate(("brightness", "contrast", "saturation")) for f in (0.2, 0.9, 1.8)],
)
def test_factors_are_those_of_torchvision(change: int, factor: float, adjust: str) -> None:
    """Within 0.01 levels."""
    images = noise(3, 24)
    asked = colour(3)
    asked.factors[1:, change] = factor
    found = views.recolour(images, asked)
    assert torch.equal(found[0], images[0])
    expected = 255 * getattr(torchvision, f"adjust_{adjust}")(images[1:] / 255, factor)
    assert (found[1:] - expected).abs().max() < 0.01


@pytest.mark.parametrize("turn", [-0.5, -0.2, -0.01, 0.07, 0.2, 0.5])
def test_hue_is_that_of_torchvision(turn: float) -> None:
    """Within 0.02 levels."""
    images = noise(2, 64)
    found = views.turn_hue(images, torch.full((2,), turn))
    assert (found - 255 * torchvision.adjust_hue(images / 255, turn)).abs().max() < 0.02
    assert (found - images).abs().mean() > 0.5


def test_hue_forwards_and_back_is_the_image() -> None:
    images = noise(2, 32)
    there = views.turn_hue(images, torch.tensor([0.3, -0.4]))
    assert (views.turn_hue(there, torch.tensor([-0.3, 0.4])) - images).abs().max() < 0.02


def test_grey_is_that_of_torchvision() -> None:
    images = noise(3, 16)
    found = views.recolour(images, colour(3)._replace(grey=torch.tensor([True, False, True])))
    assert torch.equal(found[1], images[1])
    expected = torchvision.rgb_to_grayscale(images[[0, 2]], num_output_channels=3)
    assert (found[[0, 2]] - expected).abs().max() < 0.001


def test_each_image_has_an_order_of_its_own() -> None:
    """Changes applied one after the other by torchvision; within 0.05 levels."""
    images, indices = noise(1, 24).expand(40, -1, -1, -1), list(range(40))
    asked = views.draw_colour(ViewSettings(jitter=1), 0, "orders", indices)
    found = views.recolour(images, asked)
    names = ("brightness", "contrast", "saturation")
    seen = set()
    for k in indices:
        changes = [(names[n], float(asked.factors[k, n])) for n in asked.order[k]]
        changes.insert(int(asked.hue_after[k]), ("hue", float(asked.hue[k])))
        seen.add(tuple(name for name, _ in changes))
        expected = images[k] / 255
        for name, amount in changes:
            expected = getattr(torchvision, f"adjust_{name}")(expected, amount)
        if asked.grey[k]:
            expected = torchvision.rgb_to_grayscale(expected, num_output_channels=3)
        assert (found[k] - 255 * expected).abs().max() < 0.05
    assert len(seen) > 15


def test_colour_is_drawn_from_its_ranges() -> None:
    settings = ViewSettings(brightness=0.8, contrast=0.4, saturation=0.2, hue=0.1)
    asked = views.draw_colour(settings, 0, "ranges", list(range(4000)))
    some = (asked.factors != 1).any(dim=1)
    assert abs(some.float().mean() - 0.8) < 0.02
    assert (asked.hue[~some] == 0).all()
    assert abs(asked.grey.float().mean() - 0.2) < 0.02
    for values, reach in ((asked.factors[some] - 1, [0.8, 0.4, 0.2]), (asked.hue[some, None], [0.1])):
        for column, most in zip(values.T, reach, strict=True):
            expected = np.linspace(-most, most, int(some.sum()))
            np.testing.assert_allclose(column.sort().values, expected, atol=0.05 * most)
    orders, counts = torch.cat([asked.order, asked.hue_after[:, None]], dim=1).unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 110
    widths = views.draw_blur(settings, 0, "ranges", list(range(4000)))
    assert abs((widths > 0).float().mean() - 0.5) < 0.03
    blurred = 224 * widths[widths > 0]
    np.testing.assert_allclose(blurred.sort().values, np.linspace(0.1, 2, len(blurred)), atol=0.1)


def test_stains_change_before_colours() -> None:
    """Tissue alone by stain augmentation, in units of optical depth; grey comes last."""
    tiles = tissue(2).float()
    drawn = views.draw_colour(ViewSettings(jitter=0, grey=1, hed=0.2, stain=0.2), 0, "stains", [0, 1])
    assert drawn.hed is not None
    assert drawn.stain is not None
    assert not torch.equal(drawn.hed.scale, drawn.stain.scale)
    assert (drawn.hed.shift.abs() <= 0.2 / np.log(1e6) + 1e-7).all()
    found = views.recolour(tiles, drawn)
    assert torch.equal(found[:, 0], found[:, 1])
    assert (found - views.recolour(tiles, drawn._replace(stain=None))).abs().mean() > 0.5
    assert (found - views.recolour(tiles, drawn._replace(hed=None))).abs().mean() > 0.5


@pytest.mark.parametrize("side", [224, 96, 300])
def test_blur_is_that_of_torchvision(side: int) -> None:
    """Within 0.01 levels of the same kernel with reflection, and near one that reaches twice as far."""
    images = noise(3, side)
    widths = torch.tensor([0.7, 0.0, 2.0]) / 224
    found = views.blur(images, widths)
    assert torch.equal(found[1], images[1])
    reach = int(np.ceil(6 * side / 224))
    for k in (0, 2):
        sigma = [float(widths[k]) * side]
        exact = torchvision.gaussian_blur(images[k], [2 * reach + 1] * 2, sigma)
        assert (found[k] - exact).abs().max() < 0.01
        assert (found[k] - torchvision.gaussian_blur(images[k], [4 * reach + 1] * 2, sigma)).abs().mean() < 0.2


@pytest.mark.parametrize(
    "wrong",
    [
        {"smallest_area": 0.0},
        {"smallest_area": 1.5},
        {"stretch": 0.75},
        {"stretch": float("nan")},
        {"jitter": 1.2},
        {"brightness": -0.1},
        {"contrast": 1.1},
        {"saturation": float("inf")},
        {"grey": -1.0},
        {"blur": 2.0},
        {"hue": 0.6},
        {"hed": 1.0},
        {"stain": -0.2},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"view\.{next(iter(wrong))} is .*expected"):
        ViewSettings(**wrong)


def test_what_is_no_square_rgb_tile_is_refused() -> None:
    with pytest.raises(InputError, match="expected squares"):
        views.view(torch.zeros(1, 3, 32, 48), ViewSettings(), 0, "odd", [0], 32)
    with pytest.raises(InputError, match="RGB"):
        views.view(torch.zeros(1, 1, 32, 32), ViewSettings(), 0, "odd", [0], 32)
    with pytest.raises(InputError, match="expected squares"):
        views.warp_instances(torch.zeros(1, 32, 48, dtype=torch.int32), torch.zeros(1, 2, 3), 32)
