"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name once it is whole and on the disk.

    What a kill leaves is `path` with `PARTIAL` behind it, which writing the same file again replaces.

    Raises:
        OSError: it cannot be written; nothing is left, and an older file of that name stays.
    """
    aside = path.with_name(path.name + PARTIAL)
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
