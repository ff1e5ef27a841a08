"""The layout settings under which drawn maps measure as given maps do.

Each setting has a figure that answers to it, and is corrected until the figures of drawn maps of the same extent and
µm/px agree: indirect inference (Gouriéroux, Monfort and Renault 1993). So what overlaps, borders and pixels do to a
measurement they do to both sides.
"""

import math
from dataclasses import replace

from tqdm import tqdm

from histo.layouts import Layouts, LayoutSettings
from histo.layouts.measures import QUADRAT, Measures, measure

ROUNDS = 8
_NUCLEI = 4000  # drawn in a round; to compare, five times as many
_MAPS = (16, 150)
_LARGEST = 192.0  # µm; larger maps would take long and show nothing else
_ROWS = 2.0  # share of epithelium that clusters as much as this part of 1 in the variance of the density's field does


def fit(wanted: Measures, *, progress: bool = False) -> LayoutSettings:
    """Settings whose maps measure as wanted, as nearly as the model can.

    Maps without types do not tell stroma from epithelium, so both kinds get the same sizes and shapes. The share of
    epithelium stays at its default unless rows alone cluster more than the maps do; then there are fewer. What nothing
    measured answers to stays at its default: outlines, radii of the rows, maps without epithelium.

    Args:
        wanted: of the maps to resemble.
        progress: show a bar.
    """
    settings = LayoutSettings()
    shape = replace(
        settings.stroma,
        diameter=_limited(wanted.diameter, 1, 40),
        spread=_limited(wanted.spread, 0.02, 1),
        aspect=_limited(wanted.aspect, 1.02, 3),
        aspect_spread=_limited(wanted.aspect_spread, 0.05, 2),
        spindles=_limited(wanted.spindles, 0, 1),
    )
    variation = wanted.variation or 0.0
    settings = replace(
        settings,
        density=_limited(wanted.density, 50, 30_000),
        density_spread=settings.density_spread if wanted.variation is None else _log_spread(variation**2),
        stroma=shape,
        epithelial=shape,
    )
    for number in tqdm(range(ROUNDS), desc="fitting the layout", unit="round", disable=not progress):
        gain = min(1, 3 / (number + 1))
        settings = _corrected(settings, wanted, redraw(settings, wanted, number, _NUCLEI), gain)
    return settings


def compare(settings: LayoutSettings, wanted: Measures) -> Measures:
    """Measures of maps drawn from settings with a seed that the fit has not seen."""
    return redraw(settings, wanted, ROUNDS, 5 * _NUCLEI)


def redraw(settings: LayoutSettings, like: Measures, seed: int, nuclei: int) -> Measures:
    """Measures of about so many nuclei drawn from settings, in maps of the extent and µm/px of those measured."""
    height, width = (max(16, round(min(side, _LARGEST) / like.mpp)) for side in like.extent)
    area = height * width * like.mpp**2 / 1e6
    count = int(_limited(math.ceil(nuclei / (settings.density * area)), *_MAPS))
    maps = Layouts(settings, seed, size=(height, width), mpp=like.mpp, count=count)
    tiles = (maps[k] for k in range(count))
    return measure((tile.instances, like.mpp) for tile in tiles if tile.instances is not None)


def _corrected(settings: LayoutSettings, wanted: Measures, drawn: Measures, gain: float) -> LayoutSettings:
    """Each setting moved by what its own figure is off: ratios for scales, differences for shares and variances.

    The gain falls from round to round so that the noise of the drawn maps averages out (Robbins and Monro 1951).
    """

    def scaled(value: float, name: str, less: float = 0.0) -> float:
        have = getattr(drawn, name) - less
        ratio = (getattr(wanted, name) - less) / have if have > 0 else 2.0
        return value * _limited(ratio, 0.5, 2) ** gain

    shape = settings.stroma
    shape = replace(
        shape,
        diameter=_limited(scaled(shape.diameter, "diameter"), 1, 40),
        spread=_limited(scaled(shape.spread, "spread"), 0.02, 1),
        aspect=_limited(1 + scaled(shape.aspect - 1, "aspect", 1.0), 1.02, 3),
        aspect_spread=_limited(scaled(shape.aspect_spread, "aspect_spread"), 0.05, 2),
        spindles=_limited(shape.spindles + gain * (wanted.spindles - drawn.spindles), 0, 1),
    )
    density_spread = settings.density_spread
    if wanted.variation is not None and drawn.variation is not None:
        missing = (1 + wanted.variation**2) / (1 + drawn.variation**2)
        density_spread = _log_spread(math.exp(density_spread**2) * missing**gain - 1)
    # A log-Gaussian field of variance s² adds about s² times the mean count to the index of dispersion. Rows cluster
    # too: where they alone do so more than the maps, the field has no variance and fewer nuclei stand in rows.
    in_quadrat = wanted.density * (min(QUADRAT, min(wanted.extent) / 2) / 1e3) ** 2
    most = LayoutSettings().epithelium
    variance = settings.clustering**2 + (settings.epithelium - most) / _ROWS
    variance += gain * (wanted.dispersion - drawn.dispersion) / max(in_quadrat, 1)
    return replace(
        settings,
        density=_limited(scaled(settings.density, "density"), 50, 30_000),
        density_spread=density_spread,
        clustering=math.sqrt(_limited(variance, 0, 4)),
        epithelium=_limited(most + _ROWS * variance, 0, most),
        spacing=_limited(settings.spacing + gain * 0.6 * (drawn.touching - wanted.touching), 0.6, 4),
        stroma=shape,
        epithelial=shape,
    )


def _log_spread(relative_variance: float) -> float:
    """Standard deviation of the logarithm of a log-normal value from its variance over its mean squared."""
    return _limited(math.sqrt(math.log1p(max(relative_variance, 0.0))), 0, 1.5)


def _limited(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
