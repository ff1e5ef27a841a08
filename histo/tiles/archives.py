"""Tar archives as files of members at offsets: listed once, then read at random, never unpacked to disk.

Read are ustar, pax and GNU archives, uncompressed, which POSIX.1-2001 (pax) and GNU tar's manual describe. What comes
from strangers is refused, with one sentence that names the archive and the member:

| refused                                                  | limit                                                    |
|----------------------------------------------------------|----------------------------------------------------------|
| absolute names, `..`, names that are not UTF-8           | names lie below the archive, as on any system            |
| links, devices, pipes, sparse files, unknown kinds       | plain files and folders only                             |
| large members                                            | `MAX_MEMBER` bytes                                       |
| long names and pax headers                               | `MAX_HEADER` bytes each                                  |
| sizes that run past the end, a missing end, bad checksums| the archive is cut off or damaged                        |
| two members of one name                                  | which one is meant would be a guess                      |
| compressed archives                                      | a member in them has no offset to read it at             |
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, NamedTuple

from histo.errors import InputError
from histo.tiles.remote import Url

MAX_MEMBER = 512 * 2**20  # more than the largest image that `histo.images` decodes, uncompressed with 16 bits
MAX_HEADER = 2**20
BLOCK = 512

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_REFUSED_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


class Member(NamedTuple):
    """A plain file in an archive: its name and where its bytes lie."""

    name: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """The plain files of an archive in their order; its headers are read, its contents are not.

    Raises:
        InputError: the archive cannot be read or breaks one of the module's limits.
    """
    try:
        with path.open("rb") as file:
            yield from _members(file, path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the disk and its permissions.") from error


def read_member(path: Path, offset: int, size: int, name: object) -> bytes:
    """The `size` bytes at `offset` of an archive; `name` is what the error sentence calls them.

    Raises:
        InputError: the archive is gone, cannot be read, or ends earlier.
    """
    try:
        data = read_range(path, offset, size)
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); check that {path} is still there.") from error
    if len(data) != size:
        raise InputError(f"{name} has {len(data)} bytes, expected {size}: {path} was cut off; copy or pack it again.")
    return data


def read_range(path: Path, offset: int, size: int) -> bytes:
    """The `size` bytes at `offset` of a file or of a URL's object, fewer where it ends earlier.

    Raises:
        OSError: the file cannot be read.
        InputError: the URL cannot.
    """
    if isinstance(path, Url):
        return path.read_range(offset, offset + size)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(size)


def _members(file: BinaryIO, path: Path) -> Iterator[Member]:
    end = os.fstat(file.fileno()).st_size
    if file.read(6).startswith(_COMPRESSED_MAGIC):
        raise InputError(f"{path} is compressed, expected a plain .tar; unpack it with gunzip or the like first.")
    names: set[str] = set()
    extended: dict[str, str] = {}
    offset = 0
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise InputError(f"{path} ends at byte {end} without the mark of a tar's end; copy or pack it again.")
        if not any(header):
            return
        kind = header[156:157]
        describes = kind in (b"L", b"K", b"x", b"g")  # what follows, whose own header cannot hold it
        size = _size(header, path, offset)
        name = _name(header, path, offset)
        if not describes:
            name = extended.get("path", name)
            size = _decimal(extended["size"], path, name) if "size" in extended else size
        start = offset + BLOCK
        offset = start + -(-size // BLOCK) * BLOCK
        where = f"{path} holds {name!r}"
        if start + size > end:
            raise InputError(f"{where} of {size} bytes, but ends after {end - start} of them; copy or pack it again.")
        if describes:
            if size > MAX_HEADER:
                raise InputError(f"{where}, a header of {size} bytes, expected at most {MAX_HEADER}; pack it again.")
            body = file.read(size)
            if kind == b"L":
                extended["path"] = _text(body.rstrip(b"\0"), path, start)
            elif kind == b"x":
                extended |= _records(body, path, start)
            continue
        _refuse_kind(kind, extended, where)
        extended = {}
        _refuse_name(name, where)
        if kind == b"5" or name.endswith("/"):
            continue
        if size > MAX_MEMBER:
            raise InputError(f"{where} of {size} bytes, expected at most {MAX_MEMBER}; cut the image into tiles.")
        plain = PurePosixPath(name).as_posix()
        if plain in names:
            raise InputError(f"{where} twice, expected each name once; pack it again.")
        names.add(plain)
        yield Member(plain, start, size)


def _size(header: bytes, path: Path, offset: int) -> int:
    """The size in a header whose checksum is right."""
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])  # as some old programs count
    if _number(header[148:156]) not in (total, signed):
        raise InputError(f"{path} is no tar or damaged: the header at byte {offset} fails its checksum; pack it again.")
    size = _number(header[124:136])
    if size is None or size < 0:
        raise InputError(f"{path} is damaged: the header at byte {offset} states no size; pack it again.")
    return size


def _number(field: bytes) -> int | None:
    """A number in octal, or in base 256 where its first bit is set, as GNU writes what octal cannot hold."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.partition(b"\0")[0].strip()
    return int(digits or b"0", 8) if all(byte in b"01234567" for byte in digits) else None


def _name(header: bytes, path: Path, offset: int) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name, path, offset)


def _text(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} holds the name {data[:80]!r} at byte {offset}, expected UTF-8; rename it.") from error


def _decimal(text: str, path: Path, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InputError(f"{path} holds {name!r} of size {text[:80]!r}, expected a number of bytes; pack it again.")
    return int(text)


def _records(body: bytes, path: Path, start: int) -> dict[str, str]:
    """A pax header's records, each `LENGTH KEY=VALUE` and a line feed, of which a few matter."""
    records: dict[str, str] = {}
    position = 0
    while position < len(body):
        digits = body[position : position + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = body[position : position + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) != length or record[-1:] != b"\n":
            raise InputError(f"{path} is damaged: the pax header at byte {start} is not readable; pack it again.")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):
            records[key.decode("ascii", "replace")] = _text(value, path, start)
        position += length
    return records


def _refuse_kind(kind: bytes, extended: dict[str, str], where: str) -> None:
    sparse = any(key.startswith("GNU.sparse") for key in extended)
    if kind not in (b"0", b"\0", b"7", b"5") or sparse:
        what = "a sparse file" if sparse else _REFUSED_KINDS.get(kind, f"an entry of kind {kind!r}")
        raise InputError(f"{where}, {what}, expected plain files; pack it again without.")


def _refuse_name(name: str, where: str) -> None:
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise InputError(f"{where}, an absolute or empty name, expected one below the archive; pack it again.")
    if ".." in PurePosixPath(name).parts or ".." in PureWindowsPath(name).parts:
        raise InputError(f"{where}, but '..' would leave the archive; pack it again with names below it.")
