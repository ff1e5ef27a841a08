"""Every specimen is read by its rule or refused by name, alone and in sets of tiles."""

import csv
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from image_specimens import HEIGHT, RGB, WIDTH, Specimen, foreign_specimens, jpeg_specimens, png_specimens
from label_specimens import label_specimens
from PIL import Image
from tiff_specimens import tiff_specimens

from histo.errors import InputError
from histo.images import read_image
from histo.masks import read_instances, write_instances
from histo.tiles import SUFFIXES, open_tiles

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


@pytest.mark.parametrize("read", [read_image, read_instances])
def test_a_gigapixel_is_refused_by_its_header(read: Callable[[Path], object], tmp_path: Path) -> None:
    specimen = next(specimen for specimen in IMAGES if specimen.name == "30000x30000.png")
    path = tmp_path / specimen.name
    specimen.write(path)
    with pytest.raises(InputError):
        read(path)  # what is loaded on first use is not counted
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "bytes"
    finally:
        tracemalloc.stop()


def test_there_are_hundreds() -> None:
    """Names are unique in each table, and both ends are met often."""
    for table in (IMAGES, LABELS):
        assert len({specimen.name for specimen in table}) == len(table)
        assert len(table) > 100
        assert 40 < sum(specimen.read_as is None for specimen in table) < len(table) - 40


def assert_listed(bad: Sequence[tuple[Path, str]], refused: dict[Path, str]) -> None:
    """Exactly the refused are listed, each with the words of its refusal."""
    assert {path for path, _ in bad} == refused.keys()
    assert len(bad) == len(refused)
    for path, reason in bad:
        assert refused[path] in reason


def test_a_folder_of_images_lists_what_it_skips(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    folder.mkdir()
    for specimen in IMAGES:
        specimen.write(folder / specimen.name)
    images = [specimen for specimen in IMAGES if specimen.name != "folder.png"]  # a sub-folder with an odd name
    with pytest.raises(InputError, match=r"missing|cannot|expected"):
        list(open_tiles(folder))
    tiles = open_tiles(folder, on_bad="skip")
    assert [entry.key for entry in tiles.entries] == sorted(
        specimen.name for specimen in images if specimen.read_as is not None
    )
    assert_listed(
        tiles.bad, {folder / specimen.name: specimen.refusal for specimen in images if specimen.read_as is None}
    )


def test_a_table_with_masks_lists_what_it_skips(tmp_path: Path) -> None:
    assert set(SUFFIXES) >= {Path(specimen.name).suffix for specimen in IMAGES}
    (tmp_path / "masks").mkdir()
    with (tmp_path / "tiles.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "mask"])
        for specimen in LABELS:
            specimen.write(tmp_path / "masks" / specimen.name)
            Image.fromarray(RGB).save(tmp_path / f"{specimen.name}.png")
            table.writerow([f"{specimen.name}.png", f"masks/{specimen.name}"])
    with pytest.raises(InputError):
        list(open_tiles(tmp_path))
    tiles = open_tiles(tmp_path, on_bad="skip")
    kept = [specimen for specimen in LABELS if specimen.read_as is not None]
    for entry, tile, specimen in zip(tiles.entries, tiles, kept, strict=True):
        assert entry.key == f"{specimen.name}.png"
        np.testing.assert_array_equal(tile.instances, specimen.read_as)
    refused = {tmp_path / f"{specimen.name}.png": specimen.refusal for specimen in LABELS if specimen.read_as is None}
    assert_listed(tiles.bad, refused)


@pytest.mark.parametrize("ids", [[0, 65_536], [0, -1], [0, 2**40], [0.0, 1.0]])
def test_what_is_no_16_bit_map_is_not_written(ids: list[float], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_instances(tmp_path / "map.png", np.array([ids]))
    assert list(tmp_path.iterdir()) == []
