"""What may befall a run from outside: each ends in one sentence, or is lived through, and the last good state stays."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from histo.errors import InputError
from histo.running import checkpoints, tracking
from histo.running.tracking import read_log
from tests.launching import ALONE, assert_same_weights, start, wait_for
from translate import train
from translate.train import main


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the run that they are compared with had: with more, sums are added up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mounted(folder: Path, options: str) -> None:
    """A file system of its own on a folder; needs the right to mount, as root in a container has."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system here")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 10 MB: room for one toy checkpoint of 7 MB and not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder, "size=10m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_while_saving(toy_arguments: list[str], toy_run: Path, small_disk: Path) -> None:
    run = small_disk / "run"
    process = start([*toy_arguments, "--data.workers", "1", "--train.images", "96"], run)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: The checkpoint at 64 images cannot be written to")
    assert "No space left on device" in last
    assert "the last good one is" in last
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000000032"]
    assert checkpoints.load(run / "checkpoints" / "000000000032").facts["images"] == 32
    assert not (run / "lock.json").exists()

    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    process = start([*toy_arguments, "--data.workers", "1"], run)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert_same_weights(run, toy_run, 160)


def test_a_full_disk_while_logging(small_disk: Path) -> None:
    tracker = tracking.Tracker(small_disk, 0, enabled=True)
    tracker.scalars(10, {"loss/x": 1.0})
    (small_disk / "filler").write_bytes(bytes(9_900_000))
    with pytest.raises(InputError, match=r"cannot be written.*No space left on device"):  # noqa: PT012 - any of many
        for step in range(20_000):
            tracker.scalars(20 + step, {"loss/x": 1.0})
    (small_disk / "filler").unlink()
    assert read_log(small_disk)[0]["loss/x"] == 1.0
    again = tracking.Tracker(small_disk, 10, enabled=True)
    again.scalars(30, {"loss/x": 3.0})
    again.close()
    assert [record["images"] for record in read_log(small_disk)] == [10, 30]


def test_a_read_only_run_folder(toy_arguments: list[str], small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\); name another --run\.dir"):
        main([*toy_arguments, "--data.workers", "0", "--run.dir", str(small_disk / "run")])


@pytest.mark.slow
def test_a_run_folder_in_use(toy_arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    owner = start([*toy_arguments, "--train.images", "100000"], run)
    try:
        wait_for(run / "checkpoints" / "000000000032", owner)
        with pytest.raises(InputError, match=f"in use by process {owner.pid} on .*; stop that one first"):
            main([*toy_arguments, "--data.workers", "0", "--run.dir", str(run)])
        assert owner.poll() is None
    finally:
        owner.kill()
        owner.communicate()
    assert (run / "lock.json").exists(), "a killed owner cannot take its lock away"
    process = start([*toy_arguments, "--train.images", "64"], run)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert f"process {owner.pid} on" in output
    assert not (run / "lock.json").exists()


@pytest.mark.parametrize("damage", ["weights", "manifest", "missing"])
def test_a_damaged_newest_checkpoint(
    toy_arguments: list[str], toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    newest = run / "checkpoints" / "000000000160"
    victim = newest / ("manifest.json" if damage == "manifest" else "optimizer_judges.safetensors")
    content = bytearray(victim.read_bytes())
    if damage == "missing":
        victim.unlink()
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    main([*toy_arguments, "--data.workers", "0", "--run.dir", str(run)])
    printed = capsys.readouterr()
    assert "continuing" in printed.out
    assert "000000000128" in printed.out
    assert printed.err.count(str(newest)) == 1
    warnings = [record["warning"] for record in read_log(run) if str(newest) in record.get("warning", "")]
    assert len(warnings) == 1
    assert_same_weights(run, toy_run, 160)

    for name in ("000000000128", "000000000160"):
        path = run / "checkpoints" / name / "generator.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"None of the 2 checkpoints .* name another --run\.dir to start afresh"):
        main([*toy_arguments, "--data.workers", "0", "--run.dir", str(run)])


def test_clocks_that_jump(
    toy_arguments: list[str], toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Years back and forth between any two looks at the clock, and checkpoints dated the wrong way round."""
    now = time.time()
    years = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now + 3e7 * (-1) ** next(years) * (next(years) % 7))
    run = tmp_path / "run"
    main([*toy_arguments, "--data.workers", "0", "--train.images", "96", "--run.dir", str(run)])
    for age, path in enumerate(checkpoints.complete(run / "checkpoints")):
        os.utime(path, (now - 1e7 * age, now - 1e7 * age))
    main([*toy_arguments, "--data.workers", "0", "--run.dir", str(run)])
    assert_same_weights(run, toy_run, 160)
    images = [record["images"] for record in read_log(run) if "loss/cycle_mask" in record]
    assert images == list(range(16, 161, 16))


def test_tensorboard_deleted_while_running(
    toy_arguments: list[str],
    toy_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    run = tmp_path / "run"
    look = train._look

    def delete(*arguments: object) -> None:
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "_look", delete)
    main([*toy_arguments, "--data.workers", "0", "--run.dir", str(run)])
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    assert printed.err.count("was deleted; its scalars are written again from log.jsonl") == 2
    assert_same_weights(run, toy_run, 160)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss/cycle_mask")] == list(range(16, 161, 16))


def test_the_run_folder_deleted_while_running(
    toy_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(train, "_look", lambda *_: shutil.rmtree(run))
    with pytest.raises(InputError, match="cannot be written"):
        main([*toy_arguments, "--data.workers", "0", "--run.dir", str(run)])


@pytest.mark.slow
def test_a_killed_loader_worker(toy_arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start([*toy_arguments, "--data.workers", "1", "--train.images", "100000"], run)
    wait_for(run / "checkpoints" / "000000000032", process)
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert "error: A loader worker died (" in errors.strip().splitlines()[-1]
    assert not (run / "lock.json").exists()


@pytest.mark.slow
def test_a_sigterm_before_the_first_step(toy_arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start([*toy_arguments, "--data.workers", "0"], run)
    wait_for(run / "pseudo-masks", process)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not (run / "lock.json").exists()


def test_no_temporary_folder_leaves_no_lock(
    toy_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"set TMPDIR to a (folder|shorter)"):
        main([*toy_arguments, "--data.workers", "0", "--run.dir", str(tmp_path / "run")])
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_stopped_at_its_start_keeps_the_first_record(
    toy_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    arguments = [*toy_arguments, "--data.workers", "0", "--train.images", "4", "--run.dir", str(run)]
    with monkeypatch.context() as patch:
        patch.setattr(train.StopRequest, "__bool__", lambda _: True)
        main(arguments)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000000000"]
    main(arguments)
    assert [r["images"] for r in read_log(run) if "content/segmenter_dice" in r] == [0]


@pytest.mark.slow
def test_full_shared_memory(toy_arguments: list[str], tmp_path: Path) -> None:
    """A batch that a worker cannot hand over ends the run with a sentence; it used to wait for it for ever."""
    own_memory = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    if os.geteuid() or subprocess.run([*own_memory, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system here")
    process = start([*toy_arguments, "--data.workers", "1"], tmp_path / "run", [*own_memory, *ALONE])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "A loader worker died" in errors.strip().splitlines()[-1]
