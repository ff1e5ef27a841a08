"""Reports: self-contained, well-formed, and true to what they were given."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from histo.errors import InputError
from histo.running.charts import _tick_names, _ticks, line_chart
from histo.running.report import Report

VOID = {"meta", "img", "line", "circle", "polyline", "br"}
NASTY = "a<script>alert('x')</script>\"&\udce9.png"


class Page(HTMLParser):
    """Reads a page, insisting that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(report, tmp_path):
    report.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def picture_of(attributes):
    kind, content = re.fullmatch(r"data:image/(\w+);base64,(.*)", attributes["src"]).groups()
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_everything_is_escaped_and_nothing_points_outside(tmp_path):
    report = Report(NASTY, NASTY)
    report.heading(NASTY)
    report.text(NASTY, NASTY)
    report.facts({NASTY: NASTY})
    report.table([NASTY], [[NASTY]], NASTY)
    report.picture(np.zeros((4, 5, 3), np.uint8), NASTY)
    report.curves(NASTY, {NASTY: ([1, 2], [1, 2]), NASTY + "2": ([], [])}, NASTY)
    text, page = page_of(report, tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    shown = NASTY.replace("\udce9", "?")
    assert sum(shown == piece for piece in page.texts) >= 9
    assert page.all("img")[0]["alt"] == shown
    assert "http://" not in text
    assert "https://" not in text
    for tag, attributes in page.tags:
        assert "href" not in attributes
        assert tag != "link"
        assert attributes.get("src", "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text
    assert "@import" not in text


def test_the_parser_of_these_tests_sees_bad_markup():
    with pytest.raises(AssertionError):
        Page("<p><b>a</p></b>")
    with pytest.raises(AssertionError):
        Page("<p>")


def test_small_pictures_are_exact_and_magnified_by_whole_factors(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (30, 100, 3), dtype=np.uint8)
    report = Report("Pictures")
    report.picture(small, "small")
    _, page = page_of(report, tmp_path)
    kind, stored = picture_of(page.all("img")[0])
    assert kind == "png"
    assert np.array_equal(stored, small)
    assert page.all("img")[0]["class"] == "pixels"
    assert (page.all("img")[0]["width"], page.all("img")[0]["height"]) == ("800", "240")


def test_large_pictures_are_jpegs_of_natural_size(tmp_path):
    ramp = np.linspace(0, 255, 700).astype(np.uint8)
    large = np.stack([np.tile(ramp, (600, 1)), np.tile(ramp[::-1], (600, 1)), np.full((600, 700), 90, np.uint8)], -1)
    report = Report("Pictures")
    report.picture(large)
    _, page = page_of(report, tmp_path)
    kind, stored = picture_of(page.all("img")[0])
    assert kind == "jpeg"
    assert stored.shape == large.shape
    assert np.abs(stored.astype(int) - large).mean() < 2
    assert page.all("img")[0]["width"] == "700"
    assert "class" not in page.all("img")[0]


@pytest.mark.parametrize("picture", [np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_other_pictures_are_refused(picture):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        Report("Pictures").picture(picture)


def test_tall_pictures_are_not_blown_up(tmp_path):
    report = Report("Pictures")
    report.picture(np.zeros((500, 10, 3), np.uint8))
    _, page = page_of(report, tmp_path)
    assert page.all("img")[0]["height"] == "1000"


def test_a_text_of_several_lines_keeps_them(tmp_path):
    report = Report("Text")
    report.text("one line\n", "data:\n  tile: <64>\n")
    text, _ = page_of(report, tmp_path)
    assert "<p>one line</p>" in text
    assert "<pre>data:\n  tile: &lt;64&gt;</pre>" in text


def test_tables_round_align_and_refuse_ragged_rows(tmp_path):
    report = Report("Table")
    report.table(["tile", "AJI", "n"], [["a", 0.123456, 12345], ["b", None, 2]])
    report.table(["AJI", "who"], [["0.500", "1a"], ["–", "2"]])
    report.facts({"finished": True, "mpp": None})
    _, page = page_of(report, tmp_path)
    texts = [text for text in page.texts if text.strip()]
    assert {"0.1235", "12\N{THIN SPACE}345", "–", "yes"} <= set(texts)
    assert [cell.get("class") for cell in page.all("td")] == [None, "number", "number"] * 2 + ["number", None] * 2
    with pytest.raises(ValueError, match="2 cells"):
        report.table(["a", "b"], [[1]])


def polylines(chart, kind="curve"):
    lines = re.findall(rf'<polyline class="{kind} c\d" points="([^"]*)"', chart)
    return [[tuple(map(float, pair.split(","))) for pair in line.split(" ")] for line in lines]


def test_a_curve_lies_where_its_values_say():
    chart = line_chart("t", {"a": ([0, 50, 100], [0.0, 1.0, 0.25])}, "images")
    ((x0, y0), (x1, y1), (x2, y2)) = polylines(chart)[0]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.25, abs=0.002)
    assert y1 < y2 < y0  # SVG counts downwards
    assert ">images<" in chart
    assert ">a<" in chart


def test_values_that_are_not_finite_leave_a_gap():
    chart = line_chart("t", {"a": (range(7), [1, 2, math.nan, 3, math.inf, 4, 5])}, "")
    Page(chart)
    assert [len(line) for line in polylines(chart)] == [2, 2]
    assert chart.count("<circle") == 1  # the 3 stands alone
    assert "nan" not in chart
    assert "inf" not in chart


def test_one_point_no_point_and_no_curve():
    Page(one := line_chart("t", {"a": ([5], [7])}, ""))
    assert one.count("<circle") == 1
    Page(none := line_chart("t", {"a": ([], []), "b": ([1], [math.nan]), "c": ([1, 2], [3, 4])}, ""))
    assert none.count("no values") == 2
    Page(empty := line_chart("t", {}, ""))
    assert "No values were recorded." in empty
    with pytest.raises(ValueError, match="zip"):
        line_chart("t", {"a": ([1, 2], [1])}, "")


def test_long_curves_are_thinned_but_keep_their_spikes():
    ys = np.sin(np.arange(50_000) / 900.0)
    ys[31_234] = 9.0
    (line,) = polylines(line_chart("t", {"a": (np.arange(50_000), ys)}, ""))
    assert 400 < len(line) <= 802
    top = min(line, key=lambda point: point[1])
    (peak,) = polylines(line_chart("t", {"a": ([0, 31_234, 49_999], [ys[0], 9.0, ys[-1]])}, ""))
    assert top[0] == pytest.approx(peak[1][0], abs=0.11)


@pytest.mark.parametrize("count", [2, 12, 30])
def test_names_never_overlap(count):
    chart = line_chart("t", {f"s{k}": ([0, 1], [0, k % 3 * 1e-3]) for k in range(count)}, "")
    heights = sorted(float(y) for y in re.findall(r'class="name c\d" x="\d+" y="([\d.]+)"', chart))
    assert len(heights) == count
    assert min(np.diff(heights)) > 16
    assert heights[0] > 10
    assert heights[-1] < float(re.search(r'viewBox="0 0 \d+ ([\d.]+)"', chart)[1])


@pytest.mark.parametrize(
    "values", [[0, 1], [3, 3], [0, 0], [-7, -7], [1e-9, 3e-9], [0, 3.7e6], [-0.2, 0.55], [1e12, 2e12], [1, 1 + 1e-13]]
)
def test_ticks_are_round_and_enclose_the_values(values):
    ticks = _ticks([float(value) for value in values], 5)
    assert ticks[0] <= min(values) + 1e-6 * (ticks[1] - ticks[0])
    assert ticks[-1] >= max(values) - 1e-6 * (ticks[1] - ticks[0])
    assert 2 <= len(ticks) <= 8
    assert len(set(_tick_names(ticks))) == len(ticks)
    step = ticks[1] - ticks[0]
    assert any(step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(f, rel=1e-6) for f in (1, 2, 5, 10))


def test_saving_replaces_whole_files_and_names_an_unwritable_place(tmp_path):
    report = Report("First")
    report.save(tmp_path / "new" / "report.html")
    Report("Second").save(tmp_path / "new" / "report.html")
    assert "Second" in (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        report.save(tmp_path / "file" / "report.html")
