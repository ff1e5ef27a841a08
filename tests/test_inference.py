"""A trained translator in a notebook: arrays of any size in, arrays of stated shapes out."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import translate
from histo.errors import InputError
from histo.images import channels_first
from histo.phantom import PhantomTissue
from histo.segmenters import segment
from translate.inference import TrainedTranslator


@pytest.fixture(scope="module")
def translator(toy_run: Path) -> TrainedTranslator:
    return translate.load(toy_run)


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    tiles = PhantomTissue(7, size=96, count=2)
    return np.stack([tiles[k].instances for k in range(2)])  # type: ignore[arg-type]


def test_render(translator: TrainedTranslator, masks: np.ndarray) -> None:
    tissue = translator.render(masks, styles=3)
    assert tissue.shape == (3, 2, 3, 96, 96)
    assert tissue.dtype == np.uint8
    np.testing.assert_array_equal(translator.render(masks[1], styles=[2])[0, 0], tissue[2, 1])
    assert translator.render(masks[0][:20, :7].astype(np.uint16)).shape == (4, 1, 3, 20, 7)
    assert not np.array_equal(translator.render(masks[1], [2], seed=1)[0, 0], tissue[2, 1])


def test_types_are_drawn_only_by_a_run_that_learned_them(
    translator: TrainedTranslator, masks: np.ndarray, toy_run: Path, tmp_path: Path
) -> None:
    second = np.full(masks.max() + 1, 2, dtype=np.uint8)
    plain = translator.render(masks[0], 1)
    assert not translator.typed
    np.testing.assert_array_equal(translator.render(masks[0], 1, types=second), plain)
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("masks: watershed", "masks: layout"))
    typed = translate.load(run)
    assert typed.typed
    assert not np.array_equal(typed.render(masks[0], 1, types=second), plain)


def test_styles_like_a_reference_are_the_nearest_in_stain(
    translator: TrainedTranslator, masks: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rendering as the reference: of its nuclei, its own style is the nearest."""
    nuclei = masks[0][:64, :64]
    (own,) = translator.render(nuclei, [37])[0]
    monkeypatch.setattr(translator, "segment", lambda image: nuclei)
    assert translator.styles_like(own)[0] == 37
    assert len(set(translator.styles_like(own, 64))) == 64
    with pytest.raises(InputError, match="no stained tissue"):
        translator.styles_like(np.full((3, 64, 64), 255, np.uint8))
    with pytest.raises(InputError, match="65 styles like"):
        translator.styles_like(own, 65)


def test_segment(translator: TrainedTranslator) -> None:
    image = PhantomTissue(7, size=96, count=1)[0].image
    nuclei = translator.segment(image)
    assert nuclei.dtype == np.int32
    assert nuclei.shape == (96, 96)
    np.testing.assert_array_equal(translator.segment(image.transpose(1, 2, 0)), nuclei)
    np.testing.assert_array_equal(nuclei, segment(translator.require_reader(), image, tile=64))


def test_an_export_folder_is_enough(toy_run: Path, tmp_path: Path, masks: np.ndarray) -> None:
    shutil.copytree(toy_run / "export", tmp_path / "export")
    moved = translate.load(tmp_path / "export")
    np.testing.assert_array_equal(moved.render(masks[0], 1), translate.load(toy_run).render(masks[0], 1))
    (tmp_path / "export" / "segmenter.safetensors").unlink()
    half = translate.load(str(tmp_path / "export"))
    assert half.render(masks[0], 1).shape == (1, 1, 3, 96, 96)
    with pytest.raises(InputError, match="no nucleus segmenter"):
        half.segment(np.zeros((3, 64, 64), np.uint8))
    (tmp_path / "export" / "generator.safetensors").unlink()
    with pytest.raises(InputError, match="holds no exports"):
        translate.load(tmp_path / "export")
    with pytest.raises(InputError, match="is no folder"):
        translate.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (np.zeros((8, 8)), "float64 values, but the ids"),
        (np.full((8, 8), -1), "holds the id -1"),
        (np.zeros((2, 3, 8, 8), int), r"shape \(2, 3, 8, 8\), expected \[H, W\]"),
        (np.zeros((0, 8), int), "expected"),
    ],
)
def test_what_is_no_mask_is_refused(translator: TrainedTranslator, wrong: np.ndarray, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        translator.render(wrong)


def test_other_wrong_arguments(translator: TrainedTranslator, masks: np.ndarray) -> None:
    for styles in (0, [], [-1]):
        with pytest.raises(InputError, match="styles is"):
            translator.render(masks, styles)
    with pytest.raises(InputError, match="truncation is 2, expected 0 to 1"):
        translator.render(masks, 1, truncation=2)
    with pytest.raises(InputError, match="learned no translation of tissue to other tissue"):
        translator.restain(np.zeros((3, 64, 64), np.uint8))


@pytest.mark.parametrize("shape", [(8, 8), (4, 8, 8), (3, 8, 3), (1, 3, 8, 8), (3, 0, 8)])
def test_images_whose_colours_are_in_doubt_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="The image has shape"):
        channels_first(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="float32, expected uint8"):
        channels_first(np.zeros((3, 8, 8), np.float32))


def test_the_package_is_light() -> None:
    code = "import sys, translate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
