"""Nuclei and regions of whole slides, piece by piece: no more of a slide is held than a piece with its margin.

A piece is a core with a margin on every side. Pieces begin on the grid of windows that the whole slide would be read
in, and the margin is wide enough that neighbouring pieces read the same values around their border. A nucleus is the
core's that holds its first pixel, so none is cut or doubled. Pieces without tissue are left out.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from downstream.inference import TrainedTask
from downstream.predictions import with_folder, write_picture
from histo.dense import SHARED
from histo.errors import InputError, writing
from histo.files import written_whole
from histo.masks import read_instances, write_instances
from histo.polygons import polygon_features
from histo.slides.grids import coverage
from histo.slides.readers import Slide
from histo.slides.resampling import Sampling, read_grid, sampling_of
from histo.slides.tables import SlideRow
from histo.slides.tissue import TissueMaps, find_tissue

POLYGONS, REGIONS, OVERVIEWS, PIECES = "polygons", "regions", "overviews", "pieces"
CORE = 4096  # pixels a side, about
TALLEST = 128  # pixels; margin beyond a window, more than the height of a nucleus, as in histo.stitching
NOWHERE = 255  # of region maps: no tissue, and so not looked at
_BLOCK = 512  # side of the region file's own tiles
_MARK = (0, 150, 60)


@dataclass(frozen=True)
class Piece:
    """A core and what is read around it; left, top, right, bottom in pixels of the sampling."""

    row: int
    column: int
    core: tuple[int, int, int, int]
    read: tuple[int, int, int, int]


@dataclass
class Surveyed:
    """A slide ready to be read at the network's µm/px.

    Attributes:
        size: (height, width) in pixels of the sampling.
        scale: pixels of the finest level to one of these.
    """

    slide: Slide
    sampling: Sampling
    maps: TissueMaps
    size: tuple[int, int]
    scale: float


class Slides:
    """Nuclei of slides as polygons/NAME.geojson in pixels of the finest level, or regions/NAME.tif; overviews/NAME.jpg.

    Where nuclei have types, these are their classes in QuPath; how probable a nucleus is, is its measurement there.

    Args:
        core: side of the pieces; pixels, rounded to the grid of windows.
    """

    def __init__(self, task: TrainedTask, rows: list[SlideRow], mpp: float | None, core: int = CORE) -> None:
        if task.classes_tiles:
            raise InputError(
                f"{task.path.name} classifies tiles, which --slide does not cut; name a slides.csv by --data.tiles."
            )
        if task.mpp is None:
            raise InputError(f"{task.path.name} does not say at which µm/px it learned, which slides are read at.")
        self.task, self.rows, self.mpp = task, rows, mpp
        self.names = slide_names(row.key for row in rows)
        side, overlap = _windows(task)
        step = side // 2 if overlap is None else side - overlap
        self.window, self.overlap = side, overlap or 0
        self.core = max(1, round(core / step)) * step
        self.margin = -(-((overlap or side) + TALLEST) // step) * step

    def __len__(self) -> int:
        return len(self.rows)

    def files(self, index: int) -> list[Path]:
        name = self.names[index]
        kind = Path(POLYGONS, f"{name}.geojson") if self.task.nuclei else Path(REGIONS, f"{name}.tif")
        return [kind, Path(OVERVIEWS, f"{name}.jpg")]

    def make(self, index: int, folder: Path) -> None:
        own = folder / PIECES / self.names[index]
        with_folder(own / "piece")
        with self._surveyed(self.rows[index]) as found:
            pieces = list(self._pieces(found))
            for piece in tqdm(pieces, desc=self.names[index], unit="piece", disable=None, leave=False):
                if not self._file(own, piece).is_file():
                    self._read(found, piece, self._file(own, piece))
            result, overview = (with_folder(folder / file) for file in self.files(index))
            if self.task.nuclei:
                starts = _join_polygons([self._file(own, piece) for piece in pieces], result)
            else:
                self._join_regions(found, pieces, own, result)
                starts = []
            write_picture(overview, _overview(found, starts))
        shutil.rmtree(own, ignore_errors=True)

    def describe(self) -> str:
        return f"{len(self.rows)} slide{'' if len(self.rows) == 1 else 's'} at {self.task.mpp:g} µm/px"

    def conclude(self, made: list[int], folder: Path) -> None:
        """Remove the folder of pieces, which is empty now."""
        if len(made) == len(self):
            shutil.rmtree(folder / PIECES, ignore_errors=True)

    @contextmanager
    def _surveyed(self, row: SlideRow) -> Iterator[Surveyed]:
        assert self.task.mpp is not None
        with Slide(row.path, row.mpp or self.mpp) as slide:
            sampling = sampling_of(slide, self.task.mpp)
            width, height = (int(length / sampling.step) for length in slide.sizes[sampling.level])
            scale = sampling.step * slide.downsamples[sampling.level]
            yield Surveyed(slide, sampling, find_tissue(slide), (height, width), scale)

    def _pieces(self, found: Surveyed) -> Iterator[Piece]:
        """Those with tissue, row by row."""
        height, width = found.size
        pixel = found.sampling.mpp / found.maps.mpp
        lefts, tops = self._starts(width), self._starts(height)
        ends = [np.append(starts[1:], length) for starts, length in ((lefts, width), (tops, height))]
        reach = self.core + self.window  # of the last ones
        tissue = coverage(found.maps.tissue, lefts * pixel, tops * pixel, reach * pixel)
        for row, column in np.argwhere(tissue > 0).tolist():
            core = (int(lefts[column]), int(tops[row]), int(ends[0][column]), int(ends[1][row]))
            far = self.margin + self.overlap  # so that the last window ends where the piece does
            read = (
                max(core[0] - self.margin, 0),
                max(core[1] - self.margin, 0),
                min(core[2] + far, width),
                min(core[3] + far, height),
            )
            yield Piece(row, column, core, read)

    def _starts(self, length: int) -> NDArray[np.int64]:
        """First pixels of the cores along a side; what is left and smaller than a window belongs to the last one."""
        starts = np.arange(0, length, self.core)
        return starts[:-1] if len(starts) > 1 and length - starts[-1] < self.window else starts

    def _file(self, folder: Path, piece: Piece) -> Path:
        return folder / f"{piece.row}_{piece.column}.{'json' if self.task.nuclei else 'png'}"

    def _read(self, found: Surveyed, piece: Piece, path: Path) -> None:
        left, top, right, bottom = piece.read
        image = read_grid(found.slide, found.sampling, left, top, right - left, bottom - top)
        said = self.task.predict(image)
        inner = (slice(piece.core[1] - top, piece.core[3] - top), slice(piece.core[0] - left, piece.core[2] - left))
        if said.regions is not None:
            write_instances(path, said.regions[inner])
            return
        assert said.instances is not None
        own = of_core(said.instances, inner)
        likely = said.nucleus_probabilities
        features = list(polygon_features(own, (top, left), found.scale, said.types, self.task.types, likely))
        with writing(path), written_whole(path) as file:
            file.write(json.dumps(features).encode())

    def _join_regions(self, found: Surveyed, pieces: list[Piece], folder: Path, path: Path) -> None:
        height, width = found.size
        known = {(piece.row, piece.column): piece for piece in pieces}
        columns, tops = range(len(self._starts(width))), [*self._starts(height).tolist(), height]

        def line(row: int) -> NDArray[np.uint8]:
            """The values of a row of pieces."""
            rows = tops[row + 1] - tops[row]
            values = np.full((rows, width), NOWHERE, np.uint8)
            for piece in (known[row, column] for column in columns if (row, column) in known):
                values[:, piece.core[0] : piece.core[2]] = read_instances(self._file(folder, piece))
            return values

        def blocks() -> Iterator[NDArray[np.uint8]]:
            held, start = np.empty((0, width), np.uint8), 0  # rows from `start` on
            for top in range(0, height, _BLOCK):
                while start + len(held) < min(top + _BLOCK, height):
                    held = np.concatenate([held[top - start :], line(tops.index(start + len(held)))])
                    start = top
                band = held[top - start : top - start + _BLOCK]
                for left in range(0, width, _BLOCK):
                    block = band[:, left : left + _BLOCK]
                    yield np.pad(block, ((0, _BLOCK - block.shape[0]), (0, _BLOCK - block.shape[1])))

        with writing(path), written_whole(path) as file:
            tifffile.imwrite(
                file,
                blocks(),
                shape=(height, width),
                dtype=np.uint8,
                tile=(_BLOCK, _BLOCK),
                compression="deflate",
                photometric="minisblack",
                bigtiff=height * width > 2**31,
                resolution=(1e4 / found.sampling.mpp,) * 2,
                resolutionunit="CENTIMETER",
            )


def slide_names(keys: Iterable[str]) -> list[str]:
    """What the results of slides are called: their keys without suffix.

    Raises:
        InputError: two slides of one name.
    """
    names = [PurePosixPath(key).with_suffix("").as_posix() for key in keys]
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise InputError(f"Two slides are called {twice} but for the suffix, and so would be their results.")
    return names


def _windows(task: TrainedTask) -> tuple[int, int | None]:
    """Side and overlap of the windows that a slide is read in; None is half."""
    tile = int(task.card["tile_size"])
    return tile, tile // SHARED if getattr(task.network, "dense", None) else None


def of_core(instances: NDArray[np.int32], core: tuple[slice, slice]) -> NDArray[np.int32]:
    """The nuclei whose first pixel, row by row, lies in the core; the others become background."""
    table = np.zeros(int(instances.max()) + 1, np.int32)
    for number, place in enumerate(ndimage.find_objects(instances), start=1):
        if place is None:
            continue
        row = place[0].start
        column = place[1].start + int((instances[row, place[1]] == number).argmax())
        if core[0].start <= row < core[0].stop and core[1].start <= column < core[1].stop:
            table[number] = number
    return table[instances]


def _join_polygons(files: list[Path], path: Path) -> list[Any]:
    """Write one FeatureCollection of the pieces' features; returns where each begins, (x, y)."""
    starts: list[Any] = []
    with writing(path), written_whole(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for piece in files:
            for feature in json.loads(piece.read_text(encoding="utf-8")):
                rings = feature["geometry"]["coordinates"]
                starts.append((rings if feature["geometry"]["type"] == "Polygon" else rings[0])[0][0])
                file.write((",\n" if len(starts) > 1 else "\n").encode() + json.dumps(feature).encode())
        file.write(b"\n]}\n")
    return starts


def _overview(found: Surveyed, starts: list[Any]) -> Image.Image:
    """The survey's picture with a mark at every nucleus."""
    picture = found.maps.picture.transpose(1, 2, 0).copy()
    if starts:
        pixel = found.sampling.mpp / found.maps.mpp / found.scale  # of the finest level, in pixels of the picture
        places = (np.array(starts) * pixel).astype(int)
        across, down = (np.minimum(places[:, k], picture.shape[1 - k] - 1) for k in (0, 1))
        picture[down, across] = _MARK
    return Image.fromarray(picture)
