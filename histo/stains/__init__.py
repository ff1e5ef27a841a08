"""Colour of H&E tissue as amounts of stain: deconvolution, estimation of the stains, normalisation, jitter.

By the Beer–Lambert law light is dimmed exponentially, so what dims it adds up over the stains:

    -log(I / white) = C @ M,    rows of M: the colour of one stain at concentration 1.

Everything is batched, runs on the device of its input in float32 (also under autocast) and loops over no images.
Images are RGB `[N, 3, H, W]` with levels of 0 to 255. A stain matrix is `[3, 3]` or one per image `[N, 3, 3]`: rows
haematoxylin, eosin and a third that takes what these two leave unexplained; columns red, green, blue.

| module | |
|---|---|
| `deconvolution` | amounts of stain by a given matrix, and back; decadic logarithms, as scikit-image has them |
| `depth` | optical depth (natural logarithms, as estimation and normalisation have them) and its affine maps |
| `status` | which image got what, and which images are left as they are |
| `estimation`, `factorisation` | the stain matrix of an image after Macenko, after Vahadane |
| `normalisation` | images in the colours of a target: Macenko, Vahadane, Reinhard, histogram matching; restaining |
| `lab`, `histograms` | the two methods that know no stains |
| `jitter` | HED jitter and stain augmentation |
"""

from histo.dyes import HED
from histo.stains.deconvolution import (
    concentrations,
    fixed_matrix,
    from_optical_density,
    optical_density,
    recompose,
)
from histo.stains.estimation import StainEstimate, macenko
from histo.stains.factorisation import vahadane
from histo.stains.jitter import Jitter, augment_stains, draw_jitter, jitter_hed
from histo.stains.normalisation import (
    METHODS,
    Appearance,
    Normalised,
    distinct,
    measure,
    normalise,
    picked,
    restain,
    target_of,
)
from histo.stains.status import Status

__all__ = [
    "HED",
    "METHODS",
    "Appearance",
    "Jitter",
    "Normalised",
    "StainEstimate",
    "Status",
    "augment_stains",
    "concentrations",
    "distinct",
    "draw_jitter",
    "fixed_matrix",
    "from_optical_density",
    "jitter_hed",
    "macenko",
    "measure",
    "normalise",
    "optical_density",
    "picked",
    "recompose",
    "restain",
    "target_of",
    "vahadane",
]
