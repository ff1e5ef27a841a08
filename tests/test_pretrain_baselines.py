"""The baselines of stain-invariant learning: each is read, changes what its name says, and takes a step."""

from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from torch.utils.data import default_collate

from histo.running.configs import read_config
from histo.running.settings import read_settings
from pretrain.learner import Learner
from pretrain.objective import Batch
from pretrain.pool import PooledCrops, open_pool
from pretrain.recipe import Recipe
from pretrain.train import main
from tests.conftest import ROOT

FOLDER = ROOT / "configs" / "pretrain"
BASELINES = sorted((FOLDER / "baselines").glob("*.yaml"))
NAMES = ["bss", "colour_jitter", "fixed_target", "hed_jitter", "no_normalisation", "stain_augmentation"]
TOY = {
    "data": {"tile_size": 64, "view_size": 32, "workers": 0},
    "encoder": {"architecture": "test_resnet"},
    "train": {"batch_size": 4, "images": 4, "precision": "fp32"},
    "probe": {"every": 0},
}


def command(tmp_path: Path, tile_folder: Path, *configs: Path) -> list[str]:
    toy = tmp_path / "toy.yaml"
    toy.write_text(yaml.safe_dump(TOY))
    argv = [text for path in (*configs, toy) for text in ("--config", str(path))]
    if any(path.stem == "fixed_target" for path in configs):
        argv += ["--stain_invariant.target", str(next((tile_folder / "images").iterdir()))]
    return [*argv, "--data.tissue", str(tile_folder)]


def test_all_baselines_are_there() -> None:
    assert [path.stem for path in BASELINES] == NAMES
    for path in BASELINES:
        assert path.read_text().startswith("# Baseline: ")


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_a_baseline_is_sound_and_takes_a_step(path: Path, tile_folder: Path, tmp_path: Path) -> None:
    argv = command(tmp_path, tile_folder, FOLDER / "stain_invariant.yaml", path)
    recipe = read_settings(Recipe, "pretrain/train.py", "", argv).settings
    own = read_config(path)
    assert recipe.objective == own["objective"]
    assert (recipe.stain_invariant.temperature, recipe.simclr.temperature) == (
        0.1,
        own.get("simclr", {"temperature": 0.5})["temperature"],
    )
    pool = open_pool(recipe.data, 0, 4)
    learner = Learner(recipe, pool, Accelerator(mixed_precision="no"))
    crops = PooledCrops(pool, recipe.data, 0)
    before = [p.clone() for p in learner.encoder.parameters()]
    terms = learner.step(Batch.of(default_collate([crops[k] for k in range(4)]), torch.device("cpu")))
    assert all(value.isfinite() for value in terms.values())
    assert any(not torch.equal(p, q) for p, q in zip(before, learner.encoder.parameters(), strict=True))


@pytest.mark.parametrize("preset", ["stain_invariant", "wilds10"])
def test_a_preset_is_sound(preset: str, tile_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = command(tmp_path, tile_folder, FOLDER / f"{preset}.yaml")
    main([*argv, "--dry_run", "--run.dir", str(tmp_path / "run")])
    assert "settings, data and encoder are sound" in capsys.readouterr().out


def test_without_colour_both_views_keep_the_tiles_colours(tile_folder: Path, tmp_path: Path) -> None:
    argv = command(
        tmp_path, tile_folder, FOLDER / "stain_invariant.yaml", FOLDER / "baselines" / "no_normalisation.yaml"
    )
    argv += ["--view.blur", "0", "--view.smallest_area", "1", "--view.stretch", "1"]
    recipe = read_settings(Recipe, "pretrain/train.py", "", argv).settings
    recipe.data.tile_size = 32
    pool = open_pool(recipe.data, 0, 4)
    learner = Learner(recipe, pool, Accelerator(mixed_precision="no"))
    crops = PooledCrops(pool, recipe.data, 0)
    batch = Batch.of(default_collate([crops[k] for k in range(4)]), torch.device("cpu"))
    wanted = batch.tiles.float().flatten(2).sort(dim=2).values
    for shown in learner.objectives["simclr"].show(batch).values():
        torch.testing.assert_close(shown.flatten(2).sort(dim=2).values, wanted)
