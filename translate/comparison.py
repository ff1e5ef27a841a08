"""Scores of generated tissue: sums over two sets of images, and what is found again of what a generator was shown.

A `Score` is a number with the facts that tell which number it is. `translate/score.py` is the command; the functions
here take networks and batches, so that they can be called while a run trains.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from histo.features import Extractor
from histo.metrics import InstanceScores, compare
from histo.segmenters import Reader, instances_of
from histo.watershed import segment as segment_by_watershed
from translate.agreement import means, to_bytes, to_unit
from translate.fidelity import Kept, Moments, frechet, kid, mean_pairwise_distance
from translate.rendering import CONTENT_IMAGES, MaskDraws, SourceDraws
from translate.staining import Staining, stain_distance

Draw = Callable[[Tensor, str, list[int]], Tensor | None]  # as translate.engine.Translator.to_target
DIVERSE_MASKS, DIVERSE_STYLES = 32, 4


@dataclass(frozen=True)
class Score:
    """value: None where there was nothing to measure; unit: what it counts; facts: what JSON can hold."""

    value: float | None
    unit: str
    facts: dict[str, Any] = field(default_factory=dict)


class SetSums:
    """What is kept of a set of images: moments and some of their features, and the distribution of their stains.

    Sums of disjoint parts of a set, made by several processes, are merged.
    """

    def __init__(self, extractor: Extractor, seed: int) -> None:
        self.extractor = extractor
        self.moments: Moments | None = None
        self.kept = Kept(seed)
        self.staining: Staining | None = None
        self.sizes: set[tuple[int, ...]] = set()

    def add(self, images: Tensor | list[Tensor], indices: Sequence[int]) -> None:
        """One batch: uint8 [N, 3, H, W] RGB, or N images of several sizes; indices: of each in its set, given once."""
        features = self.extractor(images)
        stains = [images] if isinstance(images, Tensor) else [image[None] for image in images]
        for batch in stains:
            self.sizes.add(tuple(batch.shape[2:]))
            self.staining = _sum(self.staining, Staining.of(batch))
        self.moments = _sum(self.moments, Moments.of(features))
        self.kept.add(features, indices)

    def merge(self, other: "SetSums") -> None:
        """Take in another part of the set, by the same extractor and seed."""
        self.moments, self.staining = _sum(self.moments, other.moments), _sum(self.staining, other.staining)
        self.kept.merge(other.kept)
        self.sizes |= other.sizes

    @property
    def count(self) -> int:
        """Images."""
        return self.moments.count if self.moments else 0


def compare_sets(
    real: SetSums, generated: SetSums, subset: int, subsets: int, seed: int, fid: bool = True
) -> dict[str, Score]:
    """FID, KID and stain fidelity of two sets of 2 images or more.

    Args:
        subset, subsets: images in a subset of KID, and number of subsets.
        fid: False leaves it out.

    Raises:
        InputError: features that are not finite.
    """
    assert real.moments
    assert real.staining
    assert generated.moments
    assert generated.staining
    facts = {**real.extractor.facts, "real_images": real.count, "generated_images": generated.count}
    kernel = kid(real.kept.features, generated.kept.features, subset, subsets, seed)
    scores = {}
    if fid:
        scores["fid"] = Score(frechet(real.moments, generated.moments), "squared distance", facts)
    scores["kid"] = Score(
        kernel.mean,
        "squared distance",
        {**facts, "deviation": kernel.deviation, "subsets": kernel.subsets, "subset_images": kernel.size, "seed": seed},
    )
    for k, (stain, distance) in enumerate(stain_distance(real.staining, generated.staining).items()):
        about: dict[str, Any] = {"distance": "Wasserstein-1", "stain_matrix": "Ruifrok & Johnston 2001"}
        for name, staining in (("real", real.staining), ("generated", generated.staining)):
            about[f"{name}_tissue_pixels"] = staining.pixels
            if staining.pixels:
                about[f"{name}_mean"] = float(staining.mean[k])
                about[f"{name}_deviation"] = float(staining.deviation[k])
        scores[f"stain_{stain}"] = Score(distance, "optical density", about)
    return scores


@torch.no_grad()
def score_generator(
    draw: Draw,
    reader: Reader | None,
    sources: MaskDraws | SourceDraws,
    generated: SetSums,
    images: int,
    *,
    batch: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    styles: bool,
    content: bool = True,
    progress: bool = True,
) -> dict[str, Score]:
    """Translate `images` sources, each in a style of its own, into `generated`; content agreement and diversity on the
    way, as far as there are nuclei to compare, networks to find them, and styles.

    Args:
        draw: source images → target images, float in [-1, 1], each in the style of its index.
        reader: finds nuclei in target images; in evaluation mode.
        sources: where source images come from.
        batch: images translated at a time.
        device: of the networks.
        autocast: the precision of the networks.
        styles: whether there are any; without, diversity is left out.
        content: False leaves content agreement out.
    """
    found: dict[str, list[InstanceScores]] = {"segmenter": [], "watershed": []}
    for indices in batches(images, batch, "rendering", progress):
        tiles = sources(indices)
        with autocast():
            drawn = draw(_unit([tile.image for tile in tiles]).to(device), "score style", indices)
            assert drawn is not None
            reading = reader(drawn) if content and reader is not None else None
        pictures = to_bytes(drawn)
        generated.add(torch.from_numpy(pictures), indices)
        for k, (index, tile) in enumerate(zip(indices, tiles, strict=True)):
            if not content or index >= CONTENT_IMAGES or tile.instances is None:
                continue
            if reading is not None:
                found["segmenter"].append(compare(tile.instances, instances_of(reading, k)))
            if tile.mpp is not None:
                found["watershed"].append(compare(tile.instances, segment_by_watershed(pictures[k], tile.mpp)))
    scores = {
        name: Score(
            value, "share", {"images": len(each), "truth": sources.TRUTH, "found_by": finder, "mpp": sources.mpp}
        )
        for finder, each in found.items()
        if each
        for name, value in means(f"content_{finder}", each).items()
    }
    if styles:
        scores |= _diversity(draw, sources, generated.extractor, min(images, DIVERSE_MASKS), device, autocast)
    return scores


def _diversity(
    draw: Draw,
    sources: MaskDraws | SourceDraws,
    extractor: Extractor,
    count: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> dict[str, Score]:
    """Mean distance between renderings of one source in several styles, averaged over sources."""
    pixels, features = 0.0, 0.0
    for index in range(count):
        styles = list(range(index * DIVERSE_STYLES, (index + 1) * DIVERSE_STYLES))
        source = _unit([sources([index])[0].image]).to(device)
        with autocast():
            drawn = draw(source.expand(DIVERSE_STYLES, -1, -1, -1), "score styles", styles)
        assert drawn is not None
        pictures = torch.from_numpy(to_bytes(drawn))
        pixels += mean_pairwise_distance(pictures.flatten(1), norm=1) / pictures[0].numel() / count
        features += mean_pairwise_distance(extractor(pictures)) / count
    facts = {"masks": count, "styles": DIVERSE_STYLES, "seed": sources.seed}
    return {
        "diversity_pixels": Score(pixels, "grey levels of 255", facts),
        "diversity_features": Score(features, "distance", {**extractor.facts, **facts}),
    }


def describe(facts: dict[str, Any]) -> str:
    """One line on the features that a score rests on, from an extractor's facts."""
    return (
        f"{facts['features']} features of {facts['extractor']}, weights {facts['weights']} "
        f"(SHA-256 {facts['weights_sha256'][:12]}…), resized {facts['resize']}, {facts['precision']}"
    )


def _unit(images: list[np.ndarray]) -> Tensor:
    return to_unit(np.stack(images))


def batches(count: int, size: int, what: str, progress: bool) -> Iterator[list[int]]:
    """The indices 0 to count - 1 in runs of `size`, with a bar."""
    with tqdm(total=count, desc=what, unit="img", disable=not progress) as bar:
        for first in range(0, count, size):
            indices = list(range(first, min(first + size, count)))
            yield indices
            bar.update(len(indices))


def _sum(one: Any, other: Any) -> Any:
    """The sum of two of a kind, of which either may be missing."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
