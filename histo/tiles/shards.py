"""Shards: tiles in tar archives as WebDataset lays them out, each at its place in an archive and read there.

A tile is the members of one key, the member's path up to the first dot of its file name:

| member                              | holds                                                                       |
|-------------------------------------|-----------------------------------------------------------------------------|
| `KEY.png`, `.jpg`/`.jpeg`, `.tif`/`.tiff` | the image (see `histo.images`), one per key                            |
| `KEY.json`                          | facts: key, label, patient, mpp in µm/px, split; null or absent for unknown |
| `KEY.cls`                           | the class as text, where the `.json` names none                             |
| `KEY.mask.png`, `.mask.tif`, `.mask.npy` | the instance map (see `histo.masks`)                                   |

Other members are passed over, and so are hidden files and folders named `labels` or `masks`, as in a folder of tiles.
What `histo.tiles.archives` refuses is refused here.

`nucleate pack` writes beside its shards NAME-000000.tar, NAME-000001.tar, … an index of each, NAME-000000.index.json,
so that thousands of them open without a look inside, and at last `manifest.json`, which lists them with their bytes and
SHA-256. The index is JSON in columns, because it is then read by everything and holds nothing but numbers and texts.
Opening compares names and bytes with the manifest, and an index with its SHA-256; `nucleate pack --check` compares the
shards' SHA-256 too. Other shards are listed once at opening, and µm/px come from their `.json` alone.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from histo.errors import InputError
from histo.images import decode_image
from histo.links import stray_link
from histo.masks import decode_instances
from histo.tiles.archives import COMPRESSED, MAX_MEMBER, Member, members, read_member
from histo.tiles.entries import Entries, Facts, Texts, TileEntry
from histo.tiles.manifests import (
    COLUMNS,
    INCOMPLETE,
    MANIFEST,
    TEXTS,
    columns_of,
    index_path,
    is_mpp,
    is_unicode,
    read_index,
    read_manifest,
)
from histo.tiles.remote import AT_ONCE, Url
from histo.tiles.tables import MASK_FOLDERS, SUFFIXES

MAX_FACTS = 2**20  # bytes of one .json or .cls
CUT_NOTE, OVERVIEWS = "tile.json", "overviews"  # what `nucleate tile` leaves beside its shards, pictures among it
MASKS = (".mask.png", ".mask.tif", ".mask.tiff", ".mask.npy")


@dataclass(frozen=True)
class ShardEntry(TileEntry):
    """A tile in a shard; `path` and `mask` are its members' names below that of the archive.

    Attributes:
        shard: the archive.
        image_at, mask_at: offset and size of the members, bytes.
    """

    shard: Path
    image_at: tuple[int, int]
    mask_at: tuple[int, int]

    def read_image(self) -> NDArray[np.uint8]:
        return decode_image(self.image_file(), self.path)

    def read_mask(self, size: tuple[int, int] | None) -> NDArray[np.int32]:
        assert self.mask is not None
        return decode_instances(self.mask_file(), self.mask, size)

    def image_file(self) -> bytes:
        return read_member(self.shard, *self.image_at, self.path)

    def mask_file(self) -> bytes:
        return read_member(self.shard, *self.mask_at, self.mask)


@dataclass(frozen=True)
class _Member:
    """Names a tile's image where an error needs it, and only there."""

    shard: "Shard"
    index: int

    def __str__(self) -> str:
        return self.shard.image_name(self.index)


class Shard(Sequence[TileEntry]):
    """The entries of one archive, kept as columns and made one by one.

    Args:
        path: the archive.
        source: the source its tiles name.
        columns: lists of equal length by name: `image` and `mask`, names of members ("" for no mask); `image_at` and
            `mask_at`, their [offset, size] in bytes; `key`, `label`, `patient`, `split`, texts ("" for unknown); `mpp`,
            µm/px (NaN for unknown).
    """

    def __init__(self, path: Path, source: str, columns: Mapping[str, Sequence[Any]]) -> None:
        self.path, self.source = path, source
        self._texts = {name: Texts(columns[name]) for name in ("image", "mask", "key")}
        places = np.array([columns["image_at"], columns["mask_at"]], dtype=np.int64).reshape(2, -1, 2)
        self._places = places.astype(np.min_scalar_type(places.max(initial=0)))
        self._facts = {}
        for name in ("label", "patient", "split", "mpp"):
            facts = Facts.of(columns[name])
            values = [None if value == "" or value != value else value for value in facts.values]
            self._facts[name] = Facts(values, facts.codes)

    def __len__(self) -> int:
        return self._places.shape[1]

    def read_image(self, index: int) -> NDArray[np.uint8]:
        """The image of one tile, uint8 [3, H, W], without making its entry."""
        offset, size = self._places[0, index].tolist()
        name = _Member(self, index)
        return decode_image(read_member(self.path, offset, size, name), name)

    def image_name(self, index: int) -> str:
        """The archive and the member of one tile's image, as error sentences name them."""
        return str(self.path / self._texts["image"][index])

    def facts(self, name: str) -> Facts:
        """One fact of every tile: source, patient, mpp, label or split."""
        return Facts([self.source], np.zeros(len(self), dtype=np.uint8)) if name == "source" else self._facts[name]

    @overload
    def __getitem__(self, index: int) -> TileEntry: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[TileEntry]: ...

    def __getitem__(self, index: int | slice) -> TileEntry | Sequence[TileEntry]:
        if isinstance(index, slice):
            return Entries([self])[index]
        position = range(len(self))[index]
        image, mask, key = (texts[position] for texts in self._texts.values())
        (image_offset, image_size), (mask_offset, mask_size) = self._places[:, position].tolist()
        return ShardEntry(
            path=self.path / image,
            key=key,
            source=self.source,
            mask=self.path / mask if mask else None,
            **{name: facts.values[facts.codes[position]] for name, facts in self._facts.items()},
            shard=self.path,
            image_at=(image_offset, image_size),
            mask_at=(mask_offset, mask_size),
        )


def is_shards(path: Path) -> bool:
    """Whether the path is one archive, a folder of archives without a `tiles.csv`, or a URL.

    So is a folder that `nucleate tile` or `nucleate pack` wrote and that holds no archive: its pictures are no tiles.
    """
    if isinstance(path, Url):
        return True  # what else is read from there
    if path.is_file():
        return path.name.endswith((".tar", *COMPRESSED))
    if not path.is_dir() or (path / "tiles.csv").exists():
        return False
    return bool(_archives(path)) or _is_incomplete(path) or _was_written_here(path)


def packed_source(path: Path) -> str | None:
    """The folder that was packed into these shards, by their manifest; None for other shards and for folders."""
    manifest = read_manifest(path.parent if path.is_file() else path) if is_shards(path) else None
    return None if manifest is None else manifest["source"]


def open_shards(path: Path, source: str, *, mpp: float | None) -> list[Shard]:
    """One archive, or those of a folder by their names.

    Args:
        path: as `is_shards` takes it; a URL is that of a packed folder.
        source: the source their tiles name.
        mpp: µm/px of every tile, before what the shards say.

    Raises:
        InputError: an archive that `histo.tiles.archives` refuses, members that are no tiles, facts of another form, or
            shards that their manifest does not describe.
    """
    shards, hashes = [], []
    for archive, columns in _remote(path) if isinstance(path, Url) else _local(path):
        if mpp is not None:
            columns["mpp"] = [float(mpp)] * len(columns["mpp"])
        hashes.append(np.fromiter(map(hash, columns["key"]), dtype=np.int64))
        shards.append(Shard(archive, source, columns))
    if not any(map(len, shards)):
        raise InputError(f"{path} holds no image, expected members ending in {', '.join(SUFFIXES)}; check the path.")
    _refuse_repeats(np.concatenate(hashes), Entries(shards), path)
    return shards


def _local(path: Path) -> Iterator[tuple[Path, dict[str, list[Any]]]]:
    """Archives and their columns, one by one, since its lists take far more than columns."""
    folder = path.parent if path.is_file() else path
    archives = [path] if path.is_file() else _archives(path)
    if _is_incomplete(folder):
        command = "tile" if (folder / CUT_NOTE).is_file() else "pack"
        raise InputError(f"{folder} was not packed to its end; run the same `nucleate {command}` again.")
    if path.is_dir() and archives:
        _refuse_images_beside(folder, archives[0])
    for archive in archives:
        if reason := stray_link(archive, folder):
            raise InputError(reason)
    manifest = read_manifest(folder)
    if manifest is None:
        yield from ((archive, scan(archive, folder)) for archive in archives)
        return
    if not manifest["shards"]:
        raise InputError(
            f"{folder} holds no tile, since none was kept when its slides were cut; look at the pictures in "
            f"{folder / OVERVIEWS} and cut them again with another --tissue or --size."
        )
    known = {shard["name"]: shard for shard in manifest["shards"]}
    if strange := [archive for archive in archives if archive.name not in known]:
        raise InputError(f"{strange[0]} is not in {folder / MANIFEST}; move it to a folder of its own.")
    for name in [path.name] if path.is_file() else known:
        yield folder / name, read_index(folder, known[name])


def _remote(folder: Url) -> Iterator[tuple[Path, dict[str, list[Any]]]]:
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(
            f"{folder} has no {MANIFEST} of `nucleate pack`, expected the URL of a folder of packed shards; copy all "
            "that it wrote there."
        )
    for first in range(0, len(manifest["shards"]), AT_ONCE):
        part = manifest["shards"][first : first + AT_ONCE]
        archives = [folder / shard["name"] for shard in part]
        sizes = folder.sizes([archive.name for archive in archives])
        indices = folder.contents([index_path(archive).name for archive in archives], MAX_MEMBER)
        for archive, data, size, shard in zip(archives, indices, sizes, part, strict=True):
            yield archive, columns_of(data, archive, size, shard)


def scan(archive: Path, folder: Path) -> dict[str, list[Any]]:
    """The columns of `Shard` from the archive itself; a tile without a `key` among its facts takes its image's path.

    Raises:
        InputError: as `open_shards`.
    """
    tiles: dict[str, dict[str, Member]] = {}
    for member in members(archive):
        path = PurePosixPath(member.name)
        hidden = any(part.startswith(".") for part in path.parts)
        if hidden or any(part.lower() in MASK_FOLDERS for part in path.parts[:-1]):
            continue
        if path.name == "tiles.csv":
            raise InputError(f"{archive} holds {member.name!r}, which is read from a folder only; unpack the archive.")
        stem, _, suffix = path.name.partition(".")
        tiles.setdefault(str(path.parent / stem), {})["." + suffix.lower()] = member
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for fields in tiles.values():
        images = [member for suffix, member in fields.items() if suffix in SUFFIXES]
        if len(images) != 1:
            _refuse_images(archive, fields, images)
            continue
        masks = [member for suffix, member in fields.items() if suffix in MASKS]
        if len(masks) > 1:
            raise InputError(f"{archive} holds {masks[0].name!r} and {masks[1].name!r}; keep one mask per tile.")
        default = (archive / images[0].name).relative_to(folder).as_posix()
        facts = _facts(archive, fields)
        row = {
            "image": images[0].name,
            "image_at": images[0][1:],
            "mask": masks[0].name if masks else "",
            "mask_at": masks[0][1:] if masks else (0, 0),
            **facts,
            "key": facts["key"] or default,
        }
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _refuse_images(archive: Path, fields: Mapping[str, Member], images: Sequence[Member]) -> None:
    """Members of one key that are no tile are passed over, unless they look as if they were meant to be one."""
    if len(images) > 1:
        raise InputError(f"{archive} holds {images[0].name!r} and {images[1].name!r}; keep one image per key.")
    for suffix, member in fields.items():
        if suffix.endswith(SUFFIXES) or suffix in MASKS:
            raise InputError(
                f"{archive} holds {member.name!r}, read as the field {suffix[1:]!r} of a tile without an image, since "
                "a key ends at the first dot; leave other dots out of the names."
            )


def _facts(archive: Path, fields: Mapping[str, Member]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if member := fields.get(".json"):
        try:
            facts = json.loads(_short(archive, member))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{archive / member.name} is not JSON ({error}); pack it again.") from error
        if not isinstance(facts, dict):
            raise InputError(f"{archive / member.name} holds a {type(facts).__name__}, expected an object of facts.")
    texts = {name: _text(facts.get(name), name, archive, member) for name in TEXTS}
    if (member := fields.get(".cls")) and not texts["label"]:
        texts["label"] = _short(archive, member).strip()
    mpp = facts.get("mpp")
    if mpp is not None and not is_mpp(mpp):
        raise InputError(f"{archive / fields['.json'].name} has the mpp {mpp!r}, expected µm/px above 0; correct it.")
    return {**texts, "mpp": math.nan if mpp is None else float(mpp)}


def _text(value: object, name: str, archive: Path, member: Member | None) -> str:
    if value is None:
        return ""
    if type(value) not in (str, int) or not is_unicode(str(value)):
        where = archive / member.name if member else archive
        raise InputError(f"{where} has the {name} {ascii(value)[:80]}, expected a text or a whole number; correct it.")
    return str(value)


def _short(archive: Path, member: Member) -> str:
    where = archive / member.name
    if member.size > MAX_FACTS:
        raise InputError(f"{where} has {member.size} bytes, expected at most {MAX_FACTS} of facts; pack it again.")
    try:
        return read_member(archive, member.offset, member.size, where).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 ({error}); pack it again.") from error


def _archives(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}); check its permissions.") from error
    return [folder / name for name in names if name.endswith(".tar") and not name.startswith(".")]


def _is_incomplete(folder: Path) -> bool:
    return (folder / INCOMPLETE).is_file() and not (folder / MANIFEST).is_file()


def _was_written_here(folder: Path) -> bool:
    if (folder / CUT_NOTE).is_file() and (folder / OVERVIEWS).is_dir():
        return True
    try:
        return read_manifest(folder) is not None
    except InputError:  # many tools write a file of that name
        return False


def _refuse_images_beside(folder: Path, archive: Path) -> None:
    for root, subfolders, files in os.walk(folder):
        if Path(root) == folder and OVERVIEWS in subfolders:
            subfolders.remove(OVERVIEWS)
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                raise InputError(
                    f"{folder} holds the archive {archive.name} and the image {Path(root, name).relative_to(folder)}, "
                    "expected either; put them into folders of their own."
                )


def _refuse_repeats(hashes: NDArray[np.int64], entries: Entries, path: Path) -> None:
    """Ten million keys would be a gigabyte of texts, so that only those are looked at whose hash comes twice."""
    ordered = np.sort(hashes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    seen: set[str] = set()
    for position in np.flatnonzero(np.isin(hashes, twice)).tolist():
        key = entries[position].key
        if key in seen:
            raise InputError(f"{path} holds two tiles of the key {key!r}, expected each once; name one of them anew.")
        seen.add(key)
