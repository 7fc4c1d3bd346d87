"""Plant, predict, count: one lesion at a time, each written down as soon as it is scored."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.cohort import Cohort
from normscan.detector.finding import Finding
from normscan.errors import ArgumentError, NormscanError, OutputError
from normscan.io import atomic_path
from normscan.io.atomic import check_folder, writing
from normscan.io.lock import one_writer
from normscan.io.sheets import inert, revived
from normscan.io.values import plain, read_json, write_json
from normscan.limits.curves import LEVELS
from normscan.limits.result import Limits, examples
from normscan.limits.sources import BLOB, PhantomSource, Source, scan_source
from normscan.planting.sites import Planted, Site
from normscan.progress import Progress
from normscan.scan import Scan

if TYPE_CHECKING:
    from normscan.detector import Detector

TABLE, PLAN = "limits.csv", "plan.json"
CONTRASTS = (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)
PHANTOM_CONTRASTS = (0.25, 0.5, 0.75, 1.0)
COLUMNS = (
    "site", "subject", "scan", "kind", "size", "contrast", "x", "y", "z", "extent",
    "reached", "score", "p_value", "flagged", "overlap", "found", "twin_hit", "gate", "seconds",
)  # fmt: skip


def detection_limits(
    detector: Detector,
    scans: Cohort | str | os.PathLike[str] | Sequence[Scan] | None = None,
    *,
    phantom: str | os.PathLike[str] | None = None,
    kind: str = BLOB,
    sizes: Sequence[float] | None = None,
    contrasts: Sequence[float] | None = None,
    count: int = 20,
    split: str = "test",
    overlap: float = 0.1,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    replicates: int = 200,
    command: str = "",
    progress: bool = False,
) -> Limits:
    """Plant lesions of a grid of sizes and contrasts into healthy scans and see which are found.

    Every place gets the lesion of each cell of the grid in turn, with the same centre and shape.
    Each scan goes through `Detector.predict` and is scored whatever the quality gate says; what it
    says is counted. At the level of scans a lesion is found where its scan is flagged. At the level
    of lesions it is found where the segmentation covers at least ``overlap`` of its mask with
    voxels that the segmentation of the healthy twin doesn't have.

    Args:
        detector: fitted.
        scans: a cohort, the path of its table or folder, or healthy scans. None with ``phantom``.
        phantom: folder of a simulated cohort; new subjects are drawn with its settings.
        kind: ``blob`` for an irregular ellipsoid in any scan; with ``phantom`` also wmh, tumour,
            infarct and bleed as the phantom draws them.
        sizes: diameters in mm of a ball of the lesion's volume (of a disc of its area in a 2D
            scan), two or more; by default six that suit the scans.
        contrasts: of a blob, in robust standard deviations of the foreground, negative for darker
            ones; of the phantom's kinds, parts of their usual change.
        count: lesions in each cell, in as many scans as there are.
        split: part of the cohort, of whose healthy scans the lesions are planted.
        overlap: least part of a lesion that must be newly segmented, 0 for any voxel.
        seed: of order, places and shapes.
        out: folder for the rows, written as they come: the same call goes on where it was stopped.
        replicates: bootstrap resamples of the subjects.
        command: to be recorded.
        progress: show progress on stderr.

    Raises:
        ArgumentError: a wrong value, both or none of ``scans`` and ``phantom``.
        CohortError: no healthy scan, or no lesion could be planted and scored.
        OutputError: ``out`` holds the rows of another plan.
    """
    if detector.further:
        names = ", ".join(name for name, _ in detector.further)
        raise ArgumentError(
            f"lesions are planted in single images, and this detector looks at {names} of a case too. "
            "Limits need one that sees one image: fit on cohort.alone()."
        )
    if (scans is None) == (phantom is None):
        raise ArgumentError("give either a cohort of healthy scans or a phantom, not both.")
    if kind != BLOB and phantom is None:
        raise ArgumentError(f"lesions of the kind '{kind}' need a phantom; other scans take blobs.")
    source: Source
    if phantom is not None:
        source = PhantomSource(phantom, kind)
    else:
        assert scans is not None
        if isinstance(scans, str | os.PathLike):
            scans = detector.read_cohort(scans)
        source = scan_source(scans, split, seed)
        source.about["length"] = source.length()
        if isinstance(scans, Cohort):
            part = source.about["split"]
            healthy = [row for row in scans.part(part) if row.label == 0]
            source.notes += detector.doubts(healthy, part)
    if contrasts is None:
        contrasts = CONTRASTS if kind == BLOB else PHANTOM_CONTRASTS
    grid = _grid(source.sizes() if sizes is None else sizes, contrasts, kind)
    if not (isinstance(count, int) and count >= 1 and 0 <= overlap < 1 and replicates >= 0):
        raise ArgumentError("count must be 1 or more, overlap in [0, 1), replicates 0 or more.")
    plan = plain(
        {
            "detector": detector.fingerprint, **source.about, "sizes": grid[0],
            "contrasts": grid[1], "overlap": overlap, "seed": seed,
        }
    )  # fmt: skip
    folder = None if out is None else Path(out)
    with one_writer(folder), Progress(progress) as bar:
        ledger = Ledger(folder, plan, 1 + len(grid[0]) * len(grid[1]))
        failures = _plant(detector, source, grid, range(count), overlap, ledger, bar)
        if not any(row["size"] for row in ledger.rows):
            reason = failures[0]["reason"] if failures else "there was none"
            raise ArgumentError(f"no lesion could be planted and scored: {reason}")
        about = {**plan, **_described(detector), "kind": kind, "command": command}
        rows = [r for r in ledger.rows if int(r["site"]) < count]
        limits = Limits.of(rows, about, failures, source.notes, replicates, seed)
        bar.say("drawing examples")
        limits.examples = examples(detector, source, max(grid[0]), limits)
    return limits


def _grid(
    sizes: Sequence[float], contrasts: Sequence[float], kind: str
) -> tuple[list[float], list[float]]:
    found = sorted({float(s) for s in sizes}), sorted({float(c) for c in contrasts})
    if len(found[0]) < 2 or not all(math.isfinite(s) and s > 0 for s in found[0]):
        raise ArgumentError(f"sizes are {list(sizes)}: give two or more diameters in mm, above 0.")
    if not found[1] or not all(math.isfinite(c) and c for c in found[1]):
        raise ArgumentError(f"contrasts are {list(contrasts)}: give numbers other than 0.")
    if kind != BLOB and found[1][0] < 0:
        raise ArgumentError(f"a {kind} has the sign that it has: contrasts are positive factors.")
    return found


def _described(detector: Detector) -> dict[str, Any]:
    """What the picture and the page say of the detector and its operating point."""
    threshold = detector.scan_threshold
    if threshold is None:
        raise ArgumentError(
            "this detector has no threshold: fit it first, or calibrate it on healthy scans."
        )
    return {
        "method": detector.card.id,
        "paper": detector.card.paper,
        "fpr_wanted": threshold.fpr,
        "fpr_expected": threshold.expected_fpr,
        "fpr_interval": list(threshold.fpr_interval()),
        "n_validation": threshold.n,
        "certified": threshold.certified,
        "calibration": threshold.describe(),
        "pixel_threshold": detector.pixel_threshold,
        "pixel_fpr": detector.pixel_fpr,
    }


def _plant(
    detector: Detector,
    source: Source,
    grid: tuple[list[float], list[float]],
    numbers: range,
    overlap: float,
    ledger: Ledger,
    bar: Progress,
) -> list[dict[str, str]]:
    """Fill the ledger; a bad scan, or a lesion that can't be planted, is reported and left out."""
    failures = []
    for number in bar.track(numbers, "plant and predict"):
        if number in ledger.done:
            continue
        name, rows = f"site {number + 1}", []
        try:
            site = source.site(number, max(grid[0]))
            name = site.name
            twin = detector.predict(site.twin, site.foreground, details=False, force=True)
            rows.append(_row(number, site, twin))
            for size in grid[0]:
                try:
                    grown = site.grow(size)
                    for contrast in grid[1]:
                        lesion = grown(contrast)
                        found = detector.predict(lesion.scan, site.foreground, False, True)
                        about = {"kind": source.about["kind"], "size": size}
                        about |= {"contrast": contrast}
                        rows.append(_row(number, site, found, lesion, twin, overlap) | about)
                except NormscanError as error:
                    reason = str(error).replace(source.root, "")
                    failures.append(
                        {
                            "scan": f"{name}, {size:g} {source.about.get('length', 'mm')}",
                            "reason": reason,
                        }
                    )
        except NormscanError as error:
            failures.append({"scan": name, "reason": str(error).replace(source.root, "")})
            # Its cause names the file, which what is written doesn't.
            bar.say(f"left out {name}: {error.__cause__ or error}")
        ledger.add(rows)
    return failures


def _row(
    number: int,
    site: Site,
    finding: Finding,
    lesion: Planted | None = None,
    twin: Finding | None = None,
    overlap: float = 0.0,
) -> dict[str, Any]:
    """Return one line of the table: a healthy twin, or a lesion in it."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row |= {
        "site": number, "subject": site.subject, "scan": site.name, "kind": "healthy",
        "size": 0.0, "contrast": 0.0, "score": float(finding.score),
        "p_value": finding.p_value, "flagged": bool(finding.anomalous),
        "gate": finding.quality.status if finding.quality else "",
        "seconds": round(finding.seconds, 4),
    }  # fmt: skip
    if lesion is None:
        return row
    places = (round(float(v), 3) for v in lesion.centre)
    row |= dict(zip(("x", "y", "z"), places, strict=True))
    row |= {"extent": round(lesion.extent, 3), "reached": round(lesion.reached, 4)}
    segmentation = finding.segmentation
    if segmentation is not None and twin is not None and twin.segmentation is not None:
        before = twin.segmentation[lesion.mask]
        new = float((segmentation[lesion.mask] & ~before).mean())
        row |= {
            "overlap": round(new, 5),
            "found": new > 0 and new >= overlap,
            "twin_hit": bool(before.any()) and float(before.mean()) >= overlap,
        }
    return row


class Ledger:
    """The rows, in memory and, with a folder, in a table that a stopped run goes on with.

    Args:
        folder: made if missing; None keeps the rows in memory only.
        plan: what the rows belong to.
        complete: rows of a finished site.

    Raises:
        OutputError: the folder holds the rows of another plan, or something else.
    """

    def __init__(self, folder: Path | None, plan: dict[str, Any], complete: int) -> None:
        self.path = None if folder is None else folder / TABLE
        self.rows: list[dict[str, Any]] = []
        if self.path is not None:
            assert folder is not None
            check_folder(folder)
            self._open(folder / PLAN, plan, complete)
        self.done = {int(row["site"]) for row in self.rows}

    def _open(self, plan_path: Path, plan: dict[str, Any], complete: int) -> None:
        assert self.path is not None
        if self.path.exists():
            try:
                same = read_json(plan_path) == plan
            except (OSError, ValueError):
                same = False
            if not same:
                raise OutputError(
                    f"{self.path} holds the lesions of another detector, cohort or grid. Choose "
                    "another folder, or remove it."
                )
            try:
                self.rows = _complete(read_rows(self.path), complete)
            except (ValueError, KeyError, csv.Error) as error:
                raise OutputError(
                    f"{self.path} is damaged ({type(error).__name__}). Remove it, or choose another "
                    "folder."
                ) from error
        write_json(plan_path, plan)
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(_inert, self.rows))

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Take in the rows of a site."""
        self.rows += rows
        if self.path is not None and rows:
            with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(map(_inert, rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of ``limits.csv``; a line that was cut off is left out.

    Raises:
        ValueError: other columns, or a value of another type.
    """
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = []
    reader = csv.DictReader(lines)
    if reader.fieldnames is None or list(reader.fieldnames) != list(COLUMNS):
        raise ValueError("other columns")
    for cells in reader:
        row: dict[str, Any] = {name: revived(cell) for name, cell in cells.items()}
        for name in COLUMNS[4:-2] + COLUMNS[-1:] + ("site",):
            value = row.get(name) or ""
            if name in (*LEVELS.values(), "twin_hit"):
                row[name] = {"True": True, "False": False}.get(value, "")
            elif value:
                row[name] = int(value) if name == "site" else float(value)
        rows.append(row)
    return rows


def _inert(row: dict[str, Any]) -> dict[str, Any]:
    return {name: inert(value) for name, value in row.items()}


def _complete(rows: list[dict[str, Any]], complete: int) -> list[dict[str, Any]]:
    sites, numbers = np.unique([row["site"] for row in rows] or [0], return_counts=True)
    whole = set(sites[numbers == complete].tolist()) if rows else set()
    return [row for row in rows if row["site"] in whole]
