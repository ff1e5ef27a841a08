"""Scores while a run trains: what its averaged networks draw, against real tissue, as numbers for the log.

Sources, styles and crops are pure in (seed, index), the same at every score and in every life of the run, so that a
resumed run logs the same numbers and those of two image counts differ by the weights alone.
"""

from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from histo.errors import InputError
from histo.features import Extractor, open_extractor
from translate.agreement import to_unit
from translate.comparison import SetSums, batches, compare_sets, describe, score_generator
from translate.domains import Domains
from translate.engine import Translator
from translate.recipe import Recipe
from translate.rendering import TissueDraws, has_styles, source_draws

BATCH = 16  # images at a time, whatever the training's batch: scores must not depend on it
SUBSETS = 20  # of KID, each of half of the images, so that there is a deviation


def training_extractor(recipe: Recipe, accelerator: Accelerator) -> Extractor:
    """The features of a run's scores; random weights are those of seed 0, the same for every run.

    Raises:
        InputError: as of `histo.features.open_extractor`.
    """
    weights = recipe.scores.weights
    return open_extractor(recipe.scores.features, weights=Path(weights) if weights else None, device=accelerator.device)


class TrainingScorer:
    """The scores of one run.

    Args:
        mpp: µm/px of what is drawn, None where unknown.
        progress: show a bar while the real tissue is looked at, which is done once.

    Raises:
        InputError: features that cannot be had or are not finite, a method that draws no target images, a tile that
            cannot be read.
    """

    def __init__(self, domains: Domains, translator: Translator, mpp: float | None, progress: bool) -> None:
        recipe = translator.recipe
        self.images, self.seed = recipe.scores.images, recipe.seed
        self.extractor = training_extractor(recipe, translator.accelerator)
        self.sources = source_draws(domains, recipe.data, self.seed, mpp)
        if not self._draws(translator):
            raise InputError(
                f"scores.every is {recipe.scores.every}, but this run draws no tissue to be scored, only the way back "
                "to its source; leave it 0."
            )
        self.real = SetSums(self.extractor, self.seed)
        crops = TissueDraws(domains.target.seen, recipe.data, self.seed)
        for indices in batches(self.images, BATCH, "real tissue for scores", progress):
            self.real.add(crops(indices), indices)
        assert self.real.moments
        if not self.real.moments.mean.isfinite().all():
            raise InputError(
                f"Some of the features {recipe.scores.features} of real tissue are not finite; choose other "
                "scores.features or weights."
            )

    @property
    def basis(self) -> str:
        """What the scores rest on; only those of one basis compare."""
        return f"{self.images} images, {describe(self.extractor.facts)}"

    def __call__(self, translator: Translator) -> dict[str, float]:
        """`score/kid` and its deviation over subsets, `score/fid` where there are images enough, `score/stain_…`, and
        `score/diversity_…` where there are styles. Draws no random number but by index, and changes nothing."""
        accelerator = translator.accelerator
        generated = SetSums(self.extractor, self.seed)
        drawn = score_generator(
            translator.to_target,
            None,
            self.sources,
            generated,
            self.images,
            batch=BATCH,
            device=accelerator.device,
            autocast=accelerator.autocast,
            styles=has_styles(translator.averages.get("generator")),
            content=False,
            progress=False,
        )
        enough = self.images >= self.extractor.width
        compared = compare_sets(self.real, generated, self.images // 2, SUBSETS, self.seed, fid=enough)
        values = {f"score/{name}": score.value for name, score in (compared | drawn).items()}
        values["score/kid_deviation"] = compared["kid"].facts["deviation"]
        return {name: value for name, value in values.items() if value is not None and isfinite(value)}

    @torch.no_grad()
    def _draws(self, translator: Translator) -> bool:
        source = to_unit(self.sources([0])[0].image[None]).to(translator.accelerator.device)
        with translator.accelerator.autocast():
            return translator.to_target(source, "score style", [0]) is not None

    def facts(self, values: dict[str, float]) -> dict[str, Any]:
        """What a checkpoint keeps of its scores."""
        return {"values": values, "basis": self.basis}
