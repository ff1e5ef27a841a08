"""What many tiles cost before the first is decoded: `python benchmarks/scale.py [--tiles 1000000]`.

Shards of 1000 tiles of which only index and manifest are real (the archives are sparse files: every name, offset and
size is as `nucleate pack` writes them, the pixels are holes). Measured, each in a process of its own: opening them, the
passes over all tiles that a training makes before its first step, and the resident memory of both, at the end and at
most. Then the order of the tiles: microseconds per index of one source and of 57 mixed evenly with as many tiles, the
first index of an epoch (a permutation is drawn) apart from the others.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nuclei import cpu_model
from tqdm import tqdm

from histo.sampling import Order
from histo.tiles import open_tiles
from histo.tiles.manifests import FORMAT

PER_SHARD, JPEG, FACTS = 1000, 22_800, 150  # tiles; bytes of a tile and of its .json
MEMBER = 512 + -(-JPEG // 512) * 512 + 512 + -(-FACTS // 512) * 512  # both with their headers
SOURCES = 57


def write_shards(folder: Path, tiles: int) -> int:
    """Indices and a manifest of `tiles` tiles of one slide per 1000; returns the bytes of all indices."""
    shards, written = [], 0
    for number in tqdm(range(-(-tiles // PER_SHARD)), desc="writing indices", unit="shard", disable=None):
        name = f"slides-{number:06d}"
        first, count = number * PER_SHARD, min(PER_SHARD, tiles - number * PER_SHARD)
        keys = [f"slide-{number:05d}/{(k % 40) * 256:06d}_{k // 40 * 256:06d}" for k in range(count)]
        columns: dict[str, list[Any]] = {
            "image": [f"{first + k:08d}-{key.partition('/')[2]}.jpg" for k, key in enumerate(keys)],
            "image_at": [[k * MEMBER + 512, JPEG] for k in range(count)],
            "mask": [""] * count,
            "mask_at": [[0, 0]] * count,
            "key": [f"{key}.jpg" for key in keys],
            "label": [""] * count,
            "patient": [f"patient-{number // 2:05d}"] * count,
            "split": ["train" if number % 10 else "test"] * count,
            "mpp": [0.5] * count,
        }
        data = ("{" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in columns.items()) + "}\n").encode()
        (folder / f"{name}.index.json").write_bytes(data)
        written += len(data)
        size = count * MEMBER + 10_240
        with (folder / f"{name}.tar").open("wb") as file:
            file.truncate(size)
        digest = hashlib.sha256(data).hexdigest()
        shards.append({"name": f"{name}.tar", "tiles": count, "bytes": size, "sha256": "0", "index_sha256": digest})
    manifest = {"format": FORMAT, "nucleate": "0", "source": "slides", "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return written


def resident() -> float:
    """Memory of this process, MB; Linux alone tells."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Do it, and print a row of what it took."""
    start, used = time.perf_counter(), time.process_time()
    result = work()
    elapsed, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{what:<44} {elapsed:9.2f} s {used:9.2f} s {resident():8.0f} MB {peak:8.0f} MB", flush=True)
    return result


def index_rows(folder: Path) -> None:
    """Time, memory and greatest memory of opening, and of what a training asks of all entries."""
    from translate.domains import DataSettings, open_domains

    timed("before", lambda: None)
    tiles = timed("open_tiles", lambda: open_tiles(folder))
    timed("describe", tiles.describe)
    settings = DataSettings(tissue=str(folder), masks="layout")
    timed("a training's domains, from nothing", lambda: open_domains(settings, 0, None, False))


def order_rows(tiles: int) -> None:
    """Microseconds per index."""
    mixed = [tiles // SOURCES + (k % 3) * 7 for k in range(SOURCES)]
    orders = {"one source": Order(0, "benchmark", [tiles]), "57 mixed": Order(0, "benchmark", mixed, [1] * SOURCES)}
    for name, order in orders.items():
        start = time.process_time()
        order(0)
        opened = time.process_time() - start
        for k in range(2 * SOURCES):
            order(k)
        best = float("inf")
        for turn in range(5):
            start = time.process_time()
            for k in range(turn * 20_000, (turn + 1) * 20_000):
                order(k)
            best = min(best, (time.process_time() - start) / 20_000)
        print(f"{name:<12} {1000 * opened:8.0f} ms for the first index {1e6 * best:7.2f} µs for each of the next")


def alone(work: Callable[..., None], *arguments: Any) -> None:
    """In a new process, whose memory then is that of the work."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1_000_000, help="tiles of the set; default: %(default)s")
    count = parser.parse_args().tiles
    print(f"{cpu_model()}, {os.cpu_count()} cores; {count} tiles in shards of {PER_SHARD}")
    with tempfile.TemporaryDirectory() as name:
        written = write_shards(Path(name), count)
        print(f"indices: {written / 1e6:.0f} MB, {written / count:.0f} bytes per tile")
        print(f"{'':<44} {'time':>11} {'CPU time':>11} {'resident':>11} {'peak':>11}")
        alone(index_rows, Path(name))
    alone(order_rows, count)


if __name__ == "__main__":
    main()
