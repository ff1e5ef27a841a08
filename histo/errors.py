"""The one exception for mistakes a user can mend; every entry point turns it into a sentence and exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """What is wrong (with the value shown), what was expected, and what to do, in one sentence.

    Raised for anything a user can cause: a path, a setting, a damaged file. Programming errors keep their own types
    and their traceback.
    """


@contextmanager
def writing(path: Path, advice: str = "free some space, or write elsewhere") -> Iterator[None]:
    """Turn the system's refusal to write (disk full, read-only, no permission, folder gone) into one sentence.

    Raises:
        InputError: naming `path`, the system's reason, and `advice`.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); {advice}.") from error
