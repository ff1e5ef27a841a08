"""Line charts as inline SVG, coloured by the style sheet of the page that holds them."""

import html
import math
from collections.abc import Callable, Mapping, Sequence

Point = tuple[float, float]

_WIDTH, _HEIGHT = 860, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 634, 14, 268
_LINE = 17  # height of a label
_MOST_POINTS = 800  # of one curve; about one for each pixel of a screen
_LONGEST_NAME = 24  # characters that fit beside the plot

# Told apart by lightness as well as hue; the second set has the same hues on a dark page.
_LIGHT = ("#6a3d8f", "#d1495b", "#00798c", "#c77d00", "#3d7d3a", "#3066be", "#a44a9c", "#7a6a53")
_DARK = ("#c9a3e6", "#ff8b94", "#4fc3d1", "#f2b544", "#8fce86", "#8ab4ff", "#eb9be0", "#c9b99f")

CHART_STYLE = (
    ".chart { width: 100%; height: auto; display: block; background: var(--panel); border: 1px solid var(--rule); "
    "border-radius: 8px; font-size: 12.5px; }\n"
    ".chart text { fill: var(--quiet); } .chart .name { fill: var(--c); font-weight: 600; }\n"
    ".chart .grid { stroke: var(--rule); } .chart .axis { stroke: var(--quiet); }\n"
    ".chart .curve { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }\n"
    ".chart .band { fill: var(--c); fill-opacity: 0.14; stroke: none; }\n"
    ".chart .dot { fill: var(--c); } .chart .lead { stroke: var(--c); stroke-opacity: 0.45; fill: none; }\n"
    + "".join(f".c{k} {{ --c: {colour}; }} " for k, colour in enumerate(_LIGHT))
    + "\n@media (prefers-color-scheme: dark) { "
    + "".join(f".c{k} {{ --c: {colour}; }} " for k, colour in enumerate(_DARK))
    + "}\n"
)


def line_chart(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]] | None = None,
    *,
    doublings: bool = False,
) -> str:
    """Draw named curves with axes, ticks and a name at the end of each.

    Args:
        title: what is shown, for readers who do not see the picture.
        series: name → (x values, y values) of equal length; values that are not finite leave a gap.
        x_label: what x counts, may be empty.
        bands: name of a curve → (x values, lower ends, upper ends) of what is shaded around it.
        doublings: x, 0 or more, on a logarithmic axis, with a tick at every value and a dot at every point; 0 stands
            one doubling left of the least other value.

    Returns:
        An `<svg>` element, every text escaped. Curves of very many points keep their peaks but not every point.
    """
    runs = {name: _unbroken(xs, ys) for name, (xs, ys) in series.items()}
    points = [point for parts in runs.values() for part in parts for point in part]
    shaded = {
        name: [_unbroken(xs, ends) for ends in (lows, highs)] for name, (xs, lows, highs) in (bands or {}).items()
    }
    everything = points + [point for ends in shaded.values() for parts in ends for part in parts for point in part]
    xs_ticks, ys_ticks = (_ticks([point[axis] for point in everything], most) for axis, most in ((0, 6), (1, 5)))
    least = min((point[0] for point in everything if point[0] > 0), default=1.0)

    def along(x: float) -> float:
        return math.log2(x or least / 2) if doublings and points else x

    if doublings and points:
        xs_ticks = _spaced(sorted({point[0] for point in points}), along)

    def place(point: Point) -> Point:
        (x0, x1), (y0, y1) = (along(xs_ticks[0]), along(xs_ticks[-1])), (ys_ticks[0], ys_ticks[-1])
        share = (along(point[0]) - x0) / (x1 - x0) if x1 > x0 else 0.5
        return (
            _LEFT + (_RIGHT - _LEFT) * share,
            _BOTTOM - (_BOTTOM - _TOP) * (point[1] - y0) / (y1 - y0),
        )

    if points:
        drawn = _axes(xs_ticks, ys_ticks, place, x_label)
    else:
        middle = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
        drawn = [f'<text x="{middle[0]}" y="{middle[1]}" text-anchor="middle">No values were recorded.</text>']
    ends = {}
    for k, (name, parts) in enumerate(runs.items()):
        colour = f"c{k % len(_LIGHT)}"
        if name in shaded:
            for lower, upper in zip(*shaded[name], strict=True):
                drawn.append(_band([place(point) for point in [*lower, *upper[::-1]]], colour))
        placed = [[place(point) for point in part] for part in parts]
        drawn.extend(_curve(part, colour) for part in placed)
        if doublings:
            drawn.extend(_curve([point], colour) for part in placed for point in part)
        ends[name] = (colour, placed[-1][-1] if placed else None)
    labels, height = _labels(ends)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {max(_HEIGHT, height)}" role="img" aria-label="{escape(title)}">'
        + "".join(drawn + labels)
        + "</svg>"
    )


def _unbroken(xs: Sequence[float], ys: Sequence[float]) -> list[list[Point]]:
    """Split a curve at values that are not finite; thin out long parts."""
    parts: list[list[Point]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            parts[-1].append((float(x), float(y)))
        elif parts[-1]:
            parts.append([])
    return [_thinned(part) for part in parts if part]


def _thinned(part: list[Point]) -> list[Point]:
    """Keep both ends and each stretch's lowest and highest point, so that no spike is lost."""
    if len(part) <= _MOST_POINTS:
        return part
    stretch = math.ceil(2 * len(part) / _MOST_POINTS)
    kept = {0, len(part) - 1}
    for start in range(0, len(part), stretch):
        inside = range(start, min(start + stretch, len(part)))
        kept |= {min(inside, key=lambda k: part[k][1]), max(inside, key=lambda k: part[k][1])}
    return [part[k] for k in sorted(kept)]


def _ticks(values: list[float], most: int) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that enclose the values: at least two of them."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    # A constant curve, and one whose changes are rounding noise, stands in the middle of the plot.
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    rough = high / most - low / most
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [k * step for k in range(first, last + 1)]


def _tick_names(ticks: list[float]) -> list[str]:
    largest = max(abs(ticks[0]), abs(ticks[-1]))
    if largest < 1e-3 or largest >= 1e10:
        return ["0" if tick == 0 else f"{tick:.3g}" for tick in ticks]
    unit, letter = next((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e4, "k"), (1.0, "")) if largest >= u or u == 1)
    unit = 1e3 if letter == "k" else unit
    apart = ticks[1] - ticks[0] if len(ticks) > 1 else unit
    decimals = max(0, -math.floor(math.log10(apart / unit) + 1e-9))
    return ["0" if tick == 0 else f"{tick / unit:.{decimals}f}{letter}".replace("-", "−") for tick in ticks]


def _axes(xs: list[float], ys: list[float], place: Callable[[Point], Point], x_label: str) -> list[str]:
    drawn = []
    for tick, name in zip(ys, _tick_names(ys), strict=True):
        y = place((xs[0], tick))[1]
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{_LEFT - 9}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    for tick, name in zip(xs, _tick_names(xs), strict=True):
        x = place((tick, ys[0]))[0]
        drawn.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 5}"/>')
        drawn.append(f'<text x="{x:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{name}</text>')
    drawn.append(f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>')
    middle = (_LEFT + _RIGHT) / 2
    drawn.append(f'<text x="{middle}" y="{_BOTTOM + 42}" text-anchor="middle">{escape(x_label)}</text>')
    return drawn


def _curve(part: list[Point], colour: str) -> str:
    if len(part) == 1:
        return f'<circle class="dot {colour}" cx="{part[0][0]:.1f}" cy="{part[0][1]:.1f}" r="3.5"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in part)
    return f'<polyline class="curve {colour}" points="{path}"/>'


def _band(outline: list[Point], colour: str) -> str:
    if len(outline) == 2:  # of one point
        (x, low), (_, high) = outline
        return f'<line class="lead {colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    return f'<polygon class="band {colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in outline)}"/>'


def _spaced(values: list[float], along: Callable[[float], float]) -> list[float]:
    """Those of rising values that stand far enough from one another where `along` puts them; the last stays."""
    reach = along(values[-1]) - along(values[0])
    kept = [values[0]]
    for value in values[1:]:
        if along(value) - along(kept[-1]) > 0.05 * reach:
            kept.append(value)
        elif value == values[-1]:
            kept[-1] = value
    return kept


def standalone(chart: str) -> str:
    """A chart as an SVG file, with the style that a page would give it, in light colours."""
    variables = ":root { --panel: #ffffff; --quiet: #6d6777; --rule: #e2dde6; }"
    style = f"{variables} text {{ font-family: sans-serif; }} {CHART_STYLE.partition('@media')[0]}"
    head, _, body = chart.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{body}\n'


def _labels(ends: Mapping[str, tuple[str, Point | None]]) -> tuple[list[str], float]:
    """Names right of the plot at the height where their curves end, pushed apart where they would overlap.

    Returns:
        The elements, and the height they need.
    """
    known = sorted((end[1], end[0], colour, name) for name, (colour, end) in ends.items() if end is not None)
    heights = [entry[0] for entry in known]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + _LINE)
    surplus = max(0.0, heights[-1] - _BOTTOM) if heights else 0.0
    ceiling = max(_TOP + 6.0, heights[-1] - surplus) if heights else 0.0
    for k in reversed(range(len(heights))):
        heights[k] = min(heights[k], ceiling)
        ceiling = heights[k] - _LINE
    sunk = max(0.0, _TOP + 6 - heights[0]) if heights else 0.0  # more names than the plot is high: it grows downwards
    drawn = []
    for (y, x, colour, name), height in zip(known, heights, strict=True):
        lead = f"{x + 4:.1f},{y:.1f} {_RIGHT + 6},{y:.1f} {_RIGHT + 18},{height + sunk:.1f}"
        drawn.append(f'<polyline class="lead {colour}" points="{lead}"/>')
        drawn.append(_name(name, colour, height + sunk))
    bottom = heights[-1] + sunk if heights else float(_TOP)
    for name in (name for name, (_, end) in ends.items() if end is None):
        bottom += _LINE
        drawn.append(f'<text x="{_RIGHT + 22}" y="{bottom + 4:.1f}">{escape(_short(name))}: no values</text>')
    return drawn, bottom + _LINE


def _name(name: str, colour: str, y: float) -> str:
    full = f"<title>{escape(name)}</title>" if _short(name) != name else ""
    return f'<text class="name {colour}" x="{_RIGHT + 22}" y="{y + 4:.1f}">{escape(_short(name))}{full}</text>'


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def escape(text: str) -> str:
    """Any text as it may stand in HTML, between tags or in a quoted attribute."""
    # File names may hold bytes that are no UTF-8; Python keeps them as lone surrogates, which no file can.
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))
