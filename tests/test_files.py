"""Files appear whole or not at all, and what cannot be written is one sentence."""

import os
from pathlib import Path

import pytest
import torch

from histo.encoders import write_card
from histo.errors import InputError
from histo.files import PARTIAL, written_whole


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), written_whole(path) as file:  # noqa: PT012
        file.write(b"ne")
        raise OSError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_leaves_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    (tmp_path / f"a.txt{PARTIAL}").write_text("half of an earlier life")
    with written_whole(path) as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_an_export_that_does_not_fit_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"encoder\.safetensors cannot be written \(No space left on device\)"):
        write_card(tmp_path / "encoder.safetensors", {"w": torch.ones(3)}, {"kind": "encoder"})
    assert list(tmp_path.iterdir()) == []
