"""The short form of the soak: a few toy trainings, killed at drawn instants and resumed until done."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks import soak


@pytest.mark.slow
def test_killed_runs_end_as_if_nobody_had_disturbed_them(
    toy_arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert soak.main(["--runs", "3", *toy_arguments, "--train.images", "96"]) == 0
    table = capsys.readouterr().out
    runs, kills, saving, _, problems = re.findall(r"^\| (\d.*) \|$", table, re.MULTILINE)[0].split(" | ")
    assert (runs, problems) == ("3", "0")
    assert int(kills) >= 3
    assert int(saving) >= 1


def test_every_difference_is_seen(toy_run: Path, tmp_path: Path) -> None:
    reference, run = (soak.Run(tmp_path / name, []) for name in ("reference", "run"))
    for each in (reference, run):
        shutil.copytree(toy_run, each.path)
    assert run.differences(reference) == []
    (run.path / "checkpoints" / ".writing-000000000032").mkdir()
    (run.path / "log.jsonl").write_text((run.path / "log.jsonl").read_text() + '{"images": 160, "loss/x": 1}\n')
    (run.path / "export" / "encoder.safetensors").write_bytes(b"other")
    (run.scratch / "socket").touch()
    manifest = run.path / "checkpoints" / "000000000160" / "manifest.json"
    manifest.write_text(re.sub(r'"[0-9a-f]{64}"', f'"{"0" * 64}"', manifest.read_text(), count=1))
    assert [line.removeprefix("run: ") for line in run.differences(reference)] == [
        "another last checkpoint",
        "another export",
        "another log",
        "extra or missing checkpoints/.writing-000000000032",
        "left socket in the temporary folder",
    ]
