"""GeoJSON: the map that was written is the map that is read."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from histo.errors import InputError
from histo.masks import read_instances, renumber
from histo.phantom import PhantomTissue
from histo.polygons import polygon_features, write_polygons
from histo.randomness import draws


def drawn(*rows: str) -> NDArray[np.int32]:
    return np.array([[int(c) for c in row] for row in rows], dtype=np.int32)


@pytest.mark.parametrize(
    "instances",
    [
        drawn("1"),
        drawn("1100", "1122", "0022"),
        drawn("11111", "10001", "10201", "10001", "11111"),  # a nucleus in the hole of another
        drawn("1010", "0100", "1011"),  # corners only
        drawn("1111", "1011", "1101", "1111"),  # holes that meet at a corner
        drawn("0000", "0300", "0003"),  # ids need not be contiguous
        drawn("000", "000"),
        np.asarray(draws(0, "specks", 0).integers(0, 4, (40, 30)), dtype=np.int32),
    ],
)
def test_round_trip(instances: NDArray[np.int32], tmp_path: Path) -> None:
    write_polygons(tmp_path / "a.geojson", instances)
    np.testing.assert_array_equal(read_instances(tmp_path / "a.geojson", instances.shape), renumber(instances))


def test_round_trip_of_a_phantom(tmp_path: Path) -> None:
    instances = PhantomTissue(3, size=256, count=1)[0].instances
    assert instances is not None
    write_polygons(tmp_path / "a.geojson", instances)
    np.testing.assert_array_equal(read_instances(tmp_path / "a.geojson", instances.shape), renumber(instances))


def test_the_form_is_qupaths(tmp_path: Path) -> None:
    write_polygons(tmp_path / "a.geojson", drawn("000", "011", "011"))
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    (feature,) = content["features"]
    assert feature["geometry"]["type"] == "Polygon"
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    assert sorted(map(tuple, ring[:-1])) == [(1, 1), (1, 3), (3, 1), (3, 3)]
    assert feature["properties"]["objectType"] == "detection"
    assert feature["properties"]["classification"]["name"] == "Nucleus"


def test_types_are_the_classes(tmp_path: Path) -> None:
    """By the ids of the map, which need not be contiguous; a nucleus of unknown type is a Nucleus."""
    instances = drawn("20500", "20507", "00007")
    types = np.array([0, 0, 2, 0, 0, 0, 0, 1], np.uint8)
    found = [
        feature["properties"]["classification"]
        for feature in polygon_features(instances, types=types, names=["tumour", "stroma"])
    ]
    assert [one["name"] for one in found] == ["stroma", "Nucleus", "tumour"]
    assert len({tuple(one["color"]) for one in found}) == 3
    names = [f"type {k}" for k in range(1, 21)]
    many = np.arange(21, dtype=np.int32)[None]
    colours = {
        tuple(feature["properties"]["classification"]["color"])
        for feature in polygon_features(many, types=many[0], names=names)
    }
    assert len(colours) == 20
    assert all(0 <= value <= 255 for colour in colours for value in colour)


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="integers"):
        write_polygons(tmp_path / "a.geojson", np.zeros((3, 3)))
    with pytest.raises(InputError, match="cannot be written"):
        write_polygons(tmp_path / "none" / "a.geojson", drawn("1"))
