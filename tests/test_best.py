"""The best checkpoint: chosen as stated, never lost to pruning, a kill or damage, and handed on at the end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from histo.errors import InputError
from histo.randomness import draws
from histo.running import checkpoints
from histo.running.checkpoints import Checkpoint
from histo.running.tracking import read_log
from tests.launching import PAIR, start
from tests.methods import arguments
from translate import train
from translate.best import Scored, choose, load_best, spared, undominated
from translate.scoring import TrainingScorer
from translate.train import main

SCORES = ["--scores.features", "timm:test_efficientnet_gn", "--scores.images", "12"]


def scored(images: int, kid: float, content: float | None = None, deviation: float = 0.0) -> Scored:
    values = {"score/kid": kid, "score/kid_deviation": deviation}
    if content is not None:
        values["content/segmenter_dice"] = content
    return Scored(Path(f"{images:012d}"), images, values, "basis")


def state(images: int, kid: float, content: float, basis: str = "basis") -> Checkpoint:
    values = {"score/kid": kid, "score/kid_deviation": 0.0, "content/segmenter_dice": content}
    tensors = {"net": {"weight": torch.full((2,), float(images))}}
    return Checkpoint(tensors, {"images": images, "scores": {"values": values, "basis": basis}})


def counts(folder: Path) -> list[int]:
    return [int(path.name) for path in checkpoints.complete(folder)]


@pytest.mark.parametrize(
    ("candidates", "best"),
    [
        ([scored(1, 1.0, 0.5), scored(2, 1.09, 0.6), scored(3, 1.11, 0.9)], 2),  # a tenth of the best KID
        ([scored(1, 1.0, 0.5, 0.2), scored(2, 1.19, 0.6), scored(3, 1.21, 0.9)], 2),  # its deviation, which is more
        ([scored(1, 1.0, 0.5), scored(2, 1.19, 0.6, 0.5)], 1),  # only the best one's deviation counts
        ([scored(1, -0.1, 0.5), scored(2, -0.091, 0.6), scored(3, -0.089, 0.9)], 2),
        ([scored(1, 0.0, 0.5), scored(2, 0.001, 0.9)], 1),
        ([scored(1, 1.0, 0.5), scored(2, 1.05, 0.5)], 1),  # alike: the lower KID
        ([scored(1, 1.0, 0.5), scored(2, 1.0, 0.5)], 2),  # wholly alike: the newer
        ([scored(1, 1.0), scored(2, 0.95), scored(3, 2.0)], 2),  # no content: the lowest KID
    ],
)
def test_the_criterion(candidates: list[Scored], best: int) -> None:
    assert choose(candidates).images == best
    assert choose(candidates[::-1]).images == best


def test_what_is_dropped_on_the_way_is_never_missed() -> None:
    """However KID and content go, with ties, values below 0 and deviations of all sizes."""
    dropped = 0
    for series in range(200):
        generator = draws(0, "series", series)
        grid = 0.25 if series % 2 else 0.01
        ever: list[Scored] = []
        kept: list[Scored] = []
        for step in range(25):
            kid = float(np.round(generator.normal(1.0 - 0.05 * step, 0.5) / grid) * grid)
            content = float(np.round(generator.random() / grid) * grid)
            one = scored(step, kid, content, float(generator.random() * 0.3))
            ever.append(one)
            kept = undominated([*kept, one])
            assert choose(kept) == choose(ever)
        dropped += len(ever) - len(kept)
    assert dropped > 2000


def test_pruning_keeps_the_newest_and_those_that_may_be_best(tmp_path: Path) -> None:
    course = {10: (0.5, 0.3), 20: (0.4, 0.9), 30: (0.3, 0.5), 40: (0.45, 0.6), 50: (0.6, 0.2), 60: (0.7, 0.1)}
    for images, (kid, content) in course.items():
        checkpoints.save(tmp_path, state(images, kid, content), 2, spared)
    assert counts(tmp_path) == [20, 30, 50, 60]
    checkpoints.save(tmp_path, Checkpoint({}, {"images": 70}), 1, spared)
    assert counts(tmp_path) == [20, 30, 70], "those without scores go as ever"
    found = load_best(tmp_path)
    assert found is not None
    assert found[1].images == 30
    checkpoints.save(tmp_path, state(80, 0.2, 0.95), 1, spared)
    assert counts(tmp_path) == [80]


def test_other_features_do_not_compare(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, state(10, 0.01, 0.9, "these features"), 1, spared)
    checkpoints.save(tmp_path, state(20, 5.0, 0.1, "others"), 1, spared)
    assert counts(tmp_path) == [20]


def test_what_a_kill_left_is_pruned_by_the_next_life(tmp_path: Path) -> None:
    for images in (10, 20, 30):
        checkpoints.save(tmp_path, state(images, images / 10, 0.5), 9)
    checkpoints.save(tmp_path, state(30, 3.0, 0.5), 1, spared)
    assert counts(tmp_path) == [10, 30]


def test_a_damaged_best_gives_way_to_the_best_of_the_rest(tmp_path: Path) -> None:
    for images, kid, content in ((10, 1.0, 0.4), (20, 1.05, 0.8), (30, 1.01, 0.6)):
        checkpoints.save(tmp_path, state(images, kid, content), 9, spared)
    for expected, victim in ((20, "net.safetensors"), (30, "manifest.json"), (10, "manifest.json")):
        found = load_best(tmp_path)
        assert found is not None
        checkpoint, best = found
        assert best.images == checkpoint.facts["images"] == checkpoint.tensors["net"]["weight"][0] == expected
        path = tmp_path / f"{expected:012d}" / victim
        path.write_bytes(path.read_bytes()[:-2])
    assert load_best(tmp_path) is None


@pytest.mark.parametrize(
    "scores",
    [
        None,
        7,
        {},
        {"values": {}, "basis": "x"},
        {"values": {"score/kid": "low"}, "basis": "x"},
        {"values": {"score/kid": float("nan")}, "basis": "x"},
        {"values": {"score/kid": 1.0}},
    ],
)
def test_facts_that_are_no_scores(scores: object, tmp_path: Path) -> None:
    assert Scored.of(tmp_path, {"images": 1, "scores": scores}) is None
    assert spared({tmp_path: {"images": 1, "scores": scores}}) == set()


def course(run: Path) -> list[dict[str, object]]:
    kinds = ("loss/", "score/", "content/", "diversity/", "note")
    records = [{k: v for k, v in r.items() if k.startswith(kinds) or k == "images"} for r in read_log(run)]
    return [record for record in records if len(record) > 1]


def test_a_resumed_run_scores_like_an_undisturbed_one(
    toy_arguments: list[str], toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it saves a scored checkpoint; and scores change nothing in the training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole, broken = ([*toy_arguments, *SCORES, "--run.dir", str(tmp_path / name)] for name in ("whole", "broken"))
    more = ["--data.workers", "0", "--scores.every", "48", "--run.keep", "1"]
    main([*whole, *more])

    def killed(aside: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.facts["images"] == 96:
            raise KeyboardInterrupt
        write(aside, checkpoint)

    write = checkpoints._write
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            main([*broken, *more])
    assert counts(tmp_path / "broken" / "checkpoints")[-1] == 64
    main([*broken, *more])
    torch.set_num_threads(threads)

    one, other = course(tmp_path / "whole"), course(tmp_path / "broken")
    assert one == other
    assert [record["images"] for record in one if "score/kid" in record] == [48, 96, 144, 160]
    assert any(str(record.get("note")).startswith("scores: 12 images, 256 features") for record in one)
    found = next(record for record in one if "score/kid" in record)
    assert {"score/kid_deviation", "score/stain_eosin", "score/diversity_pixels", "content/watershed_dice"} <= set(
        found
    )
    assert "score/fid" not in found, "12 images are fewer than 256 features"
    assert counts(tmp_path / "whole" / "checkpoints") == counts(tmp_path / "broken" / "checkpoints")
    plain = checkpoints.load(toy_run / "checkpoints" / "000000000160")
    mine = checkpoints.load(tmp_path / "broken" / "checkpoints" / "000000000160")
    assert "scores" not in plain.facts
    for group, tensors in plain.tensors.items():
        for name, tensor in tensors.items():
            assert mine.tensors[group][name].equal(tensor), f"{group} {name}"


def test_the_best_is_exported_and_named(
    toy_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kids = {4: 0.9, 8: 0.5, 12: 0.1, 16: 0.3, 20: 0.05}
    monkeypatch.setattr(TrainingScorer, "__call__", lambda _, it: {"score/kid": kids[it.images]})
    monkeypatch.setattr(train, "measure", lambda *_: {"content/segmenter_dice": 0.5})
    run = tmp_path / "run"
    command = [*toy_arguments, "--run.dir", str(run), "--data.workers", "0", "--train.images", "16"]
    command += [*SCORES, "--scores.every", "4", "--run.keep", "1", "--train.save_every", "100"]
    main(command)
    printed = capsys.readouterr().out
    assert "Best: 12 images, KID 0.1, content/segmenter_dice 0.500" in printed
    assert str(run / "best") in printed
    assert counts(run / "checkpoints") == [12, 16]
    names = sorted(path.name for path in (run / "best").iterdir())
    assert names == sorted(path.name for path in (run / "export").iterdir())
    assert {"generator.safetensors", "segmenter.json", "encoder.safetensors"} <= set(names)
    for place, images in (("best", 12), ("export", 16)):
        average = checkpoints.load(run / "checkpoints" / f"{images:012d}").tensors["generator_average"]
        exported = load_file(run / place / "generator.safetensors")
        assert all(torch.equal(exported[name], tensor) for name, tensor in average.items())
        card = json.loads((run / place / "generator.json").read_text())
        assert card["images_seen"] == images
        assert card["scores"]["values"]["score/kid"] == kids[images]
    report = (run / "report.html").read_text()
    assert "The best checkpoint" in report
    assert "12 images, KID 0.1" in report

    goes_on = tmp_path / "goes_on"
    shutil.copytree(run, goes_on)
    command[command.index(str(run))] = str(goes_on)
    main([*command, "--train.images", "20"])
    assert "Best: 20 images" in capsys.readouterr().out
    assert counts(goes_on / "checkpoints") == [20]
    assert not (goes_on / "best").exists()

    back = ["--run.dir", str(run), "--run.resume", str(run / "checkpoints" / "000000000012"), "--train.images", "12"]
    main([*command, *back])
    assert "Best: 12 images" in capsys.readouterr().out
    assert counts(run / "checkpoints") == [12]


@pytest.mark.slow
def test_two_processes(toy_arguments: list[str], tmp_path: Path) -> None:
    more = ["--data.workers", "0", "--train.images", "32", *SCORES, "--scores.every", "16"]
    process = start([*toy_arguments, *more, "--discriminator.deviation_group", "2"], tmp_path / "run", PAIR)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert output.count("Best: ") == 1
    assert [r["images"] for r in read_log(tmp_path / "run") if "score/kid" in r] == [16, 32]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--scores.every", "-1"], "scores.every is -1"),
        (["--scores.images", "3"], "scores.images is 3, expected 4 or more"),
        (["--scores.features", "inception"], "expected their file"),
        (["--scores.features", "timm:no_such_net"], "no_such_net"),
        (["--method", "cut", "--direction", "to_source"], "draws no tissue to be scored"),
    ],
)
def test_mistakes(more: list[str], words: str, toy_arguments: list[str], tmp_path: Path) -> None:
    command = [*toy_arguments, "--data.workers", "0"]
    if "cut" in more:
        command = arguments("cut", *command[:2])
    command += ["--run.dir", str(tmp_path / "run"), "--scores.every", "4", *SCORES, *more]
    with pytest.raises(InputError, match=words) as refusal:
        main(command)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run" / "checkpoints" / "000000000004").exists()
