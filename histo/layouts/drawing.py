"""One layout: rows of epithelium first, then scattered stroma, each nucleus where it overlaps least.

After the polygon prior of Hou et al. (CVPR 2019): a nucleus is placed up to 51 times, the least overlapping place is
kept, and later nuclei never cover earlier ones. Where Hou warps the whole canvas so that neighbours resemble each
other, smooth fields give them a common size and direction.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histo.layouts.outlines import Points, covered, draw_outline, draw_sizes, reach
from histo.layouts.settings import LayoutSettings
from histo.phantom.noise import SmoothField

STROMA, EPITHELIUM = 1, 2
_RETRIES = 50
_CLUSTER = 25.0  # µm between the knots of the density's field
_KINSHIP = 50.0  # µm between the knots of the fields of size and direction
_TURN = np.deg2rad(20)  # rows: the long axis is normal to the arc up to this
_GIVE = 0.1  # rows: share of a nucleus that may lie under its neighbours without another try; cells there are squeezed
_CROWDED = 0.2  # a row is put elsewhere when more of its places are taken
_HIDDEN = 0.5  # a nucleus with more than this share under others is left out
_LEAST_PIXELS = 3


def draw_layout(
    generator: np.random.Generator, settings: LayoutSettings, shape: tuple[int, int], mpp: float, swing: float
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """An instance map int32 [H, W] with ids 1…K, at least one, and the types uint8 [K + 1] of its nuclei.

    Nuclei cut by the border are there as in any tile, for the field that is drawn is wider than the map.

    Args:
        shape: height and width, pixels.
        mpp: µm/px.
        swing: how much denser than most the map is; standard deviations of the density's logarithm.
    """
    kinds = (settings.stroma, settings.epithelial)
    margin = 2 * max(kind.diameter for kind in kinds)
    canvas = _Canvas(shape, mpp, margin, max(map(reach, kinds)))
    fields = _Fields(*(SmoothField(generator, canvas.extent, grain) for grain in (_CLUSTER, _KINSHIP, _KINSHIP)))
    area = canvas.extent[0] * canvas.extent[1] / 1e6
    # The mean over maps, not the median, is the density asked for.
    spread = settings.density_spread
    number = max(1, round(settings.density * area * np.exp(spread * swing - spread**2 / 2)))
    in_rows = 0
    if generator.uniform() >= settings.without_epithelium:
        in_rows = round(settings.epithelium * number)
    _draw_rows(generator, settings, canvas, fields, in_rows)
    _scatter(generator, settings, canvas, fields, number - in_rows)
    instances, types = canvas.map()
    if len(types) == 1:  # a field small enough to hold none by chance; nothing hides a nucleus in its middle
        middle = np.array(canvas.extent) / 2
        outline = draw_outline(generator, settings.stroma, settings.stroma.diameter, 1.0, 0.0)
        canvas.place(outline, middle[None], STROMA, 0)
        instances, types = canvas.map()
    return instances, types


@dataclass(frozen=True)
class _Fields:
    """Smooth functions of the place: logarithm of the density, size and direction, each of variance 1."""

    density: SmoothField
    size: SmoothField
    direction: SmoothField


class _Canvas:
    """The map with room around it: centres lie up to `margin` µm outside, outlines `apron` µm further."""

    def __init__(self, shape: tuple[int, int], mpp: float, margin: float, apron: float) -> None:
        self.shape, self.mpp = shape, mpp
        self.margin, self.apron = int(np.ceil(margin / mpp)), int(np.ceil(apron / mpp)) + 2
        self.extent = ((shape[0] + 2 * self.margin) * mpp, (shape[1] + 2 * self.margin) * mpp)
        border = 2 * (self.margin + self.apron)
        self.instances = np.zeros((shape[0] + border, shape[1] + border), np.int32)
        self.types = [0]

    def holds(self, places: Points) -> NDArray[np.bool_]:
        """Which places, float64 [N, 2] in µm, may be centres."""
        return np.asarray(((places >= 0) & (places < self.extent)).all(axis=1))

    def taken(self, places: Points) -> NDArray[np.bool_]:
        """Which places, float64 [N, 2] in µm and held, lie in a nucleus."""
        pixels = (places / self.mpp).astype(int) + self.apron
        return self.instances[pixels[:, 0], pixels[:, 1]] > 0

    def place(self, outline: Points, places: Points, kind: int, give: float) -> bool:
        """Draw a nucleus at the first of some places with no more than the share `give` under others, or at the best.

        Args:
            outline: float64 [V, 2] in µm about (0, 0).
            places: float64 [P, 2] in µm, held by the canvas.

        Returns:
            Whether it was drawn; it is not where more than half of it would be hidden.
        """
        rows, columns = covered(outline / self.mpp)
        if not len(rows):
            return False
        width = self.instances.shape[1]
        flat, offsets = self.instances.reshape(-1), rows * width + columns
        pixels = (places / self.mpp).astype(int) + self.apron
        least, best = len(offsets) + 1, offsets
        for centre in pixels[:, 0] * width + pixels[:, 1]:
            under = offsets + centre
            hidden = int(np.count_nonzero(flat[under]))
            if hidden < least:
                least, best = hidden, under
            if hidden <= give * len(offsets):
                break
        if least > _HIDDEN * len(offsets):
            return False
        self.types.append(kind)
        if least == 0:
            flat[best] = len(self.types) - 1
            return True
        best = best[flat[best] == 0]
        # Where neighbours cut it in two, its largest part stays.
        box = np.zeros((int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1), bool)
        y, x = np.divmod(best, width)
        y, x = y - y.min(), x - x.min()
        box[y, x] = True
        parts, count = ndimage.label(box)
        if count > 1:
            best = best[parts[y, x] == 1 + np.argmax(np.bincount(parts.ravel())[1:])]
        flat[best] = len(self.types) - 1
        return True

    def map(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """The map without the room around it, ids numbered anew."""
        start = self.margin + self.apron
        inside = self.instances[start : start + self.shape[0], start : start + self.shape[1]]
        kept = np.bincount(inside.ravel(), minlength=len(self.types)) >= min(_LEAST_PIXELS, inside.size)
        kept[0] = False
        instances = np.where(kept, np.cumsum(kept), 0).astype(np.int32).take(inside)
        return instances, np.array([0, *np.array(self.types)[kept]], np.uint8)


def _scatter(
    generator: np.random.Generator, settings: LayoutSettings, canvas: _Canvas, fields: _Fields, number: int
) -> None:
    """Stroma: places drawn with a density that is the exponential of a smooth field."""
    if number == 0:
        return
    pool = generator.uniform(0, canvas.extent, (8 * number + 500, 2))
    weights = np.exp(settings.clustering * fields.density.at(*pool.T).astype(float))
    choices = generator.choice(len(pool), (number, _RETRIES + 1), p=weights / weights.sum())
    first = pool[choices[:, 0]]
    diameters, aspects = draw_sizes(generator, settings.stroma, fields.size.at(*first.T).astype(float))
    angles = np.pi * fields.direction.at(*first.T) / 2 + generator.normal(0, 0.5, number)
    for k in range(number):
        outline = draw_outline(generator, settings.stroma, diameters[k], aspects[k], angles[k])
        canvas.place(outline, pool[choices[k]], STROMA, 0)


def _draw_rows(
    generator: np.random.Generator, settings: LayoutSettings, canvas: _Canvas, fields: _Fields, number: int
) -> None:
    """Epithelium: rows along arcs and closed ellipses until `number` nuclei have their place in the field."""
    kind = settings.epithelial
    for _ in range(4 + number):
        if number <= 0:
            return
        row = _draw_row(generator, settings, canvas, fields)
        inside = np.flatnonzero(canvas.holds(row.places))[:number]
        number -= len(inside)
        for k in inside:
            turn = row.normals[k] + generator.uniform(-_TURN, _TURN)
            outline = draw_outline(generator, kind, row.diameters[k], row.aspects[k], turn)
            normal = np.array([np.sin(row.normals[k]), np.cos(row.normals[k])])
            across, along = generator.normal(0, (0.12, 0.06), (_RETRIES + 1, 2)).T[:, :, None] * row.diameters[k]
            places = row.places[k] + across * normal + along * normal[::-1] * (1, -1)
            canvas.place(outline, places.clip(0, np.array(canvas.extent) - 1e-6), EPITHELIUM, _GIVE)


@dataclass(frozen=True)
class _Row:
    """Nuclei in a row: places float64 [N, 2] in µm, directions of the normals, diameters and aspects float64 [N]."""

    places: Points
    normals: Points
    diameters: Points
    aspects: Points


def _draw_row(generator: np.random.Generator, settings: LayoutSettings, canvas: _Canvas, fields: _Fields) -> _Row:
    """The first of several rows that has room, or the one with most."""
    freest, best = -1.0, None
    for _ in range(_RETRIES + 1):
        row = _any_row(generator, settings, canvas, fields)
        held = row.places[canvas.holds(row.places)]
        free = 1 - float(canvas.taken(held).mean()) if len(held) > 1 else 0.0
        if free > freest:
            freest, best = free, row
        if free >= 1 - _CROWDED:
            break
    assert best is not None
    return best


def _any_row(generator: np.random.Generator, settings: LayoutSettings, canvas: _Canvas, fields: _Fields) -> _Row:
    """A row on an ellipse whose axes differ by up to 0.6, all round it or on an arc of 90 to 270°."""
    radius = generator.uniform(settings.least_radius, settings.greatest_radius)
    axes = radius * np.array([1, generator.uniform(0.6, 1)])
    tilt, start = generator.uniform(-np.pi, np.pi, 2)
    span = 2 * np.pi if generator.uniform() < 0.5 else generator.uniform(np.pi / 2, 3 * np.pi / 2)
    centre = generator.uniform(-radius, np.array(canvas.extent) + radius)
    theta = np.linspace(start, start + span, 181)
    y, x = axes[0] * np.sin(theta), axes[1] * np.cos(theta)
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(y), np.diff(x)))])
    # One size for the whole row: cells of a gland resemble each other.
    kin = float(fields.size.at(*centre[:, None])[0])
    most = int(length[-1] / (0.3 * settings.spacing * settings.epithelial.diameter)) + 2
    diameters, aspects = draw_sizes(generator, settings.epithelial, np.full(most, kin))
    widths = settings.spacing * diameters / np.sqrt(aspects)
    along = np.cumsum((widths + np.roll(widths, 1)) / 2) - widths[0]
    fits = along <= length[-1] - (widths / 2 if span == 2 * np.pi else 0)
    theta = np.interp(along[fits], length, theta)
    y, x = axes[0] * np.sin(theta), axes[1] * np.cos(theta)
    # The gradient of (y / a)² + (x / b)² is the normal.
    normals = np.arctan2(y / axes[0] ** 2, x / axes[1] ** 2) + tilt
    cosine, sine = np.cos(tilt), np.sin(tilt)
    places = centre + np.stack([y * cosine + x * sine, x * cosine - y * sine], 1)
    return _Row(places, normals, diameters[fits], aspects[fits])
