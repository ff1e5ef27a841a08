"""Reports: one HTML file that holds its pictures and curves, opens anywhere and fetches nothing."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo.errors import InputError
from histo.files import written_whole
from histo.running.charts import CHART_STYLE, escape, line_chart

_LARGE = 256 * 1024  # pixels; above it JPEG, whose loss no eye finds in a picture that is shown reduced
_ROOM = (1200, 912)  # height and width in pixels that a magnified picture may fill
_MOST_MAGNIFIED = 8
_NUMBER = re.compile(r"[-−]?[\d.\N{THIN SPACE}]+(e[-+]?\d+)?|–")

_STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --ink: #23202b; --quiet: #6d6777; --rule: #e2dde6; --panel: #ffffff;
  --accent: #6a3d8f; }
@media (prefers-color-scheme: dark) {
  :root { --page: #17151c; --ink: #e8e4ee; --quiet: #a09aac; --rule: #37323f; --panel: #1f1c26; --accent: #c9a3e6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
header { border-bottom: 3px solid var(--accent); padding-bottom: 1.1rem; margin-bottom: 1.8rem; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0; }
header p { color: var(--quiet); font-size: 1.05rem; margin: 0.5rem 0 0; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.8rem 0 0.8rem; }
p { max-width: 44rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
pre { background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; padding: 0.9rem 1.1rem;
  font: 0.83rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-x: auto; margin: 0 0 1.4rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: 1px; margin: 1.2rem 0 1.8rem;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 8px; overflow: hidden; }
dl div { background: var(--panel); padding: 0.7rem 1rem; }
dt { color: var(--quiet); font-size: 0.8rem; }
dd { margin: 0.1rem 0 0; font-weight: 600; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
figure { margin: 1.4rem 0 2rem; }
figcaption { color: var(--quiet); font-size: 0.9rem; line-height: 1.5; margin-top: 0.55rem; max-width: 48rem;
  overflow-wrap: anywhere; }
figcaption.above { color: var(--ink); font-weight: 600; font-size: 1rem; margin: 0 0 0.4rem; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
img.pixels { image-rendering: pixelated; border-radius: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.93rem; font-variant-numeric: tabular-nums; min-width: 24rem; }
th, td { padding: 0.42rem 1.5rem 0.42rem 0; text-align: left; border-bottom: 1px solid var(--rule); }
th { color: var(--quiet); font-weight: 600; font-size: 0.85rem; }
.number { text-align: right; }
@media print { main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""


class Report:
    """A report under construction; the parts appear in the order of the calls. All texts are shown as they are given.

    Args:
        title: heading of the page.
        subtitle: one line below it, may be empty.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._parts: list[str] = []
        below = f"<p>{escape(subtitle)}</p>" if subtitle else ""
        self._parts.append(f"<header><h1>{escape(title)}</h1>{below}</header>")

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, *paragraphs: str) -> None:
        """Paragraphs of plain text; one of several lines, like a config, keeps its lines and indentation."""
        for paragraph in paragraphs:
            tag = "pre" if "\n" in paragraph.strip() else "p"
            self._parts.append(f"<{tag}>{escape(paragraph.strip())}</{tag}>")

    def facts(self, facts: Mapping[str, Any]) -> None:
        """A grid of names with their values; numbers are rounded to four significant digits, None is a dash."""
        entries = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(_shown(value))}</dd></div>" for name, value in facts.items()
        )
        self._parts.append(f"<dl>{entries}</dl>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """A table; columns of numbers, also of ready-made ones ("0.50"), stand to the right; rounded as in `facts`.

        Raises:
            ValueError: a row with more or fewer cells than the header.
        """
        if any(len(row) != len(header) for row in rows):
            raise ValueError(f"every row needs {len(header)} cells, like the header {list(header)}")
        cells = [[_shown(cell) for cell in row] for row in rows]
        numeric = [bool(rows) and all(_NUMBER.fullmatch(row[k]) for row in cells) for k in range(len(header))]
        sides = [' class="number"' if right else "" for right in numeric]
        head = "".join(f"<th{side}>{escape(name)}</th>" for side, name in zip(sides, header, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides, row, strict=True)) + "</tr>"
            for row in cells
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._parts.append(f'<figure><div class="wide">{table}</div>{_caption(caption)}</figure>')

    def picture(self, rgb: NDArray[np.uint8], caption: str = "") -> None:
        """A picture, uint8 [H, W, 3] RGB: embedded as PNG, or as JPEG (quality 90) when it is large.

        Small pictures are magnified by a whole factor with their pixels kept square.

        Raises:
            ValueError: another shape or type.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
            raise ValueError(f"a picture is uint8 [H, W, 3], not {rgb.dtype} {list(rgb.shape)}")
        height, width = rgb.shape[:2]
        kind = "jpeg" if height * width > _LARGE else "png"
        content = io.BytesIO()
        options: dict[str, Any] = {"quality": 90, "subsampling": 0} if kind == "jpeg" else {"optimize": True}
        Image.fromarray(rgb).save(content, kind, **options)
        factor = max(1, min(_MOST_MAGNIFIED, _ROOM[0] // height, _ROOM[1] // width))
        look = ' class="pixels"' if factor > 1 else ""
        source = f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
        self._parts.append(
            f'<figure><img{look} width="{width * factor}" height="{height * factor}" alt="{escape(caption)}" '
            f'src="{source}">{_caption(caption)}</figure>'
        )

    def curves(
        self, title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str = ""
    ) -> None:
        """A line chart of named curves, each a pair (x values, y values) of equal length.

        Values that are not finite leave a gap; a curve without any finite value is listed as having no values.
        """
        self.chart(title, line_chart(title, series, x_label))

    def chart(self, title: str, chart: str) -> None:
        """A chart that `histo.running.charts` drew, under its title."""
        self._parts.append(f'<figure><figcaption class="above">{escape(title)}</figcaption>{chart}</figure>')

    def matrix(self, names: Sequence[str], counts: Sequence[Sequence[int]], caption: str = "") -> None:
        """A confusion matrix: true classes in rows, found ones in columns, darker the larger a row's share.

        Raises:
            ValueError: counts that are not a square of the names' length.
        """
        if len(counts) != len(names) or any(len(row) != len(names) for row in counts):
            raise ValueError(f"{len(names)} names need as many rows and columns of counts")
        head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
        body = ""
        for name, row in zip(names, counts, strict=True):
            total = max(sum(row), 1)
            cells = "".join(
                f'<td class="number" style="background: color-mix(in srgb, var(--accent) {60 * count / total:.0f}%, '
                f'transparent)">{escape(_shown(count))}<br><small>{count / total:.0%}</small></td>'
                for count in row
            )
            body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
        table = f"<table><thead><tr><th>true ↓ found →</th>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._parts.append(f'<figure><div class="wide">{table}</div>{_caption(caption)}</figure>')

    def save(self, path: Path) -> None:
        """Write the page; a reader sees the old file or the new one, never a part.

        Raises:
            InputError: the place cannot be written.
        """
        page = (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            # The browser is told as well that this page fetches and runs nothing.
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
            f"<title>{escape(self._title)}</title><style>{_STYLE}{CHART_STYLE}</style></head>\n<body><main>\n"
            + "\n".join(self._parts)
            + "\n</main></body></html>\n"
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                file.write(page.encode("utf-8"))
        except OSError as error:
            raise InputError(f"Report {path} cannot be written ({error.strerror}); name another folder.") from error


def _caption(text: str) -> str:
    return f"<figcaption>{escape(text)}</figcaption>" if text else ""


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}".replace(",", "\N{THIN SPACE}")
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)
