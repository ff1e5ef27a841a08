"""Objective instance: what it shows, its losses against slow versions, resuming, and what it refuses."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from histo.encoders import architecture, build, write_card
from histo.errors import InputError
from histo.masks import write_instances
from histo.phantom import PhantomTissue
from histo.running.settings import read_settings
from histo.tiles.tables import write_folder
from pretrain.export import export
from pretrain.learner import Learner
from pretrain.losses.nt_xent import nt_xent
from pretrain.objective import Batch
from pretrain.objectives.instance import InstanceSettings, Objective
from pretrain.panels import Panels
from pretrain.pool import DataSettings, PooledCrops, open_pool
from pretrain.recipe import EncoderSettings, Recipe, TrainSettings
from pretrain.views import ViewSettings
from tests.conftest import ROOT
from translate.networks.generators import ImageGeneratorSettings, build_generator


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe_for(tissue: Path | str, translator: Path | None, masks: str | None = "tissue", **changed: Any) -> Recipe:
    """Batches of 4 tiles of 64 px, and an encoder with group norm as translators hand it on."""
    settings: dict[str, Any] = {"pyramid_width": 32, "nuclei": 6, "width": 16, **changed}
    return Recipe(
        objective="instance",
        translator=None if translator is None else str(translator),
        data=DataSettings(tissue=str(tissue), masks=masks, tile_size=64, view_size=64, workers=0),
        encoder=EncoderSettings() if translator else EncoderSettings("test_efficientnet_gn", "group"),
        view=ViewSettings(smallest_area=0.5),
        instance=InstanceSettings(**settings),
        train=TrainSettings(batch_size=4, images=400, optimizer="adamw", precision="fp32"),
    )


def learner_of(recipe: Recipe, folder: Path | None = None) -> tuple[Learner, PooledCrops]:
    pool = open_pool(recipe.data, recipe.seed, recipe.train.batch_size)
    learner = Learner(recipe, pool, Accelerator(mixed_precision="no"), folder)
    return learner, PooledCrops(pool, recipe.data, recipe.seed, [own(learner).items()])


def own(learner: Learner) -> Objective:
    objective = learner.objectives["instance"]
    assert isinstance(objective, Objective)
    return objective


def batch_at(crops: PooledCrops, first: int, size: int = 4) -> Batch:
    return Batch.of(default_collate([crops[index] for index in range(first, first + size)]), torch.device("cpu"))


def steps(learner: Learner, crops: PooledCrops, count: int) -> None:
    for _ in range(count):
        learner.step(batch_at(crops, learner.images))


def weights(learner: Learner) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.clone()
        for name, network in learner.networks.items()
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize("head", ["flows", "maskrcnn"])
def test_a_resumed_learner_goes_on_bit_for_bit(tile_folder: Path, toy_run: Path, head: str) -> None:
    recipe = recipe_for(tile_folder, toy_run, head=head)
    whole, crops = learner_of(recipe)
    steps(whole, crops, 4)
    half, crops = learner_of(recipe)
    start = weights(half)
    steps(half, crops, 2)
    saved = deepcopy(half.checkpoint({}))
    again, crops = learner_of(recipe)
    again.restore(saved)
    steps(again, crops, 2)
    expected, found = weights(whole), weights(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("encoder", "instance_finder", "instance_projector"):
        assert any(not torch.equal(start[key], found[key]) for key in start if key.startswith(name))


def test_parts_of_a_batch_learn_what_the_batch_does(tile_folder: Path, toy_run: Path) -> None:
    gradients = []
    for accumulation in (1, 2):
        recipe = recipe_for(tile_folder, toy_run, head="maskrcnn")
        recipe.train.accumulation = accumulation
        learner, crops = learner_of(recipe)
        learner.step(batch_at(crops, 0))
        gradients.append(
            {
                f"{name}/{key}": parameter.grad.clone()
                for name, network in learner.networks.items()
                for key, parameter in network.named_parameters()
                if parameter.grad is not None
            }
        )
    assert gradients[0].keys() == gradients[1].keys()
    for key, whole in gradients[0].items():
        # Not number by number: a unit near its kink may fall on the other side by rounding.
        assert (whole - gradients[1][key]).norm() <= 0.01 * whole.norm() + 1e-6, key


def test_the_generator_draws_each_view_in_a_style_of_its_own(tile_folder: Path, toy_run: Path) -> None:
    recipe = recipe_for(tile_folder, toy_run)
    recipe.view = ViewSettings(smallest_area=1, stretch=1, turn=False, jitter=0, grey=0, blur=0)
    learner, crops = learner_of(recipe)
    batch = batch_at(crops, 0)
    shown = own(learner).show(batch)
    assert torch.equal(shown["generated_instances"], batch.pairs["drawn_instances"])
    assert torch.equal(shown["real_first"], batch.pairs["real"].float())
    assert torch.equal(shown["real_first"], shown["real_second"])
    assert not torch.equal(shown["generated_first"], shown["generated_second"])
    assert (batch.pairs["drawn"].amax(1) > 0).equal(batch.pairs["drawn_instances"] > 0)
    assert not any(parameter.requires_grad for parameter in own(learner).generator.parameters())
    alone = own(learner).show(batch_at(crops, 2, 1))
    assert torch.allclose(alone["generated_first"][0], shown["generated_first"][2], atol=1e-3)


def test_contrast_is_nt_xent_over_valid_nuclei(tile_folder: Path) -> None:
    learner, _ = learner_of(recipe_for(tile_folder, None, generated=0.0, temperature=0.3))
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 6, 16, generator=generator) for _ in range(2))
    valid = torch.rand(3, 6, generator=generator) < 0.6
    terms, nuclei = own(learner).compare({"real_first": first, "real_second": second, "real_valid": valid})
    views = [[F.normalize(x[n, k], dim=0) for x in (first, second)] for n, k in valid.nonzero().tolist()]
    losses = []
    for k, pair in enumerate(views):
        for side in range(2):
            rivals = [views[j][s] for j in range(len(views)) for s in range(2) if (j, s) != (k, side)]
            exponents = torch.stack([pair[side] @ other / 0.3 for other in rivals])
            losses.append(exponents.logsumexp(0) - pair[side] @ pair[1 - side] / 0.3)
    assert terms["real_contrast"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert len(nuclei) == len(views)
    scalars = own(learner).scalars()
    assert scalars["real_nuclei"] == pytest.approx(len(views) / 3)
    assert scalars["real_same"] == pytest.approx(float(torch.stack([a @ b for a, b in views]).mean()), abs=1e-5)


def test_the_card_says_what_masks_it_learned_from(tile_folder: Path, toy_run: Path, tmp_path: Path) -> None:
    learner, _ = learner_of(recipe_for(tile_folder, toy_run))
    path = export(learner, [], None, tmp_path)
    masks = json.loads(path.with_suffix(".json").read_text())["masks"]
    assert masks == own(learner).origin
    assert f"| masks | {masks} |" in path.with_suffix(".md").read_text()


def test_no_pair_is_no_loss() -> None:
    none = torch.zeros(0, 8, requires_grad=True)
    assert nt_xent(none, none, 0.5).item() == 0


@pytest.mark.parametrize("head", ["flows", "maskrcnn", "semantic"])
def test_a_batch_without_nuclei_teaches_that_all_is_background(tile_folder: Path, toy_run: Path, head: str) -> None:
    learner, crops = learner_of(recipe_for(tile_folder, toy_run, head=head))
    batch = batch_at(crops, 0)
    for name in ("drawn_instances", "real_instances", "drawn_flows", "real_flows"):
        if name in batch.pairs:
            batch.pairs[name].zero_()
    terms = learner.step(batch)
    assert all(torch.isfinite(value) for value in terms.values())
    assert terms["instance/real_contrast"] == terms["instance/generated_contrast"] == 0
    assert all(torch.isfinite(value).all() for value in weights(learner).values())
    assert "embedding/instance_spread" not in learner.spreads


def test_weights_leave_out_what_is_not_wanted(tile_folder: Path, toy_run: Path) -> None:
    """Stage 2 of UNITPathSSL is guidance on generated pairs alone, by an encoder that begins anew."""
    recipe = recipe_for(tile_folder, toy_run, "layout", real=0.0, contrast=0.0, head="maskrcnn", guidance=3.0)
    recipe.encoder = EncoderSettings("test_efficientnet_gn", "group", "none")
    learner, crops = learner_of(recipe)
    assert learner.origin == "random weights"
    assert own(learner).heads().keys() == {"finder"}
    shown = own(learner).show(batch_at(crops, 0))
    assert shown.keys() == {"index", "generated_first", "generated_instances"}
    terms = learner.step(batch_at(crops, 0))
    assert terms.keys() == {
        f"instance/generated_guidance/{name}" for name in ("objectness", "rpn_box", "classes", "box", "mask")
    }
    assert own(learner).weights()["generated_guidance/mask"] == 3


def test_contrast_alone_needs_no_head(tile_folder: Path) -> None:
    learner, crops = learner_of(recipe_for(tile_folder, None, generated=0.0, guidance=0.0))
    assert learner.step(batch_at(crops, 0)).keys() == {"instance/real_contrast"}
    assert "real_flows" not in crops[0]


def test_views_of_both_kinds_of_tissue_have_one_scale(tile_folder: Path, toy_run: Path) -> None:
    recipe = recipe_for(tile_folder, toy_run)
    recipe.data.tile_size = recipe.data.view_size = 96
    learner, crops = learner_of(recipe)
    batch = batch_at(crops, 0)
    shown = own(learner).show(batch)
    assert shown["generated_first"].shape == (4, 3, 64, 64)
    assert shown["real_first"].shape == (4, 3, 96, 96)
    assert all(torch.isfinite(value) for value in learner.step(batch).values())


def test_a_generator_without_styles_draws_one_picture(tile_folder: Path, toy_run: Path, tmp_path: Path) -> None:
    run = without_styles(toy_run, tmp_path)
    learner, crops = learner_of(recipe_for(tile_folder, run))
    assert "no styles" in own(learner).facts()["generator"]
    shown = own(learner).show(batch_at(crops, 0))
    assert not torch.equal(shown["generated_first"], shown["generated_second"])  # by stain and geometry
    assert torch.isfinite(torch.stack(list(learner.step(batch_at(crops, 0)).values()))).all()


def without_styles(toy_run: Path, folder: Path, mpp: float | None = 0.5, **card: Any) -> Path:
    """A run whose generator is an untrained U-Net, with the encoder of another."""
    export = folder / "run" / "export"
    export.mkdir(parents=True)
    for name in ("encoder.safetensors", "encoder.json"):
        (export / name).write_bytes((toy_run / "export" / name).read_bytes())
    settings = ImageGeneratorSettings(kind="unet", width=4)
    facts = {"kind": "generator", "settings": asdict(settings), "tile_size": 64, "mpp": mpp, **card}
    write_card(export / "generator.safetensors", build_generator(settings, 64).state_dict(), facts)
    return export.parent


def test_panels_show_generated_and_real_pairs(tile_folder: Path, toy_run: Path) -> None:
    learner, crops = learner_of(recipe_for(tile_folder, toy_run))
    pictures = Panels(crops, learner).draw()
    assert pictures.keys() == {"instance_generated", "instance_real"}
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in pictures.values())


def test_pseudo_masks_are_made_once(tmp_path: Path) -> None:
    tissue = tmp_path / "tissue"
    write_folder(PhantomTissue(7, size=96, count=5), tissue)
    recipe = recipe_for(tissue, None, "watershed", generated=0.0)
    _, crops = learner_of(recipe, tmp_path / "pseudo-masks")
    files = sorted((tmp_path / "pseudo-masks").iterdir())
    assert len(files) == len(crops.pool.tissue.tiles)
    times = [file.stat().st_mtime_ns for file in files]
    assert any(crops[k]["real_instances"].any() for k in range(4))
    learner_of(recipe, tmp_path / "pseudo-masks")
    assert [file.stat().st_mtime_ns for file in files] == times
    learner_of(recipe, None)  # a dry run makes none


def test_items_are_pure_in_their_index(tile_folder: Path, toy_run: Path) -> None:
    recipe = recipe_for(tile_folder, toy_run)
    _, crops = learner_of(recipe)
    forward = [crops[k] for k in range(5)]
    _, fresh = learner_of(recipe)
    for k in (4, 0, 2):
        again = fresh[k]
        assert all(torch.equal(forward[k][name], again[name]) for name in forward[k] if name not in ("index", "source"))
    assert forward[0]["drawn_flows"].shape == (2, 64, 64)
    assert forward[0]["real_instances"].dtype == torch.int32


def test_masks_from_a_folder_are_for_the_generator(tile_folder: Path, toy_run: Path) -> None:
    recipe = recipe_for(tile_folder, toy_run, str(tile_folder / "labels"), real=0.0)
    learner, crops = learner_of(recipe)
    assert "taken to be at the generator's µm/px (0.5)" in own(learner).facts()["masks"]
    assert crops[0]["drawn_instances"].any()
    assert "real" not in crops[0]


def refused(recipe: Recipe, text: str) -> None:
    with pytest.raises(InputError, match=text) as error:
        learner_of(recipe)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_said_in_a_sentence(tile_folder: Path, toy_run: Path, tmp_path: Path) -> None:
    refused(recipe_for(tile_folder, None), "no translator is named that draws tissue; give --translator RUN")
    refused(recipe_for(tile_folder, None, None, generated=0.0), "needs nuclei and --data.masks names none")
    refused(recipe_for(tile_folder, toy_run, "layout"), "shows no tissue")
    refused(recipe_for(tile_folder, None, "layout", generated=0.0), "shows no tissue and instance.generated is 0")
    refused(recipe_for(tile_folder, toy_run, "nowhere", real=0.0), "is no folder")
    recipe = recipe_for(tile_folder, toy_run)
    recipe.encoder.architecture = "resnet18"
    refused(recipe, "but resnet18 was asked for")
    recipe = recipe_for(tile_folder, None, generated=0.0)
    recipe.encoder = EncoderSettings("test_vit")
    refused(recipe, "no features of strides 4, 8, 16 and 32")


def test_an_encoder_with_other_norms_is_refused(tile_folder: Path, toy_run: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tile_folder, toy_run)
    recipe.encoder.norm = "group"  # which it has
    learner_of(recipe)
    resnet = architecture("test_resnet", "own")
    facts = {"kind": "encoder", "library": "timm", "architecture": resnet.name, "arguments": resnet.arguments}
    card = {**facts, "mean": [0.5] * 3, "std": [0.5] * 3}
    write_card(tmp_path / "batch.safetensors", build(resnet).state_dict(), card)
    recipe.encoder.source = str(tmp_path / "batch.safetensors")
    refused(recipe, "--encoder.norm is group, but .* is timm:test_resnet")


def test_masks_without_nuclei_are_refused(tile_folder: Path, toy_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_instances(tmp_path / "empty" / "a.png", np.zeros((64, 64), np.int32))
    refused(recipe_for(tile_folder, toy_run, str(tmp_path / "empty"), real=0.0), "holds a nucleus")
    images = tmp_path / "tissue"
    images.mkdir()
    for file in sorted((tile_folder / "images").iterdir()):
        (images / file.name).write_bytes(file.read_bytes())
    refused(recipe_for(images, None, generated=0.0), "None of the 10 tiles of --data.tissue has a mask")


def test_other_runs_are_refused(tile_folder: Path, toy_run: Path, tmp_path: Path) -> None:
    far = without_styles(toy_run, tmp_path / "far", mpp=0.25)
    refused(recipe_for(tile_folder, far), "0.5 µm/px, but the generator of .* learned at 0.25")
    between = without_styles(toy_run, tmp_path / "between", target="other tissue")
    refused(recipe_for(tile_folder, between), "has no generator of tissue from masks")
    unknown = without_styles(toy_run, tmp_path / "unknown", mpp=None)
    refused(recipe_for(tile_folder, unknown, "layout", real=0.0), "does not say its µm/px")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"guidance": 0.0, "contrast": 0.0}, "are both 0"),
        ({"generated": 0.0, "real": 0.0}, "are both 0"),
        ({"real": -1.0}, "instance.real is -1.0"),
        ({"temperature": 0.0}, "instance.temperature is 0"),
        ({"nuclei": 0}, "instance.nuclei is 0"),
        ({"pyramid_width": 40}, "multiple of 32"),
    ],
)
def test_settings_out_of_range(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        InstanceSettings(**changed)


@pytest.mark.parametrize("name", ["instance", "instance_small", "unitpath_stage2"])
def test_presets_are_sound(name: str) -> None:
    arguments = ["--config", str(ROOT / "configs" / "pretrain" / f"{name}.yaml"), "--translator", "RUN"]
    recipe = read_settings(Recipe, "pretrain/train.py", "", arguments).settings
    assert recipe.objectives == ["instance"]
    assert (recipe.instance.contrast == recipe.instance.real == 0) == (name == "unitpath_stage2")


@pytest.mark.slow
def test_it_learns_to_find_nuclei_and_to_tell_them_apart(tmp_path: Path) -> None:
    """On phantom tissue with its exact masks: guidance falls, and a nucleus is nearer to itself than to others."""
    write_folder(PhantomTissue(7, size=96, count=16), tmp_path)
    recipe = recipe_for(tmp_path, None, generated=0.0, nuclei=8)
    recipe.train = TrainSettings(batch_size=8, images=480, optimizer="adamw", learning_rate=2e-3, precision="fp32")
    recipe.view.jitter = recipe.view.grey = recipe.view.blur = 0.0
    recipe.view.stain = 0.1
    learner, crops = learner_of(recipe)
    history = []
    for _ in range(60):
        terms = learner.step(batch_at(crops, learner.images, 8))
        figures = own(learner).scalars()
        history.append((float(terms["instance/real_guidance"]), figures["real_same"] - figures["real_others"]))
    early, late = (torch.tensor(part).mean(0) for part in (history[:10], history[-10:]))
    assert late[0] < 0.75 * early[0]
    assert late[1] > early[1] + 0.15
