"""Single tiles for people: the tile, its label, what was predicted, and where they differ; and which tiles to show."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

from histo.errors import writing
from histo.files import written_whole
from histo.metrics.instances import MATCH_IOU, overlap
from histo.metrics.regions import IGNORED
from histo.sheets import HEADER, outlined
from histo.tiles import Tile, TileSet

SHOWN = 4  # worst tiles, and best ones
LARGEST = 512  # pixels of a side; of larger tiles the middle is shown
MATCHED, MISSED, WRONG = (60, 220, 90), (40, 110, 255), (255, 70, 50)
NUCLEI_LEGEND = "Difference: found nuclei (IoU above 0.5) in green, missed ones in blue, and in red what no label has."
REGIONS_LEGEND = "Difference: pixels of another class than the label's in red."
_COLOURS = np.array([(60, 220, 90), (255, 200, 40), (40, 110, 255), (230, 60, 200), (60, 210, 230), (255, 120, 40)])


def extremes(values: Mapping[str, float], count: int) -> list[tuple[str, str]]:
    """("worst" or "best", key) of the tiles with the lowest and the highest score, ties in the order of the keys.

    Args:
        values: the score of each tile, higher is better.
        count: of either, at most; no tile is shown twice.
    """
    order = sorted(values, key=lambda key: (values[key], key))
    worst = order[: min(count, -(-len(order) // 2))]
    best = order[len(worst) :][::-1][:count]
    return [*(("worst", key) for key in worst), *(("best", key) for key in best)]


class Showcase:
    """Pictures of the worst and best tiles, drawn while what was predicted of them is at hand.

    Attributes:
        pictures: uint8 [H, W, 3] each, by key, of the tiles that `takes` has wanted and no later one has displaced.
    """

    def __init__(self) -> None:
        self.pictures: dict[str, NDArray[np.uint8]] = {}
        self._ranked: list[tuple[float, str]] = []

    def takes(self, key: str, value: float) -> bool:
        """Whether a tile is among the worst or the best of those seen so far, and its picture is wanted."""
        self._ranked = sorted([*self._ranked, (value, key)])
        if len(self._ranked) > 2 * SHOWN:
            del self._ranked[SHOWN:-SHOWN]
        keys = {kept for _, kept in self._ranked}
        self.pictures = {kept: picture for kept, picture in self.pictures.items() if kept in keys}
        return key in keys


def save_pictures(
    folder: Path,
    tiles: TileSet,
    cases: Mapping[str, Mapping[str, float]],
    chosen: str,
    draw: Callable[[Tile], NDArray[np.uint8]],
    drawn: Mapping[str, NDArray[np.uint8]],
) -> list[dict[str, Any]]:
    """Write the worst and the best tiles into folder/cases; returns kind, key, score, its name, and file of each.

    Args:
        cases: the scores of every tile, by source/key.
        chosen: the task's score; of classes, the probability of the true one goes before.
        draw: makes the picture of a tile; drawn: those that there are already.

    Raises:
        InputError: a tile that cannot be read, or a folder that cannot be written.
    """
    known = {name for case in cases.values() for name in case}
    name = "p_true" if "p_true" in known else chosen
    values = {key: case[name] for key, case in cases.items() if name in case}
    place = {f"{entry.source}/{entry.key}": k for k, entry in enumerate(tiles.entries)}
    said = []
    for number, (kind, key) in enumerate(extremes(values, SHOWN)):
        file = Path("cases", f"{number:02d}-{kind}.png")
        data = io.BytesIO()
        Image.fromarray(drawn[key] if key in drawn else draw(tiles[place[key]])).save(data, "PNG")
        with writing(folder / file):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            with written_whole(folder / file) as opened:
                opened.write(data.getvalue())
        said.append({"kind": kind, "key": key, "name": name, "score": cases[key][name], "file": file.as_posix()})
    return said


def nuclei_picture(
    image: NDArray[np.uint8], truth: NDArray[np.integer], found: NDArray[np.integer]
) -> NDArray[np.uint8]:
    """Tile, label, prediction and difference side by side, uint8 [H, W', 3].

    Args:
        image: uint8 [3, H, W]; truth, found: instance maps, integer [H, W].
    """
    table = overlap(truth, found)
    match = table.ious > MATCH_IOU
    right = np.isin(found, table.prediction_ids[table.prediction_index[match]])
    seen = np.isin(truth, table.truth_ids[table.truth_index[match]])
    image, truth, found, right, seen = middle(image, truth, found, right, seen)
    differ = outlined(_faded(image), np.where(seen, 0, truth), MISSED)
    differ = outlined(differ, np.where(right, found, 0), MATCHED)
    differ = outlined(differ, np.where(right, 0, found), WRONG)
    return _strip({"tile": image, "label": outlined(image, truth), "prediction": outlined(image, found)}, differ)


def regions_picture(
    image: NDArray[np.uint8], truth: NDArray[np.integer], found: NDArray[np.integer]
) -> NDArray[np.uint8]:
    """The same of region maps, integer [H, W] of classes from 0; true ones may be IGNORED."""
    image, truth, found = middle(image, truth, found)
    differ = _faded(image)
    differ[:, (truth != found) & (truth != IGNORED)] = np.array(WRONG, np.uint8)[:, None]
    return _strip({"tile": image, "label": _edged(image, truth), "prediction": _edged(image, found)}, differ)


def class_picture(
    image: NDArray[np.uint8], truth: str, classes: Sequence[str], probabilities: Sequence[float]
) -> NDArray[np.uint8]:
    """A tile under its class and the one that was predicted, uint8 [H, W, 3]; green where they agree."""
    (image,) = middle(image)
    best = int(np.argmax(probabilities))
    height, width = image.shape[1:]
    page = Image.new("RGB", (max(width, 128), height + 2 * HEADER), "white")
    page.paste(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), (0, 2 * HEADER))
    pen = ImageDraw.Draw(page)
    pen.text((2, 2), f"label {truth}", fill="black")
    said = f"found {classes[best]} {probabilities[best]:.2f}"
    pen.text((2, 2 + HEADER), said, fill="green" if classes[best] == truth else "red")
    return np.asarray(page)


def side_by_side(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures uint8 [H, W, 3] in a row, uint8 [H', W', 3], white between them."""
    height, width = max(len(one) for one in pictures), sum(one.shape[1] + 4 for one in pictures) - 4
    row, left = np.full((height, width, 3), 255, np.uint8), 0
    for one in pictures:
        row[: len(one), left : left + one.shape[1]] = one
        left += one.shape[1] + 4
    return row


def middle(*arrays: NDArray) -> list[NDArray]:
    """The middle of images [..., H, W], at most `LARGEST` pixels a side."""
    height, width = arrays[0].shape[-2:]
    top, left = (max(0, side - LARGEST) // 2 for side in (height, width))
    return [array[..., top : top + LARGEST, left : left + LARGEST] for array in arrays]


def _faded(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = image.mean(0, keepdims=True)
    return np.repeat((128 + grey / 2).astype(np.uint8), 3, 0)


def _edged(image: NDArray[np.uint8], values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """A tile with the borders of its regions, each in the colour of its class."""
    picture = image.copy()
    edge = find_boundaries(values, mode="inner") & (values > 0)
    picture[:, edge] = _COLOURS[(values[edge] - 1) % len(_COLOURS)].T
    return picture


def _strip(columns: dict[str, NDArray[np.uint8]], differ: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pictures = {**columns, "difference": differ}
    height, width = differ.shape[1:]
    page = Image.new("RGB", ((width + 4) * len(pictures) - 4, height + HEADER), "white")
    pen = ImageDraw.Draw(page)
    for place, (title, picture) in enumerate(pictures.items()):
        pen.text((place * (width + 4) + 2, 2), title, fill="black")
        page.paste(Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))), (place * (width + 4), HEADER))
    return np.asarray(page)
