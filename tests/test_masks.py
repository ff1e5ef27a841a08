"""Instance maps from and to files."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from histo import masks
from histo.errors import InputError
from histo.masks import as_instances, read_instances, renumber, write_instances

SQUARE = [[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]]


def feature(coordinates, kind="Polygon", **more):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": {}, **more}


def geojson(folder, document):
    path = folder / "nuclei.geojson"
    path.write_text(json.dumps(document))
    return path


def inside_by_winding(ring, size):
    """Even-odd crossing test of every pixel centre, in plain loops."""
    inside = np.zeros(size, dtype=bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = column + 0.5, row + 0.5
            for (x1, y1), (x2, y2) in zip(ring, ring[1:] + ring[:1], strict=True):
                if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
                    inside[row, column] ^= True
    return inside


@pytest.mark.parametrize("largest", [5, 300, 65_535])
def test_png_round_trip_keeps_ids(tmp_path, largest):
    instances = np.random.default_rng(0).choice([0, 3, largest], (31, 17)).astype(np.int32)
    write_instances(tmp_path / "map.png", instances)
    read = read_instances(tmp_path / "map.png", size=(31, 17))
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, instances)
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_instances(tmp_path / "map.png", np.full((2, 2), 7))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=r"cannot be written \(disk full"):
        write_instances(tmp_path / "map.png", np.full((2, 2), 8))
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]
    assert read_instances(tmp_path / "map.png")[0, 0] == 7


@pytest.mark.parametrize(
    ("name", "instances", "words"),
    [
        ("map.png", np.array([[65_536]]), "65536"),
        ("map.tif", np.array([[1]]), "'.tif'"),
        ("map.png", np.array([[0.5]]), "float64"),
        ("absent/map.png", np.array([[1]]), "not a folder"),
    ],
)
def test_unwritable_maps_are_refused(tmp_path, name, instances, words):
    with pytest.raises(InputError, match=words):
        write_instances(tmp_path / name, instances)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_tiff_and_npy_of_every_type(tmp_path, dtype):
    instances = np.array([[0, 1, 200], [7, 7, 0]], dtype=dtype)
    tifffile.imwrite(tmp_path / "map.tif", instances)
    np.save(tmp_path / "map.npy", instances)
    for name in ("map.tif", "map.npy"):
        read = read_instances(tmp_path / name)
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, instances)


def test_eight_bit_palette_and_one_bit_png(tmp_path):
    ids = np.array([[0, 3], [255, 3]], dtype=np.uint8)
    Image.fromarray(ids).save(tmp_path / "grey.png")
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    Image.fromarray(ids > 0).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_instances(tmp_path / "grey.png"), ids)
    np.testing.assert_array_equal(read_instances(tmp_path / "palette.png"), ids)
    np.testing.assert_array_equal(read_instances(tmp_path / "bit.png"), ids > 0)


def test_binary_mask_stays_one_instance(tmp_path):
    binary = np.array([[255, 0, 255]], dtype=np.uint8)
    Image.fromarray(binary).save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_instances(tmp_path / "map.png"), binary)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[0.0, 1.5]]), "map.npy holds the value 1.5"),
        (np.array([[np.nan, 1.0]]), "map.npy holds the value nan"),
        (np.array([[np.inf, 1.0]]), "map.npy holds the value inf"),
        (np.array([[0, -4]]), "map.npy holds the id -4"),
        (np.array([[2**40]]), "map.npy holds the id 1099511627776"),
        (np.zeros((4, 4, 3), np.uint8), r"map.npy has shape \(4, 4, 3\)"),
        (np.zeros((0, 4), np.uint8), r"map.npy has shape \(0, 4\)"),
        (np.array([["a"]]), "map.npy holds <U1"),
    ],
)
def test_arrays_that_are_no_instance_maps(tmp_path, array, words):
    np.save(tmp_path / "map.npy", array)
    with pytest.raises(InputError, match=words):
        read_instances(tmp_path / "map.npy")


def test_pickled_array_is_refused(tmp_path):
    np.save(tmp_path / "map.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_instances(tmp_path / "map.npy")


def test_colour_lossy_missing_damaged_and_mismatched_files(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    Image.new("L", (4, 4)).save(tmp_path / "lossy.jpg")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "damaged.tif").write_bytes(b"II*\0")
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 8, 9), np.uint16), photometric="minisblack")
    write_instances(tmp_path / "small.png", np.ones((2, 3), int))
    for name, words in [
        ("colour.png", "mode RGB"),
        ("lossy.jpg", "'.jpg'"),
        ("absent.png", "not a file"),
        ("damaged.png", "damaged.png cannot be read"),
        ("damaged.tif", "damaged.tif cannot be read"),
        ("stack.tif", "3 pages"),
        ("small.png", "2 x 3 pixels"),
    ]:
        with pytest.raises(InputError, match=words):
            read_instances(tmp_path / name, size=(3, 2))


def test_maps_beyond_the_pixel_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "MAX_PIXELS", 11)
    write_instances(tmp_path / "map.png", np.ones((3, 4), int))
    np.save(tmp_path / "map.npy", np.ones((3, 4), int))
    tifffile.imwrite(tmp_path / "map.tif", np.ones((3, 4), np.uint16))
    geojson(tmp_path, []).rename(tmp_path / "map.geojson")
    for suffix in ("png", "npy", "tif", "geojson"):
        with pytest.raises(InputError, match="limit of 11 pixels"):
            read_instances(tmp_path / f"map.{suffix}", size=(3, 4))


def test_square_covers_its_pixels_in_every_document_shape(tmp_path):
    expected = np.zeros((5, 6), int)
    expected[1:3, 1:4] = 1
    bare = {"type": "Polygon", "coordinates": [SQUARE]}
    for document in (
        {"type": "FeatureCollection", "features": [feature([SQUARE])]},
        [feature([SQUARE])],
        [bare],
        feature([SQUARE]),
        bare,
    ):
        read = read_instances(geojson(tmp_path, document), size=(5, 6))
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, expected)


def test_holes_multipolygons_and_overwriting(tmp_path):
    outer, hole = [[0, 0], [6, 0], [6, 6], [0, 6]], [[2, 2], [4, 2], [4, 4], [2, 4]]
    parts = [[[[1, 1], [3, 1], [3, 3], [1, 3]]], [[[7, 7], [9, 7], [9, 9], [7, 9]]]]
    below = [[2, 2], [3, 2], [3, 3], [2, 3]]
    document = [feature([below]), feature([outer, hole]), feature(parts, "MultiPolygon")]
    expected = np.zeros((10, 10), int)
    expected[0:6, 0:6] = 2
    expected[2:4, 2:4] = 0
    expected[2, 2] = 1
    expected[1:3, 1:3] = 3
    expected[7:9, 7:9] = 3
    np.testing.assert_array_equal(read_instances(geojson(tmp_path, document), size=(10, 10)), expected)


def test_polygon_pixels_are_those_whose_centre_is_inside(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radii = rng.uniform(2, 12, 9)
        ring = np.stack([10 + radii * np.cos(angles), 8 + radii * np.sin(angles)], axis=1).tolist()
        read = read_instances(geojson(tmp_path, [feature([[*ring, ring[0]]])]), size=(16, 20))
        np.testing.assert_array_equal(read > 0, inside_by_winding(ring, (16, 20)))


def test_cell_stands_for_its_nucleus(tmp_path):
    cell = feature([[[0, 0], [6, 0], [6, 5], [0, 5]]], nucleusGeometry={"type": "Polygon", "coordinates": [SQUARE]})
    assert (read_instances(geojson(tmp_path, [cell]), size=(5, 6)) > 0).sum() == 6


@pytest.mark.parametrize(
    ("document", "size", "words"),
    [
        ([], None, "size="),
        ([], (0, 4), "no pixels"),
        ([{"type": "Point", "coordinates": [1, 2]}], (9, 9), "Item 1 of .* is a Point"),
        ([feature([[[1, 1], [2, 2]]])], (9, 9), "fewer than three"),
        ([feature([[[1, 1], [2, 2], [float("nan"), 1]]])], (9, 9), "not a number"),
        ([feature([SQUARE]), feature([[[99, 1], [120, 1], [120, 9]]])], (9, 9), "Item 2 .*outside"),
        ([feature([[[-9, 1], [-2, 1], [-2, 9]]])], (9, 9), "outside"),
        ([feature([["x"]])], (9, 9), "fewer than three"),
        ([{"coordinates": []}], (9, 9), "cannot be read"),
        (3, (9, 9), "cannot be read"),
    ],
)
def test_wrong_geojson_is_refused(tmp_path, document, size, words):
    with pytest.raises(InputError, match=words):
        read_instances(geojson(tmp_path, document), size=size)


@pytest.mark.parametrize("scale", [1, 40, 30_000_000])
@pytest.mark.parametrize("background", [True, False])
def test_renumber_keeps_order_and_shapes(scale, background):
    names = np.array([0 if background else 1, 2, 5, 6, 70]) * scale
    positions = np.random.default_rng(0).permutation(np.arange(35) % 5).reshape(5, 7)
    renumbered = renumber(names[positions])
    assert renumbered.dtype == np.int32
    np.testing.assert_array_equal(renumbered, positions if background else positions + 1)


def test_renumber_of_an_empty_map_is_empty():
    assert not renumber(np.zeros((3, 3), np.uint8)).any()


def test_instance_map_is_not_copied():
    instances = np.ones((2, 2), np.int32)
    assert as_instances(instances) is instances
    np.testing.assert_array_equal(as_instances(np.array([[True, False]])), [[1, 0]])


@pytest.mark.skipif(not os.environ.get("NUCLEATE_DATA"), reason="NUCLEATE_DATA is not set")
def test_real_labels_survive_a_round_trip(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in ("monuseg2018", "consep_patches", "dsb2018_he"):
            path = next(Path(os.environ["NUCLEATE_DATA"], "nuclei", folder, "labels").glob("*.png"))
            instances = read_instances(path)
            assert instances.max() > 0
            write_instances(tmp_path / "map.png", instances)
            np.testing.assert_array_equal(read_instances(tmp_path / "map.png"), instances)
