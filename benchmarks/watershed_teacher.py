"""Score the watershed's pseudo-masks on labelled nuclei: `python benchmarks/watershed_teacher.py [--split train]`.

Reads the sets under $NUCLEATE_DATA/nuclei and prints a markdown table of AJI / PQ / Dice, each the mean over images,
for one fixed setting. The baseline rows are a 15-line scikit-image version over all images: HED haematoxylin, Gaussian
of 1.5 px, Otsu, opening, watershed from the peaks of the distance.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from histo.metrics import compare, mean_scores
from histo.tiles import open_tiles
from histo.watershed import segment

BASELINE = {
    "monuseg2018": (0.408, 0.349, 0.739),
    "tnbc_naylor": (0.465, 0.393, 0.718),
    "consep_patches": (0.299, 0.223, 0.654),
    "tcga_lgg_zhang": (0.637, 0.595, 0.864),
    "dsb2018_he": (0.481, 0.416, 0.810),
}
ASSUMED_MPP = {"dsb2018_he": 0.25}  # its µm/px is unknown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("all", "train", "test"), default="all")
    split = parser.parse_args().split
    data = os.environ.get("NUCLEATE_DATA")
    if data is None:
        sys.exit("NUCLEATE_DATA is unset; set it to the folder that holds nuclei/.")
    print("| set | images | baseline, all images | watershed | s per megapixel |\n|---|---|---|---|---|")
    for name, baseline in BASELINE.items():
        tiles = open_tiles(
            Path(data) / "nuclei" / name, mpp=ASSUMED_MPP.get(name), split=None if split == "all" else split
        )
        scores, seconds, pixels = [], 0.0, 0
        for tile in tqdm(tiles, desc=name, total=len(tiles), leave=False):
            assert tile.instances is not None, tile.key
            start = time.perf_counter()
            nuclei = segment(tile.image, tile.mpp)
            seconds += time.perf_counter() - start
            pixels += nuclei.size
            scores.append(compare(tile.instances, nuclei))
        mean = mean_scores(scores)
        row = " / ".join(f"{value:.3f}" for value in baseline)
        own = " / ".join(f"{mean[score]:.3f}" for score in ("aji", "pq", "dice"))
        print(f"| {name} | {len(scores)} | {row} | {own} | {seconds / pixels * 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    main()
