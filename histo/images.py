"""Pixels and µm/px from image files: PNG, JPEG and TIFF, told apart by their first bytes, not by their suffix.

Every form becomes uint8 [3, H, W] RGB by one stated rule, or is refused:

| form of the file                             | what becomes of it                                                   |
|----------------------------------------------|----------------------------------------------------------------------|
| 8-bit RGB                                    | taken as it is; colour profiles are ignored                          |
| grey, 1 to 8 bits                            | spread to the full range and replicated to three channels            |
| palette                                      | looked up                                                            |
| alpha (RGBA, grey + alpha, transparent entry)| composited on white, the colour of an empty slide                    |
| CMYK, YCbCr                                  | converted by Pillow                                                  |
| 16-bit grey or RGB (PNG also RGBA)           | full range: value / 257, rounded; 65535 becomes 255                  |
| EXIF or TIFF orientation                     | applied: the first row is the top of the picture; 1 where it is none |
| animation, several pages or planes           | refused: which one is meant would be a guess                         |
| float, 12-bit, 32-bit, Lab, other mixtures   | refused: their range or colours would be a guess                     |
| more than `MAX_PIXELS`                       | refused by its header, before decoding                               |
| empty, truncated or damaged                  | refused; a PNG's checksums are verified, JPEG and TIFF have none     |
| a PNG with more than 1 MB of text or profile | refused before it is unpacked further                                |

A refusal is an `InputError` that names the file and the reason.
"""

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from histo.errors import InputError
from histo.png import check_png

# Below the size at which Pillow starts to warn, so that users meet one limit and one sentence.
MAX_PIXELS = 80_000_000

# Finer than any light microscope's sampling up to a macro photograph; 72, 96 and 300 dpi lie far outside.
PLAUSIBLE_MPP = (0.05, 20.0)

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_ORIENTATION = 274
_CONVERTIBLE = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_MICRONS = {
    "nm": 1e-3,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "inch": 25400.0,
}


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """The picture in a PNG, JPEG or TIFF file, as uint8 [3, H, W] RGB; the module's table gives the rules.

    Raises:
        InputError: the file is missing, damaged, too large, or of a form that is refused.
    """
    with _opened(Path(path)) as file:
        return _decode(file, path)


def decode_image(data: bytes, name: object) -> NDArray[np.uint8]:
    """The picture in the bytes of a PNG, JPEG or TIFF file, by the rules of `read_image`.

    Args:
        data: the whole file.
        name: what the error sentence calls it, for example a shard and its member.

    Returns:
        uint8 [3, H, W] RGB.

    Raises:
        InputError: the bytes are damaged, too large, or of a form that is refused.
    """
    return _decode(io.BytesIO(data), name)


def format_of(data: bytes, name: object) -> str:
    """PNG, JPEG or TIFF, by the first bytes of a file.

    Raises:
        InputError: it is none of them.
    """
    return _kind(io.BytesIO(data), name)


def read_mpp(path: str | Path) -> float | None:
    """µm/px as the file itself states it, or None.

    TIFF: OME's PhysicalSizeX, ImageJ's unit, or XResolution per cm or inch. PNG: pHYs per metre. JPEG never: its
    density is a print setting. Values outside `PLAUSIBLE_MPP`, and pixels more than 1 % from square, count as unknown.

    Raises:
        InputError: the file is missing or its header is damaged.
    """
    with _opened(Path(path)) as file:
        kind = _kind(file, path)
        with _named(path):
            if kind == "PNG":
                with Image.open(file, formats=["PNG"]) as opened:
                    sizes = [25400 / dpi for dpi in opened.info.get("dpi", ()) if dpi > 0]
            elif kind == "TIFF":
                sizes = _tiff_pixel_sizes(file)
            else:
                sizes = []
    low, high = PLAUSIBLE_MPP
    if len(sizes) != 2 or not all(low <= size <= high for size in sizes):
        return None
    return sizes[0] if math.isclose(*sizes, rel_tol=0.01) else None


def _decode(file: BinaryIO, name: object) -> NDArray[np.uint8]:
    kind = _kind(file, name)
    with _named(name):
        deep = _deep_tiff(file, name) if kind == "TIFF" else None
        file.seek(0)
        with Image.open(file, formats=[kind]) as opened:
            frames = getattr(opened, "n_frames", 1)
            if frames != 1:
                raise InputError(f"{name} holds {frames} pictures, expected one; save the one you mean alone.")
            _check_size(name, opened.width, opened.height)
            # Most JPEG tiles hold no EXIF or XMP, and asking for it costs as much as opening the file.
            turned = kind != "JPEG" or "exif" in opened.info or "xmp" in opened.info
            orientation = opened.getexif().get(_ORIENTATION, 1) if turned else 1
            if kind == "PNG" and _png_depth(file) == 16:
                deep = _deep_png(file, name)
            if kind == "PNG":
                _check_png(file, opened)
            picture: Image.Image = opened if deep is None else Image.fromarray(_to_8_bits(deep))
            if orientation != 1:  # rare, and asking for it copies the picture
                picture.getexif()[_ORIENTATION] = orientation
                picture = ImageOps.exif_transpose(picture)
            return _planes(_rgb(name, picture))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if not path.is_file():
        raise InputError(
            f"{path} {'is not a file' if path.exists() else 'does not exist'}, expected an image; check the path."
        )
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); check its permissions.") from error
    with file:
        yield file


@contextmanager
def _named(name: object) -> Iterator[None]:
    """Decoders meet damaged bytes with exceptions of every type; all of them become one that names the file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} is too large ({error}), expected at most {MAX_PIXELS:,} pixels; cut it into tiles first."
        ) from error
    except Exception as error:
        reason = str(error).strip().rstrip(".").replace("\n", " ") or type(error).__name__
        raise InputError(f"{name} cannot be decoded ({reason}); replace or remove the file.") from error


def _kind(file: BinaryIO, name: object) -> str:
    """The format by the first bytes; the file is at its start again."""
    start = file.read(8)
    file.seek(0)
    if not start:
        raise InputError(f"{name} is empty (0 bytes), expected an image; replace or remove the file.")
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    raise InputError(f"{name} begins with {start!r}, expected a PNG, JPEG or TIFF file; convert or remove it.")


def _check_size(name: object, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width} x {height} pixels, expected at most {MAX_PIXELS:,}; cut it into tiles first."
        )


def _check_png(file: BinaryIO, picture: Image.Image) -> None:
    last_row = picture.crop((0, picture.height - 1, picture.width, picture.height))
    check_png(file, last_row_blank=not any(last_row.tobytes()))
    if picture.palette is not None and np.asarray(picture).max() >= len(picture.palette.palette) // 3:
        raise ValueError("a pixel is beyond its palette")


def _rgb(name: object, picture: Image.Image) -> Image.Image:
    if picture.mode in ("La", "LA", "PA", "RGBa", "RGBA") or picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    if picture.mode not in _CONVERTIBLE:
        raise InputError(
            f"{name} has pixels of form {picture.mode!r}, expected 8- or 16-bit grey or colour; save it as RGB."
        )
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _planes(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 [3, H, W] of an RGB picture; Pillow takes its bands apart quicker than NumPy turns pixels round."""
    bands = bytearray().join([picture.tobytes("raw", band) for band in "RGB"])
    return np.frombuffer(bands, np.uint8).reshape(3, picture.height, picture.width)


def _to_8_bits(deep: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _png_depth(file: BinaryIO) -> int:
    file.seek(24)
    return file.read(1)[0]


def _deep_png(file: BinaryIO, name: object) -> NDArray[np.uint16]:
    """uint16 [H, W], [H, W, 3] or [H, W, 4] of a 16-bit PNG."""
    file.seek(0)
    with Image.open(file, formats=["PNG"]) as high:
        if (
            high.mode not in ("I", "I;16", "RGB", "RGBA")
            or high.tile[0].args == "LA;16B"
            or "transparency" in high.info
        ):
            raise InputError(
                f"{name} is a 16-bit PNG of grey with alpha or with a transparent colour, expected 16-bit grey, RGB or "
                "RGBA; save it with 8 bits."
            )
        first = np.asarray(high).astype(np.uint16)
        if high.mode.startswith("I"):
            return first
    # Pillow keeps the first byte of each 16-bit colour; told that the bytes are swapped, it keeps the second.
    file.seek(0)
    with Image.open(file, formats=["PNG"]) as low:
        low.tile = [tile._replace(args=f"{low.mode};16L") for tile in low.tile]
        return first * 256 + np.asarray(low)


def _deep_tiff(file: BinaryIO, name: object) -> NDArray[np.uint16] | None:
    """uint16 [H, W] or [H, W, 3] of a 16-bit TIFF; None for up to 8 bits, which Pillow reads in every variant."""
    with tifffile.TiffFile(file) as tiff:
        pages = max(len(tiff.pages), int((tiff.imagej_metadata or {}).get("images", 1)))
        if pages != 1:
            raise InputError(f"{name} holds {pages} pages or planes, expected one; save the one you mean alone.")
        page = tiff.pages.first
        _check_size(name, page.imagewidth, page.imagelength * page.imagedepth)
        if 0 in page.databytecounts:
            raise ValueError("a strip or block of it is empty")
        depth, samples, numbers = page.bitspersample, page.samplesperpixel, page.dtype
        if numbers is not None and numbers.kind in "ub" and depth <= 8 and page.imagedepth == 1:
            return None
        tones: dict[int, int] = {
            tifffile.PHOTOMETRIC.MINISBLACK: 1,
            tifffile.PHOTOMETRIC.MINISWHITE: 1,
            tifffile.PHOTOMETRIC.RGB: 3,
        }
        if numbers != np.uint16 or depth != 16 or page.imagedepth != 1 or tones.get(page.photometric) != samples:
            raise InputError(
                f"{name} is a TIFF of {samples} x {depth}-bit {numbers} samples, expected 8- or 16-bit grey or RGB; "
                "convert it to 8-bit RGB."
            )
        pixels = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and samples == 3:
            pixels = pixels.transpose(1, 2, 0)
        return 65535 - pixels if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE else pixels


def _tiff_pixel_sizes(file: BinaryIO) -> list[float]:
    """Width and height of a pixel in µm; empty where the file does not say."""
    with tifffile.TiffFile(file) as tiff:
        if tiff.ome_metadata:
            return _ome_pixel_sizes(tiff.ome_metadata)
        tags = tiff.pages.first.tags
        if tiff.imagej_metadata and "unit" in tiff.imagej_metadata:
            # ImageJ writes µ as an escape and counts XResolution in this unit, whatever ResolutionUnit says.
            unit = str(tiff.imagej_metadata["unit"]).replace("\\u00B5", "µ")
        else:
            unit = {2: "inch", 3: "cm"}.get(int(tags.valueof("ResolutionUnit", 2)), "")
        microns = _MICRONS.get(unit)
        ratios = [tags.valueof(name) for name in ("XResolution", "YResolution")]
        if microns is None or not all(ratio and ratio[0] and ratio[1] for ratio in ratios):
            return []
        return [microns * below / above for above, below in ratios]


def _ome_pixel_sizes(xml: str) -> list[float]:
    sizes = []
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', xml)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', xml)
        microns = _MICRONS.get(unit.group(1) if unit else "µm")
        if size is None or microns is None:
            return []
        sizes.append(float(size.group(1)) * microns)
    return sizes


def channels_first(image: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [3, H, W] of an image [3, H, W] or [H, W, 3].

    Raises:
        InputError: another dtype or shape, or both axes of three.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise InputError(f"The image is {image.dtype}, expected uint8 RGB from 0 to 255; convert it.")
    if image.ndim != 3 or image.size == 0 or (image.shape[0] == 3) == (image.shape[2] == 3):
        raise InputError(
            f"The image has shape {image.shape}, expected [3, H, W] or [H, W, 3] with one axis of three colours; "
            "bring it into one of these forms."
        )
    return np.ascontiguousarray(image if image.shape[0] == 3 else image.transpose(2, 0, 1))
