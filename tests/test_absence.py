"""Classes of regions that a part of the tiles lacks are refused; those that no tile has get no score."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from downstream.absence import refuse_absent_classes
from downstream.labelled import DataSettings, open_labelled
from downstream.tasks.segment import Segment, SegmentSettings
from downstream.train import main
from histo.errors import InputError
from histo.phantom import PhantomTissue
from histo.tiles import open_tiles
from histo.tiles.tables import write_folder


def glands(folder: Path, *values: list[int], splits: tuple[str, ...] = ("train", "test")) -> Path:
    """A tile for each list of mask values, of a patient of its own."""
    masks = [np.repeat(np.array(own, np.int32), 96 * 96 // len(own)).reshape(96, 96) for own in values]
    tiles = PhantomTissue(0, size=96, count=len(masks))
    rows = zip(tiles, masks, splits, strict=True)
    write_folder(
        (replace(tile, instances=mask, split=split, patient=f"{folder.name}{split}") for tile, mask, split in rows),
        folder,
    )
    return folder


@pytest.mark.parametrize(
    ("values", "more", "words"),
    [
        (([0, 1, 2], [0, 1, 2]), {}, None),
        (([0, 1], [0, 1, 2]), {}, "The class lumen has no pixel in the train part, expected some of each class;"),
        (([0, 1, 2], [1, 2]), {}, "The class stroma has no pixel in the test part"),
        (([1, 2], [1, 2]), {"segment.ignore": 0}, None),  # which stands for no class
        (([0, 1, 2], [0, 1, 2], [0, 2]), {"data.validation": "val"}, "The class gland has no pixel in the validation"),
        (([0, 1], [0, 1, 2]), {"data.extra": [2, 2]}, None),  # both are learned from
        (
            ([0, 1, 2], [0, 1, 2]),
            {"data.extra": [0, 2], "data.extra_share": 1},
            "gland .* the train part, which is data",
        ),
        (([0, 1], [0, 1, 2]), {"data.extra": [0, 1, 2], "data.extra_share": 1}, None),
    ],
)
def test_every_part_has_a_pixel_of_each_class(
    values: tuple[list[int], ...], more: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    tiles = glands(tmp_path / "tiles", *values, splits=("train", "test", "val")[: len(values)])
    if "data.extra" in more:
        more = {**more, "data.extra": glands(tmp_path / "extra", more["data.extra"], splits=("train",))}
    settings = {"task": "segment", "segment.classes": "[stroma,gland,lumen]", "data.tiles": tiles, "crop.size": 64}
    settings |= {"encoder.architecture": "test_resnet", "run.dir": tmp_path / "run", **more}
    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    with nullcontext() if words is None else pytest.raises(InputError, match=words):
        main([*arguments, "--dry_run"])


def test_masks_are_read_only_until_every_class_was_met(tmp_path: Path) -> None:
    """The second mask of the training part is damaged, which the first one leaves unseen."""
    tiles = glands(tmp_path / "tiles", [0, 1, 2], [0, 1, 2], [0, 1, 2], splits=("train", "train", "test"))
    labelled = open_labelled(DataSettings(str(tiles)), "mask", 0)
    mask = labelled.part("train").entries[1].mask
    assert mask is not None
    mask.write_bytes(b"no picture")
    names = {1: "gland", 2: "lumen"}
    refuse_absent_classes(labelled, DataSettings(), ["train"], names, lambda tile: cast("Any", tile.instances))
    with pytest.raises(InputError, match=mask.name):
        refuse_absent_classes(labelled, DataSettings(), ["train"], {9: "ink"}, lambda tile: cast("Any", tile.instances))


def test_regions_that_are_nowhere_have_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the gland is found and half of the stroma beside; no lumen is there or found."""
    tiles = open_tiles(glands(tmp_path / "tiles", [0, 0, 1], splits=("test",)))
    found = np.zeros((3, 96, 96), np.float32)
    found[0, :32], found[1, 32:] = 1, 1
    monkeypatch.setattr(Segment, "find", lambda *_: found)
    task = object.__new__(Segment)
    task.settings = SegmentSettings(["stroma", "gland", "lumen"])
    scores = task.evaluate(torch.nn.Identity(), tiles).scores
    assert scores["iou"] == pytest.approx(1 / 2)
    assert scores["dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert {"dice_stroma", "dice_gland"} == {name for name in scores if name.startswith("dice_")}
