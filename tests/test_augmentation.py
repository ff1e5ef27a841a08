"""Every augmentation against torch, a formula, or a slow version of it; how often each happens against arithmetic."""

from math import pi

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from translate.augmentation import (
    Augmentation,
    augment,
    brightness,
    contrast,
    draw,
    hue,
    luma_flip,
    quarter_turn,
    rotation,
    saturation,
    scaling,
    translation,
)

SIDE = 16


def one(*numbers: float) -> list[np.ndarray]:
    return [np.array([number], dtype=float) for number in numbers]


def images(count: int = 1, side: int = SIDE, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=dtype) * 2 - 1


def placed(place: np.ndarray) -> Augmentation:
    return Augmentation(torch.from_numpy(place), torch.eye(4, dtype=torch.float64)[:3].expand(len(place), 3, 4))


def coloured(colour: np.ndarray) -> Augmentation:
    return Augmentation(torch.eye(3, dtype=torch.float64).expand(len(colour), 3, 3), torch.from_numpy(colour[:, :3]))


def test_a_flip_and_quarter_turns_are_exact() -> None:
    x = images()
    assert torch.equal(augment(x, placed(scaling(*one(-1, 1)))), x.flip(3))
    for k in range(4):
        assert torch.equal(augment(x, placed(quarter_turn(*one(k)))), torch.rot90(x, k, (2, 3)))
    both = quarter_turn(*one(1)) @ scaling(*one(-1, 1))
    assert torch.equal(augment(x, placed(both)), torch.rot90(x.flip(3), 1, (2, 3)))


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, -1), (-2, 2), (15, 15)])
def test_a_whole_shift_is_exact_and_reflects(right: int, down: int) -> None:
    x = images()
    padded = F.pad(x, (15, 15, 15, 15), mode="reflect")
    expected = padded[:, :, 15 - down : 31 - down, 15 - right : 31 - right]
    assert torch.equal(augment(x, placed(translation(*one(right, down)))), expected)
    turned = translation(*one(right, down)) @ quarter_turn(*one(3))
    padded = F.pad(torch.rot90(x, 3, (2, 3)), (15, 15, 15, 15), mode="reflect")
    expected = padded[:, :, 15 - down : 31 - down, 15 - right : 31 - right]
    assert torch.equal(augment(x, placed(turned)), expected)


def test_what_is_not_augmented_stays_bit_for_bit() -> None:
    x = images(4).contiguous(memory_format=torch.channels_last)
    assert augment(x, draw(0, "s", [0, 1, 2, 3], 0.0, SIDE)) is x
    nothing = np.zeros(4)
    mixed = Augmentation(
        torch.from_numpy(rotation(np.array([0.0, 1.0, 0.0, 0.0]))),
        torch.from_numpy(brightness(np.array([0.0, 0.0, 0.5, 0.0]))[:, :3] @ hue(nothing) @ saturation(nothing + 1)),
    )
    y = augment(x, mixed)
    assert [torch.equal(before, after) for before, after in zip(x, y, strict=True)] == [True, False, False, True]
    assert y.is_contiguous(memory_format=torch.channels_last)


def slowly(image: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """The warp, pixel by pixel, of a channel [side, side]."""
    side = len(image)
    lanczos = {k: np.sinc(k / 2) * np.sinc(k / 6) for k in range(-5, 6)}
    odd = {k: v / sum(lanczos[j] for j in (-5, -3, -1, 1, 3, 5)) for k, v in lanczos.items() if k % 2}

    def reflected(i: int) -> int:
        i %= 2 * (side - 1)
        return min(i, 2 * (side - 1) - i)

    def along(line: np.ndarray, i: int) -> float:  # the value at i half-pixels
        if i % 2 == 0:
            return line[reflected(i // 2)]
        return sum(weight * line[reflected((i + k) // 2)] for k, weight in odd.items())

    double = 2 * side - 1
    wide = np.array([[along(row, i) for i in range(double)] for row in image])
    fine = np.array([[along(column, i) for i in range(double)] for column in wide.T]).T

    def bilinear(x: float, y: float) -> float:  # in pixels
        x, y = ((c * 2) % (2 * (double - 1)) for c in (x, y))
        x, y = (min(c, 2 * (double - 1) - c) for c in (x, y))
        i, j = (min(int(c), double - 2) for c in (x, y))
        a, b = x - i, y - j
        upper, lower = (fine[r, i] * (1 - a) + fine[r, i + 1] * a for r in (j, j + 1))
        return upper * (1 - b) + lower * b

    out, centre = np.zeros_like(image), (side - 1) / 2
    weights = {k: v / sum(lanczos.values()) for k, v in lanczos.items() if abs(v) > 1e-9}
    for row in range(side):
        for column in range(side):
            for k, across in weights.items():
                for m, down in weights.items():
                    x, y, _ = inverse @ [column + k / 2 - centre, row + m / 2 - centre, 1]
                    out[row, column] += across * down * bilinear(x + centre, y + centre)
    return out


def test_the_warp_equals_a_slow_one() -> None:
    x = images(2, 8, torch.float64)
    place = np.concatenate(
        [
            translation(*one(1.3, -6.4)) @ rotation(*one(0.7)) @ scaling(*one(1.2, 0.8)),
            rotation(*one(-2.0)) @ scaling(*one(0.5, 0.6)) @ translation(*one(0, 2)) @ scaling(*one(-1, 1)),
        ]
    )
    y = augment(x, placed(place)).numpy()
    for k in range(2):
        for channel in range(3):
            np.testing.assert_allclose(
                y[k, channel], slowly(x[k, channel].numpy(), np.linalg.inv(place[k])), atol=1e-12
            )


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(2 * pi * x / 10 + 0.3) + 0.5 * np.cos(2 * pi * (x + 2 * y) / 24)


@pytest.mark.parametrize(
    "place",
    [
        rotation(*one(0.5)),
        scaling(*one(1.3, 1.3)),
        scaling(*one(0.8, 1.25)) @ rotation(*one(2.5)),
        translation(*one(3.25, -1.5)),
    ],
    ids=["rotation", "scale", "stretch", "drift"],
)
def test_a_known_pattern_comes_to_lie_where_it_should(place: np.ndarray) -> None:
    side = 48
    line = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(line, line)
    picture = torch.from_numpy(waves(x, y)).expand(1, 3, side, side)
    sources = np.linalg.inv(place[0]) @ np.stack([x.ravel(), y.ravel(), np.ones(side * side)])
    inside = (np.abs(sources[:2]).max(0) < side / 2 - 4).reshape(side, side)
    expected = waves(sources[0], sources[1]).reshape(side, side)
    found = augment(picture, placed(place))[0, 1].numpy()
    assert inside.sum() > side * side / 3
    assert np.abs(found - expected)[inside].max() < 0.05
    there_and_back = augment(augment(picture, placed(place)), placed(np.linalg.inv(place)))[0, 0].numpy()
    middle = (slice(16, 32), slice(16, 32))
    assert np.abs(there_and_back - waves(x, y))[middle].max() < 0.1


def test_what_becomes_too_fine_vanishes_instead_of_turning_coarse() -> None:
    """Stripes of 2.5 px, halved in size, would alias to 5 px."""
    stripes = torch.cos(2 * pi * torch.arange(48.0) / 2.5).expand(1, 3, 48, 48)
    half = augment(stripes, placed(scaling(*one(0.5, 0.5))))[0, 0, 16:32, 16:32]
    assert half.std() < 0.1 * stripes.std()


def test_no_empty_corner_shows_and_flat_stays_flat() -> None:
    indices = list(range(64))
    drawn = draw(5, "s", indices, 1.0, SIDE)
    flat = torch.full((64, 3, SIDE, SIDE), 0.7)
    torch.testing.assert_close(augment(flat, placed(drawn.place.numpy())), flat)


def test_colours_follow_their_formulae() -> None:
    x = images(1, dtype=torch.float64)
    grey = x.mean(1, keepdim=True).expand_as(x)

    def recoloured(matrix: np.ndarray) -> Tensor:
        return augment(x, coloured(matrix))

    torch.testing.assert_close(recoloured(brightness(*one(0.3))), x + 0.3)
    torch.testing.assert_close(recoloured(contrast(*one(1.7))), x * 1.7)
    torch.testing.assert_close(recoloured(luma_flip(*one(1))), x - 2 * grey)
    torch.testing.assert_close(recoloured(saturation(*one(0))), grey)
    torch.testing.assert_close(recoloured(saturation(*one(1.6))), grey + 1.6 * (x - grey))
    torch.testing.assert_close(recoloured(hue(*one(2 * pi / 3))), x.roll(1, 1))
    turned = recoloured(hue(*one(0.4)))
    torch.testing.assert_close(turned.mean(1), x.mean(1))
    torch.testing.assert_close((turned - grey).norm(dim=1), (x - grey).norm(dim=1))
    cosine = F.cosine_similarity(turned - grey, x - grey, dim=1)
    torch.testing.assert_close(cosine, torch.full_like(cosine, np.cos(0.4)))


def test_gradients() -> None:
    side = 6
    drawn = draw(1, "s", [0, 1, 2], 0.8, side)
    place = drawn.place.clone()
    place[0] = torch.from_numpy(translation(*one(2, 1)) @ quarter_turn(*one(1)))[0]  # pixels reflected and read twice
    x = images(3, side, torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: augment(x, Augmentation(place, drawn.colour)), x)


def test_autocast_leaves_the_arithmetic_alone() -> None:
    x, drawn = images(8), draw(1, "s", list(range(8)), 0.8, SIDE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(x, drawn), augment(x, drawn))
        found = augment(x, drawn)
    assert torch.equal(found, augment(x, drawn))


def test_draws_depend_on_seed_stream_and_index_alone() -> None:
    together, first, second = (draw(4, "a", indices, 0.6, 64) for indices in ([7, 8, 9], [7], [8, 9]))
    assert torch.equal(together.place, torch.cat([first.place, second.place]))
    assert torch.equal(together.colour, torch.cat([first.colour, second.colour]))
    for other in (draw(5, "a", [7, 8, 9], 0.6, 64), draw(4, "b", [7, 8, 9], 0.6, 64)):
        assert not torch.equal(together.colour, other.colour)


def touched(drawn: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    place = (drawn.place != torch.eye(3)).flatten(1).any(1)
    colour = (drawn.colour != torch.eye(4)[:3]).flatten(1).any(1)
    return place.numpy(), colour.numpy()


def test_images_are_touched_as_often_as_they_should_be() -> None:
    count, side, p = 4000, 64, 0.15
    place, colour = touched(draw(2, "s", list(range(count)), p, side))
    # A flip is none in half of its draws, a turn in a quarter, a shift of up to 8 px in both directions in 1 of 256.
    still = (1 - p / 2) * (1 - p * 3 / 4) * (1 - p * 255 / 256) * (1 - p) ** 4
    plain = (1 - p) ** 4 * (1 - p / 2)
    for found, expected in ((1 - place.mean(), still), (1 - colour.mean(), plain)):
        assert abs(found - expected) < 4 * (expected * (1 - expected) / count) ** 0.5
    more = touched(draw(2, "s", list(range(count)), 0.4, side))
    assert not (place & ~more[0]).any()
    assert not (colour & ~more[1]).any()
    assert more[0].sum() > place.sum()


def test_amounts_are_distributed_as_published() -> None:
    count, side = 4000, 64
    drawn = draw(3, "s", list(range(count)), 1.0, side)
    place, colour = drawn.place.numpy(), drawn.colour.numpy()

    def about(found: float, expected: float, tolerance: float) -> None:
        assert abs(found - expected) < tolerance * expected

    area = np.linalg.det(place[:, :2, :2])
    about(np.log2(np.abs(area)).std(), 2 * 0.2, 0.06)
    about((area < 0).mean(), 0.5, 0.08)
    # Squared singular values are zoom² stretch^±2.
    values = np.linalg.svd(place[:, :2, :2], compute_uv=False)
    about(np.sqrt(np.mean((np.log2(values[:, 0] / values[:, 1]) / 2) ** 2)), 0.2, 0.06)
    # Whole shift, scaled afterwards, and drift: E zoom² E (stretch² + stretch^-2) / 2 = exp((0.4 ln 2)²).
    shift = 2 * ((side / 4) ** 2 / 12) * np.exp((0.4 * np.log(2)) ** 2)
    about((place[:, :2, 2] ** 2).sum(1).mean(), shift + 2 * (side / 8) ** 2, 0.06)

    grey = colour[:, :, :3].sum(2).mean(1)  # what grey is multiplied by: contrast, negative where luma is flipped
    about((grey < 0).mean(), 0.5, 0.08)
    about(np.log2(np.abs(grey)).std(), 0.5, 0.06)
    about((colour[:, :, 3].mean(1) / grey).std(), 0.2, 0.06)
    others = np.abs(np.linalg.det(colour[:, :, :3])) / np.abs(grey) ** 3
    about((np.log2(others) / 2).std(), 1.0, 0.06)
