"""What lies beside packed shards: the manifest that lists them, and an index of each."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from histo.errors import InputError
from histo.tiles.archives import BLOCK, MAX_MEMBER

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
    manifest = _json(path)
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
        InputError: the archive or its index is missing, is not the one the manifest describes, or the index is no
            list of places in the archive.
    """
    archive = folder / shard["name"]
    path = index_path(archive)
    for file in (archive, path):
        if not file.is_file():
            raise InputError(f"{file} is missing, which {folder / MANIFEST} names; copy it again.")
    size = archive.stat().st_size
    if size != shard["bytes"]:
        raise InputError(f"{archive} has {size} bytes, expected {shard['bytes']} by its manifest; copy it again.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != shard["index_sha256"]:
        raise InputError(f"{path} is not the index that {folder / MANIFEST} describes; copy it again.")
    columns = _json(path)
    for name, is_valid in _VALUES.items():
        column = columns.get(name) if isinstance(columns, dict) else None
        if not isinstance(column, list) or len(column) != shard["tiles"] or not all(map(is_valid, column)):
            raise InputError(f"{path} has no column {name!r} of {shard['tiles']} valid values; pack the tiles again.")
    for names, places in (("image", "image_at"), ("mask", "mask_at")):
        for member, place in zip(columns[names], columns[places], strict=True):
            inside = place[0] >= BLOCK and 0 < place[1] <= MAX_MEMBER and sum(place) <= size
            if not (inside if member else place == [0, 0] and names == "mask"):
                raise InputError(
                    f"{path} places {member!r} at {place}, outside the {size} bytes of its archive; pack it again."
                )
    columns["mpp"] = [math.nan if value is None else value for value in columns["mpp"]]
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


def _is_place(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


_VALUES: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("image", "mask", *TEXTS), is_unicode),
    **dict.fromkeys(("image_at", "mask_at"), _is_place),
    "mpp": lambda value: value is None or is_mpp(value),
}


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_MEMBER:
            raise InputError(f"{path} has more than {MAX_MEMBER} bytes; pack into smaller shards.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error}); copy or pack it again.") from error
