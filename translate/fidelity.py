"""How like real tissue generated tissue is, and how varied: distances between sets of feature vectors.

Everything is a pure function of features, or a sum over batches that can be merged over processes, so that no image has
to be held. The networks that make the features are in `histo.features`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from histo.errors import InputError
from histo.randomness import draws

MOST_KEPT = 10_000  # feature vectors kept for KID; 80 MB of 2048 features


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of feature vectors; those of two sets add up to those of both.

    count: number of vectors.
    mean: float64 [D].
    scatter: float64 [D, D], Σ (f - mean)(f - mean)ᵀ, kept centred: sums of squares lose small variances to rounding.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """features: float [N, D], N of 1 or more."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        """Chan, Golub & LeVeque 1979, equation 2.1, for vectors."""
        count = self.count + other.count
        apart = other.mean - self.mean
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """Unbiased, float64 [D, D]; for 2 vectors or more."""
        return self.scatter / (self.count - 1)


def frechet(one: Moments, other: Moments) -> float:
    """Fréchet (2-Wasserstein) distance, squared, of the Gaussians with these moments.

    d² = |m₁ - m₂|² + tr(Σ₁) + tr(Σ₂) - 2 tr((Σ₁^½ Σ₂ Σ₁^½)^½)    (Dowson & Landau 1982; FID: Heusel et al. 2017,
    arXiv 1706.08500). The last trace is the sum of the singular values of Σ₂^½ Σ₁^½; taken so, and not from the
    eigenvalues of Σ₁ Σ₂, no root is taken of what rounding leaves of eigenvalues of zero.

    Raises:
        InputError: a set of fewer than two vectors, or features that are not finite.
    """
    for moments in (one, other):
        if moments.count < 2:
            raise InputError(f"A Fréchet distance got {moments.count} image, expected 2 or more a set; add images.")
        if not (moments.mean.isfinite().all() and moments.scatter.isfinite().all()):
            raise InputError("Some features are not finite; look for images of a diverged generator, or use fp32.")
    apart = (one.mean - other.mean).square().sum()
    first, second = one.covariance, other.covariance
    shared = torch.linalg.svdvals(_root(second) @ _root(first)).sum()
    # Below 0 only by rounding.
    return max(0.0, float(apart + first.trace() + second.trace() - 2 * shared))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix; eigenvalues within rounding of 0 are 0."""
    values, vectors = torch.linalg.eigh(covariance)
    least = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return (vectors * torch.where(values > least, values, 0).sqrt()) @ vectors.T


def refuse_few(real: int, generated: int, width: int, force: bool) -> None:
    """Refuse a FID that says more about the number of images than about them.

    With fewer images than features a covariance is singular, and FID is far too high (Chong & Forsyth, CVPR 2020,
    arXiv 1911.07023).

    Raises:
        InputError: fewer than 2 images on a side, or fewer than features without `force`.
    """
    fewest, side = (real, "real") if real <= generated else (generated, "generated")
    if fewest < 2:
        raise InputError(f"There is {fewest} {side} image, expected 2 or more on either side; add images.")
    if fewest < width and not force:
        raise InputError(
            f"There are {fewest} {side} images for {width} features, expected as many images as features or more, "
            "since FID depends on their number below that; add images, choose fewer features, or --force."
        )


class Kept:
    """Feature vectors by image index, at most `most`: those whose keyed draws are lowest.

    Which are kept depends on the indices alone, not on batches, order or processes.
    """

    def __init__(self, seed: int, most: int = MOST_KEPT) -> None:
        self.seed, self.most = seed, most
        self._rows: dict[int, tuple[float, Tensor]] = {}

    def __len__(self) -> int:
        return min(len(self._rows), self.most)

    def add(self, features: Tensor, indices: Sequence[int]) -> None:
        """features: float [N, D]; indices: their N image indices, each given once."""
        for row, index in zip(features.float(), indices, strict=True):
            self._rows[index] = (draws(self.seed, "kept features", index).random(), row)
        self._trim(2 * self.most)

    def merge(self, other: "Kept") -> None:
        """Take in what another process kept, of other indices."""
        self._rows |= other._rows
        self._trim(2 * self.most)

    @property
    def features(self) -> Tensor:
        """float32 [N, D], in the order of the indices."""
        self._trim(self.most)
        return torch.stack([self._rows[index][1] for index in sorted(self._rows)])

    def _trim(self, above: int) -> None:
        if len(self._rows) > above:
            self._rows = dict(sorted(self._rows.items(), key=lambda item: (item[1][0], item[0]))[: self.most])


@dataclass(frozen=True)
class KernelDistance:
    """KID: mean and standard deviation over subsets; no deviation where one subset is all there is."""

    mean: float
    deviation: float | None
    subsets: int
    size: int


def kid(real: Tensor, generated: Tensor, size: int = 1000, subsets: int = 100, seed: int = 0) -> KernelDistance:
    """Kernel distance: the unbiased MMD² with k(a, b) = (a·b / D + 1)³ (Bińkowski et al. 2018, arXiv 1801.01401,
    equation 4).

    Taken over subsets drawn without replacement; 0 on average for two sets of one distribution, so it may be below 0.

    Args:
        real, generated: float [N, D] and [M, D].
        size: vectors in a subset; lowered to the smaller set's where that has fewer. When it covers both sets, there is
            one subset.

    Raises:
        InputError: fewer than two vectors a set.
    """
    size = min(size, len(real), len(generated))
    if size < 2:
        raise InputError(f"KID got {size} image, expected 2 or more a set; add images.")
    if size == len(real) == len(generated):
        subsets = 1
    values = []
    for k in range(subsets):
        generator = draws(seed, "kid subset", k)
        parts = [features[generator.permutation(len(features))[:size]].double() for features in (real, generated)]
        values.append(_mmd2(*parts))
    spread = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(float(spread.mean()), float(spread.std()) if subsets > 1 else None, subsets, size)


def _mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD² of two sets of the same number of vectors, float64 [N, D]."""
    n, width = x.shape
    within = sum(gram.sum() - gram.trace() for gram in ((x @ x.T / width + 1) ** 3, (y @ y.T / width + 1) ** 3))
    return float(within / (n * (n - 1)) - 2 * ((x @ y.T / width + 1) ** 3).mean())


def mean_pairwise_distance(vectors: Tensor, norm: float = 2.0) -> float:
    """Mean distance over all pairs of K vectors, float [K, D], K of 2 or more, in the L1 or L2 norm.

    Over the renderings of one mask it measures how much styles differ: 0 for a generator that ignores them.
    """
    return float(torch.nn.functional.pdist(vectors.double().contiguous(), norm).mean())
