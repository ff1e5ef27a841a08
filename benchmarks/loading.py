"""Rate and memory of loading tiles, against decoding alone: `python benchmarks/loading.py [--tiles 50000]`.

JPEG tiles of phantom tissue, 256 x 256, quality 90: a few hundred distinct ones under many names, in a plain folder and
in shards. Compared, each with two processes: the bare decoder (Pillow, from bytes in memory to a uint8 array), and a
loader that makes batches of 32 in random order, from shards and from the folder, without a cache of decoded tiles. They
take turns of a second or so and the best of each counts, since other work on the machine disturbs all of them. Memory
is that of the loading process and its workers together; private memory leaves out what they share. CPU time is that of
all processes of a turn; the cores' other users hardly touch it.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from nuclei import cpu_model
from PIL import Image
from tqdm import tqdm

from histo.phantom import PhantomTissue
from histo.randomness import draws
from histo.tiles import TileSet, open_tiles
from histo.tiles.batches import image_batches
from histo.tiles.packing import pack

SIDE, QUALITY, DISTINCT, BATCH, PROCESSES = 256, 90, 400, 32, 2
AHEAD, TURN, TURNS = 2, 60, 20  # batches made ahead by each worker, batches of a turn, turns


def jpegs(count: int) -> list[bytes]:
    """Files of phantom tissue."""
    tissue = PhantomTissue(0, size=SIDE, count=count)
    files = []
    for k in tqdm(range(count), desc="drawing tissue", unit="tile", disable=None):
        with io.BytesIO() as file:
            Image.fromarray(tissue[k].image.transpose(1, 2, 0)).save(file, "JPEG", quality=QUALITY)
            files.append(file.getvalue())
    return files


def write_folder(folder: Path, files: list[bytes], count: int) -> None:
    """`count` tiles in sub-folders of 1000; repeats are hard links."""
    for k in range(count):
        path = folder / f"{k // 1000:03d}" / f"{k:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if k < len(files):
            path.write_bytes(files[k])
        else:
            first = k % len(files)
            os.link(folder / f"{first // 1000:03d}" / f"{first:06d}.jpg", path)


def decode(files: list[bytes], ready: Barrier, done: Barrier) -> None:
    """The bare decoder, one share of a turn after the other."""
    while True:
        ready.wait()
        for k in range(TURN * BATCH // PROCESSES):
            np.asarray(Image.open(io.BytesIO(files[k % len(files)])))
        done.wait()


def endless(count: int) -> Iterator[list[int]]:
    """Batches of random positions without end."""
    for turn in itertools.count():
        yield draws(0, "benchmark order", turn).integers(0, count, BATCH).tolist()


def processes() -> list[int]:
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]


def cpu_seconds() -> float:
    """What this process and its workers have used so far; Linux alone tells of others."""
    fields = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in processes()]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def rates(files: list[bytes], sets: dict[str, TileSet]) -> dict[str, list[tuple[float, float]]]:
    """(tiles/s, CPU µs per tile) of the bare decoder and of a loader from each set, by turns."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Barrier(PROCESSES + 1), context.Barrier(PROCESSES + 1)
    decoders = [context.Process(target=decode, args=(files, ready, done)) for _ in range(PROCESSES)]
    for process in decoders:
        process.start()
    loaders = {
        kind: image_batches(tiles, endless(len(tiles)), workers=PROCESSES, ahead=AHEAD) for kind, tiles in sets.items()
    }

    def bare() -> None:
        ready.wait()
        done.wait()

    def load(kind: str, count: int) -> None:
        for batch in itertools.islice(loaders[kind], count):
            assert batch.shape == (BATCH, 3, SIDE, SIDE)

    kinds: dict[str, Callable[[], None]] = {"bare decoder": bare, **{kind: partial(load, kind, TURN) for kind in sets}}
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in tqdm(range(TURNS), desc="rates", unit="turn", disable=None):
        for kind, work in kinds.items():
            if kind in loaders:
                load(kind, 2 * PROCESSES * AHEAD)  # those made before the clock starts
            start, used = time.perf_counter(), cpu_seconds()
            work()
            elapsed, used = time.perf_counter() - start, cpu_seconds() - used
            found[kind].append((TURN * BATCH / elapsed, 1e6 * used / (TURN * BATCH)))
            time.sleep(0.5)  # until the loader that stopped has made its batches ahead
    for process in decoders:
        process.terminate()
    return found


def megabytes() -> tuple[float, float]:
    """Resident and private memory of this process and its workers, MB; Linux alone tells."""
    resident = private = 0
    for process in processes():
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
            name, size = line.split()[:2]
            resident += int(size) * (name == "Rss:")
            private += int(size) * name.startswith("Private_C" if name.endswith("Clean:") else "Private_D")
    return resident * 1024 / 1e6, private * 1024 / 1e6


def memory_rows(tiles: TileSet) -> list[str]:
    """Memory along one pass over every tile in random order."""
    order = draws(0, "benchmark pass", 0).permutation(len(tiles))
    batches = [part.tolist() for part in np.array_split(order, len(order) // BATCH)]
    last = len(batches) - 2 * PROCESSES  # the workers are gone after the last batch
    marks = {last // 10, last // 2, last}
    rows, seen = [], 0
    loaded = image_batches(tiles, batches, workers=PROCESSES)
    for number, batch in enumerate(tqdm(loaded, total=len(batches), desc="one pass", unit="batch", disable=None)):
        seen += len(batch)
        if number in marks:
            resident, private = megabytes()
            rows.append(f"{seen:>6} tiles read {resident:12.0f} MB resident {private:6.0f} MB private")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=50_000, help="tiles of the set; default: %(default)s")
    count = parser.parse_args().tiles
    torch.set_num_threads(1)
    files = jpegs(min(DISTINCT, count))
    with tempfile.TemporaryDirectory() as name:
        folder, shards = Path(name, "folder"), Path(name, "shards")
        write_folder(folder, files, count)
        manifest = pack(folder, shards, progress=True)
        sets = {"from shards": open_tiles(shards, cache_mb=0), "from the folder": open_tiles(folder, cache_mb=0)}
        found = rates(files, sets)
        rows = memory_rows(sets["from shards"])
    size = sum(map(len, files)) / len(files) / 1000
    print(
        f"{cpu_model()}, {os.cpu_count()} cores, {PROCESSES} processes; {count} tiles of {SIDE} x {SIDE} pixels, JPEG "
        f"quality {QUALITY}, {size:.1f} kB each, in {len(manifest['shards'])} shards; {TURNS} turns"
    )
    print(f"{'tiles/s':<16} {'best':>7} {'of bare':>8} {'median':>8} {'of bare':>8} {'CPU µs/tile':>12} {'of bare':>8}")
    columns = {}
    for kind, turns in found.items():
        speeds, used = zip(*turns, strict=True)
        columns[kind] = max(speeds), statistics.median(speeds), min(used)
    bare = columns["bare decoder"]
    for kind, (best, median, used) in columns.items():
        print(
            f"{kind:<16} {best:7.0f} {best / bare[0]:8.0%} {median:8.0f} {median / bare[1]:8.0%} {used:12.0f} "
            f"{bare[2] / used:8.0%}"
        )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
