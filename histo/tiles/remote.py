"""Packed shards in an object store: read in place by byte range, through fsspec, where a user names a URL.

`s3://bucket/shards`, `gs://…`, `az://…`, `https://…` or any other that fsspec knows by an installed package (s3fs,
gcsfs, adlfs, aiohttp); keys and endpoints are fsspec's and that package's own settings. Nothing is kept on disk, unless
the URL asks for it (`simplecache::s3://…`). Every read finds its file system anew, which fsspec keeps one of for each
process: its connections do not survive the fork of a loader worker.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import Any

from histo.errors import InputError

AT_ONCE = 256  # files asked for together at opening, which takes seconds of ten thousand and not minutes


class Url(PosixPath):
    """A URL where a path is expected: joined, compared and named as one, read through fsspec."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)  # which a path makes one stroke of

    def resolve(self, strict: bool = False) -> "Url":
        """Itself: there are no links."""
        return self

    def is_file(self) -> bool:
        """Whether there is such an object, and not a folder of objects."""
        with _reading(self) as (system, path):
            try:
                return bool(system.info(path)["type"] == "file")
            except FileNotFoundError:
                return False

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to before `stop`, fewer where it ends earlier."""
        with _reading(self) as (system, path):
            return system.cat_file(path, start=start, end=stop)

    def sizes(self, names: Sequence[str]) -> list[int]:
        """Bytes of objects in this folder."""
        with _reading(self) as (system, path):
            return system.sizes([f"{path}/{name}" for name in names])

    def contents(self, names: Sequence[str], limit: int) -> list[bytes]:
        """The first `limit` bytes of objects in this folder."""
        with _reading(self) as (system, path):
            paths = [f"{path}/{name}" for name in names]
            return system.cat_ranges(paths, [0] * len(paths), [limit] * len(paths), on_error="raise")


def place(path: str | Path) -> Path:
    """What a user names: a path, or the URL of a folder of packed shards.

    Raises:
        InputError: a URL of local files.
    """
    if isinstance(path, Path) or "://" not in path:
        return Path(path)
    if path.startswith(("file:", "local:")):
        raise InputError(f"{path} is on this machine, expected a path; leave out what stands before the path.")
    return Url(path)


@contextmanager
def _reading(url: Url) -> Iterator[tuple[Any, str]]:
    """fsspec's file system of a URL in this process, and the URL's path in it."""
    from fsspec.core import url_to_fs

    try:
        yield url_to_fs(str(url))
    except ImportError as error:
        raise InputError(f"{url} cannot be read without another package: {error}; install it.") from error
    except Exception as error:  # each file system has errors of its own
        raise InputError(
            f"{url} cannot be read ({type(error).__name__}: {error}); check the URL, the network and your permission."
        ) from error
