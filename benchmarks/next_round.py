"""Labels for a further round of self-training, from a network and the watershed, without human labels.

    python benchmarks/next_round.py RUN nuclei/monuseg2018 nuclei/tnbc_naylor --out LABELS

Plain self-training lets masks shrink from round to round, since a network that is unsure leaves pixels out. Here each
tile's threshold is the one at which the network finds as much nuclear area as the watershed does in that tile, and a
tile whose two maps agree by a Dice below --agreement is left out. Human labels, where tiles have some, are scored
against and not used.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import downstream
from histo.dense import PIXELS, SHARED
from histo.flows import FLOW_SCALE, instances_from
from histo.instance_networks import Flipped, InstanceNetwork
from histo.metrics import InstanceScores, compare, mean_scores
from histo.overlap import Corner, Grid, blend
from histo.tiles import Tile, TileSet, open_tiles
from histo.tiles.tables import write_folder
from histo.watershed import segment

LIMITS = (-4.0, 2.0)  # of a threshold; logits


def maps_of(network: InstanceNetwork, image: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Flows times FLOW_SCALE and logits of an image uint8 [3, H, W], means over flips: float32 [3, H, W]."""
    reader = Flipped(network)

    def look(windows: Tensor, corners: list[Corner]) -> Tensor:
        seen = reader(windows).dense
        assert seen is not None
        return seen

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        grid = Grid(side, side - side // SHARED)
        return np.concatenate([band for _, band in blend(look, image, grid, max(1, PIXELS // side**2))], 1)


def threshold_of(logits: NDArray[np.float32], share: float) -> float:
    """The logit above which this share of the pixels lies, within LIMITS."""
    return float(np.clip(np.quantile(logits, 1 - share), *LIMITS))


def labelled(
    network: InstanceNetwork, tiles: TileSet, side: int, agreement: float, said: dict[str, list[InstanceScores]]
) -> Iterator[Tile]:
    """The tiles with their new labels; what labels are worth is noted in `said`."""
    for tile in tqdm(tiles, total=len(tiles), desc=tiles[0].source, leave=False):
        watershed = segment(tile.image, tile.mpp)
        maps = maps_of(network, tile.image, side)
        flow, logits = maps[:2] / FLOW_SCALE, maps[2]
        found = instances_from(flow, logits, threshold=threshold_of(logits, float((watershed > 0).mean())))
        kept = compare(watershed, found).dice >= agreement
        if tile.instances is not None:
            rows = {"watershed": watershed, "network": instances_from(flow, logits), "of its area": found}
            for name, instances in rows.items():
                said.setdefault(name, []).append(compare(tile.instances, instances))
            if kept:
                said.setdefault("kept", []).append(said["of its area"][-1])
        if kept:
            yield replace(tile, instances=found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of task instances with flows, one seed of it")
    parser.add_argument("sets", type=Path, nargs="+", help="folders with a tiles.csv")
    parser.add_argument("--split", default="train", help="split of the tiles to label (default: train)")
    parser.add_argument("--assume_mpp", type=float, help="µm/px of sets that do not say")
    parser.add_argument("--agreement", type=float, default=0.5, help="least Dice with the watershed (default: 0.5)")
    parser.add_argument("--out", type=Path, required=True, help="folder in which each set gets its own")
    arguments = parser.parse_args()
    task = downstream.load(arguments.run)
    network = task.network
    assert isinstance(network, InstanceNetwork)
    print("| set | labels | tiles | AJI / PQ / Dice |\n|---|---|---|---|")
    for folder in arguments.sets:
        tiles = open_tiles(folder, mpp=arguments.assume_mpp, split=arguments.split)
        said: dict[str, list[InstanceScores]] = {}
        write_folder(
            labelled(network, tiles, int(task.card["tile_size"]), arguments.agreement, said),
            arguments.out / folder.name,
        )
        for name, scores in said.items():
            mean = mean_scores(scores)
            row = " / ".join(f"{mean[score]:.3f}" for score in ("aji", "pq", "dice"))
            print(f"| {folder.name} | {name} | {len(scores)} | {row} |", flush=True)


if __name__ == "__main__":
    main()
