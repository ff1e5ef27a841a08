"""Bags end to end: from tiles and slides to scores, files and pictures, and mistakes as one sentence."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from slide_specimens import tissue_on_glass, write_slide

import downstream
from downstream import predict, score
from downstream.aggregation import evaluate
from downstream.attention import OPACITY, TITLE, colours, contact_sheet, heat_map
from downstream.bag_networks import BagPrediction
from downstream.bagging import in_bags, open_bags
from downstream.bags import BagSettings, fit
from downstream.features import _key
from downstream.labelled import PARTS, TEST, TRAIN, DataSettings
from downstream.localisation import localisation, marked_shares
from downstream.train import main
from histo.encoders import architecture
from histo.errors import InputError
from histo.phantom import PhantomTissue
from histo.phantom.slides import PhantomSlides, write_slides
from histo.slides.readers import Slide
from histo.slides.streaming import SlideEntry
from histo.tiles import TileSet, open_tiles
from histo.tiles.entries import TileEntry
from histo.tiles.tables import write_folder

SMALL = ["--task", "mil", "--crop.size", "64", "--encoder.architecture", "test_resnet", "--train.precision", "fp32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patients of six phantom tiles; every other patient has two that are reddish, and is a case."""
    tiles = PhantomTissue(0, size=64, count=72)
    path = tmp_path_factory.mktemp("bags") / "tiles"
    shift = np.array([[[60]], [[-20]], [[-60]]])

    def drawn(k: int):
        patient, place = k % 12, k // 12
        marked = patient % 2 == 1 and place in (1, 4)
        image = np.clip(tiles[k].image + shift * marked, 0, 255).astype(np.uint8)
        label, split = ("control", "case")[patient % 2], ("train", "test")[patient >= 8]
        return replace(tiles[k], image=image, label=label, patient=f"p{patient:02d}", split=split)

    write_folder((drawn(k) for k in range(72)), path)
    return path


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mil") / "run"
    options = ["--data.tiles", str(folder), "--mil.learning_rate", "0.003", "--run.dir", str(path)]
    main([*SMALL, *options, "--seeds", "[0,1]"])
    return path


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small slides of five patients, one of them to test."""
    return write_slides(PhantomSlides(0, size=512, count=10, tumour=0.12), tmp_path_factory.mktemp("slides") / "s")


def test_patients_are_told_apart_by_a_third_of_their_tiles(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["scores"]["auroc"]["mean"] == 1
    assert metrics["facts"]["test"] == "4 bags · 4 patients"
    assert metrics["facts"]["tiles"].endswith("in bags of 6 to 6 tiles")
    assert sorted(path.name for path in (run / "seed0" / "attention").iterdir()) == [f"0{k}.png" for k in (1, 2, 3, 4)]
    assert "What the scored bags are judged by" in (run / "report.html").read_text()


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_says(row: dict[str, str], found: BagPrediction) -> None:
    assert row["label"] == found.label
    said = [float(row[f"p_{name}"]) for name in ("case", "control")]
    assert said == pytest.approx(found.probabilities.tolist(), abs=2e-6)


def test_predict_bags_tiles_by_patient_as_training_does(run: Path, folder: Path, tmp_path: Path) -> None:
    arguments = [str(run / "seed0"), "--data.tiles", str(folder), "--data.split", "test", "--out", str(tmp_path / "o")]
    predict.main(arguments)
    task, tiles, rows = downstream.load(run / "seed0"), open_tiles(folder), rows_of(tmp_path / "o")
    assert [list(row)[:2] for row in rows] == [["bag", "label"]] * 4
    assert [row["bag"] for row in rows] == ["p08", "p09", "p10", "p11"]
    for row in rows:
        assert_says(row, task.predict_bag([tile.image for tile in tiles if tile.patient == row["bag"]]))
    score.main([str(tmp_path / "o"), str(folder), "--split", "test"])
    scored = json.loads((tmp_path / "o" / "scores.json").read_text())["scores"]
    trained = json.loads((run / "seed0" / "metrics.json").read_text())["scores"]
    for name in ("accuracy", "auroc", "balanced_accuracy", "ece"):
        assert scored[name] == pytest.approx(trained[name], abs=1e-5)
    with pytest.raises(InputError, match=r"--data.split is None, but .* was begun with 'test'"):
        predict.main([*arguments[:3], *arguments[5:]])


def test_predict_takes_each_slide_as_a_bag(run: Path, tmp_path: Path) -> None:
    """Those of unknown µm/px too, by slides.csv or by --data.mpp; a call that goes on makes only what is missing."""
    (tmp_path / "in").mkdir()
    first = write_slide(tmp_path / "in" / "a.tif", tissue_on_glass(1, 1, side=320))
    second = write_slide(tmp_path / "in" / "b.tif", tissue_on_glass(1, 1, side=448), mpp=None)
    (tmp_path / "in" / "slides.csv").write_text("path,mpp\na.tif,\nb.tif,0.4\n")
    out, task = tmp_path / "out", downstream.load(run / "seed0")
    arguments = [str(run / "seed0"), "--slide", str(tmp_path / "in"), "--out", str(out)]
    predict.main(arguments)
    rows = rows_of(out)
    assert [row["bag"] for row in rows] == ["a.tif", "b.tif"]
    expected = [task.predict_slide(first), task.predict_slide(second, slide_mpp=0.4)]
    for row, found in zip(rows, expected, strict=True):
        assert_says(row, found)
    assert expected[1].boxes is not None
    assert (expected[1].boxes[:, 2] - expected[1].boxes[:, 0] == 80).all()  # 64 px at 0.5 µm/px, of 0.4
    pictures = [out / "attention" / f"{name}.jpg" for name in "ab"]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in [*pictures, *(out / "parts").iterdir()]}
    pictures[1].unlink()
    predict.main(arguments)
    for file, (content, touched) in before.items():
        assert file.read_bytes() == content
        assert (file.stat().st_mtime_ns == touched) is (file.stem in ("a", "000000"))
    wrong = "control" if rows[1]["label"] == "case" else "case"
    table = tmp_path / "in" / "slides.csv"
    table.write_text(f"path,label\na.tif,{rows[0]['label']}\nb.tif,{wrong}\n")
    score.main([str(out), str(table)])
    assert json.loads((out / "scores.json").read_text())["scores"]["accuracy"] == 0.5
    table.write_text(f"path,label\na.tif,{rows[0]['label']}\nb.tif,\n")
    with pytest.raises(InputError, match=r"b\.tif of .* has no label to score by"):
        score.main([str(out), str(table)])
    alone = [str(run / "seed0"), "--slide", str(second), "--out", str(tmp_path / "alone")]
    with pytest.raises(InputError, match=r"b\.tif does not say"):
        predict.main(alone)
    predict.main([*alone, "--data.mpp", "0.4"])
    assert rows_of(tmp_path / "alone") == rows[1:]


def test_a_table_of_slides_as_tiles_gives_the_same_bags(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_slide(tmp_path / "in" / "a.tif", tissue_on_glass(1, 1, side=448), mpp=None)
    (table := tmp_path / "in" / "slides.csv").write_text("path,mpp\na.tif,0.4\n")
    for option, place in (("--slide", table), ("--data.tiles", table)):
        predict.main([str(run / "seed0"), option, str(place), "--out", str(tmp_path / option[2:])])
    for file in ("predictions.csv", "attention/a.jpg"):
        assert (tmp_path / "slide" / file).read_bytes() == (tmp_path / "data.tiles" / file).read_bytes()


def test_one_image_is_no_bag(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--image a.png is no bag, which .* of task mil judges; name slides"):
        predict.main([str(run / "seed0"), "--image", "a.png", "--out", str(tmp_path / "out")])


def test_what_is_loaded_says_what_was_scored(run: Path, folder: Path) -> None:
    result = json.loads((run / "seed0" / "metrics.json").read_text())
    task = downstream.load(run / "seed0")
    tiles = open_tiles(folder)
    for patient in ("p08", "p09"):
        own = [tile for tile in tiles if tile.patient == patient]
        found = task.predict_bag([tile.image for tile in own])
        case = next(case for key, case in result["cases"].items() if key.endswith(patient))
        label = task.card["classes"].index(own[0].label)
        assert found.probabilities[label] == pytest.approx(case["p_true"], abs=1e-5)
        assert found.attention.sum() == pytest.approx(1, abs=1e-5)
        assert (found.label == own[0].label) is bool(case["accuracy"])
        if patient == "p09":
            assert set(np.argsort(-found.attention)[:2]) == {1, 4}
    with pytest.raises(InputError, match="The bag has no tile"):
        task.predict_bag([])


def test_an_image_is_the_bag_of_its_tiles(run: Path, folder: Path) -> None:
    task, tiles = downstream.load(run / "seed0"), open_tiles(folder)
    some = [tiles[k].image for k in (9, 21, 33, 45)]
    whole = np.concatenate([np.concatenate(some[:2], 2), np.concatenate(some[2:], 2)], 1)
    one, other = task.predict(whole), task.predict_bag(some)
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    found = task.bags.of_image(whole[:, :, :100])
    assert found.boxes is not None
    assert found.boxes.tolist() == [[0, 0, 64, 64], [36, 0, 100, 64], [0, 64, 64, 128], [36, 64, 100, 128]]


def test_slides_are_bags_and_masks_say_where_attention_should_be(slides: Path, tmp_path: Path) -> None:
    options = ["--data.tiles", str(slides), "--data.mpp", "0.5", "--mil.epochs", "40", "--mil.learning_rate", "0.003"]
    features = ["--features", str(tmp_path / "features")]
    main([*SMALL, *options, *features, "--run.dir", str(tmp_path / "run"), "--mil.pictures", "2"])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["facts"]["test"] == "2 bags · 1 patients"
    assert 0 <= metrics["scores"]["attention_auroc"]["mean"] <= 1
    assert 0 <= metrics["scores"]["evidence_auroc"]["mean"] <= 1
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert len(files) == 10
    result = json.loads((tmp_path / "run" / "seed0" / "metrics.json").read_text())
    key, case = next((key, case) for key, case in result["cases"].items() if "attention_auroc" in case)
    task = downstream.load(tmp_path / "run")
    found = task.predict_slide(slides.parent / key.partition("/")[2])
    assert found.probabilities[task.card["classes"].index("tumour")] == pytest.approx(case["p_true"], abs=1e-5)
    bags = open_bags(DataSettings(str(slides), mpp=0.5), 64, 0)
    place = next(k for k, entry in enumerate(bags.labelled.tiles.entries) if key.endswith(entry.key))
    shares = marked_shares(list(bags.of(place).entries))
    assert shares is not None
    assert localisation(found.attention, shares) == pytest.approx(case["attention_auroc"], abs=1e-6)
    assert found.boxes is not None
    assert (found.boxes[:, 2] - found.boxes[:, 0]).tolist() == [64] * len(shares)
    main([*SMALL, *options, *features, "--run.dir", str(tmp_path / "again"), "--mil.pooling", "mean"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == files
    mean = json.loads((tmp_path / "again" / "metrics.json").read_text())["scores"]
    assert mean["attention_auroc"]["mean"] == 0.5  # all tiles alike
    task.card["mpp"] = None
    with pytest.raises(InputError, match="cannot be cut; give mpp"):
        task.predict_slide(slides.parent / "slide_0000.tif")


def test_attention_finds_the_planted_tumour(slides: Path) -> None:
    """Of features that see tumour, among fifteen that see nothing, on slides of patients that it did not learn from."""
    bags = open_bags(DataSettings(str(slides), mpp=0.5, folds=5), 32, 0)
    generator = torch.Generator().manual_seed(0)
    features = []
    for k in range(10):
        shares = marked_shares(list(bags.of(k).entries))
        assert shares is not None
        features.append(torch.randn(len(shares), 16, generator=generator))
        features[-1][:, 0] += 6 * torch.from_numpy(shares)
    places = bags.labelled.parts[TRAIN].tolist()
    numbers = bags.labelled.numbers[places].tolist()
    found = {}
    for pooling in ("attention", "mean"):
        settings = BagSettings(pooling, epochs=60, learning_rate=3e-3, width=16)  # type: ignore[arg-type]
        head = fit([features[k] for k in places], numbers, 2, settings, 0)
        found[pooling] = evaluate(head, features, bags).scores
    assert found["attention"]["attention_auroc"] > 0.9
    assert found["mean"]["attention_auroc"] == 0.5
    assert found["attention"]["accuracy"] == 1


def test_shares_are_counted_pixels(slides: Path) -> None:
    bags = open_bags(DataSettings(str(slides), mpp=0.5), 64, 0)
    mask = PhantomSlides(0, size=512, count=10, tumour=0.12)[3].planted
    place = next(k for k, entry in enumerate(bags.labelled.tiles.entries) if entry.key == "slide_0003.tif")
    entries = list(bags.of(place).entries)
    shares = marked_shares(entries)
    assert shares is not None
    assert shares.max() > 0.3
    for entry, share in zip(entries, shares, strict=True):
        assert isinstance(entry, SlideEntry)
        left, top, width, height = entry.box
        assert share == pytest.approx(mask[top : top + height, left : left + width].mean(), abs=1e-6)


def test_attention_for_marked_tiles_by_pairs() -> None:
    """Against the share of pairs in which the marked tile has more, ties counted half."""
    generator = np.random.default_rng(0)
    weights, shares = generator.integers(0, 6, 40).astype(float), generator.choice([0, 0.2, 0.5, 1], 40)
    pairs = [(a > b) + 0.5 * (a == b) for a in weights[shares >= 0.5] for b in weights[shares == 0]]
    assert localisation(weights, shares) == pytest.approx(np.mean(pairs))
    assert localisation(weights, np.zeros(40)) is None
    assert localisation(weights, np.full(40, 0.3)) is None


def test_a_heat_map_shows_the_attention_it_is_given() -> None:
    picture = np.full((3, 40, 60), 200, np.uint8)
    boxes = np.array([[0, 0, 20, 20], [20, 0, 40, 20], [10.4, 20, 30, 39.6]])
    weights = np.array([0.1, 0.6, 0.3])
    truth = np.zeros((40, 60), bool)
    truth[22:36, 12:28] = True
    page = heat_map(picture, boxes, weights, "a", truth)
    assert page.shape[1:] == (60, 3)
    shown = page[TITLE : TITLE + 40]
    for place, value in (((5, 5), 1 / 6), ((5, 25), 1.0), ((28, 20), 0.5)):
        opacity = OPACITY[0] + (OPACITY[1] - OPACITY[0]) * value
        wanted = (1 - opacity) * 200 + opacity * colours(np.array(value))
        assert shown[place] == pytest.approx(wanted, abs=0.51)
    assert (shown[:, 45:] == 200).all()  # no tile, no colour
    assert (shown[25:35, :10] == 200).all()
    assert (shown[21, 10:30] != 200).all()
    assert (shown[23, 14] == (220, 20, 20)).all()  # the outline of the truth, and not its middle
    assert (shown[28, 20] != (220, 20, 20)).any()


def test_a_contact_sheet_begins_with_the_most_attended(folder: Path) -> None:
    tiles = open_tiles(folder)
    weights = np.linspace(0.1, 1, len(tiles))
    page = contact_sheet(tiles, weights, "a")
    found = np.asarray(Image.fromarray(page[TITLE + 18 : TITLE + 18 + 128, 2 : 2 + 128]).resize((64, 64)))
    wanted = tiles[len(tiles) - 1].image.transpose(1, 2, 0).astype(int)
    assert np.abs(found - wanted).mean() < np.abs(found - tiles[0].image.transpose(1, 2, 0).astype(int)).mean() / 3


def test_attention_beats_the_mean_where_one_tile_in_twenty_matters() -> None:
    def bags(seed: int, count: int):
        generator = torch.Generator().manual_seed(seed)
        found = [torch.randn(20, 16, generator=generator) for _ in range(count)]
        for k in range(1, count, 2):
            found[k][k % 20, 0] += 6
        return found, [k % 2 for k in range(count)]

    (train, numbers), (test, truth) = bags(0, 60), bags(1, 60)
    right = {}
    for pooling in ("attention", "mean"):
        settings = BagSettings(pooling, epochs=25, learning_rate=3e-3, width=16)  # type: ignore[arg-type]
        head = fit(train, numbers, 2, settings, 0)
        said = [int(head(bag)[0].argmax()) for bag in test]
        right[pooling] = np.mean(np.array(said) == truth)
    assert right["attention"] > 0.9
    assert right["attention"] > right["mean"] + 0.15


def test_the_epoch_that_a_validation_part_likes_best_is_kept() -> None:
    """Labels of the training bags are noise: what is learned of them later only harms."""
    generator = torch.Generator().manual_seed(0)
    bags = [torch.randn(5, 8, generator=generator) for _ in range(24)]
    numbers = [k % 2 for k in range(24)]
    settings = BagSettings("mean", epochs=12, learning_rate=0.03, dropout=0)
    kept = fit(bags[:12], numbers[:12], 2, settings, 0, (bags[12:], numbers[12:]))
    last = fit(bags[:12], numbers[:12], 2, settings, 0)

    def loss(network) -> float:
        logits = torch.stack([network(bag)[0] for bag in bags[12:]])
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(numbers[12:])))

    assert loss(kept) < loss(last) - 0.1
    early = min(loss(fit(bags[:12], numbers[:12], 2, replace(settings, epochs=n), 0)) for n in range(1, 13))
    assert loss(kept) == pytest.approx(early, abs=1e-6)


def entry(key: str, label: str = "a", patient: str | None = "p", split: str | None = "train") -> TileEntry:
    return TileEntry(Path(key), key, "s", patient, 0.5, label, split, None)


def test_tiles_are_bagged_by_slide_and_else_by_patient() -> None:
    entries = [entry("1.png"), entry("a.svs/x000000_y000256"), entry("2.png"), entry("a.svs/x000256_y000256")]
    entries += [entry("3.png", patient="q"), entry("b.svs/x000256_y000256", patient=None)]
    bags, members, classes = in_bags(entries, ["a", "b", "a", "b", "b", "a"])
    assert [bag.key for bag in bags] == ["p", "a.svs", "q", "b.svs"]
    assert [some.tolist() for some in members] == [[0, 2], [1, 3], [4], [5]]
    assert classes == ["a", "b", "b", "a"]


@pytest.mark.parametrize(
    ("entries", "labels", "words"),
    [
        (
            [entry("1"), entry("2")],
            "ab",
            "The tiles of the bag p have 2 labels, a and b, expected one; correct the column",
        ),
        ([entry("1"), entry("2", split="test")], "aa", "have 2 splits, train and test, expected one"),
        ([entry("1", patient=None)], "a", "The tile 1 of s is of no slide and of unknown patient"),
        ([entry("a/x000000_y000000"), entry("a/x000064_y000000", patient="q")], "aa", "2 patients, p and q"),
    ],
)
def test_bags_that_are_none(entries: list[TileEntry], labels: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        in_bags(entries, list(labels))


def test_no_bag_and_no_patient_is_in_two_parts(folder: Path) -> None:
    for fold in range(3):
        bags = open_bags(DataSettings(str(folder), folds=3, validation_share=0.3), 64, 1, fold)
        tiles = bags.of_tiles()
        patients = [{tiles.tiles.entries[int(k)].patient for k in tiles.parts[name]} for name in PARTS]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 12
        assert sum(len(places) for places in tiles.parts.values()) == 72
        for name in PARTS:
            assert len(tiles.parts[name]) == 6 * len(bags.labelled.parts[name])
    few = open_bags(DataSettings(str(folder), label_images=4), 64, 0)
    assert few.labelled.facts["labels used"] == "4 of 8 training bags"
    assert len(few.of_tiles().parts[TRAIN]) == 24
    assert len(few.of_tiles().parts[TEST]) == 24


def test_a_patient_with_slides_in_two_parts_is_refused(slides: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(slides.open()))
    for row in rows:
        row["path"], row["mask"] = str(slides.parent / row["path"]), ""
    rows[0]["split"] = "test"  # of the patient whose other slide is learned from
    table = tmp_path / "slides.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputError, match="1 patients are in two parts, first phantom-00 in train and test"):
        open_bags(DataSettings(str(table), mpp=0.5), 64, 0)


def test_features_of_another_cut_are_others(slides: Path, tmp_path: Path) -> None:
    """The same name of a tile, other pixels: at another µm/px or size, and after the slide changed; and of the same
    weights in another architecture."""
    encoder = torch.nn.Conv2d(3, 1, 1)
    entry = open_tiles(slides, mpp=0.5, size=64).entries[0]
    assert isinstance(entry, SlideEntry)

    def key(one: SlideEntry, name: str = "test_resnet") -> str:
        return _key(encoder, architecture(name, "own"), TileSet([one]), 64, (0.5,) * 3, (0.5,) * 3, False)

    changed = tmp_path / "slide.tif"
    changed.write_bytes(entry.row.path.read_bytes() + b"0")
    others = [
        replace(entry, box=(*entry.box[:2], 65, 65)),
        replace(entry, sampling=replace(entry.sampling, mpp=0.6, step=1.2)),
        replace(entry, row=replace(entry.row, path=changed)),
    ]
    assert len({key(one) for one in (entry, *others)}) == 4
    assert key(entry) == key(entry) != key(entry, "test_resnet_gelu")


def test_a_mask_of_another_shape_is_refused(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((40, 80), np.uint8)).save(tmp_path / "masks" / "wide.png")
    slide = slides.parent / "slide_0001.tif"
    with Slide(slide) as opened:
        assert opened.sizes[0] == (512, 512)
    (tmp_path / "slides.csv").write_text(f"path,label,mask\n{slide},tumour,masks/wide.png\n")
    tiles = open_tiles(tmp_path / "slides.csv", mpp=0.5, size=64)
    with pytest.raises(InputError, match=r"wide\.png is 40 x 80 pixels .* but its slide 512 x 512"):
        marked_shares(list(tiles.entries))
    (tmp_path / "slides.csv").write_text(f"path,label,mask\n{slide},tumour,masks/none.png\n")
    with pytest.raises(InputError, match=r"line 2 of .* names the mask .*none\.png, which is missing"):
        open_tiles(tmp_path / "slides.csv", mpp=0.5, size=64)
