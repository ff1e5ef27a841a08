"""Probes that look at tiles: embedding, restaining, and the head on every pixel."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from histo import encoders
from histo.errors import InputError
from histo.phantom import PhantomTissue
from histo.probes import (
    PixelProbe,
    draw_stains,
    embed,
    fitted,
    frozen,
    in_stains,
    like_targets,
    pyramid_of,
    stain_sensitivity,
)
from histo.probes.pixels import PixelCounts, count, iou
from histo.randomness import draws
from histo.stains import macenko
from histo.stains.depth import optical_depth
from histo.tiles import Tile

SCALING = ((0.5,) * 3, (0.5,) * 3)


def tile(image: np.ndarray, mpp: float | None = None) -> Tile:
    return Tile(image, "key", "source", None, mpp, None, None)


@pytest.fixture(scope="module")
def tissue() -> Tensor:
    """Six phantom tiles of 64 px."""
    phantom = PhantomTissue(3, size=64, count=6)
    return torch.from_numpy(np.stack([phantom[k].image for k in range(6)]))


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return encoders.build(encoders.architecture("resnet18", "own"))


class Touchy(nn.Module):
    """Everything that a look could change: running statistics, dropout, a part that is frozen already."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.still = nn.BatchNorm2d(8).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.still(self.body(x)).mean((2, 3))


def test_a_look_leaves_the_encoder_as_it_was(tissue: Tensor) -> None:
    network = Touchy().train()
    network.still.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    features = embed(network, tissue, *SCALING)
    assert not features.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert len(set(modes)) == 2
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(ZeroDivisionError), frozen(network):
        _ = 1 / 0
    assert [module.training for module in network.modules()] == modes
    assert torch.is_grad_enabled()


def test_embedding_scales_levels_and_pools_maps(tissue: Tensor, encoder: nn.Module) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    by_hand = (tissue.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    encoder.eval()
    with torch.no_grad():
        expected, maps = encoder(by_hand), encoder.forward_features(by_hand)
    assert torch.allclose(embed(encoder, tissue, mean, std, batch=4), expected, atol=1e-4)

    class Maps(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, encoder.forward_features(x)]

    assert torch.allclose(embed(Maps(), tissue, mean, std), maps.mean((2, 3)), atol=1e-4)
    with pytest.raises(InputError, match="expected one vector a tile"):
        embed(nn.Flatten(2), tissue, mean, std)


def test_tiles_are_fitted_whole_or_to_scale() -> None:
    image = np.zeros((3, 40, 80), np.uint8)
    image[:, :, 40:] = 200
    small = fitted(tile(image), 20)
    assert small.shape == (3, 20, 20)
    assert small[:, :, :8].max() == 0
    assert small[:, :, 12:].min() == 200
    same = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(3, 16, 16)
    assert (fitted(tile(same), 16) == same).all()
    assert (fitted(tile(same, 0.5), 8, mpp=0.5) == same[:, 4:12, 4:12]).all()
    halved = fitted(tile(image, 0.25), 20, mpp=0.5)  # 20 x 40 px, of which the middle
    assert halved[:, :, :8].max() == 0
    assert halved[:, :, 12:].min() == 200
    with pytest.raises(InputError, match="no known µm/px"):
        fitted(tile(image), 20, mpp=0.5)
    with pytest.raises(InputError, match=r"20 x 40 px at 0\.5 µm/px, expected 32 or more"):
        fitted(tile(image, 0.25), 32, mpp=0.5)


def test_stains_are_drawn_one_by_one() -> None:
    stains = draw_stains(5, 6)
    assert torch.equal(draw_stains(5, 3), stains[:3])
    assert not torch.equal(draw_stains(6, 3), stains[:3])
    for matrix in stains.double():
        haematoxylin, eosin, third = matrix
        assert (matrix[:2] > 0).all()
        for stain in (haematoxylin, eosin):
            assert 0.75 <= float(stain.norm()) <= 1.34
            assert float(third @ stain) == pytest.approx(0, abs=1e-6)
        assert float(third.norm()) == pytest.approx(1, abs=1e-6)
        # the one that absorbs more red is haematoxylin, and the two are told apart
        assert haematoxylin[0] / haematoxylin.norm() > eosin[0] / eosin.norm()
        assert float(haematoxylin @ eosin / haematoxylin.norm() / eosin.norm()) < 0.98


def test_restaining_changes_tissue_and_leaves_glass(tissue: Tensor) -> None:
    images = torch.cat([tissue, torch.full((1, 3, 64, 64), 250, dtype=torch.uint8)])
    made = in_stains(images, draw_stains(0, 4))
    assert made.images.shape == (4, 7, 3, 64, 64)
    assert made.images.dtype == torch.uint8
    assert made.usable.tolist() == [True] * 6 + [False]
    assert (made.images[:, 6] == 250).all()
    for one, other in itertools.combinations(made.images[:, :6].float(), 2):
        assert (one - other).abs().mean() > 3
    # read in its new stains, a tile has the amounts it had in its own, but where a level was clipped
    own = optical_depth(tissue).flatten(2).mT @ macenko(tissue).matrices.inverse()
    for restained, matrix in zip(made.images, draw_stains(0, 4), strict=True):
        amounts = optical_depth(restained[:6]).flatten(2).mT @ matrix.inverse()
        inside = ((restained[:6] > 5) & (restained[:6] < 250)).flatten(2).all(dim=1)
        assert inside.float().mean() > 0.2
        assert (amounts - own)[inside].abs().mean() < 0.01


def test_tiles_take_the_colours_of_targets(tissue: Tensor) -> None:
    targets = in_stains(tissue[:2], draw_stains(1, 2)).images[[0, 1], [0, 1]]
    made = like_targets(tissue, targets)
    assert made.images.shape == (2, 6, 3, 64, 64)
    colour = [images.float().mean((0, 2, 3)) for images in made.images]
    wanted = [target.float().mean((1, 2)) for target in targets]
    for own, other in ((0, 1), (1, 0)):
        assert (colour[own] - wanted[own]).abs().sum() < (colour[own] - wanted[other]).abs().sum()
    with pytest.raises(InputError, match="Target 1 of 2 has no stains"):
        like_targets(tissue, torch.stack([targets[0], torch.full((3, 64, 64), 250, dtype=torch.uint8)]))


def test_sensitivity_is_the_mean_over_pairs() -> None:
    embeddings = torch.from_numpy(draws(0, "embeddings", 0).normal(size=(3, 5, 4)))

    def distance(one: Tensor, other: Tensor) -> float:
        return 1 - float(one @ other / one.norm() / other.norm())

    own = [distance(*pair) for n in range(5) for pair in itertools.combinations(embeddings[:, n], 2)]
    others = [distance(*pair) for k in range(3) for pair in itertools.combinations(embeddings[k], 2)]
    found = stain_sensitivity(embeddings)
    assert found.cosine == pytest.approx(np.mean(own))
    assert found.scale == pytest.approx(np.mean(others))
    assert found.ratio == pytest.approx(np.mean(own) / np.mean(others))
    blind = stain_sensitivity(embeddings[:1].expand(3, -1, -1))
    assert blind.cosine == pytest.approx(0, abs=1e-9)
    assert math.isnan(stain_sensitivity(torch.ones(3, 5, 4)).ratio)
    with pytest.raises(InputError, match="1 tiles with stains in 3 stains"):
        stain_sensitivity(embeddings[:, :1])


def enlarged(pyramid: nn.Module, image: Tensor) -> Tensor:
    """All maps at every pixel, [D, H, W], the slow way."""
    with torch.no_grad():
        levels = pyramid.eval()((image[None].float() / 255 - 0.5) / 0.5)
    return torch.cat([interpolate(level, size=image.shape[1:], mode="bilinear") for level in levels], dim=1)[0]


def test_a_pixels_features_are_the_enlarged_maps(tissue: Tensor, encoder: nn.Module) -> None:
    pyramid = pyramid_of(encoder)
    assert pyramid is not None
    probe = PixelProbe(pyramid, *SCALING, "cpu", seed=0)
    nuclei = np.arange(64 * 64).reshape(64, 64) % 2 == 0
    nuclei[:32] = False
    features, classes = probe.sample(tissue[0], nuclei, index=4)
    again = probe.sample(tissue[0], nuclei, index=4)
    assert torch.equal(features, again[0])
    assert not torch.equal(features, probe.sample(tissue[0], nuclei, index=5)[0])
    maps = enlarged(pyramid, tissue[0])
    chosen = draws(0, "probe pixels", 4).permutation(64 * 64)[: len(features)]
    expected = maps.flatten(1)[:, torch.from_numpy(chosen)].T
    assert features.shape == (500, 64 + 128 + 256 + 512)
    assert torch.allclose(features, expected, atol=1e-3)
    assert (classes.numpy() == nuclei.reshape(-1)[chosen]).all()
    head = probe.fit([(features, classes)])
    logits = torch.einsum("cd,dhw->chw", head.weight, maps) + head.bias[:, None, None]
    found = probe.find(tissue[0], head)
    clear = ((logits[1] - logits[0]).abs() > 1e-2).numpy()
    assert (found == (logits[1] > logits[0]).numpy())[clear].all()
    assert clear.mean() > 0.95
    assert 0 < found.mean() < 1


def test_the_head_finds_nuclei_of_other_tiles(encoder: nn.Module) -> None:
    phantom = PhantomTissue(1, size=96, count=8)
    pyramid = pyramid_of(encoder)
    assert pyramid is not None
    probe = PixelProbe(pyramid, *SCALING, "cpu", seed=0)
    tiles = [(torch.from_numpy(phantom[k].image.copy()), phantom[k].instances > 0) for k in range(8)]
    head = probe.fit([probe.sample(*each, index) for index, each in enumerate(tiles[:6])])
    found = iou([count(probe.find(image, head), nuclei) for image, nuclei in tiles[6:]])
    everything = iou([count(np.ones_like(nuclei), nuclei) for _, nuclei in tiles[6:]])
    assert found > everything + 0.1


def test_iou_adds_pixels_up() -> None:
    truth = np.array([[True, True, False]])
    assert count(np.array([[True, False, True]]), truth) == PixelCounts(1, 3)
    assert iou([PixelCounts(1, 3), PixelCounts(4, 5)]) == pytest.approx(5 / 8)
    assert iou([PixelCounts(0, 0)]) == 1


def test_encoders_without_a_pyramid_have_none() -> None:
    assert pyramid_of(nn.Linear(2, 2)) is None
    assert pyramid_of(encoders.build(encoders.architecture("test_vit", "own"))) is None
