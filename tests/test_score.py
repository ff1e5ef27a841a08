"""The command: two folders or a finished run in, scores with their facts out; mistakes are one sentence."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from histo.encoders import write_card
from histo.errors import InputError
from histo.features import Extractor, open_extractor
from histo.randomness import draws
from histo.running.tracking import read_log
from histo.tiles import open_tiles
from tests.methods import arguments
from translate.comparison import SetSums, compare_sets, score_generator
from translate.networks import generators
from translate.rendering import MaskDraws, SourceDraws, TissueDraws, open_run, render
from translate.score import main
from translate.train import main as train

ROOT = Path(__file__).parents[1]
FEATURES = ["--features", "timm:test_efficientnet_gn"]
FAST = [*FEATURES, "--force", "--images", "12", "--kid_subset", "8", "--kid_subsets", "3", "--batch_size", "5"]
RUN_SCORES = {
    "fid",
    "kid",
    "stain_haematoxylin",
    "stain_eosin",
    *(f"content_{finder}_{metric}" for finder in ("segmenter", "watershed") for metric in ("dice", "aji", "pq")),
    "diversity_pixels",
    "diversity_features",
}


def folder(path: Path, count: int, index: int, size: int = 40, tint: int = 0) -> Path:
    path.mkdir()
    for k in range(count):
        pixels = draws(index, "folder", k).integers(60, 200, (size, size, 3)).astype(np.uint8)
        pixels[..., 1] -= tint
        Image.fromarray(pixels).save(path / f"{k}.png")
    return path


@pytest.fixture(scope="module")
def scored(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A copy of the toy's run, its scores, and what the command printed."""
    run = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(toy_run, run)
    command = [sys.executable, str(ROOT / "translate" / "score.py"), str(run), *FAST]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert process.returncode == 0, process.stderr
    return run, json.loads((run / "scores.json").read_text()), process.stdout


def test_a_run_is_scored_with_all_facts(scored: tuple[Path, dict[str, Any], str]) -> None:
    run, content, printed = scored
    scores = content["scores"]
    assert set(scores) == RUN_SCORES
    for name, score in scores.items():
        assert isinstance(score["value"], float), name
        assert f"  {name} " in printed
    for name in ("fid", "kid"):
        facts = scores[name]
        assert facts["extractor"] == FEATURES[1]
        assert len(facts["weights_sha256"]) == 64
        assert facts["weights"] == "random, seed 0"
        assert (facts["features"], facts["real_images"], facts["generated_images"]) == (256, 12, 12)
        assert facts["resize"] == "bilinear, antialias, to 160 x 160 px"
    assert (scores["kid"]["subset_images"], scores["kid"]["subsets"]) == (8, 3)
    assert scores["content_segmenter_dice"]["images"] == 12
    assert scores["content_watershed_dice"]["mpp"] == 0.5
    assert content["real"]["split"] == "test"
    assert content["real"]["mpp"] == [0.5]
    assert content["real"]["sizes"] == content["generated"]["sizes"] == ["64 x 64 px"]
    assert content["generated"]["images_seen"] == 160
    assert content["seed"] == 0
    assert content["command"].startswith("python translate/score.py ")
    assert "random weights" in printed
    assert "FID from 12 images for 256 features is too high" in printed
    assert not (run / "lock.json").exists()


def test_a_runs_log_and_tensorboard_get_the_scores(scored: tuple[Path, dict[str, Any], str], toy_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, content, _ = scored
    before, after = read_log(toy_run), read_log(run)
    assert after[:-1] == before
    assert after[-1]["images"] == 160
    assert after[-1]["score/fid"] == content["scores"]["fid"]["value"]
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert {f"score/{name}" for name in RUN_SCORES} <= set(board.Tags()["scalars"])
    (event,) = board.Scalars("score/kid")
    assert event.step == 160
    assert event.value == pytest.approx(content["scores"]["kid"]["value"], rel=1e-5)
    assert len(board.Scalars("loss/cycle_mask")) > 1


def test_a_run_scores_the_same_again_whatever_the_batches(
    scored: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    run, content, _ = scored
    shutil.copytree(run, tmp_path / "run")
    main([str(tmp_path / "run"), *FAST[:-1], "12", "--out", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    for name, score in content["scores"].items():
        assert again["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-3, abs=1e-5), name
    assert list(tmp_path.glob("*.tmp")) == []


def test_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, same, other = (
        folder(tmp_path / "real", 12, 0),
        folder(tmp_path / "same", 12, 1),
        folder(tmp_path / "other", 9, 1, size=56, tint=50),
    )
    found = {}
    for generated in (real, same, other):
        out = tmp_path / f"{generated.name}.json"
        main([str(real), str(generated), *FAST, "--mpp", "0.5", "--out", str(out)])
        found[generated.name] = json.loads(out.read_text())
    values = {name: {key: s["value"] for key, s in content["scores"].items()} for name, content in found.items()}
    assert set(values["same"]) == {"fid", "kid", "stain_haematoxylin", "stain_eosin"}
    for key, small in (("fid", 1e-6), ("stain_eosin", 1e-12)):
        assert values["real"][key] <= small < values["same"][key] < values["other"][key]
    assert found["other"]["generated"]["images"] == 9
    assert found["other"]["generated"]["sizes"] == ["56 x 56 px"]
    assert found["other"]["real"]["mpp"] == [0.5]
    assert "differ in size" in capsys.readouterr().out


def test_images_of_several_sizes_and_broken_ones(tmp_path: Path) -> None:
    real = folder(tmp_path / "real", 4, 0)
    mixed = folder(tmp_path / "mixed", 3, 1)
    Image.fromarray(np.full((50, 90, 3), 150, np.uint8)).save(mixed / "wide.png")
    (mixed / "broken.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"broken\.png"):
        main([str(real), str(mixed), *FAST, "--out", str(tmp_path / "s.json")])
    assert not (tmp_path / "s.json").exists()
    main([str(real), str(mixed), *FAST, "--on_bad", "skip", "--out", str(tmp_path / "s.json")])
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["generated"]["images"] == 4
    assert content["generated"]["skipped"] == 1
    assert content["generated"]["sizes"] == ["40 x 40 px", "50 x 90 px"]


@pytest.mark.parametrize(("count", "words"), [(0, "holds no"), (1, "There is 1 generated image"), (2, "There are 2")])
def test_few_images(count: int, words: str, tmp_path: Path) -> None:
    """None, one, and fewer than features; with --force two will do, one will not."""
    real, generated = folder(tmp_path / "real", 5, 0), folder(tmp_path / "generated", count, 1)
    command = [str(real), str(generated), *FEATURES, "--out", str(tmp_path / "s.json")]
    with pytest.raises(InputError, match=words) as refusal:
        main(command)
    assert "\n" not in str(refusal.value)
    if count == 2:
        main([*command, "--force"])
        assert (tmp_path / "s.json").exists()
    else:
        with pytest.raises(InputError):
            main([*command, "--force"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Nothing to score was named"),
        (["a", "b", "c"], "3 folders were named"),
        (["--real", "a"], "Nothing to score was named"),
        (["nowhere"], "nowhere is no folder"),
        (["nowhere", "nothere", *FEATURES], "nowhere does not exist"),
        ([".", "--split", "test"], "--split does not go with a run folder"),
        ([".", *FEATURES], "is no run folder"),
        (["a", "b"], "inception needs weights"),
        (["a", "b", "--images", "1"], "--images is 1, expected 2 or more"),
        (["a", "b", "--feature", "x"], "did you mean features"),
        (["a", "b", *FEATURES, "--out", "no/such/place.json"], "lies in a folder that does not exist"),
    ],
)
def test_mistakes(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        main(arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_exports(toy_run: Path, tmp_path: Path) -> None:
    shutil.copy(toy_run / "config.yaml", tmp_path)
    with pytest.raises(InputError, match="no exports yet"):
        main([str(tmp_path), *FAST])
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_generator_file_is_read_back(toy_run: Path) -> None:
    generator, card = generators.load(toy_run / "export" / "generator.safetensors")
    expected = generators.build_generator(generators.GeneratorSettings(**card["settings"]), card["tile_size"]).eval()
    expected.load_state_dict(load_file(toy_run / "export" / "generator.safetensors"))
    masks = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    style = expected.style(0, "style", [3, 4], training=False)
    with torch.no_grad():
        reference = expected(masks, style.z, style.keep, style.noise)
    assert torch.equal(render(generator, masks, 0, "style", [3, 4]), reference)
    assert not generator.training


@pytest.mark.parametrize(
    "change",
    [
        {"tile_size": 2**20},
        {"tile_size": "64"},
        {"tile_size": 128},
        {"settings": {"channel_max": 10**9}},
        {"settings": {"mapping_layers": 10**9}},
        {"settings": {"code_width": 64}},
        {"settings": {"colour": 1}},
        {"settings": {"style_width": "wide"}},
    ],
)
def test_generator_cards_that_do_not_fit(change: dict[str, Any], toy_run: Path, tmp_path: Path) -> None:
    source = toy_run / "export" / "generator.safetensors"
    card = json.loads(source.with_suffix(".json").read_text())
    settings = card["settings"] | change.get("settings", {})
    path = tmp_path / "generator.safetensors"
    write_card(path, load_file(source), card | change | {"settings": settings})
    with pytest.raises(InputError, match=r"generator\.safetensors does not fit its card's settings"):
        generators.load(path)


def translated(generator: torch.nn.Module, source: torch.Tensor, stream: str, indices: list[int]) -> torch.Tensor:
    return render(generator, source, 0, stream, indices)


class Ignores(torch.nn.Module):
    """A generator that draws the mask, whatever the style."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        return mask + self.weight


def test_a_generator_that_ignores_its_style_has_no_diversity(toy_run: Path) -> None:
    run = open_run(toy_run)
    masks = MaskDraws(open_tiles(run.recipe.data.tissue), run.recipe.data, seed=0, mpp=None)
    extractor = open_extractor(FEATURES[1])
    values = []
    for generator in (Ignores(), run.generator):
        scores = score_generator(
            partial(translated, generator),
            run.reader,
            masks,
            SetSums(extractor, 0),
            3,
            batch=2,
            device=torch.device("cpu"),
            autocast=lambda: torch.autocast("cpu", enabled=False),
            styles=True,
            progress=False,
        )
        assert "content_segmenter_dice" in scores
        assert "content_watershed_dice" not in scores
        values.append([scores[f"diversity_{name}"].value for name in ("pixels", "features")])
    assert values[0] == pytest.approx([0, 0], abs=1e-5)
    assert min(values[1]) > 1e-3


def test_draws_depend_on_the_index_alone(toy_run: Path) -> None:
    run = open_run(toy_run)
    tiles = open_tiles(run.recipe.data.tissue)
    tissue = TissueDraws(tiles, run.recipe.data, seed=0)
    for sources in (MaskDraws(tiles, run.recipe.data, 0, 0.5), SourceDraws(tiles, run.recipe.data, 0)):
        for one, other in zip(sources(range(4))[2:], sources([2, 3]), strict=True):
            assert np.array_equal(one.image, other.image)
            assert one.instances is not None
            assert np.array_equal(one.instances, other.instances)
    assert torch.equal(tissue(range(4))[2:], tissue([2, 3]))
    assert not torch.equal(tissue([0]), tissue([len(tiles)]))


def test_sums_of_parts_score_like_the_whole(tile_folder: Path) -> None:
    extractor: Extractor = open_extractor(FEATURES[1])
    images = torch.from_numpy(np.stack([tile.image for tile in open_tiles(tile_folder)]))
    real, whole, first, second = (SetSums(extractor, 0) for _ in range(4))
    real.add(images[:5], range(5))
    whole.add(images, range(10))
    first.add(images[7:], range(7, 10))
    second.add(images[:7], range(7))
    first.merge(second)
    assert first.count == whole.count == 10
    one, other = (compare_sets(real, sums, 4, 3, seed=0) for sums in (whole, first))
    for name, score in one.items():
        assert other[name].value == pytest.approx(score.value, rel=1e-4, abs=1e-7), name


SETS = {"fid", "kid", "stain_haematoxylin", "stain_eosin"}
SEGMENTED, WATERSHED = (
    {f"content_{finder}_{metric}" for metric in ("dice", "aji", "pq")} for finder in ("segmenter", "watershed")
)


@pytest.mark.parametrize(
    ("method", "target", "scores"),
    [
        ("cyclegan", False, SETS | SEGMENTED | WATERSHED),
        ("cyclegan", True, SETS | WATERSHED),
        ("cut", False, SETS | WATERSHED),
    ],
)
def test_runs_of_other_methods(
    method: str,
    target: bool,
    scores: set[str],
    tile_folder: Path,
    other_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a method has no network for is left out, with a word; tissue is compared with its own nuclei."""
    run = tmp_path / "run"
    more = ["--data.target", str(other_folder)] if target else []
    more += ["--train.images", "4", "--run.dir", str(run)]
    train(arguments(method, "--data.tissue", str(tile_folder), *more))
    capsys.readouterr()
    main([str(run), *FAST])
    content = json.loads((run / "scores.json").read_text())
    assert set(content["scores"]) == scores
    assert all(isinstance(score["value"], float) for score in content["scores"].values())
    printed = capsys.readouterr().out
    assert content["left_out"]["diversity"] == "the generator has no styles"
    assert "left out: the generator has no styles" in printed
    assert ("content_segmenter" in content["left_out"]) == ("content_segmenter_dice" not in scores)
    truth = content["scores"]["content_watershed_dice"]["truth"]
    assert truth == ("labels of the source, or else its watershed" if target else "the masks")
    assert content["generated"]["method"] == method
    (run / "export" / "generator.safetensors").rename(run / "export" / "inverse.safetensors")
    with pytest.raises(InputError, match="learned the way back to its source alone"):
        main([str(run), *FAST])


def test_masks_are_drawn_in_the_form_of_the_run(toy_run: Path) -> None:
    run = open_run(toy_run)
    run.recipe.data.mask_form = "binary"
    (tile,) = MaskDraws(open_tiles(run.recipe.data.tissue), run.recipe.data, 0, 0.5)([0])
    assert set(np.unique(tile.image)) == {0, 255}
    assert tile.instances is not None
    assert np.array_equal(tile.image[0] > 0, tile.instances > 0)
    assert tile.mpp == 0.5
