"""TIFF images of every kind, and what the rules of `histo.images` make of each."""

import struct
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from image_specimens import (
    ALPHA,
    DEEP,
    GREY,
    RGB,
    TURNS,
    Specimen,
    changed,
    flipped,
    holding,
    on_white,
    saved,
    set_tag,
    tiff,
    to_8_bits,
)
from PIL import Image

WIDTH_TAG, LENGTH_TAG, DEPTH_TAG, STRIP_TAG, BYTES_TAG = 256, 257, 258, 273, 279


def tiff_specimens() -> Iterable[Specimen]:
    rgb = {"photometric": "rgb"}
    yield Specimen("rgb.tif", tiff(RGB, **rgb), RGB)
    yield Specimen("rgb-16-bit.tif", tiff(DEEP, **rgb), to_8_bits(DEEP))
    yield Specimen("grey.tif", tiff(GREY), GREY)
    yield Specimen("grey-16-bit.tif", tiff(DEEP[..., 0]), to_8_bits(DEEP[..., 0]))
    yield Specimen("bit.tif", saved(Image.fromarray(GREY > 99)), np.where(GREY > 99, np.uint8(255), np.uint8(0)))
    yield Specimen("white-is-zero.tif", tiff(255 - GREY, photometric="miniswhite"), GREY)
    deep = 65535 - DEEP[..., 0]
    yield Specimen("white-is-zero-16-bit.tif", tiff(deep, photometric="miniswhite"), to_8_bits(DEEP[..., 0]))
    palette = Image.fromarray(GREY % 5).convert("P")
    palette.putdata((GREY % 5).ravel().tolist())
    palette.putpalette(RGB[0, :5].tobytes())
    yield Specimen("palette.tif", saved(palette), RGB[0, :5][GREY % 5])
    both = np.dstack([RGB, ALPHA])
    yield Specimen("rgba.tif", tiff(both, **rgb, extrasamples=["unassalpha"]), on_white(RGB, ALPHA), tolerance=1)
    yield Specimen("rgba-16-bit.tif", tiff(both.astype(np.uint16), **rgb), refusal="4 x 16-bit")
    yield Specimen("cmyk.tif", saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0))), red := _plain(255, 0, 0))
    yield Specimen("cmyk-16-bit.tif", tiff(np.dstack([DEEP] * 2)[..., :4], photometric="separated"), refusal="4 x 16")
    ycbcr = Image.fromarray(red).convert("YCbCr")
    yield Specimen("ycbcr.tif", saved(ycbcr), red, tolerance=2)
    yield Specimen("lab.tif", saved(Image.new("LAB", (4, 4))), refusal="'LAB'")
    for compression in ("lzw", "deflate", "packbits"):
        yield Specimen(f"{compression}.tif", tiff(RGB, **rgb, compression=compression), RGB)
        yield Specimen(f"{compression}-16-bit.tif", tiff(DEEP, **rgb, compression=compression), to_8_bits(DEEP))
    yield Specimen("predictor.tif", tiff(RGB, **rgb, compression="lzw", predictor=True), RGB)
    wide, wide_deep = np.tile(RGB, (4, 4, 1)), np.tile(DEEP, (4, 4, 1))
    yield Specimen("blocks.tif", tiff(wide, **rgb, tile=(16, 32)), wide)
    yield Specimen("blocks-16-bit.tif", tiff(wide_deep, **rgb, tile=(16, 32)), to_8_bits(wide_deep))
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    yield Specimen("planes.tif", tiff(RGB.transpose(2, 0, 1), **planes), RGB)
    yield Specimen("planes-16-bit.tif", tiff(DEEP.transpose(2, 0, 1), **planes), to_8_bits(DEEP))
    yield Specimen("big-endian.tif", tiff(RGB, **rgb, byteorder=">"), RGB)
    yield Specimen("big-endian-16-bit.tif", tiff(DEEP, **rgb, byteorder=">"), to_8_bits(DEEP))
    yield Specimen("bigtiff.tif", tiff(RGB, **rgb, bigtiff=True), RGB)
    yield Specimen("bigtiff-16-bit.tif", tiff(DEEP, **rgb, bigtiff=True), to_8_bits(DEEP))
    yield Specimen("1x1.tif", tiff(RGB[:1, :1], **rgb), RGB[:1, :1])
    for orientation, turn in TURNS.items():
        tag = [(274, 3, 1, orientation, True)]
        yield Specimen(f"turned-{orientation}.tif", tiff(RGB, **rgb, extratags=tag), turn(RGB))
        yield Specimen(f"turned-{orientation}-16-bit.tif", tiff(DEEP, **rgb, extratags=tag), turn(to_8_bits(DEEP)))
    floats = RGB.astype(np.float32)
    yield Specimen("float.tif", tiff(floats, **rgb), refusal="float32")
    floats[0, 0] = np.nan
    yield Specimen("nan.tif", tiff(floats, **rgb), refusal="float32")
    for kind in (np.int8, np.int16, np.int32, np.uint32, np.float64):
        yield Specimen(f"{kind.__name__}.tif", tiff(GREY.astype(kind)), refusal=f"{kind.__name__} samples")
    yield from _several()
    yield from _damaged()


def _plain(*colour: int) -> np.ndarray:
    return np.ones((8, 8, 1), np.uint8) * np.array(colour, np.uint8)


def _several() -> Iterable[Specimen]:
    stack = np.stack([RGB, RGB])
    yield Specimen("pages.tif", tiff(stack, photometric="rgb"), refusal="holds 2 pages")
    yield Specimen("stack.tif", tiff(stack[..., 0], imagej=True), refusal="holds 2 pages")
    yield Specimen("stack-16-bit.tif", tiff(np.stack([DEEP] * 3), photometric="rgb"), refusal="holds 3 pages")
    channels = tiff(np.dstack([RGB, RGB])[..., :5], photometric="minisblack", planarconfig="contig")
    yield Specimen("channels.tif", channels, refusal="cannot be decoded")
    yield Specimen("volume.tif", tiff(stack[..., 0], volumetric=True, tile=(2, 16, 16)), refusal="samples")


def _damaged() -> Iterable[Specimen]:
    write = tiff(RGB, photometric="rgb")
    for name, length in (("magic", 4), ("offset", 7), ("tags", 60), ("pixels", -200)):
        cut = changed(write, lambda content, length=length: content[:length])
        yield Specimen(f"cut-in-{name}.tif", cut, refusal="cannot be decoded")
    deep = changed(tiff(DEEP, photometric="rgb"), lambda content: content[:-200])
    yield Specimen("cut-in-pixels-16-bit.tif", deep, refusal="cannot be decoded")
    squeezed = changed(tiff(RGB, photometric="rgb", compression="deflate"), lambda b: flipped(b, len(b) - 90))
    yield Specimen("deflate-byte.tif", squeezed, refusal="cannot be decoded")
    squeezed = changed(tiff(DEEP, photometric="rgb", compression="deflate"), lambda b: flipped(b, len(b) - 90))
    yield Specimen("deflate-byte-16-bit.tif", squeezed, refusal="cannot be decoded")
    yield Specimen("signature-alone.tif", holding(b"II*\0"), refusal="cannot be decoded")
    yield Specimen("tags-beyond.tif", holding(b"II*\0" + struct.pack("<I", 10**6)), refusal="cannot be decoded")
    yield Specimen("no-tags.tif", holding(b"II*\0\x08\0\0\0\0\0" + bytes(4)), refusal="expected 8- or 16-bit")
    for name, tag, value, words in (
        ("wide", WIDTH_TAG, 2**31, "has 2147483648 x"),
        ("tall", LENGTH_TAG, 2**32 - 1, "4294967295 pixels"),
        ("no-width", WIDTH_TAG, 0, "cannot be decoded"),
        ("no-length", LENGTH_TAG, 0, "cannot be decoded"),
        ("12-bit", DEPTH_TAG, 12, "12-bit"),
        ("strip-beyond", STRIP_TAG, 10**6, "cannot be decoded"),
        ("no-strip", BYTES_TAG, 0, "cannot be decoded"),
    ):
        for pixels, depth in ((GREY, ""), (DEEP[..., 0], "-16-bit")):
            false = changed(tiff(pixels), lambda content, tag=tag, value=value: set_tag(content, tag, value))
            yield Specimen(f"{name}{depth}.tif", false, refusal=words)
    for pixels in (RGB, DEEP):
        sparse = partial(_sparse, pixels)
        yield Specimen(f"sparse-{8 * pixels.itemsize}-bit.tif", sparse, refusal="is empty")
    yield Specimen("circle-of-pages.tif", changed(write, _next_is_first), RGB)


def _sparse(pixels: np.ndarray, path: Path) -> None:
    """Two blocks, the second of which is left out; readers make it black."""
    blocks = iter([np.resize(pixels, (16, 16, 3)), None])
    tifffile.imwrite(path, blocks, shape=(16, 32, 3), dtype=pixels.dtype, tile=(16, 16), photometric="rgb")


def _next_is_first(content: bytes) -> bytes:
    """Each page of a TIFF names the place of the next; here the first names itself."""
    first = struct.unpack_from("<I", content, 4)[0]
    after = first + 2 + 12 * struct.unpack_from("<H", content, first)[0]
    return content[:after] + struct.pack("<I", first) + content[after + 4 :]
