"""Scores of generated tissue: sums over two sets of images, and what a generator and its segmenter make of masks.

A `Score` is a number with the facts that tell which number it is. `translate/score.py` is the command; the functions
here take networks and batches, so that they can be called while a run trains.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from histo.features import Extractor
from histo.metrics import InstanceScores, compare
from histo.segmenters import Segmenter, instances_of
from histo.watershed import segment as segment_by_watershed
from translate.agreement import means, to_bytes
from translate.fidelity import Kept, Moments, frechet, kid, mean_pairwise_distance
from translate.rendering import MaskDraws, render
from translate.staining import Staining, stain_distance

CONTENT_IMAGES = 256  # the watershed takes longest, and the mean over these has settled
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


def compare_sets(real: SetSums, generated: SetSums, subset: int, subsets: int, seed: int) -> dict[str, Score]:
    """FID, KID and stain fidelity of two sets of 2 images or more.

    Args:
        subset, subsets: images in a subset of KID, and number of subsets.

    Raises:
        InputError: features that are not finite.
    """
    assert real.moments
    assert real.staining
    assert generated.moments
    assert generated.staining
    facts = {**real.extractor.facts, "real_images": real.count, "generated_images": generated.count}
    kernel = kid(real.kept.features, generated.kept.features, subset, subsets, seed)
    scores = {
        "fid": Score(frechet(real.moments, generated.moments), "squared distance", facts),
        "kid": Score(
            kernel.mean,
            "squared distance",
            {
                **facts,
                "deviation": kernel.deviation,
                "subsets": kernel.subsets,
                "subset_images": kernel.size,
                "seed": seed,
            },
        ),
    }
    for k, (stain, distance) in enumerate(stain_distance(real.staining, generated.staining).items()):
        about: dict[str, Any] = {"distance": "Wasserstein-1", "stain_matrix": "Ruifrok & Johnston 2001"}
        for name, staining in (("real", real.staining), ("generated", generated.staining)):
            about[f"{name}_tissue_pixels"] = staining.pixels
            if staining.pixels:
                about[f"{name}_mean"] = float(staining.mean[k])
                about[f"{name}_deviation"] = float(staining.deviation[k])
        scores[f"stain_{stain}"] = Score(distance, "optical density", about)
    return scores


def score_generator(
    generator: nn.Module,
    segmenter: Segmenter,
    masks: MaskDraws,
    generated: SetSums,
    images: int,
    *,
    batch: int,
    mpp: float | None,
    autocast: Callable[[], AbstractContextManager[Any]],
    progress: bool = True,
) -> dict[str, Score]:
    """Render `images` masks, each in a style of its own, into `generated`; content agreement and diversity on the way.

    Args:
        generator, segmenter: in evaluation mode, on one device.
        masks: where masks come from; its seed is that of the styles.
        batch: images rendered at a time.
        mpp: µm/px of the generated tissue; None leaves the watershed out.
        autocast: the precision of both networks.
    """
    found: dict[str, list[InstanceScores]] = {"segmenter": []}
    if mpp is not None:
        found["watershed"] = []
    for indices in batches(images, batch, "rendering", progress):
        nuclei, drawn = masks(indices)
        with torch.no_grad(), autocast():
            tissue = render(generator, drawn, masks.seed, "score style", indices)
            reading = segmenter(tissue)
        pictures = to_bytes(tissue)
        generated.add(torch.from_numpy(pictures), indices)
        for k, index in enumerate(indices):
            if index >= CONTENT_IMAGES:
                break
            found["segmenter"].append(compare(nuclei[k], instances_of(reading, k)))
            if mpp is not None:
                found["watershed"].append(compare(nuclei[k], segment_by_watershed(pictures[k], mpp)))
    scores = {
        name: Score(value, "share", {"images": len(each), "found_by": finder, "mpp": mpp})
        for finder, each in found.items()
        for name, value in means(f"content_{finder}", each).items()
    }
    return scores | _diversity(generator, masks, generated.extractor, min(images, DIVERSE_MASKS), autocast, progress)


def _diversity(
    generator: nn.Module,
    masks: MaskDraws,
    extractor: Extractor,
    count: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    progress: bool,
) -> dict[str, Score]:
    """Mean distance between renderings of one mask in several styles, averaged over masks."""
    pixels, features = 0.0, 0.0
    for (index,) in batches(count, 1, "styles", progress):
        _, drawn = masks([index])
        styles = range(index * DIVERSE_STYLES, (index + 1) * DIVERSE_STYLES)
        with autocast():
            tissue = render(generator, drawn.expand(DIVERSE_STYLES, -1, -1, -1), masks.seed, "score styles", styles)
        pictures = torch.from_numpy(to_bytes(tissue))
        pixels += mean_pairwise_distance(pictures.flatten(1), norm=1) / pictures[0].numel() / count
        features += mean_pairwise_distance(extractor(pictures)) / count
    facts = {"masks": count, "styles": DIVERSE_STYLES, "seed": masks.seed}
    return {
        "diversity_pixels": Score(pixels, "grey levels of 255", facts),
        "diversity_features": Score(features, "distance", {**extractor.facts, **facts}),
    }


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
