"""The main job end to end: it runs, it resumes bit for bit however it was stopped, and it says what is wrong."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from histo import guidance
from histo.errors import InputError
from histo.running import checkpoints
from histo.running.tracking import read_log
from tests.launching import assert_same_weights, start, wait_for
from translate import train
from translate.train import main


@pytest.mark.slow
@pytest.mark.parametrize(
    ("instant", "number"),
    [
        ("checkpoints/.writing-000000000064", signal.SIGKILL),  # in the middle of saving
        ("checkpoints/000000000096", signal.SIGKILL),
        ("checkpoints/000000000032", signal.SIGTERM),
        ("checkpoints/000000000064", signal.SIGINT),
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(
    toy_arguments: list[str], toy_run: Path, tmp_path: Path, instant: str, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    arguments = [*toy_arguments, "--data.workers", "1"]
    process = start(arguments, run)
    wait_for(run / instant, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    if number != signal.SIGKILL:
        assert process.returncode == 0, errors
        assert f"Stopped by {number.name}" in output
        assert "Traceback" not in errors
    stopped_at = checkpoints.complete(run / "checkpoints")
    assert not stopped_at or not stopped_at[-1].name.endswith("160"), "the run was over before it was stopped"

    process = start(arguments, run)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same_weights(run, toy_run, 160)
    states = [checkpoints.load(checkpoints.complete(one / "checkpoints")[-1]).facts["ada"] for one in (run, toy_run)]
    assert states[0] == states[1]
    assert not list((run / "checkpoints").glob(".writing-*"))
    images = [record["images"] for record in read_log(run) if "loss/cycle_mask" in record]
    assert images == list(range(16, 161, 16)), "each image count stands in the log once"


@pytest.mark.slow
def test_launcher_killed_script_saves_and_leaves(toy_arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q", "--cpu"]
    process = start([*toy_arguments, "--train.images", "100000"], run, launcher)
    wait_for(run / "checkpoints" / "000000000032", process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    newest, quiet = "", 0.0
    while quiet < 4 and time.monotonic() < deadline:  # the script is gone when checkpoints stop appearing
        time.sleep(0.5)
        names = [path.name for path in checkpoints.complete(run / "checkpoints")]
        quiet = quiet + 0.5 if names and names[-1] == newest else 0.0
        newest = names[-1] if names else ""
    assert quiet >= 4
    assert int(newest) < 100000


def test_the_run_folder_holds_what_users_load(toy_run: Path, tile_folder: Path) -> None:
    export = toy_run / "export"
    for name in ("generator", "segmenter", "encoder"):
        card = json.loads((export / f"{name}.json").read_text())
        assert card["kind"] == name
        assert card["images_seen"] == 160
        assert card["mpp"] == pytest.approx(0.5)
        assert load_file(export / f"{name}.safetensors")
    told = (export / "encoder.md").read_text()
    assert "| images seen | 160 |" in told
    assert f"| {tile_folder.name} | unknown | unknown | unclear |" in told
    assert str(tile_folder.parent) not in told
    report = (toy_run / "report.html").read_text()
    assert "data:image/" in report
    assert "http://" not in report
    assert (toy_run / "config.yaml").exists()
    assert list((toy_run / "tensorboard").glob("events*"))
    assert len(list((toy_run / "panels").glob("*.png"))) == 4
    scalars = {name for record in read_log(toy_run) for name in record}
    assert {"content/segmenter_dice", "content/watershed_aji", "holdout_pq", "loss/r1", "speed/wait_share"} <= scalars
    assert {"final/segmenter_dice", "final/watershed_dice", "final/untrained_dice"} <= scalars
    probabilities = [record["ada/p"] for record in read_log(toy_run) if "ada/r" in record]
    assert len(probabilities) == 10
    assert len(set(probabilities)) > 1, "the probability of augmentation was not steered"


def test_a_finished_run_says_so(toy_arguments: list[str], toy_run: Path, capsys: pytest.CaptureFixture) -> None:
    main([*toy_arguments, "--run.dir", str(toy_run)])
    assert "Done: 160 images" in capsys.readouterr().out


def test_dry_run_writes_nothing(toy_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main([*toy_arguments, "--run.dir", str(tmp_path / "run"), "--dry_run"])
    printed = capsys.readouterr().out
    assert "tile_size: 64" in printed
    assert "sound" in printed
    assert not (tmp_path / "run").exists()


def test_a_non_finite_loss_stops_with_its_name(
    toy_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def broken(logits: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return logits.mean() * (float("nan") if len(steps) > 9 else 1.0)

    monkeypatch.setattr(guidance, "semantic", broken)
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"term guidance became nan at step 9 \(36 images\).*000000000032"):
        main([*toy_arguments, "--data.workers", "0", "--run.dir", str(run)])
    assert [path.name for path in checkpoints.complete(run / "checkpoints")] == ["000000000032"]


def test_lost_content_raises_the_alarm(
    toy_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([0.5, 0.6, 0.4])
    monkeypatch.setattr(
        train, "measure", lambda *_: {"content/segmenter_dice": next(readings), "content/watershed_dice": 0.3}
    )
    run = tmp_path / "run"
    main([*toy_arguments, "--data.workers", "0", "--train.panel_every", "80", "--run.dir", str(run)])
    warnings = [record for record in read_log(run) if "warning" in record]
    assert [record["images"] for record in warnings] == [160]
    assert "0.400 is below the untrained 0.500" in warnings[0]["warning"]


def test_broken_files_are_skipped_and_listed(
    toy_arguments: list[str], tile_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tissue = tmp_path / "tissue"
    shutil.copytree(tile_folder / "images", tissue)
    (tissue / "broken.png").write_bytes((tissue / "0.png").read_bytes()[:500])
    settings = ["--data.tissue", str(tissue), "--data.mpp", "0.5", "--data.workers", "0", "--train.images", "16"]
    main([*toy_arguments, *settings, "--data.on_bad", "skip", "--run.dir", str(tmp_path / "run")])
    assert "broken.png" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"broken\.png"):
        main([*toy_arguments, *settings, "--train.images", "160", "--run.dir", str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data.tissue", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--data.masks", "/nowhere/at/all"], "no folder; expected"),
        (["--data.tile_size", "60"], "data.tile_size is 60, expected 64, 128, 256 or 512"),
        (["--data.tile_sise", "64"], "did you mean data.tile_size"),
        (["--train.images", "many"], "--train.images is 'many', expected a whole number"),
        (["--train.batch_size", "0"], "train.batch_size is 0, expected 1 or more"),
        (["--train.learning_rate", "7"], "train.learning_rate is 7"),
        (["--segmenter.head", "boxes"], "expected one of maskrcnn, flows, semantic, none"),
        (["--segmenter.encoder", "resnet5_gn"], "timm has no model named 'resnet5_gn'"),
        (["--run.resume", "/nowhere"], "expected auto, never or a checkpoint folder"),
        (["--data.mpp", "-1"], "data.mpp is -1"),
    ],
)
def test_mistakes_get_one_sentence(
    toy_arguments: list[str], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        main([*toy_arguments, *arguments, "--run.dir", str(tmp_path / "run"), "--data.workers", "0"])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints" / "000000000032").exists()


def test_empty_folder_truncated_image_and_wrong_mask(
    toy_arguments: list[str], tile_folder: Path, tmp_path: Path
) -> None:
    def train_on(folder: Path, *more: str) -> str:
        run = str(tmp_path / f"run-{time.monotonic_ns()}")
        with pytest.raises(InputError) as caught:
            main(
                [
                    *toy_arguments,
                    "--data.tissue",
                    str(folder),
                    "--data.workers",
                    "0",
                    *more,
                    "--run.dir",
                    run,
                ]
            )
        return str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in train_on(empty)

    unknown = tmp_path / "unknown"
    unknown.mkdir()
    for k in range(4):
        Image.new("RGB", (96, 96), (200, 120, 180)).save(unknown / f"{k}.png")
    assert "--data.mpp" in train_on(unknown)
    assert "holds a nucleus" in train_on(unknown, "--data.mpp", "0.5")

    whole = (tile_folder / "images" / "0.png").read_bytes()
    (unknown / "1.png").write_bytes(whole[: len(whole) // 2])
    assert "1.png" in train_on(unknown, "--data.mpp", "0.5")


def test_another_architecture_is_refused(toy_arguments: list[str], toy_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--segmenter.pyramid_width is 64, but .* was trained with 32"):
        main([*toy_arguments, "--segmenter.pyramid_width", "64", "--run.dir", str(toy_run)])
    newest = checkpoints.complete(toy_run / "checkpoints")[-1]
    with pytest.raises(InputError, match="of another architecture"):
        main(
            [
                *toy_arguments,
                "--segmenter.pyramid_width",
                "64",
                "--run.dir",
                str(tmp_path / "r"),
                "--run.resume",
                str(newest),
            ]
        )
    with pytest.raises(InputError, match="already holds a run"):
        main([*toy_arguments, "--run.dir", str(toy_run), "--run.resume", "never"])


@pytest.mark.slow
def test_exit_code_and_last_line(toy_arguments: list[str], tmp_path: Path) -> None:
    process = start([*toy_arguments, "--data.tissue", "/nowhere/at/all"], tmp_path / "run")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("error: ")

    process = start([*toy_arguments, "--data.tissue", "/nowhere/at/all", "--debug"], tmp_path / "run")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" in errors
