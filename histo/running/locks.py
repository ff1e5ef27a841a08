"""One process at a time in a run folder: a lock that names its owner and that no kill can leave behind for good.

The lock is the system's own on `RUN/lock.json`, which the kernel takes back from a process however it ends; forked
loader workers do not inherit it. The file says who holds it, and its owner touches it every few seconds. That settles
what the system cannot: an owner on another host, where locks may not reach, counts as gone when the file stays
untouched for `PATIENCE`; an owner on this host whose file system has no locks, when its process does. No clock is
read, so none can mislead.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from histo.errors import InputError, writing

LOCK = "lock.json"
BEAT = 3.0  # seconds between touches
PATIENCE = 20.0  # seconds without one after which an owner on another host is given up
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """The lock of one folder, held from construction until `release` or the end of the process.

    Args:
        folder: made where it does not exist.
        option: what names the folder on the command line, for the error sentences.

    Attributes:
        stale: who held it last without giving it back, as a phrase; None where the folder was free.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path, option: str = "--run.dir") -> None:
        self.path, self._option = folder / LOCK, option
        with writing(folder, f"name another {option}"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._locked()
        owner = _owner(self._file)
        self.stale = _phrase(owner) if owner else None
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._released = threading.Event()
        try:
            with writing(self.path, f"free some space or name another {option}"):
                self._file.seek(0)
                self._file.truncate()
                self._file.write(json.dumps(me))
                self._file.flush()
        except InputError:
            self.release()
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Give the folder back, as far as it is still there and can be written."""
        self._released.set()
        with suppress(OSError):
            if self._is_ours(self._file):  # the folder may have been deleted and be another's by now
                self.path.unlink()
        with suppress(OSError):  # what a full disk did not take is still to be written
            self._file.close()

    def _is_ours(self, file: TextIOWrapper) -> bool:
        """Whether the path leads to the very file that is open."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):  # gone with its folder, or about to be released
                os.utime(self.path)

    def _locked(self) -> TextIOWrapper:
        """The lock file, ours by the system's word and by that of its last owner.

        The file is opened once only: closing any second handle on it would give the system's lock back.
        """
        while True:
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the lock is held
            try:
                taken = _system_lock(file)
                owner = _owner(file)
                in_use = taken is False or (owner is not None and self._lives(owner, taken))
                # A holder that just left may have deleted the very file we locked: then look again.
                if not self._is_ours(file):
                    file.close()
                    continue
                if in_use:
                    who = _phrase(owner) if owner else "another process"
                    raise InputError(
                        f"{self.path.parent} is in use by {who}; stop that one first or name another {self._option}."
                    )
            except BaseException:
                file.close()
                raise
            return file

    def _lives(self, owner: dict[str, Any], taken: bool | None) -> bool:
        """Whether the owner a free lock file names is still at work."""
        if owner.get("host") == socket.gethostname():
            return taken is None and _process_lives(owner.get("pid"))
        last = _touched(self.path)
        deadline = time.monotonic() + PATIENCE
        print(f"Waiting {PATIENCE:.0f} s for a sign of life of {_phrase(owner)} in {self.path.parent} …", flush=True)
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if _touched(self.path) != last:
                return True
        return False


def _touched(path: Path) -> int | None:
    """When the file was last touched, in ns; None where it was deleted."""
    return path.stat().st_mtime_ns if path.exists() else None


def _system_lock(file: TextIOWrapper) -> bool | None:
    """Whether the system gave us its lock; None where the file system has none to give."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _owner(file: TextIOWrapper) -> dict[str, Any] | None:
    """Whom the lock file names; None where it is empty or was cut off while it was written."""
    file.seek(0)
    try:
        owner = json.loads(file.read(10_000))
    except (ValueError, RecursionError):
        return None
    return owner if isinstance(owner, dict) else None


def _phrase(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"


def _process_lives(pid: Any) -> bool:
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # it lives under another user
    except (ProcessLookupError, OverflowError):
        return False
    return True
