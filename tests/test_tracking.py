"""The log of a run: what is kept when it resumes, and what a reader gets."""

import json
import shutil
import time
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from histo.errors import InputError
from histo.running.tracking import Tracker, add_scalars, read_log


def test_scalars_and_messages_are_read_back(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, enabled=True)
    tracker.scalars(8, {"loss/cycle": 0.25, "speed": 3})
    tracker.message(8, "schöne µm/px\nzwei", "warning")
    tracker.close()
    first, second = read_log(tmp_path)
    assert {key: first[key] for key in ("images", "loss/cycle", "speed")} == {
        "images": 8,
        "loss/cycle": 0.25,
        "speed": 3,
    }
    assert second["warning"] == "schöne µm/px\nzwei"
    assert set(first) == {"images", "time", "loss/cycle", "speed"}


def test_an_absent_log_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []


def test_resuming_takes_back_what_lies_past_the_checkpoint(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, enabled=True)
    for images in (10, 20, 30, 40):
        tracker.scalars(images, {"loss": images})
    tracker.message(40, "warned")
    tracker.close()
    tracker = Tracker(tmp_path, 20, enabled=True)
    assert [record["images"] for record in read_log(tmp_path)] == [10, 20]
    for images in (30, 40):
        tracker.scalars(images, {"loss": -images})
    tracker.close()
    assert [record["loss"] for record in read_log(tmp_path)] == [10, 20, -30, -40]


def test_starting_afresh_takes_back_everything(tmp_path: Path) -> None:
    """A run killed before its first checkpoint starts at 0 again and records image count 0 anew."""
    for _ in range(2):
        tracker = Tracker(tmp_path, 0, enabled=True)
        tracker.scalars(0, {"content": 0.1})
        tracker.scalars(10, {"loss": 1.0})
        tracker.close()
    assert [record["images"] for record in read_log(tmp_path)] == [0, 10]


@pytest.mark.parametrize("start", [0, 20])
def test_tensorboard_shows_the_last_life_only(tmp_path: Path, start: int) -> None:
    tracker = Tracker(tmp_path, 0, enabled=True)
    for images in (10, 20, 30, 40):
        tracker.scalars(images, {"loss": 1.0})
    tracker.close()
    time.sleep(1.1)  # files of one second are ordered by a counter of the process as a text, in which 10 is before 9
    tracker = Tracker(tmp_path, start, enabled=True)
    tracker.scalars(start + 5, {"loss": 2.0})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    expected = [5] if start == 0 else [10, 20, 25]
    assert [event.step for event in events.Scalars("loss")] == expected


def test_every_cut_of_the_last_line_is_survived(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, enabled=True)
    tracker.scalars(10, {"loss": 1.0})
    tracker.message(10, "nuclei at 0.5 µm/px")
    tracker.close()
    whole = (tmp_path / "log.jsonl").read_bytes()
    end_of_first = whole.index(b"\n") + 1
    for end in range(end_of_first, len(whole) - 1):
        (tmp_path / "log.jsonl").write_bytes(whole[:end])
        assert [record["images"] for record in read_log(tmp_path)] == [10], f"cut at byte {end}: {whole[:end][-12:]!r}"
    (tmp_path / "log.jsonl").write_bytes(whole[: end_of_first + 9])
    tracker = Tracker(tmp_path, 10, enabled=True)
    tracker.scalars(20, {"loss": 2.0})
    tracker.close()
    assert [record["loss"] for record in read_log(tmp_path)] == [1.0, 2.0]


def test_unusual_line_separators_in_a_message_do_not_break_the_log(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, enabled=True)
    tracker.message(1, "one\u2028two\x85three")
    tracker.scalars(2, {"loss": 1.0})
    tracker.close()
    assert [record["images"] for record in read_log(tmp_path)] == [1, 2]


def test_scalars_that_are_not_numbers_stay_readable(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, enabled=True)
    tracker.scalars(10, {"bad": nan, "worse": float("inf"), "good": 1.0})
    tracker.close()
    Tracker(tmp_path, 10, enabled=True).close()
    (record,) = read_log(tmp_path)
    assert record["bad"] is None or isnan(record["bad"])
    assert record["good"] == 1


def test_each_line_stands_alone(tmp_path: Path) -> None:
    """A crash later must not lose what was recorded: nothing waits in a buffer until `close`."""
    tracker = Tracker(tmp_path, 0, enabled=True)
    tracker.scalars(10, {"loss": 1.0})
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 1
    tracker.close()


def test_pictures_are_files_too(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    tracker = Tracker(tmp_path, 0, enabled=True)
    tracker.picture(1600, "mask_to_tissue", picture)
    tracker.close()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "panels" / "mask_to_tissue-000001600.png")), picture)


def test_other_processes_are_mute(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, enabled=False)
    tracker.scalars(1, {"loss": 1.0})
    tracker.message(1, "note")
    tracker.picture(1, "name", np.zeros((4, 4, 3), np.uint8))
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_spoilt_line_costs_itself_only(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, enabled=True)
    for images in (10, 20, 30):
        tracker.scalars(images, {"loss": 1.0})
    tracker.close()
    lines = (tmp_path / "log.jsonl").read_bytes().split(b"\n")
    for spoilt in (lines[1][:9], b"\xff\x00", b"7", b"null", b'{"loss": 1}', b"[" * 100_000):
        (tmp_path / "log.jsonl").write_bytes(b"\n".join([lines[0], spoilt, *lines[2:]]))
        Tracker(tmp_path, 30, enabled=True).close()
        assert [record["images"] for record in read_log(tmp_path)] == [10, 30]


def test_tensorboard_deleted_between_two_lives(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, enabled=True)
    tracker.scalars(10, {"loss": 1.0})
    tracker.close()
    shutil.rmtree(tmp_path / "tensorboard")
    tracker = Tracker(tmp_path, 10, enabled=True)
    tracker.scalars(20, {"loss": 2.0})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20]


def test_a_log_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(InputError, match=r"log\.jsonl cannot be written"):
        Tracker(tmp_path, 0, enabled=True)


def test_scalars_are_added_to_a_run_that_has_ended(tmp_path: Path) -> None:
    """Behind what it recorded, its final figures included, and without the line that a kill cut off."""
    tracker = Tracker(tmp_path, 0, enabled=True)
    tracker.scalars(10, {"loss": 1.0})
    tracker.scalars(20, {"final/dice": 0.5})
    tracker.close()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"images": 30, "lo')
    add_scalars(tmp_path, 20, {"score/fid": 2.5})
    records = read_log(tmp_path)
    assert [sorted(set(record) - {"images", "time"}) for record in records] == [["loss"], ["final/dice"], ["score/fid"]]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert {"loss", "final/dice", "score/fid"} <= set(board.Tags()["scalars"])
    (event,) = board.Scalars("score/fid")
    assert (event.step, event.value) == (20, 2.5)
