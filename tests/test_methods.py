"""Every method end to end as a toy: it trains, logs, draws, exports and resumes, and says what it cannot do."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from histo import segmenters
from histo.errors import InputError
from histo.running import checkpoints
from histo.running.checkpoints import Checkpoint
from histo.running.tracking import read_log
from tests.conftest import ROOT
from tests.methods import FASTCUT, arguments, of_run
from translate import methods
from translate.engine import Translator
from translate.methods import cyclegan, open_method, unitpath
from translate.methods.unitpath import Method as UnitPath
from translate.networks import generators
from translate.networks.comod import CoModGenerator
from translate.replay import ReplayBuffer
from translate.train import main

THERE, BACK = "mask_to_tissue", "tissue_to_mask"
GUIDED = {"tissue_adversarial", "mask_adversarial", "cycle_mask", "cycle_tissue", "tissue_judge", "mask_judge", "r1"}
CYCLED = {f"{name}_{term}" for name in ("target", "source") for term in ("adversarial", "judge")} | {
    "cycle_source",
    "cycle_target",
    "identity",
}
CONTRASTED = {"adversarial", "nce", "nce_identity", "judge"}
MASK_RCNN = {f"guidance/{name}" for name in ("objectness", "rpn_box", "classes", "box", "mask")}
WRITTEN = ["encoder", "generator", "segmenter"]

# name → (method, more arguments, terms, sheets, exports)
CASES: dict[str, tuple[str, tuple[str, ...], set[str], list[str], list[str]]] = {
    "cyclegan": ("cyclegan", (), CYCLED, [THERE, BACK], ["generator", "inverse"]),
    "cyclegan, U-Nets without identity": (
        "cyclegan",
        ("--generator.kind", "unet", "--loss.identity", "0", "--train.accumulation", "2"),
        CYCLED - {"identity"},
        [THERE, BACK],
        ["generator", "inverse"],
    ),
    "cut": ("cut", (), CONTRASTED, [THERE], ["generator"]),
    "FastCUT, to masks": (
        "cut",
        ("--direction", "to_source", *FASTCUT),
        CONTRASTED - {"nce_identity"},
        [BACK],
        ["inverse"],
    ),
    "unitpath, flows": ("unitpath", ("--segmenter.head", "flows"), GUIDED | {"guidance"}, [THERE, BACK], WRITTEN),
    "unitpath, Mask R-CNN, residual generator": (
        "unitpath",
        (
            *("--segmenter.head", "maskrcnn", "--generator.kind", "resnet", "--generator.width", "4"),
            *("--generator.blocks", "1", "--train.checkpointing", "true"),
        ),
        GUIDED | MASK_RCNN,
        [THERE, BACK],
        WRITTEN,
    ),
    "unitpath, no head, U-Net": (
        "unitpath",
        ("--segmenter.head", "none", "--generator.kind", "unet", "--generator.width", "4"),
        GUIDED,
        [THERE, BACK],
        WRITTEN,
    ),
}


@pytest.fixture(autouse=True)
def small_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that swap within a few steps."""
    for method in (cyclegan, unitpath):
        monkeypatch.setattr(method, "ReplayBuffer", lambda seed: ReplayBuffer(seed, capacity=6))


@pytest.fixture(scope="session")
def other_tissue(tile_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles in other colours, without labels."""
    folder = tmp_path_factory.mktemp("other-tissue")
    for file in sorted((tile_folder / "images").iterdir()):
        Image.fromarray(np.ascontiguousarray(np.asarray(Image.open(file))[..., [1, 0, 2]])).save(folder / file.name)
    return folder


def state(run: Path, images: int) -> Checkpoint:
    return checkpoints.load(run / "checkpoints" / f"{images:012d}")


def assert_same(mine: Checkpoint, other: Checkpoint) -> None:
    assert mine.tensors.keys() == other.tensors.keys()
    for group, tensors in other.tensors.items():
        assert mine.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(mine.tensors[group][name], tensor), f"{group} {name}"
    assert mine.facts == other.facts


def restored(run: Path, images: int) -> Translator:
    translator = open_method(of_run(run), Accelerator(mixed_precision="bf16"))
    translator.restore(state(run, images))
    return translator


@torch.no_grad()
def assert_exports(run: Path, translator: Translator, names: list[str]) -> None:
    """The files give what the averaged networks give, to the bit."""
    assert sorted(file.stem for file in (run / "export").glob("*.safetensors")) == names
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = image.contiguous(memory_format=torch.channels_last)
    averages = {one.name: one.network for one in translator.exports()}
    for name in set(names) - {"encoder"}:
        file = run / "export" / f"{name}.safetensors"
        average = averages[name]
        if name == "segmenter":
            segmenter, card = segmenters.load(file)
            mine, other = segmenter(image), average(image)
            assert torch.equal(mine.mask, other.mask)
            assert (mine.head, mine.form) == (other.head, other.form)
            for one, two in zip(mine.detections or [], other.detections or [], strict=True):
                assert torch.equal(one.boxes, two.boxes)
            assert mine.dense is other.dense is None or torch.equal(mine.dense, other.dense)
        else:
            network, card = generators.load(file)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            style = ()
            if isinstance(network, CoModGenerator):
                assert isinstance(translator, UnitPath)
                style = translator.style("probe style", [0, 1], training=False)
            assert torch.equal(network(image, *style), average(image, *style))
        assert card["method"] == translator.recipe.method
        assert ("mask_form" in card) is not translator.recipe.data.between_tissues


@pytest.mark.parametrize("case", CASES)
def test_a_training_and_its_second_life(case: str, tile_folder: Path, tmp_path: Path) -> None:
    method, more, terms, sheets, exports = CASES[case]
    argv = arguments(method, "--data.tissue", str(tile_folder), *more)
    run, again = tmp_path / "run", tmp_path / "again"
    main([*argv, "--run.dir", str(run)])
    records = read_log(run)
    logged = {name.removeprefix("loss/") for record in records for name in record if name.startswith("loss/")}
    assert logged == terms
    assert [record["images"] for record in records if "speed/wait_share" in record] == [4, 8, 12, 16]
    assert sorted(file.name for file in (run / "panels").iterdir()) == [
        f"{name}-000000016.png" for name in sorted(sheets)
    ]
    scalars = {name for record in records for name in record}
    assert ("content/watershed_dice" in scalars) is (THERE in sheets)
    assert ("content/segmenter_dice" in scalars) is (THERE in sheets and BACK in sheets)
    assert ("holdout_pq" in scalars) is (BACK in sheets)
    assert (run / "report.html").is_file()
    assert_exports(run, restored(run, 16), exports)

    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "000000000016")
    main([*argv, "--train.panel_every", "1000", "--run.dir", str(again)])
    assert_same(state(again, 16), state(run, 16))
    weights = next(iter(state(run, 16).tensors))
    before, after = (state(run, images).tensors[weights] for images in (8, 16))
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items()), "it did not learn"


@pytest.mark.parametrize(
    ("method", "more", "sheets"),
    [
        ("cyclegan", (), ["source_to_target", "target_to_source"]),
        ("cut", (), ["source_to_target"]),
        ("cut", ("--direction", "to_source"), ["target_to_source"]),
    ],
)
def test_from_tissue_to_other_tissue(
    method: str, more: tuple[str, ...], sheets: list[str], tile_folder: Path, other_tissue: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    domains = ("--data.tissue", str(tile_folder), "--data.target", str(other_tissue), "--data.mpp", "0.5")
    main(
        [*arguments(method, *domains, "--train.images", "8", "--train.panel_every", "8", *more), "--run.dir", str(run)]
    )
    assert sorted(file.name for file in (run / "panels").iterdir()) == [f"{name}-000000008.png" for name in sheets]
    scalars = {name for record in read_log(run) for name in record}
    forwards = "source_to_target" in sheets
    assert ("content/watershed_dice" in scalars) is forwards
    assert "content/segmenter_dice" not in scalars
    assert_exports(run, restored(run, 8), [*["generator"] * forwards, *["inverse"] * ("target_to_source" in sheets)])
    assert "tissue → other tissue" in (run / "report.html").read_text()


def test_unitpath_refuses_other_tissue(tile_folder: Path, other_tissue: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--data.target is .* but unitpath translates between tissue and masks; leave"
    ):
        main(
            [
                *arguments("unitpath", "--data.tissue", str(tile_folder), "--data.target", str(other_tissue)),
                *("--run.dir", str(tmp_path / "run")),
            ]
        )
    assert not (tmp_path / "run").exists()


# The page on how to add one


def blocks(language: str) -> list[str]:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_method_of_the_page_is_one_file_and_one_config(
    tile_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CONTRIBUTING.md shows trains, resumes and is loaded, with nothing else said anywhere."""
    (code,), (config,) = blocks("python"), blocks("yaml")
    added = tmp_path / "added"
    added.mkdir()
    (added / "lsgan.py").write_text(code, encoding="utf-8")
    (added / "lsgan.yaml").write_text(config, encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(added)])
    monkeypatch.setitem(sys.modules, "translate.methods.lsgan", None)  # so that it is forgotten afterwards
    del sys.modules["translate.methods.lsgan"]
    assert methods.names() == ["cut", "cyclegan", "lsgan", "unitpath"]
    run, again = tmp_path / "run", tmp_path / "again"
    shortened = ("--data.tissue", str(tile_folder), "--train.images", "24", "--train.save_every", "8")
    argv = ["--config", str(added / "lsgan.yaml"), *shortened, "--train.panel_every", "16", "--data.workers", "0"]
    main([*argv, "--run.dir", str(run)])
    records = read_log(run)
    assert [file.name for file in (run / "panels").iterdir()] == ["mask_to_tissue-000000016.png"]
    assert {"content/watershed_dice"} <= {name for record in records for name in record}
    assert_exports(run, restored(run, 24), ["generator"])
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "000000000024")
    main([*argv, "--run.dir", str(again)])
    assert_same(state(again, 24), state(run, 24))
