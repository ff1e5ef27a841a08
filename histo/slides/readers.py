"""Whole slides behind one small interface: OpenSlide where it can open the file, tiffslide where it cannot.

OpenSlide knows the scanners' formats (SVS, NDPI, MRXS, SCN, BIF, …). tiffslide reads what tifffile reads: TIFF in
strips or with compressions that OpenSlide does not know, and all TIFF where OpenSlide is not installed. Pixels that a
slide does not have (beyond its edge, or never scanned) are white, the colour of empty glass.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from histo.errors import InputError
from histo.images import PLAUSIBLE_MPP

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide", ".vms", ".vmu", ".bif", ".czi")
LARGEST_BLOCK = 2**26  # pixels that a TIFF may store in one piece, since a piece is decoded whole
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LIBRARIES = ("openslide", "tiffslide")


class UnreadableRegionError(InputError):
    """A part of a slide that cannot be decoded, while others may."""


class Slide:
    """One open slide.

    Args:
        path: the file; for MRXS and the like, the one that others lie beside.
        mpp: µm/px of its finest level, before what the file says; None takes it from the file.

    Attributes:
        library: "openslide" or "tiffslide".
        sizes: (width, height) of each level, the finest first; pixels.
        downsamples: how much coarser each level is than the first, about 1, 2, 4 …
        mpp: µm/px of the finest level, None where the file does not say.

    Raises:
        InputError: no such file, one that neither library can open or that is cut off, pixels that are not square, or
            neither library is installed.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        if not path.is_file():
            state = "is a folder" if path.is_dir() else "does not exist"
            raise InputError(f"{path} {state}, expected a whole slide; check the path.")
        self.path = path
        self._open, self.library = _opener(path)
        self._handle = self._open()
        self.sizes = [(int(width), int(height)) for width, height in self._handle.level_dimensions]
        self.downsamples = [float(ratio) for ratio in self._handle.level_downsamples]
        self.mpp = _mpp(path, self._handle.properties, self.library) if mpp is None else mpp

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._handle.close()

    @property
    def power(self) -> float | None:
        """Objective power as the file states it, None where it does not."""
        return _number(self._handle.properties.get(f"{self.library}.objective-power"))

    def read(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """A rectangle of one level.

        Args:
            level: 0 is the finest.
            left, top: its first pixel, in pixels of the level; may lie outside.
            width, height: pixels of the level.

        Returns:
            uint8 [3, height, width] RGB, a view of pixels whose channels lie together.

        Raises:
            UnreadableRegionError: it cannot be decoded; other parts still can be read.
            InputError: the slide is no RGB image of 8 bits.
        """
        pixels = np.full((height, width, 3), 255, np.uint8)
        limits = self.sizes[level]
        (x0, x1), (y0, y1) = (
            (max(start, 0), min(start + length, limit))
            for start, length, limit in zip((left, top), (width, height), limits, strict=True)
        )
        if x0 < x1 and y0 < y1:
            # Both libraries take the place in pixels of the finest level; rounded up, since tiffslide rounds down.
            place = (math.ceil(x0 * self.downsamples[level]), math.ceil(y0 * self.downsamples[level]))
            try:
                found = self._handle.read_region(place, level, (x1 - x0, y1 - y0))
            except Exception as error:  # the decoders' own types, of several libraries
                self._handle.close()
                self._handle = self._open()  # OpenSlide reads nothing more from a handle that failed once
                raise UnreadableRegionError(
                    f"{self.path} cannot be read at x {place[0]}, y {place[1]} of level {level} "
                    f"({_reason(error)}); replace the file, or go without this part."
                ) from error
            pixels[y0 - top : y1 - top, x0 - left : x1 - left] = _rgb(found, self.path)
        return pixels.transpose(2, 0, 1)


def _opener(path: Path) -> tuple[Callable[[], Any], str]:
    """What opens the file, again and again, and the name of the library."""
    _refuse_cut_off(path)
    missing, refusals = [], []
    for name in _LIBRARIES:
        try:
            opener = _library(name)
        except (ImportError, OSError):  # OSError: the package without the library that it wraps
            missing.append(name)
            continue

        def opened(opener: Callable[[str], Any] = opener) -> Any:
            return opener(str(path))

        try:
            if name == "tiffslide":
                _refuse_large_blocks(path)
            opened().close()
        except InputError:
            raise
        except Exception as error:  # each format of each library has its own
            refusals.append(f"{name}: {_reason(error)}")
            continue
        return opened, name
    if len(missing) == len(_LIBRARIES):
        raise InputError(
            f"{path} is a whole slide, and neither OpenSlide nor tiffslide is there to read it; "
            "run `pip install -e .[slides]`."
        )
    absent = "".join(f"; {name} is not installed" for name in missing)
    raise InputError(
        f"{path} cannot be opened as a whole slide ({'; '.join(refusals)}{absent}); "
        "replace the file, or remove it from what is tiled."
    )


def _library(name: str) -> Callable[[str], Any]:
    if name == "openslide":
        import openslide

        opener: Callable[[str], Any] = openslide.OpenSlide
    else:
        import tiffslide

        opener = tiffslide.TiffSlide
    return opener


def _refuse_cut_off(path: Path) -> None:
    """A TIFF whose directories or pixels lie past its end was not copied whole; the libraries may not notice."""
    with path.open("rb") as file:
        start = file.read(4)
    size = os.path.getsize(path)
    if not size:
        raise InputError(f"{path} is empty (0 bytes), expected a whole slide; copy it again.")
    if start not in _TIFF or path.suffix.lower() == ".ndpi":  # whose offsets have a form of their own
        return
    try:
        with _quiet(), tifffile.TiffFile(path) as tiff:
            tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
            offset = tiff.filehandle.read(tiff.tiff.offsetsize)
            following = int.from_bytes(offset, "little" if tiff.byteorder == "<" else "big")
            end = max([following + 1 if following else 0, *(_end(page) for page in tiff.pages)])
    except Exception as error:
        raise InputError(f"{path} cannot be read as a TIFF file ({_reason(error)}); copy it again.") from error
    if end > size:
        raise InputError(
            f"{path} is cut off: it has {size} bytes, but says that it goes on to byte {end}; copy it again."
        )


def _end(page: Any) -> int:
    """The last byte of a page's pixels."""
    offsets, counts = (np.asarray(values, np.int64) for values in (page.dataoffsets, page.databytecounts))
    return int((offsets + counts)[counts > 0].max(initial=0))


def _refuse_large_blocks(path: Path) -> None:
    with _quiet(), tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        pixels = math.prod(page.chunks[:2])
    if pixels > LARGEST_BLOCK:
        raise InputError(
            f"{path} stores {pixels} pixels in one piece, expected tiles or strips of at most "
            f"{LARGEST_BLOCK}; save it as a tiled TIFF."
        )


def _mpp(path: Path, properties: Mapping[str, Any], library: str) -> float | None:
    across, down = (_number(properties.get(f"{library}.mpp-{axis}")) for axis in "xy")
    low, high = PLAUSIBLE_MPP  # a TIFF of 72 dpi says nothing of its scanner
    if across is None or down is None or not (low <= across <= high and low <= down <= high):
        return None
    if not math.isclose(across, down, rel_tol=0.01):
        raise InputError(
            f"{path} says that its pixels are {across:.4g} µm wide and {down:.4g} µm high, expected "
            "square ones; give its true µm/px in the column mpp of a slides.csv, or resample it."
        )
    return (across + down) / 2


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _rgb(found: Image.Image, path: Path) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]; what is transparent becomes white."""
    if found.mode == "RGBA":
        low, _ = found.getchannel("A").getextrema()
        if low == 255:  # the usual case, and three times as quick
            return np.asarray(found)[:, :, :3]
        white = Image.new("RGBA", found.size, "white")
        return np.asarray(Image.alpha_composite(white, found).convert("RGB"))
    if found.mode != "RGB":
        raise InputError(f"{path} has pixels of form {found.mode!r}, expected 8-bit RGB; convert it, or leave it out.")
    return np.asarray(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """What tifffile would log of a damaged file, our sentences say."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".").replace("\n", " ")[:200] or type(error).__name__
