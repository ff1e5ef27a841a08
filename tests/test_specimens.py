"""Every specimen is read by its rule or refused by name, alone and in sets of tiles."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from image_specimens import HEIGHT, WIDTH, Specimen, foreign_specimens, jpeg_specimens, png_specimens
from label_specimens import label_specimens
from tiff_specimens import tiff_specimens

from histo.errors import InputError
from histo.images import read_image
from histo.masks import read_instances

IMAGES = [*png_specimens(), *foreign_specimens(), *jpeg_specimens(), *tiff_specimens()]
LABELS = list(label_specimens())
SIZE = (HEIGHT, WIDTH)


def one_sentence(error: InputError, path: Path, words: str) -> None:
    sentence = str(error)
    assert str(path) in sentence
    assert words in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize("specimen", IMAGES, ids=lambda specimen: specimen.name)
def test_an_image_is_read_by_its_rule_or_refused(specimen: Specimen, tmp_path: Path) -> None:
    path = tmp_path / specimen.name
    specimen.write(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if specimen.read_as is None:
            with pytest.raises(InputError) as caught:
                read_image(path)
            one_sentence(caught.value, path, specimen.refusal)
            return
        image = read_image(path)
    expected = specimen.read_as if specimen.read_as.ndim == 3 else np.repeat(specimen.read_as[..., None], 3, axis=2)
    assert (image.dtype, image.shape) == (np.uint8, (3, *expected.shape[:2]))
    assert np.abs(image.transpose(1, 2, 0).astype(int) - expected).max() <= specimen.tolerance


@pytest.mark.parametrize("specimen", LABELS, ids=lambda specimen: specimen.name)
def test_a_label_file_is_read_by_its_rule_or_refused(specimen: Specimen, tmp_path: Path) -> None:
    path = tmp_path / specimen.name
    specimen.write(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if specimen.read_as is None:
            with pytest.raises(InputError) as caught:
                read_instances(path, size=SIZE)
            one_sentence(caught.value, path, specimen.refusal)
            return
        instances = read_instances(path, size=SIZE)
    assert instances.dtype == np.int32
    np.testing.assert_array_equal(instances, specimen.read_as)
