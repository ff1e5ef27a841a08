"""How well could S do? The same S trained on pairs: tissue and the watershed's nuclei of that very tissue.

    python benchmarks/paired_control.py RUN [--images 8000]

Takes networks, data and seed from RUN's config. Translation never sees such pairs; the distance between this figure and
the translator's is what unpaired learning still loses, the rest is the teacher's.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import trange

from histo.codec import encode
from histo.crops import crop
from histo.guidance import semantic
from histo.randomness import draws
from histo.running.settings import read_settings
from histo.sampling import Order
from histo.tiles import Tile
from histo.watershed import segment
from translate.agreement import means, score_segmenter, score_watershed, to_unit
from translate.domains import open_domains
from translate.losses.cycle import cycle
from translate.methods.unitpath import Method, Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=8000)
    arguments = parser.parse_args()
    recipe = read_settings(Recipe, "", "", ["--config", str(arguments.run / "config.yaml")], arguments.run).settings
    accelerator = Accelerator(mixed_precision="bf16" if recipe.train.precision == "bf16" else "no")
    translator = Method(recipe, accelerator)
    domains = open_domains(recipe.data, recipe.seed, arguments.run / "pseudo-masks", progress=True)
    labelled: dict[int, Tile] = {}
    order = Order(recipe.seed, "tissue order", domains.target.sizes, domains.target.weights)
    segmenter, optimizer = translator.networks["segmenter"], translator.optimizers["translators"]
    for first in trange(0, arguments.images, recipe.train.batch_size):
        pairs = []
        for index in range(first, first + recipe.train.batch_size):
            shown = int(domains.target.shown[order(index)])
            if shown not in labelled:
                tile = domains.target.tiles[shown]
                nuclei = segment(tile.image, tile.mpp)
                labelled[shown] = Tile(tile.image, tile.key, tile.source, None, tile.mpp, None, None, nuclei)
            generator = draws(recipe.seed, "tissue crop", index)
            smallest = recipe.data.smallest_crop
            pairs.append(crop(labelled[shown], recipe.data.tile_size, generator, smallest_side=smallest))
        nuclei = np.stack([pair.instances for pair in pairs if pair.instances is not None])
        with accelerator.autocast():
            reading = segmenter(to_unit(np.stack([pair.image for pair in pairs])), True)
            assert reading.dense is not None
            drawn = to_unit(np.stack([encode(each) for each in nuclei]))
            foreground = semantic(reading.dense, torch.from_numpy(nuclei > 0)[:, None])
        loss = recipe.loss.cycle_mask * cycle(reading.mask, drawn) + recipe.loss.guidance * foreground
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    translator.averages["segmenter"].load_state_dict(segmenter.state_dict())
    tiles = [domains.target.holdout[k] for k in range(len(domains.target.holdout))]
    print(means("paired S", score_segmenter(tiles, translator)))
    print(means("watershed", score_watershed(tiles)))


if __name__ == "__main__":
    main()
