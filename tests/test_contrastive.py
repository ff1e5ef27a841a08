"""PatchNCE against a slow loop and closed forms; places and projections."""

from math import exp, log

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from histo.randomness import draws
from translate.losses.contrastive import patch_nce
from translate.networks.projections import PatchProjections, draw_places


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def units(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(noise(*shape, seed=seed), dim=-1)


def test_patch_nce_is_the_papers_sum() -> None:
    queries, keys, temperature = units(2, 5, 7), units(2, 5, 7, seed=1), 0.2
    total = 0.0
    for image in range(2):
        for place in range(5):
            similar = [exp(float(queries[image, place] @ key) / temperature) for key in keys[image]]
            total -= log(similar[place] / sum(similar)) / 10
    assert patch_nce(queries, keys, temperature).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("patches", [1, 2, 256])
def test_patch_nce_of_alike_places_is_log_p(patches: int) -> None:
    same = units(2, 1, 8).expand(2, patches, 8)
    assert patch_nce(same, same).item() == pytest.approx(log(patches), abs=1e-5)


def test_patch_nce_of_orthogonal_places() -> None:
    """Own key at 1, all others at 0: log(1 + (P − 1) e^(−1/τ))."""
    places = torch.eye(6)[None]
    assert patch_nce(places, places, 0.5).item() == pytest.approx(log(1 + 5 * exp(-2)), rel=1e-5)


def test_keys_are_targets() -> None:
    queries, keys = units(1, 4, 8).requires_grad_(), units(1, 4, 8, seed=1).requires_grad_()
    patch_nce(queries, keys).backward()
    assert queries.grad is not None
    assert queries.grad.abs().max() > 0
    assert keys.grad is None


def test_negatives_come_from_the_same_image() -> None:
    queries, keys = units(2, 4, 8), units(2, 4, 8, seed=1)
    halves = [patch_nce(queries[k : k + 1], keys[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(patch_nce(queries, keys), torch.stack(halves).mean())


def test_patch_nce_is_fp32_under_autocast() -> None:
    queries, keys = units(1, 16, 8), units(1, 16, 8, seed=1)
    exact = patch_nce(queries, keys)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(patch_nce(queries, keys), exact, rtol=0, atol=0)


def test_places_are_a_pure_function_of_the_key() -> None:
    sizes = [(134, 134), (32, 16), (4, 4)]
    first = draw_places(sizes, 256, draws(3, "places", 17))
    again = draw_places(sizes, 256, draws(3, "places", 17))
    other = draw_places(sizes, 256, draws(3, "places", 18))
    assert [len(where) for where in first] == [256, 256, 16]
    for (height, width), where, same, different in zip(sizes, first, again, other, strict=True):
        assert where.dtype == torch.int64
        assert torch.equal(where, same)
        assert not torch.equal(where, different)
        assert len(where.unique()) == len(where)
        assert where.min() >= 0
        assert where.max() < height * width


def test_places_cover_the_layer_evenly() -> None:
    counts = torch.zeros(64)
    for index in range(500):
        counts[draw_places([(8, 8)], 16, draws(0, "places", index))[0]] += 1
    assert (counts - 125).abs().max() < 6 * (500 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("channels_last", [False, True])
def test_projections_read_the_places_they_are_given(channels_last: bool) -> None:
    torch.manual_seed(0)
    heads = PatchProjections([3, 6], width=5)
    features = [noise(2, 3, 4, 6), noise(2, 6, 3, 2, seed=1)]
    if channels_last:
        features = [x.contiguous(memory_format=torch.channels_last) for x in features]
    places = [torch.tensor([[0, 23, 7], [7, 1, 11]]), torch.tensor([[5, 1], [0, 3]])]
    results = heads(features, places)
    assert [tuple(result.shape) for result in results] == [(2, 3, 5), (2, 2, 5)]
    for head, x, where, result in zip(heads.heads, features, places, results, strict=True):
        for image in range(2):
            for k, place in enumerate(where[image].tolist()):
                pixel = x[image, :, place // x.shape[3], place % x.shape[3]]
                hidden = F.relu(head[0].weight @ pixel + head[0].bias)
                expected = head[2].weight @ hidden + head[2].bias
                torch.testing.assert_close(result[image, k], expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_projections_teach_their_weights_and_the_features() -> None:
    torch.manual_seed(0)
    heads = PatchProjections([3, 6], width=8)
    features = [noise(2, 3, 4, 4).requires_grad_(), noise(2, 6, 2, 2, seed=1).requires_grad_()]
    places = [draw_places([(4, 4), (2, 2)], 4, draws(0, "places", index)) for index in range(2)]
    results = heads(features, [torch.stack(layer) for layer in zip(*places, strict=True)])
    loss = torch.stack([patch_nce(result, units(*result.shape, seed=2)) for result in results]).sum()
    loss.backward()
    for tensor in [*heads.parameters(), *features]:
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0
    assert (features[0].grad.abs().sum(1) > 0).flatten(1).sum(1).tolist() == [4, 4], "only the places asked for"


def test_projections_start_as_published_and_give_fp32_unit_vectors() -> None:
    torch.manual_seed(0)
    heads = PatchProjections([64])
    assert sum(weight.numel() for weight in heads.parameters()) == 65 * 256 + 257 * 256
    assert heads.heads[0][2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not heads.heads[0][2].bias.any()
    with torch.autocast("cpu", torch.bfloat16):
        (result,) = heads([noise(1, 64, 8, 8)], [torch.arange(64)[None]])
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.norm(dim=2), torch.ones(1, 64), rtol=1e-5, atol=1e-5)
