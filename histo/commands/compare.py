"""`nucleate compare`: what encoders reach with how many labels, from finished runs of downstream/train.py."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from histo.errors import InputError, writing
from histo.files import written_whole

if TYPE_CHECKING:
    from histo.label_efficiency import Comparison

TEST = (
    "The test: the differences of two curves, paired by test tile and averaged over seeds, with the signs of whole "
    "patients flipped (two-sided randomisation test of the mean difference: all sign patterns up to 12 patients, else "
    "9 999 random ones); corrected for the number of tests by Holm. It says whether a difference would hold on other "
    "patients, not whether it would with other seeds: for that, look at the standard deviation."
)
BAND = (
    "Shaded: 95 % bootstrap interval, by patient, of the score over all test tiles, folds together; of each tile the "
    "mean over seeds."
)


def main(arguments: list[str]) -> int:
    """Run `nucleate compare RUN…`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nucleate compare",
        description="Draw a score against the number of labels for every encoder of some finished runs of "
        "downstream/train.py, with a table and a paired test. Runs of one encoder whose settings differ have a curve "
        "each, named by what differs. (Two encoders themselves: `nucleate encoder compare`.)",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, scored on the same tiles")
    parser.add_argument("--metric", metavar="NAME", help="a score of the runs; default: the one the task chooses by")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison"), metavar="DIR", help="folder of the results; default: comparison"
    )
    options = parser.parse_args(arguments)
    from histo.label_efficiency import compare_runs, read_run

    if len({path.resolve() for path in options.runs}) < len(options.runs):
        raise InputError(f"{', '.join(map(str, options.runs))} names a run twice; name each once.")
    if len(options.runs) < 2:
        raise InputError(f"{options.runs[0]} is one run, expected two or more to compare; its report.html shows one.")
    found = compare_runs([read_run(path) for path in options.runs], options.metric)
    _write(found, options.out, [str(path) for path in options.runs])
    print(markdown(found))
    print(f"Written: {options.out / 'comparison.md'}, .html and .svg")
    return 0


def markdown(found: "Comparison") -> str:
    """The table and the tests."""
    lines = [
        f"# {found.metric} against labels, task {found.task}",
        "",
        f"{found.tiles} test tiles of {found.patients} patients (a tile of unknown patient counts as one). Mean ± "
        "standard deviation over seeds; 95 % bootstrap interval by patient.",
        "",
        "![curve](comparison.svg)",
        "",
        *_table(["curve", "labels", "seeds", found.metric, "95 % interval"], rows(found)),
        "",
    ]
    if found.tests:
        header = ["labels", "curves", "mean difference", "p", "p (Holm)"]
        lines += [*_table(header, test_rows(found)), "", TEST, ""]
    lines += [f"Note: {sentence}" for sentence in found.notes]
    return "\n".join(lines).rstrip() + "\n"


def rows(found: "Comparison") -> list[list[str]]:
    """A row for every curve and number of labels."""
    said = []
    for name, points in found.points.items():
        for labels, point in points.items():
            value = f"{point.mean:.3f}" + ("" if point.sd is None else f" ± {point.sd:.3f}")
            ends = "–" if point.interval is None else f"{point.interval[0]:.3f} to {point.interval[1]:.3f}"
            said.append([name, str(labels), str(len(point.values)), value, ends])
    return said


def test_rows(found: "Comparison") -> list[list[str]]:
    """A row for every test."""
    return [
        [str(one.labels), f"{one.one} − {one.other}", f"{one.difference:+.3f}", f"{one.p:.2g}", f"{one.corrected:.2g}"]
        for one in found.tests
    ]


def _table(header: list[str], lines: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [header, ["---"] * len(header), *lines]]
    return [f"| {' | '.join(line)} |" for line in cells]


def _write(found: "Comparison", out: Path, runs: list[str]) -> None:
    from histo.running.charts import line_chart, standalone
    from histo.running.report import Report

    title = f"{found.metric} against labels"
    series = {name: (list(points), [point.mean for point in points.values()]) for name, points in found.points.items()}
    bands = {
        name: (
            list(points),
            [point.interval[0] for point in points.values() if point.interval],
            [point.interval[1] for point in points.values() if point.interval],
        )
        for name, points in found.points.items()
        if all(point.interval for point in points.values())
    }
    chart = line_chart(title, series, "labelled images (logarithmic)", bands, doublings=True)
    report = Report(title, f"task {found.task} · {found.tiles} test tiles of {found.patients} patients")
    report.chart(f"{title}. {BAND if bands else ''}", chart)
    caption = "Mean and standard deviation over seeds; 95 % bootstrap interval by patient."
    report.table(["curve", "labels", "seeds", found.metric, "95 % interval"], rows(found), caption)
    if found.tests:
        report.heading("Which differences hold")
        report.table(["labels", "curves", "mean difference", "p", "p (Holm)"], test_rows(found))
        report.text(TEST)
    if found.notes:
        report.heading("What readers must know")
        report.text(*found.notes)
    report.heading("The runs")
    report.text("\n".join(["Compared:", *runs]))
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in (("comparison.md", markdown(found)), ("comparison.svg", standalone(chart))):
            with written_whole(out / name) as file:
                file.write(text.encode())
    report.save(out / "comparison.html")
