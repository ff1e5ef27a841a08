"""Every form of image file against the array it was made from, and every refusal by its sentence."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from histo import images
from histo.errors import InputError
from histo.images import read_image, read_mpp

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = np.random.default_rng(1).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
ALPHA = np.random.default_rng(2).integers(0, 256, (5, 7), dtype=np.uint8)


def channels_first(picture: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(picture[None], 3, axis=0) if picture.ndim == 2 else picture.transpose(2, 0, 1)


def scaled(deep: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.rint(deep / 257).astype(np.uint8)


def write_deep_png(path: Path, pixels: NDArray[np.uint16]) -> None:
    """A 16-bit PNG of 1 to 4 channels written chunk by chunk; Pillow writes only the grey one."""
    height, width = pixels.shape[:2]
    count = 1 if pixels.ndim == 2 else pixels.shape[2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def refusal(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_image(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("picture", [RGB, GREY], ids=["rgb", "grey"])
def test_lossless_8_bits(tmp_path: Path, suffix: str, picture: NDArray[np.uint8]) -> None:
    path = tmp_path / f"tile{suffix}"
    Image.fromarray(picture).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, channels_first(picture))


def test_one_bit_grey_spans_the_full_range(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "tile.png")
    np.testing.assert_array_equal(read_image(tmp_path / "tile.png"), channels_first((GREY > 127) * np.uint8(255)))


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.array([200, 120, 180], dtype=np.uint8), (16, 24, 3))
    Image.fromarray(smooth).save(tmp_path / "tile.jpg", quality=95)
    image = read_image(tmp_path / "tile.jpg")
    assert image.shape == (3, 16, 24)
    assert np.abs(image.astype(int) - channels_first(smooth)).max() <= 2


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "tile.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "tile.jpg"), channels_first(RGB))


def on_white(colour: NDArray[np.uint8]) -> NDArray[Any]:
    opacity = ALPHA[..., None] / 255
    return channels_first(colour * opacity + 255 * (1 - opacity))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_composited_on_white(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tile{suffix}"
    Image.fromarray(np.dstack([RGB, ALPHA])).save(path)
    assert np.abs(read_image(path) - on_white(RGB)).max() <= 1


def test_grey_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([GREY, ALPHA])).save(tmp_path / "tile.png")
    assert np.abs(read_image(tmp_path / "tile.png") - on_white(np.dstack([GREY] * 3))).max() <= 1


def test_palette_and_its_transparent_entry(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    picture.save(tmp_path / "opaque.png")
    picture.save(tmp_path / "clear.png", transparency=1)
    assert read_image(tmp_path / "opaque.png")[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    assert read_image(tmp_path / "clear.png")[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "tile.tif")
    assert read_image(tmp_path / "tile.tif")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_by_257(tmp_path: Path, channels: int) -> None:
    deep = DEEP[..., 0] if channels == 1 else DEEP
    write_deep_png(tmp_path / "tile.png", deep)
    tifffile.imwrite(tmp_path / "tile.tif", deep, photometric="rgb" if channels == 3 else "minisblack")
    for name in ("tile.png", "tile.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), channels_first(scaled(deep)))


def test_16_bit_png_with_alpha(tmp_path: Path) -> None:
    write_deep_png(tmp_path / "tile.png", np.dstack([DEEP, ALPHA.astype(np.uint16) * 257]))
    assert np.abs(read_image(tmp_path / "tile.png") - on_white(scaled(DEEP))).max() <= 1


def test_16_bit_grey_with_alpha_is_refused(tmp_path: Path) -> None:
    write_deep_png(tmp_path / "tile.png", DEEP[..., :2])
    refusal(tmp_path / "tile.png", "16-bit PNG of grey with alpha")


def test_16_bit_tiff_in_planes_and_with_white_at_zero(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "planes.tif", DEEP.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "planes.tif"), channels_first(scaled(DEEP)))
    tifffile.imwrite(tmp_path / "white.tif", 65535 - DEEP[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "white.tif"), channels_first(scaled(DEEP[..., 0])))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_exif_orientation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tile{suffix}"
    halves = np.zeros((16, 32, 3), dtype=np.uint8)
    halves[:, :16] = 255
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90° clockwise for viewing: the left half comes to the top
    Image.fromarray(halves).save(path, exif=exif)
    image = read_image(path)
    assert image.shape == (3, 32, 16)
    assert image[:, :15].min() > 250
    assert image[:, 17:].max() < 5


@pytest.mark.parametrize("factor", [1, 257], ids=["8-bit", "16-bit"])
def test_tiff_orientation(tmp_path: Path, factor: int) -> None:
    pixels = RGB if factor == 1 else RGB.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "tile.tif", pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read_image(tmp_path / "tile.tif"), channels_first(np.rot90(RGB, -1)))


def test_several_pictures_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "tile.png", save_all=True, append_images=frames[1:])
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([RGB, RGB]), photometric="rgb")
    tifffile.imwrite(tmp_path / "planes.tif", np.stack([GREY] * 3), imagej=True)
    refusal(tmp_path / "tile.png", "holds 2 pictures")
    refusal(tmp_path / "pages.tif", "holds 2 pages")
    refusal(tmp_path / "planes.tif", "holds 3 pages")


@pytest.mark.parametrize(
    ("pixels", "photometric"),
    [
        (RGB.astype(np.float32), "rgb"),
        (GREY.astype(np.float32), "minisblack"),
        (GREY.astype(np.int32), "minisblack"),
        (np.dstack([DEEP, DEEP[..., 0]]), "rgb"),
    ],
    ids=["float rgb", "float grey", "int32", "16-bit rgba"],
)
def test_tiffs_of_unclear_range_are_refused(tmp_path: Path, pixels: NDArray[np.generic], photometric: str) -> None:
    tifffile.imwrite(tmp_path / "tile.tif", pixels, photometric=photometric)
    refusal(tmp_path / "tile.tif", "expected 8- or 16-bit grey or RGB")


def test_lab_is_refused(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "tile.tif")
    refusal(tmp_path / "tile.tif", "'LAB'")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tile{suffix}"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 30, 12):
        path.write_bytes(whole[:length])
        refusal(path, "cannot be decoded")


def test_truncated_16_bit_files_are_refused(tmp_path: Path) -> None:
    deep = np.random.default_rng(3).integers(0, 65536, (64, 64, 3)).astype(np.uint16)
    write_deep_png(tmp_path / "tile.png", deep)
    tifffile.imwrite(tmp_path / "tile.tif", deep, photometric="rgb")
    for name in ("tile.png", "tile.tif"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:9000])
        refusal(path, "cannot be decoded")


def test_empty_foreign_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "words.png").write_text("not a picture at all")
    Image.fromarray(RGB).save(tmp_path / "movie.png", format="GIF")
    (tmp_path / "folder.png").mkdir()
    refusal(tmp_path / "empty.png", "0 bytes")
    refusal(tmp_path / "words.png", "expected a PNG, JPEG or TIFF")
    refusal(tmp_path / "movie.png", "expected a PNG, JPEG or TIFF")
    refusal(tmp_path / "missing.png", "does not exist")
    refusal(tmp_path / "folder.png", "is not a file")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_size_limit_acts_before_decoding(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"tile{suffix}"
    Image.fromarray(RGB).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 35)
    read_image(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    refusal(path, "7 x 5 pixels")


def test_a_header_of_billions_of_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    write_deep_png(path, DEEP)
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = path.read_bytes()
    path.write_bytes(chunks[:12] + header + struct.pack(">I", zlib.crc32(header)) + chunks[33:])
    refusal(path, "too large")


def test_mpp_of_png(tmp_path: Path) -> None:
    path = tmp_path / "tile.png"
    Image.fromarray(RGB).save(path, dpi=(25400 / 0.25, 25400 / 0.25))
    assert read_mpp(path) == pytest.approx(0.25, rel=1e-6)
    Image.fromarray(RGB).save(path, dpi=(25400 / 0.25, 25400 / 0.5))
    assert read_mpp(path) is None
    Image.fromarray(RGB).save(path)
    assert read_mpp(path) is None


@pytest.mark.parametrize("dpi", [72, 96, 300])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_print_densities_are_no_mpp(tmp_path: Path, suffix: str, dpi: int) -> None:
    path = tmp_path / f"tile{suffix}"
    Image.fromarray(RGB).save(path, dpi=(dpi, dpi))
    with Image.open(path) as picture:
        assert round(float(picture.info["dpi"][0])) == dpi
    assert read_mpp(path) is None


def test_even_a_fine_jpeg_density_is_no_mpp(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "tile.jpg", dpi=(50800, 50800))
    assert read_mpp(tmp_path / "tile.jpg") is None


@pytest.mark.parametrize(("per_unit", "unit"), [(40000, "CENTIMETER"), (101600, "INCH")])
def test_mpp_of_tiff_resolution(tmp_path: Path, per_unit: int, unit: str) -> None:
    tifffile.imwrite(tmp_path / "tile.tif", RGB, resolution=(per_unit, per_unit), resolutionunit=unit)
    assert read_mpp(tmp_path / "tile.tif") == pytest.approx(0.25)


def test_tiff_resolution_without_a_unit_is_no_mpp(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "tile.tif", RGB, resolution=(40000, 40000), resolutionunit="NONE")
    assert read_mpp(tmp_path / "tile.tif") is None


def test_mpp_of_imagej_and_ome(tmp_path: Path) -> None:
    for unit in ("um", "micron", "\\u00B5m"):
        tifffile.imwrite(tmp_path / "ij.tif", GREY, imagej=True, resolution=(2, 2), metadata={"unit": unit})
        assert read_mpp(tmp_path / "ij.tif") == pytest.approx(0.5)
    metadata = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeY": 250, "PhysicalSizeXUnit": "nm"}
    metadata["PhysicalSizeYUnit"] = "nm"
    tifffile.imwrite(tmp_path / "tile.ome.tif", RGB, ome=True, metadata=metadata, photometric="rgb")
    assert read_mpp(tmp_path / "tile.ome.tif") == pytest.approx(0.25)
    np.testing.assert_array_equal(read_image(tmp_path / "tile.ome.tif"), channels_first(RGB))


def test_mpp_of_a_damaged_header(tmp_path: Path) -> None:
    (tmp_path / "tile.tif").write_bytes(b"II*\0\xff\xff\xff\x7f")
    with pytest.raises(InputError, match=r"tile\.tif cannot be decoded"):
        read_mpp(tmp_path / "tile.tif")
