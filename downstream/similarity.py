"""Similarity of images by class, whatever their magnification: the losses and batches of SMSE.

Sun, Huang, Wang, Zhou and Zhang, "SMSE: similarity-based multi-scale embeddings" (arXiv 2107.01063). Of the paper only
the abstract is public, with neither formulae nor figures, so what stands here is ours and is labelled so in outputs.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histo.errors import InputError
from histo.randomness import draws

NAME = "RFL (ours)"  # of the reinforced focal loss in outputs: the paper's own formula is not known
Punishment = Callable[[Tensor], Tensor]  # of the probabilities of what is true, elementwise


def reinforced_focal(true: Tensor, theta: float = 0.5, gamma: float = 2.0) -> Tensor:
    """−((1 − p) / (1 − θ))^γ · log p: images that are wrong count for more than 1, those that are right for less.

    At p = θ it is cross-entropy, at γ = 0 it is that everywhere, and θ = 0 is the focal loss.

    Args:
        true: float, the probability p of what is true, in (0, 1].
        theta: in [0, 1).
        gamma: 0 or more.

    Returns:
        float, of the shape of `true`, 0 or more.
    """
    return -(((1 - true) / (1 - theta)) ** gamma) * true.clamp_min(torch.finfo(true.dtype).tiny).log()


def punishment(kind: Literal["rfl", "focal", "cross_entropy"], theta: float, gamma: float) -> tuple[str, Punishment]:
    """How what is wrong is punished, and its name in outputs; the paper's formula would be another kind."""
    if kind == "rfl":
        return f"{NAME}, θ {theta:g}, γ {gamma:g}", partial(reinforced_focal, theta=theta, gamma=gamma)
    if kind == "focal":
        return f"focal loss, γ {gamma:g}", partial(reinforced_focal, theta=0.0, gamma=gamma)
    return "cross-entropy", partial(reinforced_focal, theta=0.0, gamma=0.0)


def root_weights(counts: Tensor) -> Tensor:
    """Weights of classes α ∝ 1 / √n, of mean 1 over classes, which batches hold alike.

    Args:
        counts: int64 [C], training images of each class, 1 or more.

    Returns:
        float32 [C].
    """
    found = counts.float().rsqrt()
    return found / found.mean()


def pair_loss(similarity: Tensor, numbers: Tensor, punished: Punishment = reinforced_focal) -> Tensor:
    """The mean punishment over all ordered pairs, of which those of one class weigh as much as the others.

    Args:
        similarity: float [N, N], the logit of "i and j are of one class".
        numbers: int64 [N], classes.
        punished: what the probability of the true answer costs.

    Returns:
        float, a scalar; 0 where all images are of one class, or no two.
    """
    same = numbers[:, None] == numbers
    apart = ~torch.eye(len(numbers), dtype=torch.bool, device=numbers.device)
    probability = torch.sigmoid(torch.where(same, similarity.float(), -similarity.float()))
    each = punished(probability)
    kinds = [each[same & apart], each[~same]]
    if not all(len(kind) for kind in kinds):
        return each.sum() * 0
    return 0.5 * (kinds[0].mean() + kinds[1].mean())


def contrastive_loss(embeddings: Tensor, numbers: Tensor, margin: float = 1.0) -> Tensor:
    """y · d² + (1 − y) · max(0, m − d)² over all pairs (Hadsell et al., CVPR 2006), both kinds weighing alike.

    Args:
        embeddings: float [N, D] of length 1; d is their Euclidean distance.
        numbers: int64 [N], classes.

    Returns:
        float, a scalar; 0 where all images are of one class, or no two.
    """
    same = numbers[:, None] == numbers
    apart = ~torch.eye(len(numbers), dtype=torch.bool, device=numbers.device)
    squared = (2 - 2 * embeddings.float() @ embeddings.float().T).clamp_min(1e-12)
    near, far = squared[same & apart], (margin - squared[~same].sqrt()).clamp_min(0) ** 2
    if not (len(near) and len(far)):
        return squared.sum() * 0
    return 0.5 * (near.mean() + far.mean())


def triplet_loss(embeddings: Tensor, triplets: Tensor, margin: float = 0.2) -> Tensor:
    """Mean of max(0, |a − p|² − |a − n|² + margin).

    Args:
        embeddings: float [N, D].
        triplets: int64 [T, 3], positions of anchors, positives and negatives.

    Returns:
        float, a scalar; 0 without triplets.
    """
    if not len(triplets):
        return embeddings.sum() * 0
    anchor, positive, negative = (embeddings.float()[triplets[:, k]] for k in range(3))
    return F.triplet_margin_with_distance_loss(
        anchor, positive, negative, distance_function=lambda one, other: (one - other).square().sum(1), margin=margin
    )


def nearest_prototype(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """The class whose mean embedding has the largest cosine similarity.

    Args:
        train: float [N, D], embeddings whose class is known; labels: int64 [N], every class among them.
        test: float [M, D].
        classes: how many there are.

    Returns:
        int64 [M].
    """
    means = torch.stack([train[labels == number].mean(0) for number in range(classes)])
    return (test @ F.normalize(means, dim=1).T).argmax(1)


def draw_triplets(
    numbers: NDArray[np.integer],
    scales: NDArray[np.integer],
    patients: Sequence[Hashable],
    seed: int,
    batch: int,
) -> NDArray[np.int64]:
    """One triplet for every anchor and magnification of positives, pure in (seed, batch).

    With probability one half a positive is of another patient where there is one; negatives are of the anchor's own
    magnification where there is one. So neither a patient nor a magnification tells the classes apart.

    Args:
        numbers: [N], classes; scales: [N], magnifications as numbers; patients: [N].

    Returns:
        int64 [T, 3], positions of anchor, positive and negative.
    """
    generator = draws(seed, "triplets", batch)
    numbers_of = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    owner = np.array([numbers_of[patient] for patient in patients])
    found = []
    for anchor in range(len(numbers)):
        others = np.flatnonzero(numbers != numbers[anchor])
        like = others[scales[others] == scales[anchor]]
        for scale in np.unique(scales):
            positives = np.flatnonzero((numbers == numbers[anchor]) & (scales == scale))
            positives = positives[positives != anchor]
            strangers = positives[owner[positives] != owner[anchor]]
            elsewhere = bool(generator.integers(2))
            chosen = strangers if elsewhere and len(strangers) else positives
            if not len(chosen) or not len(others):
                continue
            negatives = like if len(like) else others
            found.append((anchor, int(generator.choice(chosen)), int(generator.choice(negatives))))
    return np.array(found, dtype=np.int64).reshape(-1, 3)


class ClassOrder:
    """Batches of P classes × M magnifications × K images: which tile, at which magnification, an image index shows.

    Each of the K parts of a batch holds every class and magnification once, so that processes which share a batch have
    them alike.

    Args:
        numbers: int64 [N], the class of each tile.
        scales: bool [N, S], at which of S magnifications a tile can be shown.
        classes, magnifications, images: P, M and K of a batch.
        seed: of the draws; the place at an index depends on nothing else.

    Raises:
        InputError: fewer classes than P or magnifications than M, or a class without a tile at one of them.
    """

    def __init__(
        self,
        numbers: NDArray[np.int64],
        scales: NDArray[np.bool_],
        classes: int,
        magnifications: int,
        images: int,
        seed: int,
    ) -> None:
        self.numbers, self.scales, self.seed = numbers, scales, seed
        self.classes, self.magnifications, self.images = classes, magnifications, images
        known = np.unique(numbers)
        if len(known) < classes or scales.shape[1] < magnifications:
            raise InputError(
                f"smse.classes is {classes} and smse.magnifications {magnifications}, but the tiles have {len(known)} "
                f"classes and {scales.shape[1]} magnifications; lower them."
            )
        self.groups = {
            (int(number), scale): np.flatnonzero((numbers == number) & scales[:, scale])
            for number in known
            for scale in range(scales.shape[1])
        }
        for (number, scale), having in self.groups.items():
            if not len(having):
                raise InputError(
                    f"Class number {number} has no tile at magnification number {scale}, expected some at each; leave "
                    "that magnification or class out."
                )
        self.known = known

    @property
    def batch(self) -> int:
        """Images of a batch."""
        return self.classes * self.magnifications * self.images

    def __call__(self, index: int) -> tuple[int, int]:
        """The tile and the number of the magnification at a global image index."""
        number, place = divmod(index, self.batch)
        third, rest = divmod(place, self.classes * self.magnifications)
        first, second = divmod(rest, self.magnifications)
        generator = draws(self.seed, "smse batch", number)
        label = int(generator.permutation(self.known)[first])
        scale = int(generator.permutation(self.scales.shape[1])[second])
        group = self.groups[label, scale]
        own = draws(self.seed, f"smse tiles {label} {scale}", number)
        # Each tile at most once as long as there are enough.
        rounds = [own.permutation(group) for _ in range(-(-self.images // len(group)))]
        return int(np.concatenate(rounds)[third]), scale
