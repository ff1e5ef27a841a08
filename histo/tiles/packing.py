"""Packing a set of tiles into shards, and checking shards for damage; `histo.tiles.shards` says what they hold.

The same tiles give the same bytes: members are sorted and carry no date, owner or rights of the machine. Shards are
written aside and renamed, the manifest comes last, and until then a file INCOMPLETE says that the folder is unfinished.
"""

import hashlib
import io
import itertools
import json
import math
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from histo.errors import InputError
from histo.files import written_whole
from histo.images import format_of
from histo.masks import encode_instances
from histo.tiles import open_tiles
from histo.tiles.archives import BLOCK
from histo.tiles.entries import Tile, TileEntry
from histo.tiles.manifests import FORMAT, INCOMPLETE, MANIFEST, index_path, is_unicode, read_manifest
from histo.tiles.shards import CUT_NOTE, scan

UNKNOWN = "unknown"
_SUFFIXES = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif"}
_OURS = re.compile(r"[\w-]+-\d{6}\.(tar|index\.json)(\.partial)?|manifest\.json\.partial|INCOMPLETE", re.ASCII)


def pack(
    folder: Path, out: Path, *, shard_mb: float = 64, licence: str | None = None, progress: bool = False
) -> dict[str, Any]:
    """Pack a set of tiles into shards named after its folder; every tile is decoded once, so that none is damaged.

    Args:
        folder: a set of tiles as `histo.tiles.open_tiles` takes it. Its files are packed as they are; masks that are
            no PNG are written as 16-bit PNG.
        out: the folder for the shards; new, empty, or left by a packing that was interrupted, which starts afresh.
        shard_mb: a shard is closed before it grows beyond this; MB. A larger tile has a shard of its own.
        licence: the terms of the tiles, for the manifest; None for unknown.
        progress: show a bar.

    Returns:
        The manifest.

    Raises:
        InputError: a tile that cannot be read, an `out` that holds something else, a full disk, a wrong argument.
    """
    if not (math.isfinite(shard_mb) and shard_mb > 0):
        raise InputError(f"shard_mb is {shard_mb}, expected MB above 0, such as 64; correct --shard_mb.")
    _refuse_occupied(out)
    tiles = open_tiles(folder, cache_mb=0)
    name = plain_name(folder.resolve().name) or "tiles"
    facts = Facts()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in leftovers(out):
            path.unlink()
        (out / INCOMPLETE).write_text("`nucleate pack` has not ended; run it again.\n", encoding="utf-8")
        bar = tqdm(tiles.entries, desc=f"packing {folder}", unit="tile", disable=None if progress else True)
        shards = [describe_shard(archive) for archive in write_shards(out / name, _samples(bar, facts), shard_mb * 1e6)]
        manifest = write_manifest(out, tiles.entries[0].source, facts, licence, shards)
    except OSError as error:
        raise InputError(
            f"{error.filename or out} cannot be read or written ({error.strerror}); make room or name another --out, "
            "and pack again."
        ) from error
    return manifest


def write_manifest(
    out: Path, source: str, facts: "Facts", licence: str | None, shards: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write what makes a folder of shards complete; `shards` are by `describe_shard`. Returns the manifest.

    Raises:
        OSError: it cannot be written.
    """
    manifest = {
        "format": FORMAT,
        "nucleate": metadata.version("nucleate"),
        "source": source,
        "bytes": sum(shard["bytes"] for shard in shards),
        **facts.summary(),
        "licences": [licence or UNKNOWN],
        "shards": shards,
    }
    with written_whole(out / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode("utf-8"))
    (out / INCOMPLETE).unlink()
    return manifest


def leftovers(out: Path) -> list[Path]:
    """What an interrupted packing left in a folder; nothing where none was interrupted."""
    if not (out / INCOMPLETE).is_file() or (out / MANIFEST).exists() or (out / CUT_NOTE).is_file():
        return []
    return sorted(path for path in out.iterdir() if _OURS.fullmatch(path.name))


def damage(out: Path, *, progress: bool = False) -> list[str]:
    """What of packed shards is not as their manifest says, a sentence each; every byte is read.

    Raises:
        InputError: the folder has no manifest that can be read.
    """
    manifest = read_manifest(out) if out.is_dir() else None
    if manifest is None:
        raise InputError(f"{out} has no {MANIFEST} of `nucleate pack`; name a folder that was packed to its end.")
    found = []
    known = {shard["name"] for shard in manifest["shards"]}
    strange = sorted(path for path in out.glob("*.tar") if path.name not in known)
    found += [f"{path} is not in {MANIFEST}." for path in strange]
    bar = tqdm(manifest["shards"], desc=f"checking {out}", unit="shard", disable=None if progress else True)
    for shard in bar:
        archive = out / shard["name"]
        for path, wanted in ((archive, shard["sha256"]), (index_path(archive), shard["index_sha256"])):
            if not path.is_file():
                found.append(f"{path} is missing.")
            elif _sha256(path) != wanted:
                size = f", {path.stat().st_size} bytes of {shard['bytes']}" if path == archive else ""
                found.append(f"{path} is damaged: its SHA-256 is not the manifest's ({shard['tiles']} tiles{size}).")
    return found


class Facts:
    """What the manifest says of all tiles, counted as they pass."""

    def __init__(self) -> None:
        self.classes: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.patients: Counter[str] = Counter()
        self.mpp: list[float] = []  # lowest, highest
        self.tiles = self.masks = self.with_mpp = 0

    def add(self, tile: TileEntry, number: int = 1) -> None:
        """Count one tile, or several of which the same is known."""
        if not number:
            return
        self.tiles += number
        self.masks += number * (tile.mask is not None)
        for counter, value in ((self.classes, tile.label), (self.splits, tile.split), (self.patients, tile.patient)):
            if value is not None:
                counter[value] += number
        if tile.mpp is not None:
            self.with_mpp += number
            self.mpp = [min([*self.mpp, tile.mpp]), max([*self.mpp, tile.mpp])]

    def summary(self) -> dict[str, Any]:
        return {
            "tiles": self.tiles,
            "masks": self.masks,
            "classes": dict(sorted(self.classes.items())),
            "patients": len(self.patients),
            "splits": dict(sorted(self.splits.items())),
            "mpp": self.mpp,
            UNKNOWN: {
                "class": self.tiles - self.classes.total(),
                "patient": self.tiles - self.patients.total(),
                "split": self.tiles - self.splits.total(),
                "mpp": self.tiles - self.with_mpp,
            },
        }


def _samples(entries: Iterable[TileEntry], facts: Facts) -> Iterator[list[tuple[str, bytes]]]:
    for position, entry in enumerate(entries):
        tile = entry.read()
        facts.add(entry)
        yield _sample(position, entry, tile)


def _sample(position: int, entry: TileEntry, tile: Tile) -> list[tuple[str, bytes]]:
    """The members of one tile; the number in front makes keys unique and keeps the order."""
    if not is_unicode(entry.key):
        raise InputError(f"{entry.key!a} is no name in UTF-8, which facts are written in; rename the file.")
    key = f"{position:08d}-{plain_name(PurePosixPath(entry.key).stem)}".rstrip("-")
    facts = {name: getattr(entry, name) for name in ("key", "label", "patient", "mpp", "split", "source")}
    image = entry.image_file()
    sample = [
        (f"{key}.{_SUFFIXES[format_of(image, entry.path)]}", image),
        (f"{key}.json", json.dumps(facts, ensure_ascii=False, sort_keys=True).encode("utf-8")),
    ]
    if entry.mask is not None:
        assert tile.instances is not None
        is_png = entry.mask.suffix.lower() == ".png"
        mask = entry.mask_file() if is_png else encode_instances(tile.instances, entry.mask)
        sample.append((f"{key}.mask.png", mask))
    return sorted(sample)


def plain_name(name: str) -> str:
    """A name of ASCII letters, digits, - and _, short enough for every tar."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:60]


def write_shards(stem: Path, samples: Iterator[list[tuple[str, bytes]]], limit: float) -> Iterator[Path]:
    """Write STEM-000000.tar and so on, each of at most `limit` bytes where a tile allows it; yields each when whole.

    A sample is the members of one tile, as (name, content) in the order of names.

    Raises:
        OSError: one cannot be written; those before stay.
    """
    sample = next(samples, None)
    for number in itertools.count():
        if sample is None:
            return
        path = stem.with_name(f"{stem.name}-{number:06d}.tar")
        with written_whole(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            while sample is not None and (archive.offset == 0 or archive.offset + _size(sample) <= limit):
                for name, data in sample:
                    member = tarfile.TarInfo(name)  # without date and owner
                    member.size, member.mode = len(data), 0o644
                    archive.addfile(member, io.BytesIO(data))
                sample = next(samples, None)
        yield path


def _size(sample: list[tuple[str, bytes]]) -> int:
    """Bytes that members take in an archive, with their headers."""
    return sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for _, data in sample)


def describe_shard(archive: Path) -> dict[str, Any]:
    """Write the index of an archive; returns what the manifest says of both.

    Raises:
        OSError: it cannot be written.
    """
    columns = scan(archive, archive.parent)
    columns["mpp"] = [None if math.isnan(value) else value for value in columns["mpp"]]
    lines = (f"{json.dumps(name)}: {json.dumps(column, ensure_ascii=False)}" for name, column in columns.items())
    path = index_path(archive)
    with written_whole(path) as file:
        file.write(("{" + ",\n".join(lines) + "}\n").encode("utf-8"))
    return {
        "name": archive.name,
        "tiles": len(columns["key"]),
        "bytes": archive.stat().st_size,
        "sha256": _sha256(archive),
        "index_sha256": _sha256(path),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_occupied(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, expected a folder for the shards; name another --out.")
    if (out / MANIFEST).exists():
        raise InputError(f"{out} has a {MANIFEST}, so it is packed already; name another --out or delete it.")
    own = (out / INCOMPLETE).is_file() and not (out / CUT_NOTE).is_file()  # else of `nucleate tile`
    if out.is_dir() and not own and any(out.iterdir()):
        raise InputError(f"{out} holds other files, expected a new or empty folder; name another --out.")
