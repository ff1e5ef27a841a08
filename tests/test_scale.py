"""Many nodes, ranks, workers, shards and sources, simulated small: who reads what, and what is asked of all tiles."""

import itertools
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from histo import sampling
from histo.errors import InputError
from histo.randomness import draws
from histo.running.loading import ImageClock, loader
from histo.sampling import Order
from histo.tiles import TileSet, open_tiles
from histo.tiles.entries import Entries, Facts
from histo.tiles.packing import pack
from histo.tiles.shards import Shard
from translate.domains import DataSettings, open_domains
from translate.stream import UnpairedCrops

TISSUE = {"first": (5, 1), "second": (17, 8), "third": (9, 9)}  # tiles, and tiles in a shard
OTHER = {"other": (13, 2)}
TILES = sum(tiles for tiles, _ in TISSUE.values())
BATCH = 12


def colour(number: int) -> tuple[int, int, int]:
    """A grey-free colour of a tile's own, which crops and flips keep."""
    return 10 + 5 * number, 250 - 5 * number, 128


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four sources of tiles in one colour each, in shards unequal in number and size."""
    root, found, numbers = tmp_path_factory.mktemp("scale"), {}, itertools.count()
    for name, (tiles, in_a_shard) in (TISSUE | OTHER).items():
        (root / name).mkdir()
        for k in range(tiles):
            Image.new("RGB", (64, 64), colour(next(numbers))).save(root / name / f"{k:02d}.png")
        size = (root / name / "00.png").stat().st_size
        one = 512 + -(-size // 512) * 512 + 1024  # the image, its facts and their headers
        pack(root / name, root / f"{name}-shards", shard_mb=one * in_a_shard / 1e6)
        found[name] = root / f"{name}-shards"
    return found


def crops_of(shards: dict[str, Path], weights: list[float] | None = None) -> UnpairedCrops:
    settings = DataSettings(
        tissue=[str(shards[name]) for name in TISSUE],
        target=str(shards["other"]),
        tissue_weights=weights,
        tile_size=64,
        mpp=0.5,
    )
    return UnpairedCrops(open_domains(settings, 0, None, False), settings, 0)


def read(
    crops: UnpairedCrops, scratch: Path, start: int, stop: int, *, nodes: int, ranks: int, workers: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """What all ranks of all nodes read between two image counts, by index."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for rank in range(nodes * ranks):
        clock = ImageClock(start, stop, BATCH, rank, nodes * ranks)
        for batch in loader(crops, clock, workers, scratch):
            for index, *pair in zip(batch["index"].tolist(), batch["source"], batch["target"], strict=True):
                assert index not in seen, "two ranks or workers read one index"
                seen[index] = pair[0], pair[1]
    return seen


def numbers_of(images: list[Tensor]) -> list[int]:
    """Which tiles they show."""
    return [(int(image[0, 0, 0]) - 10) // 5 for image in images]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_three_nodes_two_ranks_three_workers(shards: dict[str, Path], tmp_path: Path) -> None:
    """Sources of 5, 3, 1 and 7 shards, which 18 workers could not share out: every tile comes once an epoch."""
    counts = [len(list(shards[name].glob("*.tar"))) for name in TISSUE | OTHER]
    assert counts == [5, 3, 1, 7]
    crops = crops_of(shards)
    stop = 2 * TILES - 2 * TILES % BATCH + BATCH
    seen = read(crops, tmp_path, 0, stop, nodes=3, ranks=2, workers=3)
    assert sorted(seen) == list(range(stop))
    sources, targets = ([seen[k][side] for k in range(stop)] for side in (0, 1))
    for epoch in range(2):
        assert sorted(numbers_of(sources[epoch * TILES : (epoch + 1) * TILES])) == list(range(TILES))
    for epoch in range(stop // 13):
        assert sorted(numbers_of(targets[epoch * 13 : (epoch + 1) * 13])) == list(range(TILES, TILES + 13))


@pytest.mark.parametrize(("nodes", "ranks", "workers"), [(2, 2, 2), (1, 3, 1), (1, 1, 0)])
def test_resumed_in_the_middle_by_others(
    shards: dict[str, Path], tmp_path: Path, nodes: int, ranks: int, workers: int
) -> None:
    """From 24 images on, in the first epoch of 31, other nodes, ranks and workers go on with the very same crops."""
    crops = crops_of(shards)
    whole = read(crops, tmp_path, 0, 72, nodes=3, ranks=2, workers=0)
    before = read(crops, tmp_path, 0, 24, nodes=3, ranks=2, workers=0)
    after = read(crops_of(shards), tmp_path, 24, 72, nodes=nodes, ranks=ranks, workers=workers)
    assert before.keys() | after.keys() == whole.keys()
    assert before.keys().isdisjoint(after.keys())
    for index, pair in (before | after).items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pair, whole[index], strict=True))


def test_even_mixing_through_the_loader(shards: dict[str, Path], tmp_path: Path) -> None:
    """Sources of 5, 17 and 9 tiles take turns, whoever reads them."""
    seen = read(crops_of(shards, [1, 1, 1]), tmp_path, 0, 60, nodes=3, ranks=2, workers=0)
    ends = np.cumsum([tiles for tiles, _ in TISSUE.values()])
    sources = np.searchsorted(ends, numbers_of([seen[k][0] for k in range(60)]), side="right")
    assert all(sorted(cycle) == [0, 1, 2] for cycle in sources.reshape(20, 3).tolist())


def test_57_sources_take_turns() -> None:
    """The recipe of Ciga et al. (2022): sources from a handful of tiles to hundreds, all shown equally often."""
    sizes = [3 + 7 * k for k in range(57)]
    order = Order(0, "tissue", sizes, [1] * 57)
    source_of = np.repeat(np.arange(57), sizes)
    shown = np.array([order(k) for k in range(57 * 40)])
    cycles = source_of[shown].reshape(40, 57)
    assert (np.sort(cycles, axis=1) == np.arange(57)).all(), "each once a cycle"
    assert len({tuple(cycle) for cycle in cycles.tolist()}) == 40, "in an order of its own"
    for source, size in enumerate(sizes):
        own = shown[source_of[shown] == source] - order.starts[source]
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(size))
        last = own[len(own) // size * size :]
        assert len(set(last.tolist())) == len(last)


def test_uneven_shares_of_57_sources() -> None:
    weights = [1 + k % 3 for k in range(57)]  # 19 of each: 114 in a cycle
    order = Order(0, "tissue", [50] * 57, weights)
    for cycle in range(5):
        shown = Counter(order(cycle * 114 + k) // 50 for k in range(114))
        assert [shown[source] for source in range(57)] == weights


def test_an_epoch_of_each_source_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two orders of 57 sources side by side, as in tissue to tissue: none throws out what the other still needs."""
    drawn: Counter[tuple[str, int]] = Counter()

    def counted(seed: int, stream: str, index: int) -> np.random.Generator:
        drawn[stream, index] += 1
        return draws(seed, stream, index)

    monkeypatch.setattr(sampling, "draws", counted)
    orders = [Order(0, name, [100] * 57, [1] * 57) for name in ("counted a", "counted b")]
    for index in range(57 * 150):
        for order in orders:
            order(index)
    assert max(drawn.values()) == 1
    assert len(drawn) == 2 * (57 * 2 + 150), "two epochs of each source, and a turn of each cycle"


def test_the_orders_of_past_epochs_are_not_kept() -> None:
    """64 of ten million tiles would be 5 GB in every worker."""
    order = Order(0, "tissue", [10])
    for index in range(1000):
        order(index)
    assert [(epoch, len(places)) for epoch, places in order._epochs.values()] == [(99, 10)]


FACTS = ("source", "patient", "mpp", "label", "split")


def test_facts_of_all_tiles_are_those_of_each(tile_folder: Path, shards: dict[str, Path], tmp_path: Path) -> None:
    pack(tile_folder, tmp_path / "s", shard_mb=0.1)
    mixed = open_tiles([tile_folder, tmp_path / "s", shards["second"]]).entries
    order = draws(0, "test", 0).permutation(len(mixed))[:20]
    for entries in (mixed, mixed.take(order), Entries([mixed.take(order), mixed]), mixed.take([])):
        for name in FACTS:
            facts, slow = entries.facts(name), [getattr(entry, name) for entry in entries]
            assert [facts.values[code] for code in facts.codes] == slow
            assert list(facts.counts().items()) == list(Counter(slow).items())
            for value in set(slow):
                assert facts.among(value).tolist() == [k for k, own in enumerate(slow) if own == value]
    assert Facts.of(str(k) for k in range(300)).codes.max() == 299


def test_what_a_training_asks_of_all_tiles_makes_no_entry(
    shards: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry takes 10 µs, which is minutes of ten million tiles for each question."""

    def refuse(self: Shard, index: int) -> None:
        raise AssertionError("an entry was made")

    monkeypatch.setattr(Shard, "__getitem__", refuse)
    crops = crops_of(shards, [1, 1, 1])
    assert crops.domains.source.sizes == [tiles for tiles, _ in TISSUE.values()]
    tiles = open_tiles(shards["second"], mpp=0.25)
    tiles.require_mpp("a test")
    assert tiles.describe() == "17 tiles · patients unknown · 0.25 µm/px · from second"


def test_equal_hashes_are_not_yet_equal_keys(shards: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histo.tiles.shards.hash", lambda key: 7, raising=False)
    assert len(open_tiles(shards["second"])) == 17


def test_a_million_entries_take_a_hundred_bytes_each(tmp_path: Path) -> None:
    """Counted of one shard of a thousand, all alike: 10 000 of them are ten million tiles in a gigabyte."""
    count = 1000
    shard = Shard(
        tmp_path / "x.tar",
        "s",
        {
            "image": [f"{k:08d}-{k:06d}_{k:06d}.jpg" for k in range(count)],
            "mask": [""] * count,
            "image_at": [(512 + 30_000 * k, 20_000) for k in range(count)],
            "mask_at": [(0, 0)] * count,
            "key": [f"slide-00000/{k:06d}_{k:06d}.jpg" for k in range(count)],
            "label": ["tumour"] * count,
            "patient": ["patient-1"] * count,
            "split": ["train"] * count,
            "mpp": [0.25] * count,
        },
    )
    assert len(pickle.dumps(TileSet(shard))) < 110 * count


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_bomb_of_100_megapixels_among_tiles(tmp_path: Path) -> None:
    """A small file that would be 300 MB of pixels is refused by archive and name; its neighbours are read."""
    for name, side in (("a", 8), ("b", 10_000), ("c", 8)):
        Image.new("1", (side, side)).save(tmp_path / f"{name}.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in "abc":
            archive.add(tmp_path / f"{name}.png", f"{name}.png")
    assert (tmp_path / "b.png").stat().st_size < 100_000
    tiles = open_tiles(tmp_path / "x.tar")
    for read in (tiles.image, tiles.__getitem__):
        with pytest.raises(InputError, match=r"x\.tar/b\.png has 10000 x 10000 pixels, expected at most 80,000,000"):
            read(1)
    skipped = open_tiles(tmp_path / "x.tar", on_bad="skip")
    assert [entry.key for entry in skipped.entries] == ["x.tar/a.png", "x.tar/c.png"]
    assert len(skipped.bad) == 1
