"""What lies beside packed shards: the manifest that lists them, and an index of each."""

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from histo.errors import InputError
from histo.tiles.archives import BLOCK, MAX_MEMBER, read_range

FORMAT = 1
MANIFEST = "manifest.json"
INCOMPLETE = "INCOMPLETE"  # a file that lies in the folder until all shards do
TEXTS = ("key", "label", "patient", "split")
COLUMNS = ("image", "image_at", "mask", "mask_at", *TEXTS, "mpp")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of packed shards; None where there is none, or a file of that name which is not ours.

    Raises:
        InputError: it is damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = _json(_bytes(path), path)
    if not isinstance(manifest, dict) or "nucleate" not in manifest:
        return None
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{path} is of format {manifest.get('format')!r}, expected {FORMAT}; read it with nucleate "
            f"{manifest['nucleate']}, or pack the tiles again."
        )
    wanted = {"name": str, "tiles": int, "bytes": int, "sha256": str, "index_sha256": str}
    shards = manifest.get("shards")
    fits = isinstance(shards, list) and all(
        isinstance(shard, dict) and all(type(shard.get(name)) is kind for name, kind in wanted.items())
        for shard in shards
    )
    if not fits or type(manifest.get("source")) is not str:
        raise InputError(f"{path} lacks what a manifest says of its shards and their source; pack the tiles again.")
    for shard in manifest["shards"]:
        if PurePosixPath(shard["name"]).name != shard["name"] or not shard["name"].endswith(".tar"):
            raise InputError(f"{path} names the shard {shard['name']!r}, expected a .tar beside it; pack it again.")
    return manifest


def index_path(archive: Path) -> Path:
    """Where the index of an archive lies."""
    return archive.with_suffix(".index.json")


def read_index(folder: Path, shard: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The columns of `Shard` from the index beside an archive that the manifest describes.

    Raises:
        InputError: the archive or its index is missing, and as `columns_of`.
    """
    archive = folder / shard["name"]
    path = index_path(archive)
    for file in (archive, path):
        if not file.is_file():
            raise InputError(f"{file} is missing, which {folder / MANIFEST} names; copy it again.")
    return columns_of(_bytes(path), archive, archive.stat().st_size, shard)


def columns_of(data: bytes, archive: Path, size: int, shard: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The columns of `Shard` from the bytes of an index and the size of its archive.

    Raises:
        InputError: the archive or its index is not the one the manifest describes, or the index is no list of places
            in the archive.
    """
    path, manifest = index_path(archive), archive.with_name(MANIFEST)
    if size != shard["bytes"]:
        raise InputError(f"{archive} has {size} bytes, expected {shard['bytes']} by its manifest; copy it again.")
    if hashlib.sha256(data).hexdigest() != shard["index_sha256"]:
        raise InputError(f"{path} is not the index that {manifest} describes; copy it again.")
    columns = _json(data, path)
    for name, are_valid in _VALUES.items():
        column = columns.get(name) if isinstance(columns, dict) else None
        if not isinstance(column, list) or len(column) != shard["tiles"] or not are_valid(column):
            raise InputError(f"{path} has no column {name!r} of {shard['tiles']} valid values; pack the tiles again.")
    for names, places in (("image", "image_at"), ("mask", "mask_at")):
        named = np.fromiter(map(bool, columns[names]), dtype=bool)
        start, length = np.array(columns[places], dtype=np.int64).reshape(-1, 2).T
        inside = (start >= BLOCK) & (length > 0) & (length <= MAX_MEMBER) & (start <= size - length)
        nowhere = (start == 0) & (length == 0) & (names == "mask")
        for wrong in np.flatnonzero(~np.where(named, inside, nowhere))[:1]:
            raise InputError(
                f"{path} places {columns[names][wrong]!r} at {columns[places][wrong]}, outside the {size} bytes of its "
                "archive; pack it again."
            )
    columns["mpp"] = [math.nan if value is None else float(value) for value in columns["mpp"]]
    return columns


def is_mpp(value: object) -> bool:
    """Whether a value of a JSON file is a number of µm/px."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max  # type: ignore[operator]


def is_unicode(value: object) -> bool:
    """Whether a value of a JSON file is a text that UTF-8 can hold."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can spell
        return False


# Of whole columns at once: a value at a time would take most of the minutes in which ten million tiles are opened.


def _are_texts(column: list[Any]) -> bool:
    return set(map(type, column)) <= {str} and is_unicode("".join(column))


def _are_places(column: list[Any]) -> bool:
    if not (set(map(type, column)) <= {list} and set(map(len, column)) <= {2}):
        return False
    numbers = list(itertools.chain.from_iterable(column))
    return set(map(type, numbers)) <= {int} and max(map(abs, numbers), default=0) < 2**63


def _are_mpp(column: list[Any]) -> bool:
    return set(map(type, column)) <= {int, float, type(None)} and all(map(is_mpp, set(column) - {None}))


_VALUES: dict[str, Callable[[list[Any]], bool]] = {
    **dict.fromkeys(("image", "mask", *TEXTS), _are_texts),
    **dict.fromkeys(("image_at", "mask_at"), _are_places),
    "mpp": _are_mpp,
}


def _bytes(path: Path) -> bytes:
    try:
        data = read_range(path, 0, MAX_MEMBER + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    if len(data) > MAX_MEMBER:
        raise InputError(f"{path} has more than {MAX_MEMBER} bytes; pack into smaller shards.")
    return data


def _json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); copy or pack it again.") from error
