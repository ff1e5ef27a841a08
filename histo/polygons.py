"""Instance maps as GeoJSON polygons in the form that QuPath exports and imports.

Outlines run along the edges of pixels, so `histo.masks.read_instances` gives the very map back, ids 1, 2, … in order.
"""

import json
from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histo.errors import writing
from histo.files import written_whole
from histo.masks import renumber

Ring = list[list[int]]
_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # rows and columns of one move in each direction
_HUES = 0.618  # of a turn from a type's hue to the next one's: the golden section, which keeps all of them apart


def write_polygons(path: str | Path, instances: NDArray[Any]) -> None:
    """Write an instance map as a FeatureCollection, one detection of class Nucleus for each id in rising order.

    A nucleus in one piece is a Polygon, with its holes; one in several pieces (4-connected) a MultiPolygon.
    Coordinates are pixels, x before y, (0, 0) being the corner of the first pixel.

    Args:
        path: ends in `.geojson` by custom; its folder exists.
        instances: integer [H, W], 0 = background.

    Raises:
        InputError: not an instance map, or the file cannot be written.
    """
    text = json.dumps({"type": "FeatureCollection", "features": list(polygon_features(instances))})
    with writing(Path(path)), written_whole(Path(path)) as file:
        file.write(text.encode())


def polygon_features(
    instances: NDArray[Any],
    origin: tuple[int, int] = (0, 0),
    scale: float = 1.0,
    types: NDArray[np.integer] | None = None,
    names: Sequence[str] = (),
    probabilities: NDArray[np.floating] | None = None,
) -> Iterator[dict[str, Any]]:
    """The features of `write_polygons`, one by one, of a part of a larger picture, and of the nuclei's types if known.

    Args:
        instances: integer [H, W], 0 = background.
        origin: row and column of its first pixel in that picture.
        scale: the picture's units to a pixel; coordinates are those of pixels times it.
        types: integer [K + 1], the type of each nucleus by its id, 0 where it is unknown: then, or without types, the
            class is Nucleus.
        names: of the types from 1, each of which has a colour of its own.
        probabilities: float [K + 1], of each nucleus by its id; QuPath then has the measurement `probability`.

    Raises:
        InputError: not an instance map.
    """
    numbers = renumber(instances)
    ids = np.unique(instances[instances > 0])
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        if place is None:
            continue
        parts, count = ndimage.label(numbers[place] == number)
        corner = (place[0].start + origin[0], place[1].start + origin[1])
        polygons: Any = [_rings(parts == part, corner) for part in range(1, count + 1)]
        if scale != 1:
            polygons = [
                [[[round(value * scale, 2) for value in point] for point in ring] for ring in rings]
                for rings in polygons
            ]
        own = ids[number - 1]
        properties = {
            "objectType": "detection",
            "classification": _class(0 if types is None else int(types[own]), names),
        }
        if probabilities is not None:
            properties["measurements"] = {"probability": round(float(probabilities[own]), 4)}
        yield {
            "type": "Feature",
            "geometry": {
                "type": "Polygon" if count == 1 else "MultiPolygon",
                "coordinates": polygons[0] if count == 1 else polygons,
            },
            "properties": properties,
        }


def _class(kind: int, names: Sequence[str]) -> dict[str, Any]:
    if not kind:
        return {"name": "Nucleus", "color": [200, 0, 0]}
    colour = hsv_to_rgb(kind * _HUES % 1, 0.8, 0.85)
    return {"name": names[kind - 1], "color": [round(255 * share) for share in colour]}


def _rings(part: NDArray[np.bool_], corner: tuple[int, int]) -> list[Ring]:
    """The outline of a 4-connected piece, then its holes, each a closed ring of the corners where it turns.

    The edges of boundary pixels are followed with the piece on the right; where two of its pixels meet at a corner
    only, the turn to the right keeps to the same pixel, so that no ring crosses itself.
    """
    inside = np.pad(part, 1)
    body = inside[1:-1, 1:-1]
    # By direction: the first corners of the edges that lead there, in the order of rows and columns.
    edges = [
        np.argwhere(body & ~inside[:-2, 1:-1]),
        np.argwhere(body & ~inside[1:-1, 2:]) + np.array([0, 1]),
        np.argwhere(body & ~inside[2:, 1:-1]) + np.array([1, 1]),
        np.argwhere(body & ~inside[1:-1, :-2]) + np.array([1, 0]),
    ]
    open_edges = {(row, column, way): None for way, starts in enumerate(edges) for row, column in starts.tolist()}
    rings: list[Ring] = []
    while open_edges:
        row, column, way = begin = next(iter(open_edges))
        ring: Ring = []
        while True:
            del open_edges[row, column, way]
            row, column = row + _STEPS[way][0], column + _STEPS[way][1]
            turned = next(
                turn
                for turn in ((way + 1) % 4, way, (way - 1) % 4)
                if (row, column, turn) in open_edges or (row, column, turn) == begin
            )
            if turned != way:
                ring.append([column + corner[1], row + corner[0]])
            way = turned
            if (row, column, way) == begin:
                break
        rings.append([*ring, ring[0]])
    return rings
