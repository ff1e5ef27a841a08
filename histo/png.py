"""Whether a PNG file is whole. Pillow looks neither at the checksums of the pixels nor at missing rows or palettes."""

import struct
import zlib
from typing import BinaryIO

_SIGNATURE_BYTES = 8
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PALETTE = 3
# Adam7 (PNG specification, section 8.2): first row, first column, rows apart, columns apart of each pass.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def check_png(file: BinaryIO, last_row_blank: bool) -> None:
    """Walk through the chunks of a PNG file whose header has been read.

    Args:
        last_row_blank: the decoded last row holds nothing but zeros, as rows do that the file lacks; only then, and in
            interlaced files, are the compressed rows counted, which takes a third of the time of decoding.

    Raises:
        ValueError: a chunk is cut off or not as its checksum says, the palette is missing, or rows are.
    """
    file.seek(_SIGNATURE_BYTES)
    inflater = zlib.decompressobj()
    name, missing, has_palette = b"", 0, False
    while name != b"IEND":
        start = file.read(8)
        if len(start) < 8:
            raise ValueError("it ends before its end chunk")
        length, name = struct.unpack(">I4s", start)
        body, checksum = file.read(length), file.read(4)
        if zlib.crc32(body, zlib.crc32(name)).to_bytes(4, "big") != checksum:
            raise ValueError(f"its chunk {name.decode('ascii', 'replace')} is cut off or damaged")
        has_palette |= name == b"PLTE"
        if name == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            counted = last_row_blank or interlaced
            missing = _row_bytes(width, height, depth * _SAMPLES[colour], bool(interlaced)) if counted else 0
        elif name == b"IDAT":
            if colour == _PALETTE and not has_palette:
                raise ValueError("it has no palette")
            if missing > 0:
                missing -= len(inflater.decompress(body, missing))
    if missing > 0:
        raise ValueError("rows are missing")


def _row_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows before compression, each with the byte that names its filter."""
    total = 0
    for row, column, down, across in _PASSES if interlaced else ((0, 0, 1, 1),):
        rows, columns = -(-(height - row) // down), -(-(width - column) // across)
        if rows > 0 and columns > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
