"""The best checkpoint of a run: the highest content agreement among those whose KID is as good as the best.

As good is a KID of at most k + max(0.1·|k|, σ), k being the lowest KID and σ the standard deviation of that one over
its subsets: the unbiased KID may be 0 or below, where a tenth of it would say nothing. Ties go to the lower KID, then
to the newer checkpoint. Content agreement is the Dice of the segmenter, or else of the watershed, as
`translate.agreement.measure` has it; where there is neither, the lowest KID is best.

A checkpoint is dominated by another whose KID is not higher and whose content agreement is not lower, the newer of two
that are alike. A dominated one never is the best: it is no better than the other and, if its KID is good enough, so is
the other's; nor does it set k and σ, which those of the other with the same k do. So it can be dropped at once, and the
best of those left is the best of all that ever were.
"""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from histo.errors import InputError
from histo.running import checkpoints
from histo.running.checkpoints import Checkpoint

KID, DEVIATION = "score/kid", "score/kid_deviation"
CONTENT = ("content/segmenter_dice", "content/watershed_dice")
SHARE = 0.1
CRITERION = "content agreement among checkpoints within 10 % (or a standard deviation) of the best KID"


@dataclass(frozen=True)
class Scored:
    """A scored checkpoint.

    values: what was measured, by its name in the log.
    basis: what its scores rest on; only those of one basis compare.
    """

    path: Path
    images: int
    values: dict[str, float]
    basis: str

    @classmethod
    def of(cls, path: Path, facts: dict[str, Any]) -> "Scored | None":
        """From a checkpoint's facts; None where it was not scored, or not with numbers."""
        scores = facts.get("scores")
        if not isinstance(scores, dict):
            return None
        values, basis = scores.get("values"), scores.get("basis")
        if not (isinstance(values, dict) and isinstance(basis, str) and KID in values):
            return None
        if not all(type(value) in (int, float) and isfinite(value) for value in values.values()):
            return None
        return cls(path, facts["images"], values, basis)

    @property
    def kid(self) -> float:
        """Kernel distance to real tissue."""
        return self.values[KID]

    @property
    def content(self) -> float:
        """Dice of the nuclei drawn and those found again, 0 where it was not measured."""
        return next((self.values[name] for name in CONTENT if name in self.values), 0.0)

    @property
    def sentence(self) -> str:
        """Where it stands, for people."""
        content = [f"{name} {self.values[name]:.3f}" for name in CONTENT if name in self.values]
        return f"{self.images} images, KID {self.kid:.4g}" + "".join(f", {each}" for each in content[:1])


def choose(scored: list[Scored]) -> Scored:
    """The best of one or more checkpoints of one basis."""
    reference = min(scored, key=lambda one: (one.kid, -one.content, -one.images))
    margin = max(SHARE * abs(reference.kid), reference.values.get(DEVIATION, 0.0))
    near = [one for one in scored if one.kid <= reference.kid + margin]
    return max(near, key=lambda one: (one.content, -one.kid, one.images))


def undominated(scored: list[Scored]) -> list[Scored]:
    """Those that may be the best of these and of whatever comes later."""
    return [one for one in scored if not any(_dominates(other, one) for other in scored)]


def spared(facts: dict[Path, dict[str, Any]]) -> set[Path]:
    """The checkpoints that have to be kept for the best not to be lost."""
    return {one.path for one in undominated(_comparable(facts))}


def load_best(folder: Path) -> tuple[Checkpoint, Scored] | None:
    """The best of the sound checkpoints in a folder; None where none is scored."""
    scored = _comparable(checkpoints.facts_of(folder))
    while scored:
        best = choose(scored)
        try:
            return checkpoints.load(best.path), best
        except InputError:  # damaged: the best of the rest
            scored.remove(best)
    return None


def _comparable(facts: dict[Path, dict[str, Any]]) -> list[Scored]:
    """Scored checkpoints, of the newest one's basis."""
    scored = [one for path, each in facts.items() if (one := Scored.of(path, each)) is not None]
    return [one for one in scored if one.basis == scored[-1].basis]


def _dominates(one: Scored, other: Scored) -> bool:
    if (one.kid, one.content) == (other.kid, other.content):
        return one.images > other.images
    return one.kid <= other.kid and one.content >= other.content
