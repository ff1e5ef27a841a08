"""Label files of every kind, and what the rules of `histo.masks` make of each for a tile of HEIGHT x WIDTH pixels."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from image_specimens import (
    GREY_ALPHA_PNG,
    GREY_PNG,
    HEIGHT,
    PALETTE_PNG,
    RGB,
    RGB_PNG,
    WIDTH,
    Specimen,
    changed,
    chunk,
    exif,
    flipped,
    holding,
    png,
    saved,
    tiff,
)
from PIL import Image

IDS = np.zeros((HEIGHT, WIDTH), np.int64)
IDS[1:4, 1:5], IDS[2:6, 6:9], IDS[7:9, 3:12] = 1, 2, 3
HIGH = np.where(IDS == 3, 60_000, IDS)
HIGHER = np.where(IDS == 3, 70_000, IDS)


def label_specimens() -> Iterable[Specimen]:
    yield from _png()
    yield from _tiff()
    yield from _npy()
    yield from _polygons()
    yield from _damaged_polygons()


def _png() -> Iterable[Specimen]:
    yield Specimen("bit.png", holding(png(IDS > 0, GREY_PNG, 1)), IDS > 0)
    for depth in (2, 4, 8):
        yield Specimen(f"grey-{depth}-bit.png", holding(png(IDS, GREY_PNG, depth)), IDS)
        table = chunk(b"PLTE", RGB[0, :4].tobytes())
        yield Specimen(f"palette-{depth}-bit.png", holding(png(IDS, PALETTE_PNG, depth, table)), IDS)
    table += chunk(b"tRNS", b"\0")
    yield Specimen("palette-transparent.png", holding(png(IDS, PALETTE_PNG, 8, table)), IDS)
    yield Specimen("grey-16-bit.png", holding(png(HIGH, GREY_PNG, 16)), HIGH)
    yield Specimen("binary.png", holding(png(255 * (IDS > 0), GREY_PNG, 8)), 255 * (IDS > 0))
    yield Specimen("colour.png", holding(png(RGB, RGB_PNG, 8)), refusal="colour image")
    yield Specimen("alpha.png", holding(png(np.dstack([IDS, IDS]), GREY_ALPHA_PNG, 8)), refusal="colour image")
    yield Specimen("lossy.jpg", saved(RGB[..., 0]), refusal="ends in '.jpg'")
    yield Specimen("jpeg-inside.png", saved(RGB[..., 0], format="JPEG"), refusal="cannot be read")
    pair = {"save_all": True, "append_images": [Image.fromarray(RGB[..., 0])]}
    yield Specimen("animated.png", saved(RGB[..., 1], format="PNG", **pair), refusal="holds 2 pages")
    turned = png(IDS, GREY_PNG, 8, chunk(b"eXIf", exif(3)))
    yield Specimen("turned.png", holding(turned), refusal="orientation")
    upright = png(IDS, GREY_PNG, 8, chunk(b"eXIf", exif(1)))
    yield Specimen("upright.png", holding(upright), IDS)
    whole = png(IDS, GREY_PNG, 8)
    for name, content in {
        "empty": b"",
        "text": b"id,x,y\n",
        "signature": whole[:8],
        "cut": whole[:-20],
        "cut-before-end": whole[:-12],
        "byte": flipped(whole, whole.index(b"IDAT") + 20),
        "rows-missing": png(IDS[:8], GREY_PNG, 8, size=(HEIGHT, WIDTH)),
    }.items():
        yield Specimen(f"{name}.png", holding(content), refusal="cannot be read")
    huge = png(np.zeros((1, 30_000), np.uint8), GREY_PNG, 8, size=(30_000, 30_000))
    yield Specimen("30000x30000.png", holding(huge), refusal="limit")
    yield Specimen("12000x9000.png", holding(png(IDS, GREY_PNG, 8, size=(12_000, 9000))), refusal="limit")
    for height, width in ((1, 1), (1, WIDTH), (HEIGHT, 1), (WIDTH, HEIGHT)):
        yield Specimen(f"{height}x{width}.png", holding(png(np.ones((height, width)), GREY_PNG, 8)), refusal="pair")


def _tiff() -> Iterable[Specimen]:
    for kind in (np.uint8, np.uint16, np.uint32, np.int32, np.int64, np.float32):
        yield Specimen(f"{kind.__name__}.tif", tiff(IDS.astype(kind)), IDS)
    yield Specimen("higher.tif", tiff(HIGHER.astype(np.uint32)), HIGHER)
    yield Specimen("deflate.tif", tiff(IDS.astype(np.uint16), compression="deflate", predictor=True), IDS)
    yield Specimen("blocks.tif", tiff(IDS.astype(np.uint16), tile=(16, 16)), IDS)
    yield Specimen("big-endian.tif", tiff(HIGH.astype(np.uint16), byteorder=">", bigtiff=True), HIGH)
    yield Specimen("imagej.tif", tiff(HIGH.astype(np.uint16), imagej=True), HIGH)
    yield Specimen("negative.tif", tiff(-IDS.astype(np.int16)), refusal="the id -3")
    yield Specimen("beyond.tif", tiff(np.where(IDS == 3, 2**31, IDS).astype(np.uint32)), refusal="the id 2147483648")
    yield Specimen("nan.tif", tiff(np.where(IDS == 3, np.nan, IDS).astype(np.float32)), refusal="the value nan")
    yield Specimen("colour.tif", tiff(RGB, photometric="rgb"), refusal="shape (10, 14, 3)")
    stack = np.stack([IDS, IDS]).astype(np.uint16)
    yield Specimen("pages.tif", tiff(stack, photometric="minisblack"), refusal="2 pages")
    yield Specimen("stack.tif", tiff(stack, imagej=True), refusal="2 pages")
    yield Specimen("unlike-pages.tif", _unlike_pages, refusal="2 pages")
    tag = [(274, 3, 1, 6, True)]
    yield Specimen("turned.tif", tiff(IDS.astype(np.uint8), extratags=tag), refusal="orientation")
    yield Specimen("elsewhere.tif", _elsewhere, 0 * IDS)
    cut = changed(tiff(IDS.astype(np.uint16)), lambda content: content[:-100])
    yield Specimen("cut.tif", cut, refusal="cannot be read")
    yield Specimen("sparse.tif", _sparse, refusal="is empty")


def _unlike_pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(IDS.astype(np.uint16))
        file.write(np.zeros((3, 4), np.uint8))


def _elsewhere(path: Path) -> None:
    """An OME-TIFF whose pixels are in another file, as OME allows; a reader must not go and fetch them."""
    tifffile.imwrite(path.with_suffix(".secret"), IDS.astype(np.uint16))
    pixels = 'Type="uint16" DimensionOrder="XYZCT" SizeX="14" SizeY="10" SizeZ="1" SizeC="1" SizeT="1"'
    place = f'<UUID FileName="{path.stem}.secret">urn:uuid:8c1b4c5e-0000-4000-8000-000000000000</UUID>'
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="urn:uuid:11111111-0000-4000-8000-000000000000"><Image ID="Image:0"><Pixels ID="Pixels:0" {pixels}>'
        f'<TiffData IFD="0" PlaneCount="1">{place}</TiffData></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, np.zeros((HEIGHT, WIDTH), np.uint16), description=xml, metadata=None)


def _sparse(path: Path) -> None:
    blocks = iter([np.ones((16, 16), np.uint16), None])
    tifffile.imwrite(path, blocks, shape=(16, 32), dtype=np.uint16, tile=(16, 16))


def npy(array: np.ndarray) -> Any:
    return partial(_save_npy, array)


def _save_npy(array: np.ndarray, path: Path) -> None:
    np.save(path, array, allow_pickle=True)


def npy_header(text: str, body: bytes = b"") -> Any:
    """A NumPy file with any words for a header."""
    line = text.encode() + b"\n"
    return holding(b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + body)


def _npy() -> Iterable[Specimen]:
    for kind in ("?", "u1", "<u2", ">u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"):
        ids = IDS.astype(kind)
        name = ids.dtype.name + ("-swapped" if kind[0] == ">" else "")
        yield Specimen(f"{name}.npy", npy(ids), ids.astype(np.int64))
    yield Specimen("higher.npy", npy(HIGHER), HIGHER)
    yield Specimen("highest.npy", npy(np.where(IDS == 3, 2**31 - 1, IDS)), np.where(IDS == 3, 2**31 - 1, IDS))
    yield Specimen("columns-first.npy", npy(np.asfortranarray(IDS)), IDS)
    for name, value, words in (("nan", np.nan, "nan"), ("infinite", np.inf, "inf"), ("fraction", 0.5, "0.5")):
        yield Specimen(f"{name}.npy", npy(np.where(IDS == 3, value, IDS)), refusal=f"the value {words}")
    yield Specimen("negative.npy", npy(-IDS), refusal="the id -3")
    yield Specimen("negative-float.npy", npy(-IDS.astype(np.float64)), refusal="the id -3")
    yield Specimen("beyond.npy", npy(np.where(IDS == 3, 2**31, IDS)), refusal="the id 2147483648")
    yield Specimen("far-beyond.npy", npy(np.full(IDS.shape, 2**64 - 1, np.uint64)), refusal="the id 1844674407370955")
    yield Specimen("beyond-float.npy", npy(np.full(IDS.shape, 1e300)), refusal="the value 1e+300")
    yield Specimen("one-row.npy", npy(IDS[0]), refusal="shape (14,)")
    yield Specimen("number.npy", npy(np.array(7)), refusal="shape ()")
    yield Specimen("channels.npy", npy(np.dstack([IDS] * 3)), refusal="shape (10, 14, 3)")
    yield Specimen("no-pixels.npy", npy(IDS[:0]), refusal="shape (0, 14)")
    yield Specimen("other-size.npy", npy(IDS[1:]), refusal="9 x 14 pixels")
    records = np.zeros(IDS.shape, [("id", "i4"), ("type", "u1")])
    yield Specimen("records.npy", npy(records), refusal="but the ids of an instance map are integers")
    for name, kind in (("complex", "c8"), ("words", "U2"), ("dates", "M8[s]"), ("bytes", "S3")):
        yield Specimen(f"{name}.npy", npy(IDS.astype(kind)), refusal="but the ids of an instance map are integers")
    yield Specimen("objects.npy", npy(IDS.astype(object)), refusal="cannot be read")
    yield Specimen("archive.npy", _archive, refusal="cannot be read")
    whole = {"descr": "<i8", "fortran_order": False, "shape": (HEIGHT, WIDTH)}
    yield Specimen("cut.npy", npy_header(str(whole), bytes(99)), refusal="cannot be read")
    yield Specimen("cut-in-header.npy", holding(b"\x93NUMPY\x01\x00\xff\x00{'descr'"), refusal="cannot be read")
    yield Specimen("empty.npy", holding(b""), refusal="cannot be read")
    yield Specimen("text.npy", holding(b"0 0 1 1\n"), refusal="cannot be read")
    for name, shape in (
        ("negative-shape", (-10, -14)),
        ("huge-shape", (10**6, 10**6)),
        ("overflowing-shape", (2**32, 2**32)),
        ("endless-shape", (10**30, 10**30)),
        ("wrong-shape", ("a", 14)),
    ):
        yield Specimen(f"{name}.npy", npy_header(str(whole | {"shape": shape}), bytes(2000)), refusal="")
    yield Specimen("call.npy", npy_header("__import__('os').getpid()"), refusal="cannot be read")
    yield Specimen("nested.npy", npy_header("(" * 9000 + ")" * 9000), refusal="cannot be read")


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, ids=IDS)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def geojson(document: Any) -> Any:
    return holding(json.dumps(document).encode())


def _polygons() -> Iterable[Specimen]:
    boxes = [polygon(box(1, 1, 5, 4)), polygon(box(6, 2, 9, 6)), polygon(box(3, 7, 12, 9))]
    features = [{"type": "Feature", "geometry": shape, "properties": None} for shape in boxes]
    yield Specimen("features.geojson", geojson({"type": "FeatureCollection", "features": features}), IDS)
    yield Specimen("list.json", geojson(boxes), IDS)
    yield Specimen("byte-order-mark.geojson", holding(b"\xef\xbb\xbf" + json.dumps(boxes).encode()), IDS)
    yield Specimen("none.geojson", geojson([]), 0 * IDS)
    yield Specimen("hole.geojson", geojson([polygon(box(0, 0, 14, 10), box(2, 2, 9, 7))]), _hole())
    several = {"type": "MultiPolygon", "coordinates": [[box(1, 1, 5, 4)], [box(6, 2, 9, 6)], [box(3, 7, 12, 9)]]}
    yield Specimen("parts.geojson", geojson(several), IDS > 0)
    everywhere = np.ones_like(IDS)
    yield Specimen("larger-than-the-tile.geojson", geojson([polygon(box(-9, -9, 99, 99))]), everywhere)
    yield Specimen("far-out.geojson", geojson([polygon(box(-1e6, -1e6, 1e6, 1e6))]), everywhere)
    line = polygon([[1, 1], [9, 1], [5, 1]])
    yield Specimen("no-area.geojson", geojson([line]), 0 * IDS)
    yield Specimen("lifted.geojson", geojson([polygon([[*point, 7.5] for point in box(1, 1, 5, 4)])]), IDS == 1)


def _hole() -> np.ndarray:
    ring = np.ones_like(IDS)
    ring[2:7, 2:9] = 0
    return ring


def _damaged_polygons() -> Iterable[Specimen]:
    square = box(1, 1, 5, 4)
    for name, document, words in (
        ("outside", polygon(box(20, 20, 30, 30)), "wholly outside"),
        ("negative-side", polygon(box(-9, -9, -2, -2)), "wholly outside"),
        ("huge", polygon(box(-1e300, -1e300, 1e300, 1e300)), "beyond"),
        ("beyond", polygon(box(0, 0, 2e8, 5)), "beyond"),
        ("huge-integer", polygon(box(0, 0, 10**400, 5)), "not a number"),
        ("nan", polygon([*square[:3], [float("nan"), 1]]), "not a number"),
        ("infinite", polygon([*square[:3], [float("inf"), 1]]), "not a number"),
        ("null", polygon([*square[:3], [None, 1]]), "not a number"),
        ("words", polygon([*square[:3], ["7", "8"]]), "not a number"),
        ("two-points", polygon(square[:2]), "fewer than three"),
        ("no-ring", polygon(), "fewer than three"),
        ("one-coordinate", polygon([[1], [2], [3]]), "cannot be read"),
        ("ragged", polygon([[1, 2], [3], [4, 5]]), "cannot be read"),
        ("point", {"type": "Point", "coordinates": [1, 1]}, "is a Point"),
        ("line", {"type": "LineString", "coordinates": square}, "is a LineString"),
        ("no-type", {"coordinates": [square]}, "cannot be read"),
        ("no-geometry", {"type": "Feature", "geometry": None}, "cannot be read"),
        ("no-features", {"type": "FeatureCollection"}, "cannot be read"),
        ("features-number", {"type": "FeatureCollection", "features": 3}, "cannot be read"),
        ("number", 7, "cannot be read"),
        ("text", "Polygon", "cannot be read"),
        ("numbers", [1, 2, 3], "cannot be read"),
        ("type-list", {"type": ["Polygon"], "coordinates": [square]}, "is a ['Polygon']"),
    ):
        yield Specimen(f"{name}.geojson", geojson(document), refusal=words)
    for name, content in {
        "empty": b"",
        "cut": b'[{"type": "Polygon", "coordinates": [[[1, 1], [5',
        "bytes": b"\xff\xfe\x00",
        "nested": b"[" * 100_000 + b"]" * 100_000,
        "nested-coordinates": b'{"type": "Polygon", "coordinates": ' + b"[" * 900 + b"]" * 900 + b"}",
        "long-number": b'{"type": "Polygon", "coordinates": [[[' + b"9" * 5000 + b"]]]}",
    }.items():
        yield Specimen(f"{name}.geojson", holding(content), refusal="")
