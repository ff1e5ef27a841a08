"""Labelled tiles in parts without a common patient, and what is refused."""

import csv
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from downstream.labelled import DataSettings, Labelled, divided, open_labelled
from downstream.predict import PredictData
from downstream.score import ScoreSettings
from downstream.tasks.classify import class_shares
from histo.errors import InputError
from histo.running.settings import read_settings
from histo.tiles import TileSet, open_tiles
from histo.tiles.entries import TileEntry
from histo.tiles.tables import write_table


def write(folder: Path, rows: list[dict[str, str]]) -> Path:
    """Tiles of one colour each, with a tiles.csv."""
    folder.mkdir()
    for number, row in enumerate(rows):
        row.setdefault("path", f"{number:03d}.png")
        (folder / row["path"]).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 90, 160)).save(folder / row["path"])
    with (folder / "tiles.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "label", "patient", "mpp", "split", "mask"])
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 patients of 4 tiles: the first 8 train, one class every other patient."""
    return write(
        tmp_path / "tiles",
        [
            {"label": "ab"[k // 4 % 2], "patient": f"p{k // 4}", "split": "train" if k < 32 else "test"}
            for k in range(48)
        ],
    )


def patients(found: Labelled, part: str) -> set[object]:
    return {found.patients[k] for k in found.parts[part]}


def test_parts_are_the_splits(folder: Path) -> None:
    found = open_labelled(DataSettings(str(folder)), "label", 0)
    assert found.parts["train"].tolist() == list(range(32))
    assert found.parts["test"].tolist() == list(range(32, 48))
    assert found.classes == ["a", "b"]
    assert found.numbers.tolist() == [k // 4 % 2 for k in range(48)]
    assert found.facts["labels used"] == "32 of 32 training tiles"
    assert [tile.label for tile in found.part("test")] == ["ab"[k // 4 % 2] for k in range(32, 48)]


def test_every_fold_is_scored_once_and_shares_no_patient(folder: Path) -> None:
    scored = []
    for fold in range(3):
        found = open_labelled(DataSettings(str(folder), folds=3), "label", 5, fold)
        assert not patients(found, "train") & patients(found, "test")
        assert len(found.parts["train"]) + len(found.parts["test"]) == 48
        scored += found.parts["test"].tolist()
    assert sorted(scored) == list(range(48))


def test_validation_takes_whole_patients_of_the_labelled_tiles(folder: Path) -> None:
    settings = DataSettings(str(folder), validation_share=0.35, label_fraction=0.75)
    found = open_labelled(settings, "label", 1)
    assert len(found.parts["train"]) + len(found.parts["validation"]) == 24
    assert len(found.parts["validation"]) == 8
    assert not patients(found, "train") & patients(found, "validation")
    for part in ("train", "validation"):
        assert set(found.numbers[found.parts[part]]) == {0, 1}


def test_fewer_labels_lie_inside_more(folder: Path) -> None:
    few, more = (
        set(open_labelled(DataSettings(str(folder), label_images=n), "label", 2).parts["train"].tolist())
        for n in (4, 12)
    )
    assert len(few) == 4
    assert few < more


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"holdout": "val"}, "No tile is of the split 'val', which is to be the test part; the tiles have test, train"),
        ({"group": ["c=x"]}, "--data.group names the label x, which no tile has; the labels are a, b: correct it"),
        ({"group": ["c=a,b", "d=x"]}, "names the label x"),
        ({"group": ["c=a"]}, "has the labels b, which no --data.group names"),
        ({"group": ["c=a,b"], "label_images": 33}, "label_images is 33, expected at most 32"),
        ({"folds": 7}, "The class a has 6 patients, but 7 folds"),
        ({"validation_share": 0.05}, "is less than a patient"),
        ({"label_images": 2, "validation_share": 0.5}, "would leave a class without one"),
        ({"tiles": None}, "data.tiles is not given"),
        ({"holdout": "train"}, "data.split and data.holdout are both 'train', but tiles that are learned from"),
        ({"validation": "test"}, "data.validation and data.holdout are both 'test'"),
        ({"validation": "train", "common_patients": True}, "data.split and data.validation are both 'train'"),
    ],
)
def test_refusals(folder: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_labelled(DataSettings(**{"tiles": str(folder), **change}), "label", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "learned", "used"),
    [({}, 32, 32), ({"extra_share": 1.0}, 32, 0), ({"extra_share": 1.0, "validation_share": 0.25}, 24, 8)],
)
def test_labels_that_choose_the_network_are_used_though_none_is_learned_from(
    folder: Path, tmp_path: Path, change: dict[str, float], learned: int, used: int
) -> None:
    extra = write(tmp_path / "extra", [{"label": label, "patient": "other"} for label in "ab"])
    for number in (0, 1):
        Image.new("RGB", (32, 32), ("white", "black")[number]).save(extra / f"00{number}.png")  # no tile of the others
    found = open_labelled(DataSettings(str(folder), extra=str(extra), **change), "label", 0)  # type: ignore[arg-type]
    assert len(found.parts["train"]) == learned
    assert found.used == used
    assert found.facts["labels used"] == f"{used} of 32 training tiles"


def test_a_patient_in_two_parts_is_refused(tmp_path: Path) -> None:
    rows = [{"label": "ab"[k % 2], "patient": f"p{k // 2}", "split": ("train", "test")[k % 5 == 0]} for k in range(20)]
    folder = write(tmp_path / "tiles", rows)
    with pytest.raises(InputError, match=r"4 patients are in two parts, first p0 in train and test; correct"):
        open_labelled(DataSettings(str(folder)), "label", 0)
    forced = open_labelled(DataSettings(str(folder), common_patients=True), "label", 0)
    assert forced.facts["warning"] == "4 patients are in two parts, so that scores are too high"


def test_a_class_missing_from_a_part_is_refused(tmp_path: Path) -> None:
    rows = [{"label": "aab"[k % 3], "patient": f"p{k}", "split": "train" if k < 6 else "test"} for k in range(8)]
    folder = write(tmp_path / "tiles", rows)
    with pytest.raises(InputError, match="The class b has no tile in the test part"):
        open_labelled(DataSettings(str(folder)), "label", 0)
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    rows = [{"label": "a" if one == "val" else "ab"[k % 2], "split": one} for k, one in enumerate(splits)]
    named = write(tmp_path / "named", rows)
    with pytest.raises(InputError, match=r"The class b has no tile in the validation part.* or use more labels\.$"):
        open_labelled(DataSettings(str(named), validation="val"), "label", 0)
    rows = [{"label": "ab"[k >= 16], "patient": f"p{k // 4}", "split": "train"} for k in range(32)]
    rows += [{"label": label, "patient": label, "split": "test"} for label in "ab"]
    patients = write(tmp_path / "patients", rows)
    for seed in range(4):  # two patients of eight, whatever the seed of both classes
        found = open_labelled(DataSettings(str(patients), validation_share=0.25), "label", seed)
        assert set(found.numbers[found.parts["validation"]]) == {0, 1}
    with pytest.raises(InputError, match=r"in the validation part.*, or give another data\.validation_share"):
        open_labelled(DataSettings(str(patients), validation_share=0.2), "label", 0)


def test_many_tiles_of_unknown_patient_are_set_aside_at_once() -> None:
    """By a count for each patient, not a look through all tiles: the slow way took minutes for so many."""
    entries = [
        TileEntry(Path(f"{k}.png"), f"{k}.png", "many", None, None, "ab"[k % 2], ("train", "test")[k % 5 == 0], None)
        for k in range(30_000)
    ]
    labels = [str(entry.label) for entry in entries]
    start = time.process_time()
    found = divided(DataSettings("many", validation_share=0.2), TileSet(entries), labels, 0, 0)
    assert time.process_time() - start < 20
    assert len(found.parts["validation"]) == 4800
    assert len(found.parts["train"]) == 19_200


def test_a_label_that_is_an_abbreviation_elsewhere_can_be_joined(tmp_path: Path) -> None:
    """A stands for adenosis in BreakHis, and for itself here."""
    rows = [{"label": "AFG"[k % 3], "patient": f"p{k}", "split": ("train", "test")[k // 3 % 2]} for k in range(12)]
    folder = write(tmp_path / "tiles", rows)
    found = open_labelled(DataSettings(str(folder), group=["one=A,F", "two=G"]), "label", 0)
    assert found.classes == ["one", "two"]
    assert found.numbers.tolist() == [0, 0, 1] * 4


def test_tiles_without_what_is_needed_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"48 of 48 tiles have no mask, first .*000\.png; fill the column mask"):
        open_labelled(DataSettings(str(folder)), "mask", 0)
    bare = write(tmp_path / "bare", [{"label": "a", "split": "train"}, {"split": "test"}])
    with pytest.raises(InputError, match=r"1 of 2 tiles have no label, first .*001\.png"):
        open_labelled(DataSettings(str(bare)), "label", 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label_fraction": 0.0}, "label_fraction is 0.0"),
        ({"label_fraction": 0.5, "label_images": 3}, "both say how many labels"),
        ({"folds": 1}, "data.folds is 1"),
        ({"validation": "val", "folds": 3}, "exclude each other"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
    ],
)
def test_settings_out_of_range(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DataSettings(**change)  # type: ignore[arg-type]


def cut(tile: int, slide: int, **facts: str) -> dict[str, str]:
    """A tile as `nucleate tile` names it."""
    return {"path": f"slide{slide}/x{tile * 8:06d}_y000000.png", "label": "ab"[slide % 2], **facts}


def test_tiles_of_a_slide_stay_together_where_patients_are_unknown(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiles", [cut(k, k // 6) for k in range(24)])
    found = open_labelled(DataSettings(str(folder), folds=2), "label", 0)
    slides = [entry.key.split("/")[0] for entry in found.tiles.entries]
    train, test = ({slides[k] for k in found.parts[part]} for part in ("train", "test"))
    assert len(train) == len(test) == 2
    assert not train & test
    assert found.facts["test"] == "12 tiles · 2 slides of unknown patient"
    assert found.facts["patients"] == "0 known, 24 tiles of unknown patient, each of their 4 slides counted as one"
    assert len({str(found.patients[k]) for k in found.parts["test"]}) == 2
    aside = open_labelled(DataSettings(str(folder), folds=2, label_images=9), "label", 0)
    assert len({slides[k] for k in aside.parts["train"]}) == 2
    named = write(tmp_path / "named", [cut(k, k // 6, split=("train", "test")[k % 2]) for k in range(12)])
    with pytest.raises(
        InputError, match="2 slides of unknown patient are in two parts, first slide0 in train and test; correct"
    ):
        open_labelled(DataSettings(str(named)), "label", 0)


def test_a_known_patient_goes_before_the_slide(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiles", [cut(k, k // 3, patient=f"p{k // 6}", label="ab"[k % 2]) for k in range(12)])
    found = open_labelled(DataSettings(str(folder), folds=2), "label", 0)
    assert [str(one) for one in found.patients[::6]] == ["tiles/p0", "tiles/p1"]
    assert len(patients(found, "test")) == 1


def test_further_tiles_are_none_that_are_judged(tmp_path: Path) -> None:
    """Of unknown patients the tiles themselves are compared: the same files, or copies of them under the same names."""
    splits = ("train", "val", "test")
    folder = write(tmp_path / "tiles", [{"label": "ab"[k % 2], "split": splits[k // 2 % 3]} for k in range(12)])
    copied, other = shutil.copytree(folder, tmp_path / "copied"), shutil.copytree(folder, tmp_path / "other" / "tiles")
    for number in range(12):
        Image.new("RGB", (8, 8), (90, number, 160)).save(other / f"{number:03d}.png")

    def opened(extra: Path, split: str | None) -> Labelled:
        settings = DataSettings(str(folder), validation="val", extra=str(extra), extra_split=split)
        return open_labelled(settings, "label", 0)

    for extra in (folder, copied):
        for split, part, first in ((None, "test", "004"), ("test", "test", "004"), ("val", "validation", "002")):
            with pytest.raises(InputError, match=f"The tile {first}.png of data.extra is in the {part} part of data.t"):
                opened(extra, split)
        assert len(opened(extra, "train").extra or ()) == 4
    assert len(opened(other, None).extra or ()) == 12


@pytest.mark.parametrize(("patient", "part"), [("p2", "validation"), ("p4", "test")])
def test_patients_of_further_tiles_are_not_judged(tmp_path: Path, patient: str, part: str) -> None:
    splits = ("train", "val", "test")
    rows = [{"label": "ab"[k % 2], "patient": f"p{k}", "split": splits[k // 2]} for k in range(6)]
    folder, extra = write(tmp_path / "tiles", rows), write(tmp_path / "extra", [{"label": "a", "patient": patient}])
    settings = DataSettings(str(folder), validation="val", extra=str(extra))
    with pytest.raises(InputError, match=f"1 patients of data.extra are in .* first {patient} in {part}; leave"):
        open_labelled(settings, "label", 0)
    forced = open_labelled(replace(settings, common_patients=True), "label", 0)
    assert forced.facts["warning"] == "1 patients are in two parts, so that scores are too high"


def test_unknown_patients_count_as_their_own(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "tiles", [{"label": "ab"[k % 2], "split": ("train", "test")[k // 2 % 2]} for k in range(8)]
    )
    found = open_labelled(DataSettings(str(folder)), "label", 0)
    assert found.facts["patients"] == "0 known, 8 tiles of unknown patient"
    assert np.array_equal(found.parts["train"], [0, 1, 4, 5])


def test_the_scale_that_is_given_goes_before_that_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And --help says so."""
    rows = [{"label": k, "patient": split, "split": split, "mpp": "0.5"} for split in ("train", "test") for k in "ab"]
    folder = write(tmp_path / "tiles", rows)
    for given, mpp in ((None, 0.5), (0.25, 0.25)):
        tiles = open_labelled(DataSettings(str(folder), mpp=given), "label", 0).tiles
        assert [entry.mpp for entry in tiles.entries] == [mpp] * 4
    for kind in (DataSettings, PredictData, ScoreSettings):
        with pytest.raises(SystemExit):
            read_settings(kind, "x", "x", ["--help"])
        assert "before what tiles.csv, shards or image files say" in " ".join(capsys.readouterr().out.split())


def test_further_tiles_are_known_again_under_other_names(tmp_path: Path) -> None:
    """As translate/pseudomask.py names them: images/ before the path, or SOURCE/PATIENT for several sets."""
    splits = ("train", "test")
    folder = write(tmp_path / "tiles", [{"label": "ab"[k % 2], "split": splits[k // 2 % 2]} for k in range(8)])
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    entries = open_tiles(str(folder)).entries
    (renamed / "a.png").write_bytes(next(e for e in entries if e.split == "test").image_file())
    write_table(renamed, [["a.png", "a", None, None, None, None]])
    with pytest.raises(InputError, match=r"The tile a.png of data.extra is in the test part"):
        open_labelled(DataSettings(str(folder), extra=str(renamed)), "label", 0)
    rows = [{"label": "ab"[k % 2], "patient": f"p{k}", "split": splits[k // 2]} for k in range(4)]
    whose = write(tmp_path / "whose", rows)
    several = write(tmp_path / "several", [{"label": "a", "patient": "whose/p3"}])
    with pytest.raises(InputError, match=r"1 patients of data.extra .* first whose/p3 in test"):
        open_labelled(DataSettings(str(whose), extra=str(several)), "label", 0)


def test_one_name_in_two_parts_of_two_sources_is_told(tmp_path: Path) -> None:
    """It may be one patient or two; nobody is refused, and every result says so."""
    for part in ("train", "test"):
        names = ("p0", f"only in {part}")
        write(tmp_path / part, [{"label": "ab"[k], "patient": names[k], "split": part} for k in range(2)])
    found = open_labelled(DataSettings([str(tmp_path / "train"), str(tmp_path / "test")]), "label", 0)
    assert found.facts["warning"] == (
        "1 names of patients stand in two parts from different sources, first p0 in train of train and test of test: "
        "if they are the same people, scores are too high"
    )


def test_what_is_learned_from_counts(tmp_path: Path) -> None:
    """With the labels that choose the network, and with the classes of further tiles in their share."""
    rows = [{"label": "ab"[k % 2], "patient": f"p{k}", "split": ("train", "val", "test")[k // 4]} for k in range(12)]
    folder = write(tmp_path / "tiles", rows)
    extra = write(tmp_path / "extra", [{"label": "a", "patient": f"q{k}"} for k in range(3)])
    named = open_labelled(DataSettings(str(folder), validation="val", label_images=2), "label", 0)
    assert named.used == 6
    assert named.facts["labels used"] == "2 of 4 training tiles and 4 of the validation part"
    both = open_labelled(DataSettings(str(folder), extra=str(extra), extra_share=0.25), "label", 0)
    assert [(len(tiles), share) for tiles, share in both.learned()] == [(4, 0.75), (3, 0.25)]
    assert class_shares(both).tolist() == [0.75 * 0.5 + 0.25, 0.75 * 0.5]
    with pytest.raises(InputError, match=r"data.extra has no tile of the class b, expected some of each"):
        open_labelled(DataSettings(str(folder), extra=str(extra), extra_share=1.0), "label", 0)
    one = write(tmp_path / "one", [{"label": "a", "split": split} for split in ("train", "test")])
    with pytest.raises(InputError, match="the class a alone, expected two or more"):
        open_labelled(DataSettings(str(one)), "label", 0)
