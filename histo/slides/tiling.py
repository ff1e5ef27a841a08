"""Cutting slides into shards: a job over many slides that can be stopped and go on.

Each slide has shards of its own, an overview picture, and a record in `slides/` that is written last, so that a slide
is done or not; one that a kill interrupted is cut anew. When all are, `report.json` and `manifest.json` end the job,
and the folder opens like any other shards.
"""

import hashlib
import json
import multiprocessing
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tqdm import tqdm

from histo.errors import InputError, writing
from histo.files import PARTIAL, written_whole
from histo.running.locks import LOCK
from histo.slides.grids import REASONS, Grid, Tiling, grid_of
from histo.slides.overviews import overview
from histo.slides.readers import Slide, UnreadableRegionError
from histo.slides.resampling import read_grid, sampling_of
from histo.slides.streaming import encoded, place_name
from histo.slides.tables import SlideRow
from histo.tiles.entries import TileEntry
from histo.tiles.manifests import INCOMPLETE, MANIFEST, index_path
from histo.tiles.packing import Facts, describe_shard, plain_name, write_manifest, write_shards
from histo.tiles.shards import CUT_NOTE, OVERVIEWS

REPORT, RECORDS = "report.json", "slides"
# What is relied on of these files, and its types.
_NOTE = {"plan": dict, "names": list}
_TOTALS = {"kept": int, "dropped": dict, "slides": list}
_COUNTS = {"slide": str, "kept": int, "dropped": dict, "mpp": (int, float), "first unreadable": (str, type(None))}
_RECORD = {**_COUNTS, "shards": list}
_STORED = {"name": str, "bytes": int}
_SHARD = re.compile(rf"(.+)-[0-9]{{6,}}\.(tar|index\.json)({re.escape(PARTIAL)})?")  # of the slide of that name


@dataclass(frozen=True)
class TileJob:
    """What is cut, and how it is written.

    Attributes:
        rows: the slides, of known µm/px.
        source: what their tiles give as their source.
        tiling: how they are cut.
        form: "png" keeps every pixel; "jpg" is JPEG of quality 90.
        shard_mb: a shard is closed before it grows beyond this; MB.
        licence: the terms of the slides, None for unknown.
    """

    rows: Sequence[SlideRow]
    source: str
    tiling: Tiling
    form: Literal["png", "jpg"] = "png"
    shard_mb: float = 64
    licence: str | None = None

    def plan(self) -> dict[str, Any]:
        """What settles the results, as JSON knows it."""
        slides = [[row.key, row.path.stat().st_size, row.patient, row.label, row.split, row.mpp] for row in self.rows]
        return {
            **{f"--{name}": value for name, value in asdict(self.tiling).items()},
            "--format": self.form,
            "--shard_mb": self.shard_mb,
            "--licence": self.licence,
            "the source": self.source,
            "the list of slides": hashlib.sha256(json.dumps(slides).encode()).hexdigest(),
        }


def ready(
    rows: Sequence[SlideRow], tiling: Tiling, *, assume_mpp: float | None, on_bad: Literal["error", "skip"]
) -> tuple[list[SlideRow], list[str]]:
    """The slides that can be cut, with the µm/px to assume where nothing says it, and the sentences of all others.

    Every slide is opened, so that a mistake shows before hours of work.

    Raises:
        InputError: the first slide that cannot be cut, unless `on_bad` is "skip"; then only if none can.
    """
    good, refused = [], []
    for row in rows:
        try:
            with Slide(row.path, row.mpp) as slide:
                if slide.mpp is None:
                    row = replace(row, mpp=assume_mpp)
                    slide.mpp = assume_mpp
                sampling_of(slide, tiling.mpp, allow_upsample=tiling.allow_upsample)
                with suppress(UnreadableRegionError):  # counted when its tiles are cut
                    slide.read(0, 0, 0, 1, 1)  # its form: colours of 8 bits
            good.append(row)
        except InputError as error:
            if on_bad == "error":
                raise
            refused.append(str(error))
    if not good:
        raise InputError(f"none of the {len(rows)} slides can be cut, the first because {refused[0]}")
    return good, refused


def begin(out: Path, job: TileJob, *, overwrite: bool) -> bool:
    """Make the folder ready; returns whether the job is finished already, all its shards there with their bytes.

    Raises:
        InputError: the folder holds something else, work on another plan that is not to be overwritten, or damaged
            records.
    """
    note = _json(out / CUT_NOTE, _NOTE)
    others = sorted(entry.name for entry in out.glob("*") if entry.name != LOCK) if out.is_dir() else []
    if note is None and others:
        raise InputError(f"--out {out} holds {others[0]}, which is not of `nucleate tile`; name a new folder.")
    if note is not None and overwrite:
        with writing(out):
            _sweep(out, set(map(str, note["names"])))
    elif note is not None:
        wanted = json.loads(json.dumps(job.plan()))
        for name in wanted | note["plan"]:
            if wanted.get(name) != note["plan"].get(name):
                raise InputError(
                    f"{name} is {wanted.get(name)!r}, but {out} was begun with {note['plan'].get(name)!r}; put it back "
                    "to continue, name a new --out, or add --overwrite."
                )
        ended = (out / MANIFEST).is_file() and (out / REPORT).is_file()
        if ended and all(_finished(out, name) is not None for name in _names(job.rows)):
            return True
    with writing(out):
        for folder in (RECORDS, OVERVIEWS):
            (out / folder).mkdir(parents=True, exist_ok=True)
        (out / INCOMPLETE).write_text("`nucleate tile` has not ended; run it again.\n", encoding="utf-8")
        (out / MANIFEST).unlink(missing_ok=True)  # where a shard was lost since
        _write_json(out / CUT_NOTE, {"plan": job.plan(), "names": _names(job.rows)})
    return False


def cut_slides(
    out: Path, job: TileJob, refused: Sequence[str] = (), *, workers: int = 1, progress: bool = False
) -> dict[str, Any]:
    """Cut what is missing in a folder that `begin` made ready, and end the job.

    Args:
        refused: sentences on slides that were left out, for the report.
        workers: processes, each with slides of its own.
        progress: show a bar.

    Returns:
        What `report.json` says: counts by slide, and of all.

    Raises:
        InputError: a slide that cannot be read at all, or a full disk; what is done stays.
    """
    names = _names(job.rows)
    records = {name: _finished(out, name) for name in names}
    missing = [(row, name) for row, name in zip(job.rows, names, strict=True) if records[name] is None]
    bar = tqdm(
        total=len(names),
        initial=len(names) - len(missing),
        desc="slides",
        unit="slide",
        disable=None if progress else True,
    )
    with writing(out), bar:
        if workers == 1 or len(missing) < 2:
            for row, name in missing:
                records[name] = cut_slide(out, job, row, name, progress)
                bar.update()
        else:
            light = replace(job, rows=())  # each process is told of its own slides alone
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(workers, len(missing)), context) as pool:
                tasks = [(name, pool.submit(cut_slide, out, light, row, name)) for row, name in missing]
                try:
                    for name, task in tasks:
                        records[name] = task.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        found = [record for record in records.values() if record is not None]
        facts = Facts()
        for row, record in zip(job.rows, found, strict=True):
            facts.add(_entry(row, job.source, record["mpp"]), record["kept"])
        report = {
            "kept": sum(record["kept"] for record in found),
            "dropped": {reason: sum(record["dropped"][reason] for record in found) for reason in REASONS},
            "refused": list(refused),
            "slides": [{k: v for k, v in record.items() if k != "shards"} for record in found],
        }
        _write_json(out / REPORT, report)
        shards = [shard for record in found for shard in record["shards"]]
        write_manifest(out, job.source, facts, job.licence, shards)
    return report


def read_report(out: Path) -> dict[str, Any]:
    """What `report.json` of a finished job says.

    Raises:
        InputError: it is damaged.
    """
    report = _json(out / REPORT, _TOTALS)
    if report is None:
        raise InputError(f"{out / REPORT} is missing; add --overwrite to cut the slides again.")
    for record in report["slides"]:
        _check(record, _COUNTS, out / REPORT)
    return report


def cut_slide(out: Path, job: TileJob, row: SlideRow, name: str, progress: bool = False) -> dict[str, Any]:
    """Cut one slide; returns its record, which is written last.

    Raises:
        InputError: it cannot be opened or surveyed.
        OSError: a file cannot be written.
    """
    for path in _shards_of(out, {name}):
        path.unlink()
    with Slide(row.path, row.mpp) as slide:
        grid, maps = grid_of(slide, job.tiling)
        lost: list[str] = []
        samples = _samples(slide, grid, job, row, name, lost, progress)
        shards = [describe_shard(path) for path in write_shards(out / name, samples, job.shard_mb * 1e6)]
        with written_whole(out / OVERVIEWS / f"{name}.jpg") as file:
            file.write(overview(maps, grid))
        dropped = grid.dropped()
        dropped["unreadable"] += len(lost)
        record = {
            "slide": row.key,
            "kept": len(grid.kept) - len(lost),
            "dropped": dropped,
            "first unreadable": next(iter(lost), maps.first_unreadable),
            "mpp": grid.sampling.mpp,
            "slide mpp": slide.mpp,
            "level": grid.sampling.level,
            "library": slide.library,
            "thresholds": dict(zip(("saturation", "haematoxylin"), maps.thresholds, strict=True)),
            "overview": f"{OVERVIEWS}/{name}.jpg",
            "shards": shards,
        }
    _write_json(out / RECORDS / f"{name}.json", record)
    return record


def _samples(
    slide: Slide, grid: Grid, job: TileJob, row: SlideRow, name: str, lost: list[str], progress: bool
) -> Iterator[list[tuple[str, bytes]]]:
    """The members of every kept tile; those that cannot be decoded are added to `lost` instead."""
    scale = grid.sampling.step * slide.downsamples[grid.sampling.level]
    bar = tqdm(grid.kept.tolist(), desc=row.key[-40:], unit="tile", leave=False, disable=None if progress else True)
    for line, column in bar:
        left, top = grid.box(line, column)
        try:
            image = read_grid(slide, grid.sampling, left, top, grid.size, grid.size)
        except UnreadableRegionError as error:
            lost.append(str(error))
            continue
        place = place_name(left, top, scale)
        facts = {
            "key": f"{row.key}/{place}",
            "label": row.label,
            "patient": row.patient,
            "mpp": grid.sampling.mpp,
            "split": row.split,
            "source": job.source,
            "slide": row.key,
            "x": round(left * scale),
            "y": round(top * scale),
            "level": grid.sampling.level,
            "tissue": round(float(grid.share[line, column]), 4),
        }
        text = json.dumps(facts, ensure_ascii=False, sort_keys=True).encode("utf-8")
        yield sorted([(f"{name}-{place}.{job.form}", encoded(image, job.form)), (f"{name}-{place}.json", text)])


def _entry(row: SlideRow, source: str, mpp: float) -> TileEntry:
    """What is known of every tile of a slide."""
    return TileEntry(row.path, row.key, source, row.patient, mpp, row.label, row.split, None)


def _names(rows: Sequence[SlideRow]) -> list[str]:
    """A name for each slide's files; where two would be alike, a part of the key's hash tells them apart."""
    plain = [plain_name(str(PurePosixPath(row.key).with_suffix(""))) or "slide" for row in rows]
    lower = [name.lower() for name in plain]  # for file systems that do not tell cases apart
    return [
        name if lower.count(name.lower()) == 1 else f"{name}-{hashlib.sha256(row.key.encode()).hexdigest()[:8]}"
        for name, row in zip(plain, rows, strict=True)
    ]


def _finished(out: Path, name: str) -> dict[str, Any] | None:
    """The record of a slide that is done, None where it or one of its shards is not."""
    path = out / RECORDS / f"{name}.json"
    record = _json(path, _RECORD)
    if record is None:
        return None
    for shard in record["shards"]:
        _check(shard, _STORED, path)
        archive = out / shard["name"]
        if not archive.is_file() or archive.stat().st_size != shard["bytes"] or not index_path(archive).is_file():
            return None
    return record


def _shards_of(out: Path, names: Collection[str]) -> list[Path]:
    """Shards and indices of slides, whole or not; those of A-1 are not A's, though their names begin alike."""
    found = ((path, _SHARD.fullmatch(path.name)) for path in out.iterdir())
    return [path for path, match in found if match and match[1] in names]


def _sweep(out: Path, names: Collection[str]) -> None:
    """Remove what this command wrote, its note last: until then, a killed call is still known as this command's.

    Args:
        names: of the slides that it cut; other shards are somebody else's.
    """
    (out / MANIFEST).unlink(missing_ok=True)
    for path in _shards_of(out, names):
        path.unlink()
    for name in (REPORT, *(f"{name}{PARTIAL}" for name in (MANIFEST, REPORT, CUT_NOTE))):
        (out / name).unlink(missing_ok=True)
    for folder in (RECORDS, OVERVIEWS):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / CUT_NOTE).unlink()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def _json(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it, or name a new --out.") from error
    _check(content, wanted, path)
    return content


def _check(content: Any, wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse JSON that is no object, or lacks one of the named values of their types."""
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (no object); remove it, or name a new --out.")
    for name, kind in wanted.items():
        if name not in content or not isinstance(content[name], kind):
            raise InputError(f"{path} is damaged (no {name!r}); remove it, or name a new --out.")
    if "dropped" in wanted:
        _check(content["dropped"], dict.fromkeys(REASONS, int), path)
