"""Run folders: what a run continues from, what it refuses, and how it is asked to stop."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from histo.errors import InputError
from histo.running import checkpoints
from histo.running.runs import RunFolder, RunSettings, StopRequest

SETTINGS = {"data": {"tissue": ["a", "b"], "workers": 2}, "segmenter": {"encoder": "resnet18"}, "seed": 3}


def run_with(tmp_path: Path, *images: int) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create(yaml.safe_dump(SETTINGS))
    for count in images:
        checkpoints.save(
            run.checkpoints, checkpoints.Checkpoint({"net": {"w": torch.ones(1)}}, {"images": count}), keep=9
        )
    return run


def test_the_named_folder_is_used(tmp_path: Path) -> None:
    assert RunFolder.choose(RunSettings(dir=str(tmp_path / "mine")), "translate").path == tmp_path / "mine"


def test_a_new_folder_has_the_time_in_its_name() -> None:
    path = RunFolder.choose(RunSettings(), "translate").path
    assert re.fullmatch(r"runs/translate-\d{8}-\d{6}", str(path))


def test_auto_continues_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    run = run_with(tmp_path, 100, 20)
    (run.checkpoints / f"{checkpoints.ASIDE}000000000500").mkdir()
    checkpoint, damaged = run.state("auto")
    assert checkpoint is not None
    assert checkpoint.path == run.checkpoints / "000000000100"
    assert damaged == []


def test_auto_starts_afresh_where_there_is_none(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "new").state("auto") == (None, [])
    assert run_with(tmp_path).state("auto") == (None, [])


def test_never_refuses_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "new").state("never") == (None, [])
    for run in (run_with(tmp_path), run_with(tmp_path, 10)):
        with pytest.raises(InputError, match="already holds a run"):
            run.state("never")


def test_a_named_checkpoint(tmp_path: Path) -> None:
    run = run_with(tmp_path, 10, 20)
    named = run.checkpoints / "000000000010"
    checkpoint, _ = run.state(str(named))
    assert checkpoint is not None
    assert checkpoint.facts["images"] == 10
    with pytest.raises(InputError, match=r"is 'atuo', .*has: 000000000010, 000000000020"):
        run.state("atuo")
    with pytest.raises(InputError, match="has: none"):
        RunFolder(tmp_path / "new").state("30")


def test_create_makes_the_folder_and_sweeps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "deep" / "run")
    (run.checkpoints / ".writing-000000000009").mkdir(parents=True)
    run.create("seed: 1\n")
    assert run.config.read_text() == "seed: 1\n"
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "config.yaml", "export"]
    assert list(run.checkpoints.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written.*another --run\.dir"):
        RunFolder(tmp_path / "file" / "run").create("")


def test_equal_settings_and_settings_that_may_change(tmp_path: Path) -> None:
    run = run_with(tmp_path, 10)
    fixed = ("data.tissue", "segmenter", "seed")
    run.refuse_other_settings(SETTINGS, fixed)
    run.refuse_other_settings({**SETTINGS, "data": {"tissue": ["a", "b"], "workers": 8}}, fixed)
    run.refuse_other_settings({**SETTINGS, "newer": {"setting": 1}}, (*fixed, "newer"))
    RunFolder(tmp_path / "new").refuse_other_settings({"seed": 9}, fixed)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": 4}, "--seed is 4, but .* was trained with 3"),
        ({"data": {"tissue": ["a"]}}, r"--data\.tissue is \['a'\], but .* was trained with \['a', 'b'\]"),
        ({"segmenter": {"encoder": "x"}}, r"--segmenter\.encoder is 'x', but .* was trained with 'resnet18'"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run_with(tmp_path, 10).refuse_other_settings({**SETTINGS, **changed}, ("data.tissue", "segmenter", "seed"))


def test_a_damaged_config_is_the_users_to_mend(tmp_path: Path) -> None:
    run = run_with(tmp_path, 10)
    for content in ("a: [", "- 1\n"):
        run.config.write_text(content)
        with pytest.raises(InputError, match=r"config\.yaml"):
            run.refuse_other_settings(SETTINGS, ("seed",))


def test_keeping_no_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match=r"run\.keep is 0"):
        RunSettings(keep=0)


WAITER = """
import sys, time
from histo.running.runs import StopRequest
stop = StopRequest()
stop.listen()
print("ready", bool(stop), flush=True)
for _ in range(400):
    if stop:
        print(f"saved: {stop.reason}", flush=True)
        sys.exit(0)
    time.sleep(0.05)
sys.exit(1)
"""
LAUNCHER = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {WAITER!r}])
print(child.pid, flush=True)
time.sleep(60)
"""


def started(script: str, **environment: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**inherited, **environment},
    )


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(count)]


def test_sigterm_asks_to_stop_and_does_not_kill() -> None:
    with started(WAITER) as process:
        assert lines(process, 1) == ["ready False"]
        process.terminate()
        assert lines(process, 1) == ["saved: SIGTERM"]
        assert process.wait(20) == 0


def test_the_second_ctrl_c_does_not_wait() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = StopRequest()
        stop.listen()
        signal.raise_signal(signal.SIGINT)
        assert stop
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_vanished_launcher_asks_to_stop() -> None:
    with started(LAUNCHER, ACCELERATE_MIXED_PRECISION="no") as launcher:
        assert "ready False" in lines(launcher, 2)
        launcher.kill()
        launcher.wait(20)
        assert lines(launcher, 1) == ["saved: the launcher is gone"]


def test_a_vanished_shell_does_not() -> None:
    with started(LAUNCHER) as launcher:
        first = lines(launcher, 2)
        child = int(next(line for line in first if line != "ready False"))
        launcher.kill()
        launcher.wait(20)
        time.sleep(0.5)
        os.kill(child, signal.SIGTERM)  # still there, and stops for this reason only
        assert lines(launcher, 1) == ["saved: SIGTERM"]


def test_a_mistyped_path_may_be_corrected(tmp_path: Path) -> None:
    """The settings are in the folder before the data are opened, and nothing was made of the wrong ones."""
    run = run_with(tmp_path)
    (run.path / "lock.json").touch()
    run.refuse_other_settings({**SETTINGS, "seed": 4}, ("seed",))
    (run.path / "log.jsonl").touch()
    with pytest.raises(InputError, match="--seed is 4"):
        run.refuse_other_settings({**SETTINGS, "seed": 4}, ("seed",))


def test_a_temporary_folder_that_sockets_cannot_lie_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot open its socket loses its batch, and the training waits for it for good."""
    for length in (51, 52):
        monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * (length - 5))
        long = Path(tempfile.gettempdir())
        long.mkdir(exist_ok=True)
        try:
            if length == 52:
                with pytest.raises(InputError, match=r"too long a name .* set TMPDIR to a shorter one"):
                    RunFolder(tmp_path).scratch(0)
                continue
            folder = RunFolder(tmp_path).scratch(0)
            path = str(folder / "pymp-12345678" / "listener-12345678")
            Path(path).parent.mkdir()
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
        finally:
            shutil.rmtree(long)


def test_no_temporary_folder_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(InputError, match="set TMPDIR to a folder that can be written"):
        RunFolder(tmp_path).scratch(0)
