"""Phantom slides: pure in seed and index, tumour exactly where the mask says, and files that open as slides."""

from pathlib import Path

import numpy as np
import pytest

from histo.commands.phantom import main
from histo.errors import InputError
from histo.phantom import EPITHELIAL
from histo.phantom.slides import NORMAL, TUMOUR, PhantomSlides
from histo.slides.overviews import picture_of
from histo.slides.readers import Slide
from histo.slides.tables import list_slides


@pytest.fixture(scope="module")
def slides() -> PhantomSlides:
    return PhantomSlides(5, size=512, mpp=0.5, count=4, tumour=0.12)


def test_a_slide_is_pure_in_seed_and_index(slides: PhantomSlides) -> None:
    again = PhantomSlides(5, size=512, mpp=0.5, count=2, tumour=0.12)[1]
    assert np.array_equal(again.image, slides[1].image)
    assert np.array_equal(again.planted, slides[1].planted)
    other = PhantomSlides(6, size=512, mpp=0.5, count=2, tumour=0.12)[1]
    assert not np.array_equal(other.image, again.image)


def test_each_patient_has_a_normal_slide_and_one_with_tumour(slides: PhantomSlides) -> None:
    drawn = [slides[k] for k in range(4)]
    assert [slide.label for slide in drawn] == [NORMAL, TUMOUR, NORMAL, TUMOUR]
    assert [slide.patient for slide in drawn] == ["phantom-00", "phantom-00", "phantom-01", "phantom-01"]
    for slide in drawn:
        planted = slide.planted.sum() / (512**2 / 2)  # about half of the glass bears tissue
        assert (0.03 < planted < 0.3) if slide.label == TUMOUR else planted == 0


def test_glass_is_empty_and_planted_tissue_is_not(slides: PhantomSlides) -> None:
    slide = slides[1]
    corner = slide.image[:, :12, :12].reshape(3, -1)
    assert (corner.std(axis=1) < 4).all()  # the sensor's noise alone
    assert corner.mean() > 225
    assert slide.image[:, slide.planted].mean() < 190


def test_tumour_is_where_it_was_planted_and_nowhere_else(slides: PhantomSlides) -> None:
    scene, planted = slides.laid_out(1)
    nuclei = scene.nuclei
    inside = planted.at(nuclei["y"], nuclei["x"]) > 0
    size = np.sqrt(nuclei["major"] * nuclei["minor"])
    tumour = inside & (nuclei["type"] == EPITHELIAL)
    assert tumour.sum() > 10
    assert size[tumour].mean() > 1.3 * size[~inside].mean()
    assert all(planted.at(np.array([ring.y]), np.array([ring.x]))[0] < -ring.reach for ring in scene.rings)
    assert scene.tissue is not None
    assert (scene.tissue.at(nuclei["y"], nuclei["x"]) > 0).all()
    rows, columns = (np.rint(nuclei[name] / 0.5 - 0.5).astype(int).clip(0, 511) for name in "yx")
    assert (slides[1].planted[rows, columns] == inside).mean() > 0.99  # but for those on its edge


def test_the_command_writes_slides_that_open(tmp_path: Path) -> None:
    assert main(["slides", "--out", str(tmp_path / "slides"), "--count", "2", "--size", "1024", "--mpp", "0.25"]) == 0
    rows = list_slides(tmp_path / "slides")
    assert [(row.key, row.label, row.patient, row.split) for row in rows] == [
        ("slide_0000.tif", NORMAL, "phantom-00", "train"),
        ("slide_0001.tif", TUMOUR, "phantom-00", "train"),
    ]
    drawn = PhantomSlides(0, size=1024, mpp=0.25, count=2)[1]
    with Slide(rows[1].path) as slide:
        assert slide.mpp == pytest.approx(0.25, rel=1e-3)
        assert slide.sizes == [(1024, 1024), (512, 512)]
        assert np.array_equal(slide.read(0, 100, 200, 300, 250), drawn.image[:, 200:450, 100:400])
        picture, mpp = picture_of(slide, 256)
    assert (picture.shape, mpp) == ((3, 256, 256), pytest.approx(1, rel=1e-3))
    small, whole = (
        each.reshape(3, 8, side, 8, side).mean((2, 4)) for each, side in ((picture, 32), (drawn.image, 128))
    )
    assert np.abs(small - whole).max() < 2
    assert rows[1].mask is not None
    with pytest.raises(InputError, match="not an empty folder"):
        main(["slides", "--out", str(tmp_path / "slides")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 100}, "size is 100"),
        ({"mpp": 0.01}, "mpp is 0.01"),
        ({"count": 0}, "count is 0"),
        ({"tumour": 0.9}, "0.9"),
    ],
)
def test_refusals(change: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PhantomSlides(0, **change)  # type: ignore[arg-type]
