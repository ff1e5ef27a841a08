"""What stain transfer gains and what it costs: python benchmarks/stain_transfer.py RUN [--segmenter RUN]

RUN translated tissue into other tissue. On tissue of both sides that it never learned from, two tables: KID between
crops before and after the translation and crops of the target, with the target against itself as the floor; and
AJI / PQ / Dice of nuclei found in whole labelled images of the source, before and after.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import translate
from histo.features import open_extractor
from histo.metrics import compare, mean_scores
from histo.watershed import segment as segment_by_watershed
from translate.agreement import to_bytes, to_unit
from translate.comparison import SetSums, batches, compare_sets
from translate.domains import Domains, open_domains
from translate.inference import TrainedTranslator
from translate.rendering import FinishedRun, SourceDraws, TissueDraws, open_run, render

BATCH = 16
SUBSETS = 20  # of KID, of half of the crops each


def stains_and_kid(run: FinishedRun, domains: Domains, features: str, crops: int, seed: int) -> None:
    """Print the distances of crops to the target's."""
    extractor = open_extractor(features)
    names = ("target", "target again", "source", "source, translated")
    sums = {name: SetSums(extractor, seed) for name in names}
    targets = TissueDraws(domains.target.seen, run.recipe.data, seed)
    sources = SourceDraws(domains.source.seen, run.recipe.data, seed)
    for indices in batches(crops, BATCH, "crops", progress=True):
        sums["target"].add(targets(indices), indices)
        sums["target again"].add(targets([crops + k for k in indices]), indices)
        before = np.stack([tile.image for tile in sources(indices)])
        after = to_bytes(render(run.generator, to_unit(before), seed, "stain transfer", indices))
        sums["source"].add(torch.from_numpy(before), indices)
        sums["source, translated"].add(torch.from_numpy(after), indices)
    print(f"\n{crops} crops of {run.recipe.data.tile_size} px each; features: {features}, SHA-256 ", end="")
    print(f"{extractor.facts['weights_sha256'][:12]}…\n\n| against the target | KID | haematoxylin | eosin |")
    print("|---|---|---|---|")
    for name in names[1:]:
        scores = compare_sets(sums["target"], sums[name], crops // 2, SUBSETS, seed, fid=False)
        kid, deviation = scores["kid"].value, scores["kid"].facts["deviation"]
        stains = " | ".join(f"{scores[f'stain_{stain}'].value:.3f}" for stain in ("haematoxylin", "eosin"))
        print(f"| {name} | {kid:.4f} ± {deviation:.4f} | {stains} |")


def nuclei(restainer: TrainedTranslator, domains: Domains, segmenter: Path | None) -> None:
    """Print how well nuclei are found before and after."""
    finders: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.int32]]] = {}
    mpp = restainer.mpp
    assert mpp is not None
    finders["watershed"] = lambda image: segment_by_watershed(image, mpp)
    if segmenter is not None:
        finders[f"S of {segmenter.name}"] = translate.load(segmenter).segment
    found: dict[str, list[list]] = {name: [[], []] for name in finders}
    tiles = domains.source.seen
    for k in tqdm(range(len(tiles)), desc="images", unit="img"):
        tile = tiles[k]
        assert tile.instances is not None, tile.key
        for place, image in enumerate((tile.image, restainer.restain(tile.image))):
            for name, find in finders.items():
                found[name][place].append(compare(tile.instances, find(image)))
    print(f"\n| nuclei by ({len(tiles)} images) | before | after |\n|---|---|---|")
    for name, both in found.items():
        means = [mean_scores(scores) for scores in both]
        row = " | ".join(" / ".join(f"{mean[score]:.3f}" for score in ("aji", "pq", "dice")) for mean in means)
        print(f"| {name} | {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder that had --data.target")
    parser.add_argument("--segmenter", type=Path, help="run folder whose S also looks for nuclei")
    parser.add_argument("--features", default="timm:resnet18", help="as of translate/score.py (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=512, help="crops of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of crops and of KID's subsets (default: %(default)s)")
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    domains = open_domains(run.recipe.data, run.recipe.seed, run.folder.path / "pseudo-masks", progress=True)
    stains_and_kid(run, domains, arguments.features, arguments.crops, arguments.seed)
    nuclei(translate.load(arguments.run), domains, arguments.segmenter)


if __name__ == "__main__":
    main()
