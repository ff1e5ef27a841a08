"""One style over a large mask image: no seams, and the generator itself where one tile is enough."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from histo.codec import encode
from histo.layouts import Layouts, LayoutSettings
from histo.randomness import draws
from translate.canvas import NoiseField, image_code, render_image
from translate.networks import generators
from translate.networks.comod import CoModGenerator


@pytest.fixture(scope="module")
def generator(toy_run: Path) -> CoModGenerator:
    """The toy's generator with noise as strong as in long trainings; in short ones it stays near 0."""
    generator, _ = generators.load(toy_run / "export" / "generator.safetensors")
    for layer in [generator.first, *generator.enlarge, *generator.refine]:
        torch.nn.init.constant_(layer.noise_strength, 0.1)
    return generator


def mask_image(height: int, width: int) -> NDArray[np.uint8]:
    tile = Layouts(LayoutSettings(), 1, size=(height, width), mpp=0.5, count=1)[0]
    assert tile.instances is not None
    return encode(tile.instances, None, draws(0, "fill", 0))


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.abs(one.astype(np.int64) - other)


def test_tiles_that_begin_elsewhere_on_the_lattice_give_the_same_picture(generator: CoModGenerator) -> None:
    mask = mask_image(230, 410)
    one, other = (render_image(generator, mask, 0, 0, origin=origin) for origin in ((0, 0), (48, 16)))
    assert one.std() > 5
    assert difference(one, other).max() <= 1


def test_tiles_that_begin_off_the_lattice_give_nearly_the_same_picture(generator: CoModGenerator) -> None:
    """An untrained generator depends on the place in the tile as no trained one does: compared with its contrast."""
    mask = mask_image(200, 250)
    apart = {}
    for overlap in (1, 2, 4):
        shift = 64 // overlap // 2
        one, other = (
            render_image(generator, mask, 0, 0, origin=origin, overlap=overlap) for origin in ((0, 0), (shift, shift))
        )
        apart[overlap] = difference(one, other).mean() / one.std()
    assert apart[4] < 0.1
    assert apart[4] < 0.6 * apart[2] < 0.36 * apart[1]


def test_no_line_shows_where_tiles_begin(generator: CoModGenerator) -> None:
    def roughness(overlap: int) -> float:
        tissue = render_image(generator, mask_image(256, 256), 0, 0, overlap=overlap).astype(np.float64)
        steps = np.abs(np.diff(tissue, axis=2)).mean((0, 1))
        by_phase = np.array([steps[phase::16].mean() for phase in range(16)])
        return float(by_phase.max() / by_phase.mean())

    assert roughness(4) < 1.1
    assert roughness(1) > 1.2


@torch.no_grad()
def test_a_single_tile_is_what_the_generator_draws(generator: CoModGenerator) -> None:
    mask = mask_image(64, 64)
    x = torch.from_numpy(mask)[None].float() / 127.5 - 1
    z = draws(5, "render style", 3).standard_normal(16, dtype=np.float32)
    noise = [
        torch.from_numpy(NoiseField(5, f"render noise {k} of style 3", side, 4 * side).at(0, 0, side))[None, None]
        for k, side in enumerate(generator.noise_sides)
    ]
    tissue = generator(x, torch.from_numpy(z)[None], torch.ones(1, 32), noise)[0]
    expected = ((tissue + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    assert difference(render_image(generator, mask, 3, 5), expected).max() <= 1


def test_the_code_given_is_the_code_used(generator: CoModGenerator) -> None:
    mask = mask_image(64, 64)
    x = torch.from_numpy(mask)[None].float() / 127.5 - 1
    torch.testing.assert_close(image_code(generator, mask), generator.code(x))
    own = render_image(generator, mask, 0, 0)
    assert difference(own, render_image(generator, mask, 0, 0, code=generator.code(x))).max() <= 1
    assert not np.array_equal(own, render_image(generator, mask, 0, 0, code=generator.code(x) + 1))


def test_noise_is_one_field_over_the_plane() -> None:
    field = NoiseField(0, "noise", 8, 40)
    whole = np.concatenate([field.at(row, -8, 40)[:1] for row in range(-8, 30)])
    again = NoiseField(0, "noise", 8, 40)
    np.testing.assert_array_equal(again.at(2, 3, 8), whole[10:18, 11:19])
    wider = NoiseField(0, "noise", 8, 60)
    np.testing.assert_array_equal(wider.at(2, 3, 8), whole[10:18, 11:19])
    assert whole[:, :40].mean() == pytest.approx(0, abs=0.1)
    assert whole[:, :40].std() == pytest.approx(1, abs=0.1)


def test_style_and_seed_each_change_the_tissue(generator: CoModGenerator) -> None:
    mask = mask_image(64, 64)
    one = render_image(generator, mask, 0, 0)
    np.testing.assert_array_equal(one, render_image(generator, mask, 0, 0))
    assert not np.array_equal(one, render_image(generator, mask, 1, 0))
    assert not np.array_equal(one, render_image(generator, mask, 0, 1))
