"""nucleate compare: curves, intervals and paired tests of runs made by hand, against slow references."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from histo.bootstrap import balanced_interval, mean_interval
from histo.commands.compare import main
from histo.curve_names import encoder_names
from histo.errors import InputError
from histo.label_efficiency import compare_runs, read_run
from histo.permutation import holm, sign_flip_test
from histo.running.charts import line_chart

KEYS = [f"set/{k}.png" for k in range(8)]
PATIENTS = [f"set/p{k // 2}" for k in range(8)]


def write_run(
    folder: Path,
    encoder: str,
    labels: int,
    values: dict[int, list[float]],
    *,
    task: str = "instances",
    metric: str = "aji",
    keys: list[str] = KEYS,
    config: str = "",
    old: bool = False,
) -> Path:
    """A run whose seeds have these scores of the test tiles."""
    for seed, scores in values.items():
        content = {
            "format": 1,
            "seed": seed,
            "fold": 0,
            "scores": {metric: float(np.mean(scores))},
            "cases": {key: {metric: score} for key, score in zip(keys, scores, strict=True)},
            "patients": PATIENTS[: len(keys)],
            "facts": {"labels used": f"{labels} of 22 training tiles"},
            **({} if old else {"labels": labels}),
        }
        (folder / f"seed{seed}").mkdir(parents=True)
        (folder / f"seed{seed}" / "metrics.json").write_text(json.dumps(content))
    whole = {
        "format": 1,
        "task": task,
        "by_seed": {str(seed): {metric: float(np.mean(scores))} for seed, scores in values.items()},
        "facts": {"encoder": encoder},
        **({} if old else {"chosen": metric, "encoder": {"architecture": "resnet18", "frozen": False}}),
    }
    (folder / "metrics.json").write_text(json.dumps(whole))
    (folder / "config.yaml").write_text(config or "train:\n  images: 100\n")
    return folder


def drawn(seed: int, mean: float) -> list[float]:
    return (mean + 0.05 * np.random.default_rng(seed).standard_normal(8)).tolist()


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two encoders with 1, 4 and 22 labels, two seeds each."""
    made = []
    for encoder, better in (("none", 0.0), ("runs/dino/export/encoder.safetensors", 0.1)):
        for labels in (1, 4, 22):
            values = {seed: drawn(100 * labels + seed, 0.3 + 0.02 * labels**0.5 + better) for seed in (0, 1)}
            made.append(write_run(tmp_path / f"{len(made)}", encoder, labels, values))
    return made


def test_points_are_those_of_the_runs(runs: list[Path]) -> None:
    found = compare_runs([read_run(path) for path in runs])
    assert (found.metric, found.tiles, found.patients) == ("aji", 8, 4)
    assert {name: list(points) for name, points in found.points.items()} == {
        "random resnet18": [1, 4, 22],
        "dino": [1, 4, 22],
    }
    point = found.points["dino"][4]
    seeds = [np.array(drawn(400 + seed, 0.3 + 0.02 * 2 + 0.1)) for seed in (0, 1)]
    assert point.mean == pytest.approx(np.mean(seeds))
    assert point.sd == pytest.approx(np.std([one.mean() for one in seeds], ddof=1))
    low, high = mean_interval(np.mean(seeds, 0)[:, None], PATIENTS)
    assert point.interval == (pytest.approx(low[0]), pytest.approx(high[0]))


def test_tests_are_paired_by_tile_and_flip_patients(runs: list[Path]) -> None:
    found = compare_runs([read_run(path) for path in runs])
    assert [(test.labels, test.one, test.other) for test in found.tests] == [
        (labels, "random resnet18", "dino") for labels in (1, 4, 22)
    ]
    for test in found.tests:
        assert test.difference == pytest.approx(-0.1)
        assert test.p == pytest.approx(2 / 2**4)  # all four patients agree, and no p of four can be lower
        assert test.corrected == pytest.approx(3 * test.p)


def test_sign_flips_against_a_slow_count() -> None:
    generator = np.random.default_rng(0)
    differences, groups = generator.standard_normal(15) + 0.4, [f"p{k % 6}" for k in range(15)]
    sums = [differences[[k for k in range(15) if k % 6 == patient]].sum() for patient in range(6)]
    far = [abs(sum(s * v for s, v in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=6)]
    slow = np.mean([one >= abs(sum(sums)) - 1e-12 for one in far])
    assert 0.05 < slow < 0.9
    assert sign_flip_test(differences, groups) == pytest.approx(slow)
    single = sign_flip_test(differences, list(range(15)))  # random flips of 15 clusters beside all of them
    patterns = np.array(list(product((1, -1), repeat=15))) @ differences
    assert single == pytest.approx(np.mean(np.abs(patterns) >= abs(differences.sum()) - 1e-12), abs=0.02)
    assert sign_flip_test(np.zeros(5), range(5)) == 1


def test_p_is_even_where_nothing_differs() -> None:
    """At most 5 % below 0.05 without a difference, though tiles of a patient are alike."""
    generator = np.random.default_rng(1)
    low = 0
    for _ in range(400):
        patient = generator.standard_normal(8)
        differences = np.repeat(patient, 4) + 0.1 * generator.standard_normal(32)
        low += sign_flip_test(differences, np.repeat(np.arange(8), 4).tolist()) < 0.05
    assert low <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_holm_by_hand() -> None:
    """0.01·3, 0.02·2, 0.03·1 is raised to the one before; the order of the input stays."""
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1, 1]


def test_the_command_writes_what_people_read(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.count("| dino |") == 3
    assert "| 22 | random resnet18 − dino | -0.100 | 0.12 | 0.38 |" in text
    assert "sign patterns" in text
    assert text in capsys.readouterr().out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count('class="band') == 2
    assert page.count('class="dot') == 6
    assert (tmp_path / "out" / "comparison.svg").read_text().startswith('<svg class="chart"')


def test_results_of_old_are_read(runs: list[Path], tmp_path: Path) -> None:
    one = write_run(tmp_path / "old", "timm:resnet18", 4, {0: drawn(0, 0.5), 1: drawn(1, 0.5)}, old=True)
    found = compare_runs([read_run(runs[1]), read_run(one)])
    assert list(found.points) == ["random resnet18", "timm:resnet18"]
    assert list(found.points["timm:resnet18"]) == [4]


def test_runs_without_a_label_are_compared(runs: list[Path], tmp_path: Path) -> None:
    one = write_run(tmp_path / "unlabelled", "none", 0, {0: drawn(0, 0.5), 1: drawn(1, 0.5)})
    assert main([str(one), str(runs[0]), "--out", str(tmp_path / "out")]) == 0
    assert "| random resnet18 | 0 | 2 |" in (tmp_path / "out" / "comparison.md").read_text()


def test_what_else_differs_is_told(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(
        tmp_path / "other", "timm:resnet18", 4, {0: drawn(0, 0.5), 2: drawn(1, 0.5)}, config="train:\n  images: 200\n"
    )
    notes = compare_runs([read_run(runs[1]), read_run(other)]).notes
    assert "The runs differ in train.images (100, 200), beside encoder and labels." in notes
    assert any("With 4 labels the seeds differ" in note for note in notes)


def test_a_score_that_is_no_mean_has_no_test(tmp_path: Path) -> None:
    made = [write_run(tmp_path / name, name, 4, {0: drawn(0, 0.5)}, metric="auroc") for name in ("a", "b")]
    for path in made:
        file = path / "seed0" / "metrics.json"
        content = json.loads(file.read_text())
        content["cases"] = {key: {"accuracy": 1.0} for key in KEYS}
        file.write_text(json.dumps(content))
    found = compare_runs([read_run(path) for path in made])
    assert not found.tests
    assert found.points["a"][4].interval is None
    assert found.notes[0].startswith(
        "There are neither intervals nor tests of auroc for a, b: metrics.json has no auroc"
    )


def test_tiles_without_the_score_are_left_out(tmp_path: Path) -> None:
    """As of task smse where a tile is too coarse for a magnification."""
    made = [write_run(tmp_path / name, name, 4, {0: drawn(k, 0.5)}) for k, name in enumerate("ab")]
    for path in made:
        file = path / "seed0" / "metrics.json"
        content = json.loads(file.read_text())
        del content["cases"][KEYS[3]]["aji"]
        file.write_text(json.dumps(content))
    found = compare_runs([read_run(path) for path in made])
    kept = [k for k in range(8) if k != 3]
    differences = np.array(drawn(0, 0.5))[kept] - np.array(drawn(1, 0.5))[kept]
    assert found.tests[0].difference == pytest.approx(differences.mean())
    assert found.tests[0].p == pytest.approx(sign_flip_test(differences, [PATIENTS[k] for k in kept]))
    low, high = mean_interval(np.array(drawn(0, 0.5))[kept][:, None], [PATIENTS[k] for k in kept])
    assert found.points["a"][4].interval == (pytest.approx(low[0]), pytest.approx(high[0]))
    assert "Up to 1 test tiles have no aji, and are left out of its intervals and tests." in found.notes


CONFIG = """data: {{tiles: {tiles}, extra: {extra}, workers: {workers}}}
instances: {{head: {head}, decoder: {decoder}}}
segment: {{decoder: {other}}}
seeds: [0]
"""


def configured(**change: str) -> str:
    known = {"tiles": "a", "extra": "null", "workers": "1", "head": "flows", "decoder": "unet", "other": "unet"}
    return CONFIG.format(**{**known, **change})


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({}, {"head": "distance"}, ["dino, head flows", "dino, head distance"]),
        ({}, {"head": "distance", "decoder": "fpn"}, ["dino, head flows", "dino, head distance"]),
        ({}, {"extra": "runs/drawn"}, ["dino, no extra", "dino, extra drawn"]),
        ({"extra": "a/x"}, {"extra": "[b/x, c]"}, ["dino, extra a/x", "dino, extra b/x+c"]),
        ({}, {"tiles": "b", "workers": "4", "other": "fpn"}, ["dino"]),  # the same training
    ],
)
def test_runs_of_other_settings_are_other_curves(
    tmp_path: Path, first: dict[str, str], second: dict[str, str], names: list[str]
) -> None:
    made = [
        write_run(tmp_path / f"{k}", "runs/dino/export/encoder.safetensors", 4, {k: drawn(k, 0.5)}, config=one)
        for k, one in enumerate((configured(**first), configured(**second)))
    ]
    made.append(
        write_run(
            tmp_path / "seed", "runs/dino/export/encoder.safetensors", 4, {7: drawn(7, 0.5)}, config=configured(**first)
        )
    )
    found = compare_runs([read_run(path) for path in made])
    assert list(found.points) == names
    assert len(found.points[names[0]][4].values) == 4 - len(names)  # seeds are put together
    assert len(found.tests) == len(names) - 1


def test_three_curves_take_two_settings_to_tell_apart(tmp_path: Path) -> None:
    changes: list[dict[str, str]] = [{}, {"head": "distance"}, {"decoder": "fpn"}]
    made = [
        write_run(tmp_path / f"{k}", "none", 4, {0: drawn(k, 0.5)}, config=configured(**one))
        for k, one in enumerate(changes)
    ]
    assert list(compare_runs([read_run(path) for path in made]).points) == [
        "random resnet18, head flows, decoder unet",
        "random resnet18, head distance, decoder unet",
        "random resnet18, head flows, decoder fpn",
    ]


def test_an_unknown_setting_makes_no_curve(tmp_path: Path) -> None:
    """Runs of old lack what was added since."""
    made = [
        write_run(tmp_path / f"{k}", "none", 4, {k: drawn(k, 0.5)}, config=config)
        for k, config in enumerate(("train: {images: 100}\n", "train: {images: 100, average: 0.99}\n"))
    ]
    assert list(compare_runs([read_run(path) for path in made]).points) == ["random resnet18"]


@pytest.mark.parametrize("old", [False, True])
def test_balanced_accuracy_has_the_interval_of_a_score_computed_anew(tmp_path: Path, old: bool) -> None:
    """A tile's share of the score is no part of it once patients are drawn; the paired test goes by these shares."""
    truths, made = ["a"] * 6 + ["b"] * 2, []
    for name, right in (("one", [1] * 8), ("other", [1, 0, 1, 1, 1, 1, 0, 1])):
        shares = [hit * 8 / (2 * truths.count(truth)) for hit, truth in zip(right, truths, strict=True)]
        made.append(write_run(tmp_path / name, name, 4, {0: shares}, metric="balanced_accuracy"))
        file = made[-1] / "seed0" / "metrics.json"
        content = json.loads(file.read_text()) | ({} if old else {"truths": truths})
        for case, hit in zip(content["cases"].values(), right, strict=True):
            case["accuracy"] = hit
        file.write_text(json.dumps(content))
    found = compare_runs([read_run(path) for path in made])
    (test,) = found.tests
    assert test.difference == pytest.approx(1 - (5 / 6 + 1 / 2) / 2)
    perfect, worse = (found.points[name][4].interval for name in ("one", "other"))
    if old:
        assert perfect is worse is None
        assert "Results of old do not tell the classes of test tiles, so balanced_accuracy has no" in found.notes[-1]
    else:
        assert perfect == (1, 1)
        assert worse == balanced_interval(np.array([1, 0, 1, 1, 1, 1, 0, 1]), truths, PATIENTS)


def test_names_are_short_and_tell_encoders_apart() -> None:
    sources = [
        ("none", "resnet18", False),
        ("none", "resnet50", False),
        ("runs/a/export/encoder.safetensors", "resnet18", False),
        ("runs/b/export/encoder.safetensors", "resnet18", False),
        ("old/b/export/encoder.safetensors", "resnet18", True),
        ("old/b/export/encoder.safetensors", "resnet18", False),
    ]
    named = encoder_names(sources)  # type: ignore[arg-type]
    assert list(named.values()) == [
        "random resnet18",
        "random resnet50",
        "a",
        "runs/b",
        "old/b frozen",
        "old/b fine-tuned",
    ]


@pytest.mark.parametrize("change", ["task", "tiles", "metric", "twice", "seed", "one", "none", "damaged"])
def test_refusals(runs: list[Path], tmp_path: Path, change: str) -> None:
    arguments, words = [str(runs[0]), str(runs[3])], ""
    if change == "task":
        arguments[1] = str(write_run(tmp_path / "x", "a", 1, {0: drawn(0, 0.5)}, task="segment"))
        words = "is of task instances, .* of segment; compare runs of one task"
    elif change == "tiles":
        arguments[1] = str(write_run(tmp_path / "x", "a", 1, {0: drawn(0, 0.5)[:6]}, keys=KEYS[:6]))
        words = "scored on 6 tiles and .* on 8, of which 6 are the same and set/6.png is not"
    elif change == "metric":
        arguments += ["--metric", "dice"]
        words = "has no score 'dice'; give one of aji as --metric"
    elif change == "twice":
        arguments[1] = arguments[0]
        words = "names a run twice"
    elif change == "seed":
        arguments[1] = str(write_run(tmp_path / "x", "none", 1, {1: drawn(0, 0.5)}))
        words = "are of the same encoder and settings, 1 labels and seed 1"
    elif change == "one":
        arguments = arguments[:1]
        words = "is one run, expected two or more"
    elif change == "none":
        arguments[1] = str(tmp_path)
        words = "has no metrics.json; name finished runs"
    else:
        (runs[0] / "metrics.json").write_text("{")
        words = "metrics.json is damaged"
    with pytest.raises(InputError, match=words):
        main([*arguments, "--out", str(tmp_path / "out")])


def test_a_logarithmic_axis_places_doublings_evenly() -> None:
    chart = line_chart(
        "t", {"a": ([1, 2, 4], [0, 1, 2])}, "x", {"a": ([1, 2, 4], [0, 0, 1], [1, 2, 3])}, doublings=True
    )
    dots = [float(part.split('"')[0]) for part in chart.split('cx="')[1:]]
    assert len(dots) == 3
    assert dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=0.2)
    assert chart.count("<polygon") == 1


def test_no_label_has_a_place_on_a_logarithmic_axis() -> None:
    """0 stands as far left of 2 as 4 right of it; a single number of labels in the middle."""
    chart = line_chart("t", {"a": ([0, 2, 4], [0, 1, 2])}, "x", doublings=True)
    dots = [float(part.split('"')[0]) for part in chart.split('cx="')[1:]]
    assert dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=0.2)
    assert ">0</text>" in chart
    middle = (dots[0] + dots[2]) / 2
    for labels in (0, 4):
        chart = line_chart("t", {"a": ([labels], [0.5])}, "x", doublings=True)
        assert f'cx="{middle:.1f}"' in chart
