"""Unpaired by construction, pure in the image index, and never a label that was held out."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from histo.errors import InputError
from histo.masks import read_instances
from histo.running.loading import ImageClock, loader
from histo.tiles.packing import pack
from translate.agreement import Probe
from translate.domains import DataSettings, Domains, open_domains
from translate.stream import UnpairedCrops


def settings_for(folder: Path, **changed: object) -> DataSettings:
    return DataSettings(tissue=str(folder), tile_size=64, workers=0, **changed)  # type: ignore[arg-type]


@pytest.fixture
def domains(tile_folder: Path, tmp_path: Path) -> Domains:
    return open_domains(settings_for(tile_folder), 0, tmp_path / "masks", progress=False)


def test_tiles_that_give_masks_are_never_shown(domains: Domains) -> None:
    donors = {int(file.stem) for file in domains.source.tiles.files}  # type: ignore[attr-defined]
    assert donors.isdisjoint(domains.target.shown)
    assert donors | set(domains.target.shown) == set(range(len(domains.target.tiles)))
    assert {domains.target.tiles[k].split for k in range(len(domains.target.tiles))} == {"train"}
    assert {domains.target.holdout[k].split for k in range(len(domains.target.holdout))} == {"test"}
    assert "no pair exists" in domains.origin


@pytest.mark.parametrize("named", ["{}", "tnbc:{}"])
def test_own_labels_are_unpaired_and_leave_the_test_split_out(named: str, tile_folder: Path, tmp_path: Path) -> None:
    settings = settings_for(tile_folder, masks=named.format(tile_folder))
    domains = open_domains(settings, 0, tmp_path, progress=False)
    giving = {Path(domains.source.tiles[k].key).stem for k in range(len(domains.source.tiles))}
    showing = {Path(domains.target.tiles[k].key).stem for k in domains.target.shown}
    held_out = {Path(domains.target.holdout[k].key).stem for k in range(len(domains.target.holdout))}
    assert giving
    assert giving.isdisjoint(showing)
    assert giving.isdisjoint(held_out)


@pytest.mark.parametrize("masks", ["watershed", "own labels"])
def test_shards_are_learned_from_as_their_folder_is(tile_folder: Path, tmp_path: Path, masks: str) -> None:
    """The same images at every index, the same donors, the same tiles held out."""
    pack(tile_folder, tmp_path / "shards", shard_mb=0.1)
    found = []
    for tissue in (tile_folder, tmp_path / "shards"):
        settings = settings_for(tissue, masks=str(tissue) if masks == "own labels" else masks)
        domains = open_domains(settings, 0, tmp_path / f"masks of {tissue.name}", progress=False)
        crops = UnpairedCrops(domains, settings, 0)
        found.append((domains, [crops[k] for k in range(12)]))
    (folder, ours), (shards, theirs) = found
    assert (list(folder.target.shown), folder.origin) == (list(shards.target.shown), shards.origin)
    assert [folder.target.holdout[k].key for k in range(len(folder.target.holdout))] == [
        shards.target.holdout[k].key for k in range(len(shards.target.holdout))
    ]
    for a, b in zip(ours, theirs, strict=True):
        for name in ("target", "source", "instances"):
            assert torch.equal(a[name], b[name])


def test_a_folder_of_masks_keeps_all_tissue(tile_folder: Path, tmp_path: Path) -> None:
    settings = settings_for(tile_folder, masks=str(tile_folder / "labels"))
    domains = open_domains(settings, 0, tmp_path, progress=False)
    assert len(domains.target.shown) == len(domains.target.tiles)
    assert len(domains.source.tiles) == 10


def test_pseudo_masks_are_made_once(tile_folder: Path, tmp_path: Path) -> None:
    first = open_domains(settings_for(tile_folder), 0, tmp_path, progress=False)
    times = [file.stat().st_mtime_ns for file in first.source.tiles.files]  # type: ignore[attr-defined]
    again = open_domains(settings_for(tile_folder), 0, tmp_path, progress=False)
    assert [file.stat().st_mtime_ns for file in again.source.tiles.files] == times  # type: ignore[attr-defined]
    assert read_instances(again.source.tiles.files[0]).any()  # type: ignore[attr-defined]


def test_an_item_depends_on_its_index_alone(domains: Domains, tile_folder: Path) -> None:
    crops = UnpairedCrops(domains, settings_for(tile_folder), 3)
    forward = [crops[k] for k in range(6)]
    for k in (5, 0, 3):
        again = UnpairedCrops(domains, settings_for(tile_folder), 3)[k]
        for name in ("target", "source", "instances"):
            assert torch.equal(forward[k][name], again[name])
    assert forward[0]["target"].shape == (3, 64, 64)
    assert forward[0]["instances"].dtype == torch.int32
    assert not torch.equal(forward[0]["target"], UnpairedCrops(domains, settings_for(tile_folder), 4)[0]["target"])


def test_the_mask_image_shows_its_foreground(domains: Domains, tile_folder: Path) -> None:
    item = UnpairedCrops(domains, settings_for(tile_folder), 0)[2]
    assert torch.equal(item["source"].amax(0) > 0, item["instances"] > 0)
    assert item["instances"].any()


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 0), (2, 2), (4, 0)])
def test_every_tile_once_an_epoch_over_ranks_and_workers(
    domains: Domains, tile_folder: Path, tmp_path: Path, processes: int, workers: int
) -> None:
    """From the middle of one epoch on, as a resumed run would: nothing is read but what is shown."""
    crops = UnpairedCrops(domains, settings_for(tile_folder), 0)
    epoch = len(domains.target.shown)
    assert epoch == 4
    seen = []
    for rank in range(processes):
        clock = ImageClock(epoch, 3 * epoch, 4, rank, processes)
        seen += [k for batch in loader(crops, clock, workers, tmp_path) for k in batch["index"].tolist()]
    assert sorted(seen) == list(range(epoch, 3 * epoch))
    for start in (epoch, 2 * epoch):
        assert sorted(crops.target_order(k) for k in range(start, start + epoch)) == list(range(epoch))


def test_folders_of_tissue_in_the_shares_asked_for(tile_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for k in range(2):
        shutil.copy(tile_folder / "images" / f"{k}.png", other / f"{k}.png")
    settings = replace(
        settings_for(tile_folder, masks="phantom"), tissue=[str(tile_folder), str(other)], tissue_weights=[1, 3]
    )
    domains = open_domains(settings, 0, tmp_path / "m", progress=False)
    assert domains.target.sizes == [8, 2]
    crops = UnpairedCrops(domains, settings, 0)
    shown = [int(domains.target.shown[crops.target_order(k)]) for k in range(40)]
    assert sum(position >= 8 for position in shown) == 30
    wrong = open_domains(replace(settings, tissue_weights=[1, 3, 1]), 0, tmp_path / "m", progress=False)
    with pytest.raises(InputError, match=r"weights \[1, 3, 1\] do not fit 2 sources"):
        UnpairedCrops(wrong, settings, 0)


@pytest.mark.parametrize("named", ["{}/images/..", "tnbc:{}"])
def test_tissue_is_not_translated_into_itself(named: str, tile_folder: Path, tmp_path: Path) -> None:
    settings = replace(settings_for(tile_folder), target=[named.format(tile_folder)])
    with pytest.raises(InputError, match=r"is both in --data\.tissue and in --data\.target"):
        open_domains(settings, 0, tmp_path / "m", progress=False)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_clock_hands_out_each_index_once(processes: int) -> None:
    clocks = [ImageClock(16, 40, 8, rank, processes) for rank in range(processes)]
    batches = [[k for part in parts for k in part] for parts in zip(*clocks, strict=True)]
    assert batches == [list(range(start, start + 8)) for start in (16, 24, 32)]
    assert len(clocks[0]) == 3


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size is 9, expected a multiple of the 2 processes"):
        ImageClock(0, 18, 9, 0, 2)


def test_workers_do_not_change_batches(domains: Domains, tile_folder: Path, tmp_path: Path) -> None:
    crops = UnpairedCrops(domains, settings_for(tile_folder), 0)
    alone, helped = (list(loader(crops, ImageClock(4, 16, 4, 0, 1), workers, tmp_path)) for workers in (0, 2))
    for mine, other in zip(alone, helped, strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_masks_without_a_nucleus_are_refused(tile_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    np.save(empty / "a.npy", np.zeros((64, 64), np.int32))
    with pytest.raises(InputError, match="None of the 1 masks"):
        open_domains(settings_for(tile_folder, masks=str(empty)), 0, tmp_path / "m", progress=False)


# Masks that show little


def mask_folder(folder: Path, masks: list[np.ndarray]) -> str:
    folder.mkdir()
    for k, mask in enumerate(masks):
        np.save(folder / f"{k:02d}.npy", mask.astype(np.int32))
    return str(folder)


def spotted(side: int) -> np.ndarray:
    """Nuclei of 8 px, 16 px apart."""
    rows, columns = np.indices((side, side))
    mask = (rows // 16) * 100 + columns // 16 + 1
    return np.where((rows % 16 < 8) & (columns % 16 < 8), mask, 0)


def test_every_item_has_nuclei_and_background_however_few_masks_do(tile_folder: Path, tmp_path: Path) -> None:
    """One mask of forty has both; the others are empty, full, or show a single nucleus too seldom to be met."""
    rare = np.zeros((800, 800))
    rare[:8, :8] = 1
    others = [np.zeros((64, 64)), np.ones((64, 64)), rare]
    masks = mask_folder(tmp_path / "few", [spotted(96), *(others[k % 3] for k in range(39))])
    settings = settings_for(tile_folder, masks=masks)
    domains = open_domains(settings, 0, tmp_path / "m", progress=False)
    crops = UnpairedCrops(domains, settings, 0)
    forward = [crops[k] for k in range(40)]
    for item in forward:
        nuclei = item["instances"] > 0
        assert nuclei.any()
        assert not nuclei.all()
        assert torch.equal(item["source"].amax(0) > 0, nuclei)
    assert len({item["instances"].numpy().tobytes() for item in forward}) > 30, "crops of the one mask vary"
    fresh = UnpairedCrops(domains, settings, 0)
    for k in range(39, -1, -1):  # what is known of the masks by then is another
        assert torch.equal(fresh[k]["instances"], forward[k]["instances"])
    looked_at = Probe.draw(domains, settings, 0).nuclei
    assert looked_at is not None
    assert all(nuclei.any() and not nuclei.all() for nuclei in looked_at)


def test_masks_from_edge_to_edge_are_refused(tile_folder: Path, tmp_path: Path) -> None:
    masks = mask_folder(tmp_path / "full", [np.ones((64, 64)), np.zeros((64, 64)), np.full((80, 64), 7)])
    with pytest.raises(InputError, match="are nucleus from edge to edge, expected background between nuclei"):
        open_domains(settings_for(tile_folder, masks=masks), 0, tmp_path / "m", progress=False)
    np.save(Path(masks) / "99.npy", spotted(64).astype(np.int32))
    assert (
        len(open_domains(settings_for(tile_folder, masks=masks), 0, tmp_path / "m", progress=False).source.tiles) == 4
    )
