"""Image files of every kind, sound, odd and damaged, and what the rules of `histo.images` make of each.

What a reader should return is computed here from the pixels, never with the reader. PNG is written chunk by chunk.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

HEIGHT, WIDTH = 10, 14
_draws = np.random.default_rng(0)
RGB = _draws.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = np.ascontiguousarray(RGB[..., 0])
DEEP = _draws.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
ALPHA = _draws.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(120, 120 + WIDTH), 90, 160 + np.arange(HEIGHT)[:, None]), 2)
SMOOTH = SMOOTH.astype(np.uint8)
HALVES = np.where(np.arange(32)[:, None, None] < 12, np.uint8(250), np.uint8(5)) * np.ones((1, 48, 3), np.uint8)
HALVES[:, :8] = 120  # no symmetry, and edges on the 8 x 8 grid of JPEG, hence next to no loss
SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY_PNG, RGB_PNG, PALETTE_PNG, GREY_ALPHA_PNG, RGBA_PNG = 0, 2, 3, 4, 6  # colour types of a PNG header
_SAMPLES = {GREY_PNG: 1, RGB_PNG: 3, PALETTE_PNG: 1, GREY_ALPHA_PNG: 2, RGBA_PNG: 4}
TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # EXIF 2.3, tag 274: how stored rows become the picture
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}


@dataclass(frozen=True)
class Specimen:
    """A file to be written, and what it is read as (within `tolerance`) or words of the sentence that refuses it.

    An image is read as uint8 [H, W, 3], or [H, W] for three equal channels; a label map as integers [H, W].
    """

    name: str
    write: Callable[[Path], object]
    read_as: NDArray[Any] | None = None
    refusal: str = ""
    tolerance: int = 0


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    samples: NDArray[Any],
    colour: int,
    depth: int,
    before: bytes = b"",
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
) -> bytes:
    """A PNG of integer samples [H, W] or [H, W, C]; `before` are chunks ahead of the pixels, `size` a false H and W."""
    height, width = size or samples.shape[:2]
    passes = [samples]
    if interlaced:  # Adam7: PNG specification, section 8.2
        grid = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        passes = [samples[row::down, column::across] for row, column, down, across in grid]
    rows = b"".join(b"\0" + _packed(row.ravel(), depth) for part in passes if part.size for row in part)
    return raw_png((width, height, depth, colour, 0, 0, interlaced), rows, before)


def raw_png(header: tuple[int, ...], rows: bytes, before: bytes = b"") -> bytes:
    start = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    return start + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _packed(row: NDArray[Any], depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
    return np.packbits(bits.ravel()).tobytes()


def exif(orientation: int) -> bytes:
    """A TIFF header with the one tag."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)


def to_8_bits(deep: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.rint(deep / 257).astype(np.uint8)


def on_white(colour: NDArray[np.uint8], alpha: NDArray[Any]) -> NDArray[np.uint8]:
    opacity = alpha[..., None] / 255
    colour = colour if colour.ndim == 3 else np.repeat(colour[..., None], 3, 2)
    return np.rint(colour * opacity + 255 * (1 - opacity)).astype(np.uint8)


def holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def saved(picture: Any, **options: Any) -> Callable[[Path], object]:
    """Written by Pillow; an array or a picture."""

    def write(path: Path) -> None:
        (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path, **options)

    return write


def tiff(pixels: NDArray[Any], **options: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, pixels, **options)


def changed(write: Callable[[Path], object], change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """What a writer makes, with its bytes changed afterwards."""

    def damaged(path: Path) -> None:
        write(path)
        path.write_bytes(change(path.read_bytes()))

    return damaged


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def set_tag(content: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF of one page with another value of a tag, written as a single 32-bit number."""
    at = struct.unpack_from("<I", content, 4)[0] + 2
    while struct.unpack_from("<H", content, at)[0] != tag:
        at += 12
    return content[:at] + struct.pack("<HHII", tag, 4, 1, value) + content[at + 12 :]


def resized_jpeg(content: bytes, height: int, width: int, precision: int = 8) -> bytes:
    at = content.index(b"\xff\xc0") + 4
    return content[:at] + struct.pack(">BHH", precision, height, width) + content[at + 5 :]


def png_specimens() -> Iterable[Specimen]:
    for depth in (1, 2, 4, 8):
        values = GREY >> (8 - depth)
        full = (values * (255 // (2**depth - 1))).astype(np.uint8)
        yield Specimen(f"grey-{depth}-bit.png", holding(png(values, GREY_PNG, depth)), full)
        colours = RGB.reshape(-1, 3)[: 2**depth]
        entries = values % len(colours)
        table = chunk(b"PLTE", colours.tobytes())
        yield Specimen(f"palette-{depth}-bit.png", holding(png(entries, PALETTE_PNG, depth, table)), colours[entries])
    few = GREY % 3
    table = chunk(b"PLTE", RGB[0, :3].tobytes())
    clear = table + chunk(b"tRNS", bytes([255, 0, 128]))
    yield Specimen(
        "palette-transparent.png",
        holding(png(few, PALETTE_PNG, 8, clear)),
        on_white(RGB[0, :3][few], np.array([255, 0, 128])[few]),
        tolerance=1,
    )
    yield Specimen("palette-missing.png", holding(png(few, PALETTE_PNG, 8)), refusal="no palette")
    yield Specimen(
        "palette-too-short.png", holding(png(GREY % 3 + 1, PALETTE_PNG, 8, table)), refusal="beyond its palette"
    )
    yield Specimen("grey-16-bit.png", holding(png(DEEP[..., 0], GREY_PNG, 16)), to_8_bits(DEEP[..., 0]))
    yield Specimen("rgb.png", holding(png(RGB, RGB_PNG, 8)), RGB)
    yield Specimen("rgb-16-bit.png", holding(png(DEEP, RGB_PNG, 16)), to_8_bits(DEEP))
    yield Specimen("rgb-interlaced.png", holding(png(RGB, RGB_PNG, 8, interlaced=True)), RGB)
    yield Specimen("rgb-16-bit-interlaced.png", holding(png(DEEP, RGB_PNG, 16, interlaced=True)), to_8_bits(DEEP))
    both = np.dstack([GREY, ALPHA])
    yield Specimen("grey-alpha.png", holding(png(both, GREY_ALPHA_PNG, 8)), on_white(GREY, ALPHA), tolerance=1)
    yield Specimen("grey-alpha-16-bit.png", holding(png(both, GREY_ALPHA_PNG, 16)), refusal="grey with alpha")
    both = np.dstack([RGB, ALPHA])
    yield Specimen("rgba.png", holding(png(both, RGBA_PNG, 8)), on_white(RGB, ALPHA), tolerance=1)
    both = np.dstack([DEEP, ALPHA.astype(np.uint16) * 257])
    yield Specimen("rgba-16-bit.png", holding(png(both, RGBA_PNG, 16)), on_white(to_8_bits(DEEP), ALPHA), tolerance=1)
    key = chunk(b"tRNS", RGB[0, 0].astype(">u2").tobytes())
    seen = 255 * (RGB[0, 0] != RGB).any(2)
    yield Specimen("rgb-key.png", holding(png(RGB, RGB_PNG, 8, key)), on_white(RGB, seen))
    key = chunk(b"tRNS", GREY[0, :1].astype(">u2").tobytes())
    yield Specimen("grey-key.png", holding(png(GREY, GREY_PNG, 8, key)), on_white(GREY, 255 * (GREY[0, 0] != GREY)))
    key = chunk(b"tRNS", DEEP[0, 0].astype(">u2").tobytes())
    yield Specimen("rgb-16-bit-key.png", holding(png(DEEP, RGB_PNG, 16, key)), refusal="transparent colour")
    for height, width in ((1, 1), (1, 9), (9, 1)):
        yield Specimen(f"{height}x{width}.png", holding(png(RGB[:height, :width], RGB_PNG, 8)), RGB[:height, :width])
    for orientation, turn in TURNS.items():
        tag = chunk(b"eXIf", exif(orientation))
        yield Specimen(f"exif-{orientation}.png", holding(png(RGB, RGB_PNG, 8, tag)), turn(RGB))
    yield Specimen("exif-9.png", holding(png(RGB, RGB_PNG, 8, chunk(b"eXIf", exif(9)))), RGB)
    yield Specimen(
        "exif-damaged.png", holding(png(RGB, RGB_PNG, 8, chunk(b"eXIf", b"MM\0*\0"))), refusal="cannot be decoded"
    )
    yield from _damaged_png()


def _damaged_png() -> Iterable[Specimen]:
    whole = png(RGB, RGB_PNG, 8)
    pixels = whole.index(b"IDAT")
    broken = {
        "cut-in-signature": whole[:8],
        "cut-in-header": whole[:20],
        "cut-before-pixels": whole[: pixels - 4],
        "cut-in-pixels": whole[: pixels + 200],
        "cut-before-end": whole[:-12],
        "header-checksum": flipped(whole, 17),
        "pixel-byte": flipped(whole, pixels + 60),
        "pixel-checksum": flipped(whole, len(whole) - 14),
        "no-pixels": png(RGB[:0], RGB_PNG, 8, size=(HEIGHT, WIDTH)),
        "rows-missing": png(RGB[:4], RGB_PNG, 8, size=(HEIGHT, WIDTH)),
        "no-height": png(RGB, RGB_PNG, 8, size=(0, WIDTH)),
        "no-width": png(RGB, RGB_PNG, 8, size=(HEIGHT, 0)),
        "colour-type-5": raw_png((2, 1, 8, 5, 0, 0, 0), b"\0ab"),
        "depth-3": raw_png((2, 1, 3, GREY_PNG, 0, 0, 0), b"\0ab"),
        "filter-9": raw_png((2, 1, 8, GREY_PNG, 0, 0, 0), b"\x09ab"),
        "chunk-length": whole[: pixels - 4] + b"\x7f\xff\xff\xff" + whole[pixels:],
        "text-bomb": png(RGB, RGB_PNG, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
        "international-text-bomb": png(
            RGB, RGB_PNG, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(50_000_000)))
        ),
        "profile-bomb": png(RGB, RGB_PNG, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
    }
    for name, content in broken.items():
        yield Specimen(f"{name}.png", holding(content), refusal="cannot be decoded")
    # 900 million pixels would fill gigabytes; the header says so, and the pixels need not be looked at.
    yield Specimen(
        "30000x30000.png",
        holding(png(np.zeros((1, 30_000), np.uint8), GREY_PNG, 8, size=(30_000, 30_000))),
        refusal="too large",
    )
    yield Specimen(
        "9000x9000.png", holding(png(np.zeros((1, 9), np.uint8), GREY_PNG, 8, size=(9000, 9000))), refusal="9000 x 9000"
    )
    yield Specimen("after-the-end.png", holding(whole + b"more"), RGB)
    yield Specimen("profile-of-noise.png", holding(png(RGB, RGB_PNG, 8, chunk(b"iCCP", b"a\0\0noise"))), RGB)
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Description", "a comment of 60 kB " * 3000, zip=True)
    yield Specimen("long-comment.png", saved(RGB, pnginfo=comment), RGB)


def foreign_specimens() -> Iterable[Specimen]:
    """What is no still PNG, JPEG or TIFF file, whatever its name says."""
    pair = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
    yield Specimen("animated.png", saved(RGB, format="PNG", **pair), refusal="holds 2 pictures")
    for kind in ("GIF", "WEBP"):
        yield Specimen(f"animated-{kind.lower()}.png", saved(RGB, format=kind, **pair), refusal="expected a PNG")
        yield Specimen(f"still-{kind.lower()}.png", saved(RGB, format=kind), refusal="expected a PNG")
    yield Specimen("bitmap.png", saved(RGB, format="BMP"), refusal="expected a PNG")
    yield Specimen("empty.png", holding(b""), refusal="is empty")
    yield Specimen("zeros.png", holding(bytes(4096)), refusal="expected a PNG")
    yield Specimen("text.png", holding(b"tile 7, see email\n"), refusal="expected a PNG")
    yield Specimen("page.jpg", holding(b"<!DOCTYPE html><title>404</title>"), refusal="expected a PNG")
    yield Specimen("pointer.png", holding(b"version https://git-lfs.github.com/spec/v1\n"), refusal="expected a PNG")
    yield Specimen("archive.tif", holding(b"PK\3\4" + bytes(60)), refusal="expected a PNG")
    yield Specimen("jpeg-inside.png", saved(SMOOTH, format="JPEG", quality=95), SMOOTH, tolerance=3)
    yield Specimen("folder.png", lambda path: path.mkdir(), refusal="is not a file")
    yield Specimen("pipe.png", os.mkfifo, refusal="is not a file")
    yield Specimen("broken-link.png", lambda path: path.symlink_to("nowhere.png"), refusal="does not exist")
    yield Specimen("circle.png", lambda path: path.symlink_to(path.name), refusal="does not exist")


def jpeg_specimens() -> Iterable[Specimen]:
    sound = {"quality": 95, "subsampling": 0}
    yield Specimen("ycbcr.jpg", saved(SMOOTH, **sound), SMOOTH, tolerance=3)
    yield Specimen("halved-colour.jpg", saved(SMOOTH, quality=95, subsampling=2), SMOOTH, tolerance=5)
    yield Specimen("progressive.jpg", saved(SMOOTH, progressive=True, **sound), SMOOTH, tolerance=3)
    yield Specimen("rgb-inside.jpg", saved(SMOOTH, keep_rgb=True, quality=95), SMOOTH, tolerance=3)
    yield Specimen("grey.jpg", saved(SMOOTH[..., 0], quality=95), SMOOTH[..., 0], tolerance=3)
    yield Specimen("1x1.jpg", saved(np.full((1, 1, 3), 77, np.uint8)), np.full((1, 1, 3), 77, np.uint8), tolerance=2)
    # Adobe writes CMYK inverted: 255 is no ink. Each colour is then (its sample) x (the black sample) / 255.
    ink = Image.new("CMYK", (16, 16), (55, 155, 205, 105))
    printed = np.rint(np.array([200, 100, 50]) * 150 / 255).astype(np.uint8) * np.ones((16, 16, 1), np.uint8)
    yield Specimen("cmyk-adobe.jpg", saved(ink, quality=95), printed, tolerance=3)
    ycck = changed(saved(ink, quality=95), lambda content: _adobe_transform(content, 2))
    y, cb, cr = 200, 100 - 128, 50 - 128  # the same samples, declared to be YCC of the inks, and black
    colour = np.array([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]).clip(0, 255)
    printed = np.rint((255 - colour) * 150 / 255).astype(np.uint8) * np.ones((16, 16, 1), np.uint8)
    yield Specimen("ycck-adobe.jpg", ycck, printed, tolerance=3)
    for orientation, turn in TURNS.items():
        tag = b"Exif\0\0" + exif(orientation)
        yield Specimen(f"exif-{orientation}.jpg", saved(HALVES, exif=tag, **sound), turn(HALVES), tolerance=3)
    photographs = saved(SMOOTH, format="MPO", save_all=True, append_images=[Image.fromarray(SMOOTH)])
    yield Specimen("two-views.jpg", photographs, refusal="holds 2 pictures")
    noise = saved(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8), quality=90)
    for name, length in (("magic", 3), ("header", 150), ("pixels", 2500)):
        cut = changed(noise, lambda content, length=length: content[:length])
        yield Specimen(f"cut-in-{name}.jpg", cut, refusal="cannot be decoded")
    tag = saved(SMOOTH, exif=b"Exif\0\0MM\0*\0", **sound)
    yield Specimen("exif-damaged.jpg", tag, SMOOTH, tolerance=3)
    yield Specimen("cut-before-end.jpg", changed(noise, lambda b: b[:-2]), refusal="cannot be decoded")
    yield Specimen("no-height.jpg", changed(noise, lambda b: resized_jpeg(b, 0, 64)), refusal="cannot be decoded")
    yield Specimen("huge.jpg", changed(noise, lambda b: resized_jpeg(b, 65_500, 65_500)), refusal="too large")
    yield Specimen("12-bit.jpg", changed(noise, lambda b: resized_jpeg(b, 64, 64, 12)), refusal="12-bit")
    yield Specimen("after-the-end.jpg", changed(saved(SMOOTH, **sound), lambda b: b + bytes(99)), SMOOTH, tolerance=3)


def _adobe_transform(content: bytes, transform: int) -> bytes:
    at = content.index(b"Adobe") + 11
    return content[:at] + bytes([transform]) + content[at + 1 :]
