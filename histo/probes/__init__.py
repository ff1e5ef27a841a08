"""Probes: what a frozen encoder knows, read off its features.

| module | |
|---|---|
| `embedding` | tiles and encoder to features; the encoder is left as it was |
| `neighbours`, `linear` | classification by k nearest neighbours and by logistic regression |
| `splits` | parts of a set without a common patient |
| `geometry` | without labels: alignment, uniformity, spread, effective rank |
| `restaining` | how far an embedding follows the stain |
| `pixels` | a linear head on every pixel: where the nuclei are |

Features are float [N, D], classes int64 [N] from 0. Accuracy and the like are those of `histo.metrics.classification`.
"""

from histo.probes.embedding import embed, feature_width, fitted, frozen
from histo.probes.geometry import alignment, centred, effective_rank, spread, uniformity
from histo.probes.linear import Linear, choose_penalty, fit_chosen, fit_linear
from histo.probes.neighbours import knn
from histo.probes.pixels import PixelProbe, pyramid_of
from histo.probes.restaining import (
    Restained,
    Sensitivity,
    draw_stains,
    in_stains,
    like_targets,
    stain_sensitivity,
)
from histo.probes.splits import folds

__all__ = [
    "Linear",
    "PixelProbe",
    "Restained",
    "Sensitivity",
    "alignment",
    "centred",
    "choose_penalty",
    "draw_stains",
    "effective_rank",
    "embed",
    "feature_width",
    "fit_chosen",
    "fit_linear",
    "fitted",
    "folds",
    "frozen",
    "in_stains",
    "knn",
    "like_targets",
    "pyramid_of",
    "spread",
    "stain_sensitivity",
    "uniformity",
]
