"""Make instance masks of tissue: a labelled data set without labels.

    accelerate launch -q translate/pseudomask.py --data.tissue PATH --out DIR --method cellpose

Nuclei are found by Cellpose-SAM, by one of our own networks (flows), or by a watershed. What comes out is a set of
tiles like any other: images/, labels/ (16-bit PNG) and tiles.csv. Masks outside the gate's ranges go to set_aside/
without their tiles, with the reason in set_aside.csv; contact.png shows outlines, summary.json says what was made and
how, and with --against agreement.json how it compares with labels. The same command goes on where it was stopped.
"""

import csv
import hashlib
import io
import json
import shlex
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

try:
    import numpy as np
    from accelerate.utils import gather_object
    from numpy.typing import NDArray
    from tqdm import tqdm

    from histo import contact
    from histo.errors import InputError, writing
    from histo.files import written_whole
    from histo.finders import Finder, Method, open_finder
    from histo.finders.cellpose_sam import CellposeSettings
    from histo.finders.network import NetworkSettings
    from histo.masks import read_instances
    from histo.revision import revision
    from histo.running import processes
    from histo.running.outputs import OutputFolder
    from histo.running.settings import as_yaml, read_settings, run_script
    from histo.tiles import local_place, open_tiles
    from histo.tiles.tables import write_table
    from translate.label_agreement import Label, agreement, as_table, compare_all, open_labels
    from translate.labelling import LAYOUT, Labelling, Outcome
    from translate.quality import GateSettings
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name!r} is not installed: run `pip install -e .` in nucleate's folder.")

SHOWN, SHOWN_ASIDE = 24, 6  # tiles on the contact sheet


@dataclass
class TissueSettings:
    """Tissue whose nuclei are looked for."""

    tissue: list[str] | str | None = None
    """folder of tiles or of shards, several as [a, b]"""
    mpp: float | None = None
    """µm/px of all tissue, before what tiles.csv, shards or image files say; null: as these say"""
    on_bad: Literal["error", "skip"] = "error"
    """tiles that cannot be used: stop, or leave them out and list them"""

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0.01 <= self.mpp <= 100:
            raise InputError(f"data.mpp is {self.mpp}, expected µm/px between 0.01 and 100.")


@dataclass
class PseudomaskSettings:
    """What finds nuclei, where, and where the masks go."""

    data: TissueSettings = field(default_factory=TissueSettings)
    method: Method = "cellpose"
    """cellpose: Cellpose-SAM; flows: one of our own networks, whatever its head; watershed: no weights"""
    cellpose: CellposeSettings = field(default_factory=CellposeSettings)
    flows: NetworkSettings = field(default_factory=NetworkSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    against: str | None = None
    """labels to compare with: a folder of instance maps named as the tiles are, a set of tiles with masks, or tissue:
    the masks that the tissue has itself, which are not looked at otherwise"""
    out: str | None = None
    """folder of the results, new or empty, or one that the same command has begun"""
    overwrite: bool = False
    """begin anew: remove what an earlier call wrote to out; files of other origin go only where a new one has their
    name"""
    seed: int = 0
    """seed of the intervals of agreement"""


def main(argv: list[str]) -> None:
    """Read the command line and make what it asks for."""
    try:
        with processes.together():
            request = read_settings(
                PseudomaskSettings, "translate/pseudomask.py", "Make instance masks of tissue, without labels.", argv
            )
            settings = request.settings
            _refuse_own_inputs(settings)
        first = processes.state().is_main_process
        for turn in (first, not first):  # the first one fetches weights, where it may
            with processes.together():
                if turn:
                    labelling, labels = _open(settings)
        if request.dry_run:
            if first:
                print(as_yaml(settings))
                print(f"dry run: settings, weights and inputs are sound. {labelling.tissue.describe()}.")
            return
        facts = {
            "finder": labelling.finder.facts,
            "command": shlex.join(["python", "translate/pseudomask.py", *argv]),
            "revision": revision(),
        }
        output = OutputFolder(Path(settings.out or ""), LAYOUT, _plan(settings, labelling), facts)
        everything = (
            file
            for k in range(len(labelling.names))
            for file in (labelling.image(k), labelling.label(k), labelling.aside(k))
        )
        with output.work(everything, settings.overwrite):
            skipped = _make_all(labelling, output.path, settings.data.on_bad)
            _sum_up(labelling, labels, output, skipped, settings)
    finally:
        processes.part()


def _open(settings: PseudomaskSettings) -> tuple[Labelling, dict[int, Label]]:
    """What is to be made of what, and the labels; mistakes that show before anything is made are found here."""
    assert settings.data.tissue is not None
    tissue = open_tiles(settings.data.tissue, mpp=settings.data.mpp, cache_mb=0)
    tissue.require_mpp("the size of nuclei")
    finder: Finder = open_finder(settings.method, settings.cellpose, settings.flows, processes.state().device)
    labelling = Labelling(tissue, finder, settings.gate)
    return labelling, {} if settings.against is None else open_labels(settings.against, labelling)


def _refuse_own_inputs(settings: PseudomaskSettings) -> None:
    """Nothing is missing, and results do not land among the inputs, where overwriting would remove them."""
    tissue = settings.data.tissue
    if not tissue:
        raise InputError("No tissue was named; give --data.tissue, a folder of tiles or of shards.")
    if settings.out is None:
        raise InputError("No place for the results was named; give --out.")
    out = Path(settings.out).resolve()
    for name, value in [("data.tissue", path) for path in ([tissue] if isinstance(tissue, str) else tissue)] + [
        ("against", settings.against),
        ("flows.model", settings.flows.model),
    ]:
        if value is None or (name == "against" and value == "tissue"):
            continue
        place = local_place(value)
        if place is None:
            continue
        if out == place or out.is_relative_to(place) or place.is_relative_to(out):
            raise InputError(f"--out {settings.out} and --{name} {value} lie in one another; name a folder beside.")


def _plan(settings: PseudomaskSettings, labelling: Labelling) -> dict[str, Any]:
    """What settles the masks; a finished one stands for its tile only under the same."""
    names = hashlib.sha256()
    for name, entry in zip(labelling.names, labelling.tissue.entries, strict=True):
        names.update(f"{name}\n{entry.mpp}\n".encode())
    return {
        "--method": settings.method,
        "the list of tiles with their µm/px": names.hexdigest(),
        **{f"the finder's {name}": value for name, value in labelling.finder.facts.items() if name != "licence"},
        **{f"--gate.{name}": value for name, value in asdict(settings.gate).items()},
    }


def _make_all(labelling: Labelling, folder: Path, on_bad: str) -> list[tuple[str, str]]:
    """Make what is missing, each process its share; returns the tiles left out by all of them, with the reason."""
    state = processes.state()
    mine = range(state.process_index, len(labelling.names), state.num_processes)
    skipped: list[tuple[str, str]] = []
    facts = {"revision": revision()}

    def read(index: int) -> NDArray[np.uint8] | None:
        try:
            return labelling.tissue.image(index)
        except InputError as error:
            if on_bad == "error":
                raise
            skipped.append((labelling.names[index], str(error)))
            return None

    with processes.together():
        missing = [k for k in mine if labelling.mask(k, folder) is None]
        quiet = None if state.is_main_process else True
        with tqdm(total=len(missing), desc="finding nuclei", unit="tile", disable=quiet) as bar:
            for start in range(0, len(missing), labelling.finder.batch):
                indices = missing[start : start + labelling.finder.batch]
                images = {index: image for index in indices if (image := read(index)) is not None}
                labelling.make(images, folder, facts)
                bar.update(len(indices))
    return skipped if state.num_processes == 1 else gather_object(skipped)


def _sum_up(
    labelling: Labelling,
    labels: dict[int, Label],
    output: OutputFolder,
    skipped: list[tuple[str, str]],
    settings: PseudomaskSettings,
) -> None:
    """Tables, contact sheet, agreement and summary, by the first process from what all wrote."""
    state = processes.state()
    with processes.together():
        mine = range(state.process_index, len(labelling.names), state.num_processes)
        own = [outcome for k in mine if (outcome := labelling.outcome(k, output.path)) is not None]
    outcomes: list[Outcome] = own if state.num_processes == 1 else gather_object(own)
    outcomes.sort(key=lambda outcome: outcome.index)
    with processes.together():
        if state.is_main_process:
            _report(labelling, labels, output, outcomes, sorted(skipped), settings)


def _report(
    labelling: Labelling,
    labels: dict[int, Label],
    output: OutputFolder,
    outcomes: list[Outcome],
    skipped: list[tuple[str, str]],
    settings: PseudomaskSettings,
) -> None:
    for name, reason in skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr, flush=True)
    if not outcomes:
        raise InputError(f"None of the {len(labelling.names)} tiles could be used; the reasons are above.")
    kept = [outcome for outcome in outcomes if outcome.reason is None]
    aside = [outcome for outcome in outcomes if outcome.reason is not None]
    write_table(output.path, [labelling.row(outcome.index) for outcome in kept])
    _write(output.path / "set_aside.csv", _aside_table(labelling, aside))
    picture = io.BytesIO()
    _contact(labelling, output.path, kept, aside).save(picture, format="PNG")
    _write(output.path / "contact.png", picture.getvalue())
    results: dict[str, Any] = {
        "tiles": len(labelling.names),
        "kept": len(kept),
        "set_aside": len(aside),
        "set_aside_by": dict(Counter(str(outcome.reason).split()[0] for outcome in aside)),
        "skipped": [{"tile": name, "reason": reason} for name, reason in skipped],
        "licence": labelling.finder.facts["licence"],
        "quality_of_kept": _spread(kept),
    }
    print(labelling.tissue.describe())
    if settings.against is not None:
        compared = compare_all(labels, labelling, output.path)
        if compared:
            report = {
                "against": settings.against,
                "finder": labelling.finder.facts,
                **agreement(compared, settings.seed),
            }
            _write(output.path / "agreement.json", (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
            results["agreement"] = report["groups"]
            apart = sum(outcome.index in labels for outcome in aside)
            print(f"\nAgreement with {settings.against}, on {len(compared)} tiles, {apart} of them set aside:\n")
            print(f"{as_table(report)}\n")
    output.finish(**results)
    print(
        f"{len(kept)} of {len(labelling.names)} tiles have masks, {len(aside)} were set aside, {len(skipped)} skipped: "
        f"{output.path}\nLook at {output.path / 'contact.png'}. Licence: {labelling.finder.facts['licence']}."
    )


def _aside_table(labelling: Labelling, aside: list[Outcome]) -> bytes:
    text = io.StringIO(newline="")
    columns = ["nuclei", "area", "coverage", "inside", "outside"]
    rows = [
        [labelling.names[one.index], one.reason, labelling.aside(one.index).as_posix()]
        + [getattr(one.quality, name) for name in columns]
        for one in aside
    ]
    csv.writer(text).writerows([["tile", "reason", "mask", *columns], *rows])
    return text.getvalue().encode()


def _contact(labelling: Labelling, folder: Path, kept: list[Outcome], aside: list[Outcome]) -> Any:
    """Evenly spread tiles with green outlines, then some that were set aside, with red ones and the reason."""
    pictures = []
    for outcomes, most, colour in ((kept, SHOWN, contact.KEPT), (aside, SHOWN_ASIDE, contact.ASIDE)):
        count = min(most, len(outcomes))
        for one in (outcomes[k * len(outcomes) // count] for k in range(count)):
            mask = labelling.mask(one.index, folder)
            assert mask is not None
            text = f"{labelling.names[one.index][-36:]}\n{one.reason or f'{one.quality.nuclei} nuclei'}"
            image = labelling.tissue.image(one.index)
            pictures.append((text, contact.overlay(image, read_instances(mask), colour)))
    return contact.contact_sheet(pictures)


def _spread(kept: list[Outcome]) -> dict[str, list[float]]:
    """5th percentile, median and 95th of each figure over the kept tiles."""
    figures = {}
    for name in ("nuclei", "area", "coverage", "inside", "outside"):
        values = [value for one in kept if (value := getattr(one.quality, name)) is not None]
        if values:
            figures[name] = [round(float(value), 4) for value in np.percentile(values, [5, 50, 95])]
    return figures


def _write(path: Path, content: bytes) -> None:
    with writing(path), written_whole(path) as file:
        file.write(content)


if __name__ == "__main__":
    run_script(main)
