"""Normalisation against torchstain's procedure and scikit-image, and on tiles that cannot be normalised."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab
from skimage.exposure import match_histograms
from stain_specimens import mixture, noise, odd_tiles, pen_tile, plain_tile, torchstain_macenko, torchstain_normalised

from histo import stains
from histo.errors import InputError
from histo.phantom import PhantomTissue
from histo.randomness import draws
from histo.stains import METHODS, Status
from histo.stains.depth import from_optical_depth
from histo.stains.estimation import PIXELS
from histo.stains.histograms import histograms, matched_levels
from histo.stains.lab import from_lab, to_lab
from histo.stains.normalisation import MethodName

METHOD_NAMES: list[MethodName] = ["macenko", "vahadane", "reinhard", "histogram"]
OTHER = np.array([[0.75, 0.60, 0.28], [0.25, 0.85, 0.45]])


def other_laboratory(size: int = 96) -> torch.Tensor:
    """A tile [3, H, W] of other stains than `mixture` has."""
    rows = OTHER / np.linalg.norm(OTHER, axis=1, keepdims=True)
    rng = draws(0, "other", 0)
    part = rng.beta(0.4, 0.4, (size * size, 1))
    depth = np.concatenate([part, 1 - part], axis=1) @ rows * rng.uniform(1.2, 2, (size * size, 1))
    return torch.from_numpy((240 * np.exp(-depth) - 1).round().clip(0, 255).astype(np.uint8).T.reshape(3, size, size))


def batch() -> torch.Tensor:
    return torch.cat([mixture(k, strength)[0] for k, strength in enumerate([0.8, 0.5, 0.6])])


def as_skimage(images: torch.Tensor) -> NDArray[np.uint8]:
    return images.permute(0, 2, 3, 1).numpy()


def test_macenko_normalisation_agrees_with_torchstain_within_a_level() -> None:
    images, target = batch(), other_laboratory()
    found, status = stains.normalise(images, stains.target_of(target, "macenko"), "macenko", pixels=None)
    assert status.tolist() == [Status.NORMAL] * 3
    for k, image in enumerate(images.numpy()):
        # Io exp(-τ) there, (I + 1) = Io exp(-τ) here, where an identity changes nothing
        expected = np.clip(torchstain_normalised(image, target.numpy()) - 1, 0, 254)
        assert np.abs(found[k].clamp(max=254).numpy() - expected).max() < 0.52


def test_normalised_images_have_the_stains_and_strengths_of_the_target() -> None:
    target = stains.target_of(other_laboratory(), "macenko")
    assert isinstance(target, stains.StainEstimate)
    images, status = stains.normalise(batch(), target, "macenko", pixels=None)
    assert (status == Status.NORMAL).all()
    again = stains.macenko(images)
    torch.testing.assert_close(again.matrices[:, :2], target.matrices[:, :2].expand(3, 2, 3), atol=0.02, rtol=0)
    torch.testing.assert_close(again.strengths, target.strengths.expand(3, 2), atol=0, rtol=0.03)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_an_image_in_its_own_colours_stays_as_it_is(method: MethodName) -> None:
    """But for what two stains leave unexplained, here rounding."""
    image = mixture(0)[0]
    found, status = stains.normalise(image, stains.target_of(image[0], method), method, pixels=None)
    assert status.tolist() == [Status.NORMAL]
    assert (found.int() - image.int()).abs().float().mean() < 1
    assert (found.int() - image.int()).abs().max() <= (40 if method == "vahadane" else 6)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_batch_is_normalised_as_its_images_are(method: MethodName, dtype: torch.dtype) -> None:
    images = torch.cat([batch(), plain_tile((255, 255, 255)), pen_tile()]).to(dtype)
    target = stains.target_of(other_laboratory(), method)
    together = stains.normalise(images, target, method)
    for k in range(len(images)):
        alone = stains.normalise(images[k : k + 1], target, method)
        assert alone.status[0] == together.status[k]
        torch.testing.assert_close(alone.images[0].float(), together.images[k].float(), atol=1.001, rtol=0)
        assert (alone.images[0].float() - together.images[k].float()).abs().mean() < 0.01
    assert together.images.dtype == dtype


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_dtype_layout_and_number_do_not_matter(method: MethodName, dtype: torch.dtype) -> None:
    images, target = batch()[:, :, :40].to(dtype), stains.target_of(other_laboratory(), method)
    plain = stains.normalise(images, target, method).images
    last = stains.normalise(images.contiguous(memory_format=torch.channels_last), target, method).images
    assert plain.dtype == dtype
    assert not torch.equal(plain, images)
    torch.testing.assert_close(last.double(), plain.double(), atol=1 if dtype == torch.uint8 else 0.13, rtol=0)
    assert stains.normalise(images[:0], target, method).images.shape == (0, 3, 40, 96)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_odd_tiles_stay_as_they_are(method: MethodName) -> None:
    images = odd_tiles()
    found, status = stains.normalise(images, stains.target_of(other_laboratory(), method), method)
    assert status[[0, 1, 2, 3, 4]].tolist()[:2] in ([Status.NORMAL, Status.GLASS], [Status.CLAMPED, Status.GLASS])
    assert status[2:5].tolist() == [Status.ONE_COLOUR] * 3
    assert status[6:9].tolist() == [Status.NOT_FINITE] * 3
    if method in ("macenko", "vahadane"):  # the others know no stains, hence no pen
        assert status[5] == Status.NO_STAIN
    alone = status >= Status.GLASS
    torch.testing.assert_close(found[alone], images[alone], equal_nan=True, atol=0, rtol=0)
    assert not torch.equal(found[0], images[0])
    assert found[~alone].isfinite().all()


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_target_of_the_batch_may_be_anything(method: MethodName) -> None:
    """Every odd tile as the target of all: nothing is thrown, and what has no appearance changes nobody."""
    images = odd_tiles()
    appearance = stains.measure(images, method)
    for k in range(len(images)):
        found, status = stains.normalise(images, stains.picked(appearance, k), method, source=appearance)
        if appearance.status[k] >= Status.GLASS:
            assert status[0] == Status.NO_TARGET
            torch.testing.assert_close(found, images, equal_nan=True, atol=0, rtol=0)


def test_a_target_per_image_is_that_target_for_each() -> None:
    images = batch()
    stack = torch.stack([other_laboratory(), mixture(2)[0][0], mixture(0)[0][0]])
    targets = stains.measure(stack, "macenko", None)
    found = stains.normalise(images, targets, "macenko").images
    for k in range(3):
        single = stains.normalise(images[k : k + 1], stains.picked(targets, k), "macenko").images
        assert torch.equal(found[k : k + 1], single)


def test_ratios_of_strengths_are_clamped_to_a_half_and_two() -> None:
    strong, pale = mixture(0, 1.4)[0], mixture(0, 0.3)[0]
    _, amounts, strongest = torchstain_macenko(pale[0].numpy())
    wanted, _, most = torchstain_macenko(strong[0].numpy())
    assert (most / strongest > 2.5).all()
    target = stains.target_of(strong[0], "macenko")
    found, status = stains.normalise(pale, target, "macenko", pixels=None)
    assert status.tolist() == [Status.CLAMPED]
    expected = (240 * np.exp(-2 * amounts @ wanted) - 1).clip(0, 255).T.reshape(pale.shape[1:])
    assert np.abs(found[0].numpy() - expected).max() < 0.6
    assert stains.normalise(strong, stains.target_of(pale[0], "macenko"), "macenko").status.tolist() == [Status.CLAMPED]


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard"])
def test_a_quick_estimate_costs_less_than_two_grey_levels(method: MethodName) -> None:
    phantom = PhantomTissue(0, size=256, count=6)
    images = torch.from_numpy(np.stack([phantom[k].image for k in range(6)]))
    target = stains.target_of(images[0], method)
    quick, exact = (stains.normalise(images, target, method, pixels=pixels) for pixels in (PIXELS, None))
    assert torch.equal(quick.status, exact.status)
    away = (quick.images.float() - exact.images.float()).abs().mean()
    assert 0 < away < 1


def test_vahadane_reaches_the_colours_of_the_target_and_keeps_bright_glass() -> None:
    target = stains.target_of(other_laboratory(), "vahadane")
    images = batch()
    images[:, :, :8] = 252
    found, status = stains.normalise(images, target, "vahadane", pixels=None)
    assert (status < Status.GLASS).all()
    assert (found[:, :, :8].int() - 252).abs().max() <= 1
    again = stains.vahadane(found, None)
    assert isinstance(target, stains.StainEstimate)
    cosines = (again.matrices[:, :2] * target.matrices[:, :2]).sum(dim=2)
    assert cosines.min() > np.cos(np.radians(3))


def test_lab_agrees_with_scikit_image() -> None:
    images = noise(0, low=0)
    images[0, :, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    expected = rgb2lab(as_skimage(images))
    for given in (images, images.float()):
        np.testing.assert_allclose(as_skimage(to_lab(given)), expected, atol=5e-3)
    assert torch.equal(from_lab(to_lab(images), torch.uint8), images)
    lab = draws(0, "lab", 0).uniform((0, -60, -60), (100, 60, 60), (2, 24, 24, 3)).astype(np.float32)
    ours = from_lab(torch.from_numpy(lab).permute(0, 3, 1, 2), torch.float32)
    with pytest.warns(UserWarning, match="negative Z"):
        theirs = 255 * lab2rgb(lab)
    np.testing.assert_allclose(as_skimage(ours), theirs, atol=0.01)


def test_reinhard_gives_tissue_the_statistics_of_the_target() -> None:
    """Against the formula on scikit-image's Lab, in the pixels whose mean optical depth is 0.15."""
    image, target = mixture(0)[0], other_laboratory()[None]
    image[:, :, :20] = 250
    found, status = stains.normalise(image, stains.target_of(target[0], "reinhard"), "reinhard", pixels=None)
    pixels, wanted = (as_skimage(images)[0].astype(float) for images in (image, target))
    masks = [-np.log((levels + 1) / 240).mean(axis=2) >= 0.15 for levels in (pixels, wanted)]
    ours, theirs = (rgb2lab(levels / 255)[mask] for levels, mask in zip((pixels, wanted), masks, strict=True))
    ratio = theirs.std(axis=0) / ours.std(axis=0)
    assert status.tolist() == [Status.CLAMPED if ((ratio < 0.5) | (ratio > 2)).any() else Status.NORMAL]
    expected = pixels.copy()
    moved = (ours - ours.mean(axis=0)) * ratio.clip(0.5, 2) + theirs.mean(axis=0)
    expected[masks[0]] = 255 * lab2rgb(moved)
    assert np.abs(as_skimage(found)[0] - expected).max() < 0.7
    assert torch.equal(found[:, :, :20], image[:, :, :20])


def test_histograms_match_as_scikit_image_matches_them() -> None:
    images, target = batch(), other_laboratory() // 6 * 6  # lacks most levels
    images[0, 0, :50] = 7  # many of one level
    found, status = stains.normalise(images, stains.target_of(target, "histogram"), "histogram")
    assert (status == Status.NORMAL).all()
    table = matched_levels(histograms(images).counts, histograms(target[None]).counts)
    exact = table.gather(2, images.flatten(2).long()).view(images.shape)
    for k, image in enumerate(as_skimage(images)):
        theirs = match_histograms(image, as_skimage(target[None])[0], channel_axis=-1)  # cut to whole levels
        ours = exact[k].permute(1, 2, 0).numpy()
        assert ((ours - theirs > -1e-6) & (ours - theirs < 1)).all()
    assert (found.double() - exact).abs().max() <= 0.5


def test_restaining_keeps_the_amounts_and_changes_the_colours() -> None:
    image, _ = mixture(0)
    source = stains.macenko(image)
    matrix = torch.from_numpy(OTHER / np.linalg.norm(OTHER, axis=1, keepdims=True)).float()
    whole = torch.cat([matrix, torch.nn.functional.normalize(torch.linalg.cross(matrix[0], matrix[1]), dim=0)[None]])
    found, status = stains.restain(image, whole, source)
    assert status.tolist() == [Status.NORMAL]
    depth = -np.log((image[0].numpy().reshape(3, -1).T.astype(float) + 1) / 240)
    amounts = depth @ np.linalg.inv(source.matrices[0].numpy().astype(float))
    expected = (240 * np.exp(-amounts @ whole.numpy()) - 1).clip(0, 255).T.reshape(found.shape[1:])
    assert np.abs(found[0].numpy() - expected).max() < 0.52
    assert torch.equal(stains.restain(image, source.matrices, source).images, image)


def test_targets_that_change_nothing_are_told() -> None:
    same = torch.cat([mixture(k)[0] for k in range(5)])
    assert not stains.distinct(stains.macenko(same)).any()
    mixed = torch.cat([same, other_laboratory()[None], plain_tile((255, 255, 255))])
    assert stains.distinct(stains.macenko(mixed)).tolist()[5:] == [True, False]
    assert not stains.distinct(stains.macenko(plain_tile((255, 255, 255)))).any()


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_autocast_changes_nothing(method: MethodName) -> None:
    images, target = batch(), other_laboratory()
    plain = stains.normalise(images, stains.target_of(target, method), method).images
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = stains.normalise(images, stains.target_of(target, method), method).images
        restained = stains.restain(images, stains.fixed_matrix()).images
        parts = stains.concentrations(images)
        assert torch.equal(stains.recompose(parts), images)
    assert torch.equal(cast, plain)
    assert torch.equal(restained, stains.restain(images, stains.fixed_matrix()).images)


def test_targets_without_tissue_and_unknown_methods_are_refused_with_a_sentence() -> None:
    for tile, name in ((plain_tile((250, 250, 250)), "glass"), (plain_tile((180, 90, 160)), "one colour")):
        with pytest.raises(InputError, match=rf"nothing to normalise to \({name}\), expected H&E tissue"):
            stains.target_of(tile[0], "macenko")
    with pytest.raises(InputError, match="'staintools' is unknown, expected one of macenko, vahadane"):
        stains.measure(batch(), "staintools")  # type: ignore[arg-type]
    assert list(METHODS) == METHOD_NAMES


def test_levels_leave_optical_depth_as_they_came() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(from_optical_depth(stains_depth(levels), torch.uint8), levels)


def stains_depth(levels: torch.Tensor) -> torch.Tensor:
    return -((levels.double() + 1) / 240).log().float()
