"""The presets under configs/translate/ are sound, and each rung of the ablation changes its own lines only."""

from pathlib import Path

import pytest
import yaml

from histo.running.configs import read_config
from tests.conftest import ROOT
from tests.methods import recipe_of
from translate.methods import names

PRESETS = sorted((ROOT / "configs" / "translate").glob("*.yaml"))
LADDER = sorted((ROOT / "configs" / "translate" / "ablation").glob("*.yaml"))
LAST = ("5_instance", "5_flows", "5_semantic")


def keys(settings: dict[str, object], prefix: str = "") -> set[str]:
    found = set()
    for name, value in settings.items():
        found |= keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_read_by_its_own_method(path: Path) -> None:
    recipe = recipe_of(["--config", str(path)])
    assert recipe.method == read_config(path).get("method", "unitpath")


def test_every_method_has_a_preset() -> None:
    assert {recipe_of(["--config", str(path)]).method for path in PRESETS} == set(names())


@pytest.mark.parametrize("preset", ["tiny", "unitpath"])
@pytest.mark.parametrize("last", LAST)
def test_the_ladder_climbs_from_the_baseline_to_the_whole_method(preset: str, last: str) -> None:
    rungs = [path for path in LADDER if not path.stem.startswith("5_") or path.stem == last]
    assert [path.stem for path in rungs] == [
        "0_baseline",
        "1_distribution",
        "2_stylization",
        "3_comodulation",
        "4_ada",
        last,
    ]
    argv = ["--config", str(ROOT / "configs" / "translate" / f"{preset}.yaml")]
    plain = recipe_of(argv)
    before = keys(yaml.safe_load(rungs[0].read_text()))
    for rung in rungs:
        argv += ["--config", str(rung)]
        own = keys(read_config(rung))
        assert rung is rungs[0] or own <= before | {"loss.guidance", "loss.guidance_every"}, "it undoes the baseline"
    top = recipe_of(argv)
    assert (top.data.masks, top.data.mask_form, top.data.layout) == ("layout", "paper", plain.data.layout)  # type: ignore[attr-defined]
    assert top.generator.kind == "comod"  # type: ignore[attr-defined]
    assert top.ada.kind == "adaptive"  # type: ignore[attr-defined]
    assert top.segmenter.head == {"5_instance": "maskrcnn"}.get(last, last[2:])  # type: ignore[attr-defined]


def test_rungs_of_a_number_are_alternatives_and_others_do_not_overlap() -> None:
    own = {path.stem: keys(read_config(path)) for path in LADDER}
    climbed = ["1_distribution", "2_stylization", "3_comodulation", "4_ada", "5_instance"]
    for k, rung in enumerate(climbed):
        assert all(own[rung].isdisjoint(own[other]) for other in climbed[k + 1 :])
