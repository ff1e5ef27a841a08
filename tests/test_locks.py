"""The lock of a run folder: one owner at a time, named; dead owners do not stand in the way."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from histo.errors import InputError
from histo.running import locks
from histo.running.locks import FolderLock

HOLD = """
import sys, time
from pathlib import Path
from histo.running.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(InputError, match=rf"in use by process {process.pid} on {socket.gethostname()} since 2"):
            FolderLock(tmp_path / "run")
        assert json.loads((tmp_path / "run" / "lock.json").read_text())["pid"] == process.pid
    finally:
        process.kill()
        process.wait()


def test_a_killed_owner_is_recognised_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.wait()
    lock = FolderLock(tmp_path)
    assert lock.stale is not None
    assert f"process {process.pid} on" in lock.stale
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_released_is_free(tmp_path: Path) -> None:
    FolderLock(tmp_path).release()
    lock = FolderLock(tmp_path)
    assert lock.stale is None
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}', '{"pid": 99999999999999}'])
def test_a_lock_cut_off_while_written_is_nobodys(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    (tmp_path / "lock.json").write_text(content)
    FolderLock(tmp_path).release()


def elsewhere(folder: Path) -> Path:
    path = folder / "lock.json"
    path.write_text(json.dumps({"host": "another-host", "pid": 1, "since": "2026-01-01 00:00:00"}))
    return path


def test_an_owner_on_another_host_lives_while_it_touches_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 5.0)
    path = elsewhere(tmp_path)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            os.utime(path)

    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(InputError, match="in use by process 1 on another-host since 2026"):
            FolderLock(tmp_path)
    finally:
        over.set()
        other.join()
    assert path.exists()


def test_a_silent_owner_on_another_host_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    os.utime(elsewhere(tmp_path), (2e9, 2e9))  # a clock that is years ahead misleads nobody
    lock = FolderLock(tmp_path)
    assert lock.stale == "process 1 on another-host since 2026-01-01 00:00:00"
    assert "sign of life" in capsys.readouterr().out
    lock.release()


def test_the_owner_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    lock = FolderLock(tmp_path)
    os.utime(lock.path, (1, 1))
    deadline = time.monotonic() + 10
    while lock.path.stat().st_mtime < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()


def test_without_system_locks_the_process_itself_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_system_lock", lambda file: None)
    me = {"host": socket.gethostname(), "since": "2026-01-01 00:00:00"}
    (tmp_path / "lock.json").write_text(json.dumps({**me, "pid": os.getppid()}))
    with pytest.raises(InputError, match=f"in use by process {os.getppid()}"):
        FolderLock(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / "lock.json").write_text(json.dumps({**me, "pid": process.pid}))
    FolderLock(tmp_path).release()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written.*name another --run\.dir"):
        FolderLock(tmp_path / "file" / "run")


def test_a_lock_that_is_another_ones_by_now_stays(tmp_path: Path) -> None:
    """The run folder was deleted under its owner, and another process began one of that name."""
    lock = FolderLock(tmp_path / "run")
    (tmp_path / "run" / "lock.json").unlink()
    process = holder(tmp_path / "run")
    try:
        lock.release()
        with pytest.raises(InputError, match=f"in use by process {process.pid}"):
            FolderLock(tmp_path / "run")
    finally:
        process.kill()
        process.wait()


def test_giving_back_what_cannot_be_written_any_more_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FolderLock(tmp_path)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    lock.release()


def test_an_owner_on_another_host_that_leaves_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 20.0)
    path = elsewhere(tmp_path)
    leaving = threading.Timer(0.3, path.unlink)
    leaving.start()
    lock = FolderLock(tmp_path)
    leaving.join()
    assert lock.stale is None
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_a_lock_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "lock.json").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"lock\.json cannot be written"):
        FolderLock(tmp_path)
    assert list(tmp_path.iterdir()) == []
