"""Tiles read from slides when they are asked for, so that none is written.

Which squares of a slide hold tissue is found once, when the set is opened, and kept beside the table in a folder
NAME.tissue (where that can be written): ten thousand slides take hours to survey and minutes to open again. The rest is
pure: tile `k` is always the same square.
"""

import hashlib
import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from histo.errors import InputError
from histo.files import written_whole
from histo.slides.grids import REASONS, Tiling, grid_of
from histo.slides.readers import Slide
from histo.slides.resampling import Sampling, read_grid
from histo.slides.tables import SlideRow, list_slides
from histo.tiles.entries import Entries, TileEntry

OPEN_SLIDES = 8  # per process; each takes tens of megabytes for what it decoded last
_RULES = 1  # of finding tissue; another number makes what was kept be found anew


class OpenSlides:
    """Slides that are open, the least recently used closed beyond a limit; none wherever it is sent or forked to."""

    def __init__(self, limit: int = OPEN_SLIDES) -> None:
        self._limit = limit
        self._slides: OrderedDict[tuple[Path, float | None], Slide] = OrderedDict()
        self._lock, self._owner = threading.Lock(), os.getpid()

    def __reduce__(self) -> tuple[type["OpenSlides"], tuple[int]]:
        return OpenSlides, (self._limit,)

    def read(
        self, row: SlideRow, sampling: Sampling, left: int, top: int, width: int, height: int
    ) -> NDArray[np.uint8]:
        """Pixels as `histo.slides.resampling.read_grid` gives them."""
        if self._owner != os.getpid():  # a fork shares the parent's places in files, and maybe its held lock
            self._slides, self._lock, self._owner = OrderedDict(), threading.Lock(), os.getpid()
        key = (row.path, row.mpp)
        with self._lock:
            if key not in self._slides:
                self._slides[key] = Slide(row.path, row.mpp)
            self._slides.move_to_end(key)
            while len(self._slides) > self._limit:
                self._slides.popitem(last=False)[1].close()
            return read_grid(self._slides[key], sampling, left, top, width, height)


@dataclass(frozen=True)
class SlideEntry(TileEntry):
    """A tile of a slide; `path` is its name below that of the slide.

    Attributes:
        row: the slide.
        sampling: the pixels it is made of.
        box: left, top, width, height in these.
        slides: reads it.
    """

    row: SlideRow
    sampling: Sampling
    box: tuple[int, int, int, int]
    slides: OpenSlides

    def read_image(self) -> NDArray[np.uint8]:
        return self.slides.read(self.row, self.sampling, *self.box)

    def image_file(self) -> bytes:
        """The tile as PNG."""
        return encoded(self.read_image(), "png")


class SlideTiles(Sequence[TileEntry]):
    """The entries of one slide, kept as an array of places and made one by one.

    Args:
        row: the slide.
        source: the source its tiles name.
        sampling: the pixels they are made of.
        size: their side; pixels.
        places: int [N, 2], left and top of each in pixels of the sampling.
        scale: pixels of the finest level to one of the sampling.
        slides: reads them.
    """

    def __init__(
        self,
        row: SlideRow,
        source: str,
        sampling: Sampling,
        size: int,
        places: NDArray[np.int64],
        scale: float,
        slides: OpenSlides,
    ) -> None:
        self.row, self.source, self.sampling, self.size = row, source, sampling, size
        self._places, self._scale, self._slides = places.astype(np.int32), scale, slides

    def __len__(self) -> int:
        return len(self._places)

    def read_image(self, index: int) -> NDArray[np.uint8]:
        """The image of one tile, uint8 [3, size, size], without making its entry."""
        left, top = self._places[index].tolist()
        return self._slides.read(self.row, self.sampling, left, top, self.size, self.size)

    @overload
    def __getitem__(self, index: int) -> TileEntry: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[TileEntry]: ...

    def __getitem__(self, index: int | slice) -> TileEntry | Sequence[TileEntry]:
        if isinstance(index, slice):
            return Entries([self])[index]
        left, top = self._places[range(len(self))[index]].tolist()
        name = place_name(left, top, self._scale)
        return SlideEntry(
            path=self.row.path / name,
            key=f"{self.row.key}/{name}",
            source=self.source,
            patient=self.row.patient,
            mpp=self.sampling.mpp,
            label=self.row.label,
            split=self.row.split,
            mask=None,
            row=self.row,
            sampling=self.sampling,
            box=(left, top, self.size, self.size),
            slides=self._slides,
        )


def place_name(left: int, top: int, scale: float) -> str:
    """What a tile is called: where it begins in pixels of the finest level."""
    return f"x{round(left * scale):06d}_y{round(top * scale):06d}"


def encoded(image: NDArray[np.uint8], form: Literal["png", "jpg"]) -> bytes:
    """A PNG file, or a JPEG file of quality 90 without chroma subsampling, of uint8 [3, H, W]."""
    data = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    if form == "png":
        picture.save(data, "PNG")
    else:
        picture.save(data, "JPEG", quality=90, subsampling=0)
    return data.getvalue()


def open_slides(
    table: Path, source: str, *, mpp: float | None, size: int, on_bad: Literal["error", "skip"]
) -> tuple[list[SlideTiles], list[tuple[Path, str]]]:
    """The tiles of all slides of a table, without overlap, and (path, reason) of slides that are left out.

    Args:
        table: a `slides.csv`.
        source: the source their tiles name.
        mpp: µm/px of the tiles.
        size: their side; pixels.
        on_bad: "error" refuses slides that cannot be read; "skip" leaves them out.

    Raises:
        InputError: no `mpp`, a broken rule of the table, no tile in any slide, and see `on_bad`.
    """
    if mpp is None:
        raise InputError(
            f"{table} lists slides, which are cut at a µm/px, and none was given; give --data.mpp, or cut them with "
            "`nucleate tile`."
        )
    tiling, rows, slides = Tiling(mpp, size), list_slides(table), OpenSlides()
    folder = table.parent / f"{table.stem}.tissue"

    def found(row: SlideRow) -> SlideTiles | str:
        try:
            facts = _grid_facts(row, tiling, folder)
        except InputError as error:
            if on_bad == "error":
                raise
            return str(error)
        sampling = Sampling(**facts["sampling"])
        kept = np.argwhere(_unpacked(facts["kept"], facts["rows"], facts["columns"]))
        return SlideTiles(row, source, sampling, size, kept[:, ::-1] * size, facts["scale"], slides)

    with ThreadPoolExecutor(2) as pool:
        results = list(tqdm(pool.map(found, rows), total=len(rows), desc="finding tissue", unit="slide", disable=None))
    bad = [(row.path, reason) for row, reason in zip(rows, results, strict=True) if isinstance(reason, str)]
    parts = [part for part in results if isinstance(part, SlideTiles)]
    if not any(map(len, parts)):
        why = f", the first because {bad[0][1]}" if bad else ""
        raise InputError(
            f"{table} gives no tile with enough tissue: {len(rows)} slides, {len(bad)} of them unreadable"
            f"{why}; look at them with `nucleate tile`, which draws what it keeps."
        )
    return parts, bad


def _grid_facts(row: SlideRow, tiling: Tiling, folder: Path) -> dict[str, Any]:
    """Where a slide has tiles, from the folder or found now and left there."""
    state = row.path.stat()
    version = [state.st_size, state.st_mtime_ns]
    basis = {"rules": _RULES, "tiling": asdict(tiling), "mpp": row.mpp, "file": version}
    path = folder / f"{hashlib.sha256(row.key.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):  # damaged: found anew
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["basis"] == basis and _unpacked(facts["kept"], facts["rows"], facts["columns"]) is not None:
            return facts
    with Slide(row.path, row.mpp) as slide:
        grid, _ = grid_of(slide, tiling)
        scale = grid.sampling.step * slide.downsamples[grid.sampling.level]
    facts = {
        "slide": row.key,
        "basis": basis,
        "sampling": asdict(grid.sampling),
        "scale": scale,
        "rows": grid.verdict.shape[0],
        "columns": grid.verdict.shape[1],
        "kept": np.packbits(grid.verdict < 0).tobytes().hex(),
        "dropped": dict(zip(REASONS, grid.dropped().values(), strict=True)),
    }
    with suppress(OSError):  # a folder that cannot be written only costs the time of finding it again
        folder.mkdir(exist_ok=True)
        with written_whole(path) as file:
            file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode("utf-8"))
    return facts


def _unpacked(kept: str, rows: int, columns: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(kept), np.uint8), count=rows * columns)
    return bits.astype(bool).reshape(rows, columns)
