"""Scans scored for ``normscan predict``: in this process, or by workers of Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.cohort import CohortRow
from normscan.errors import NormscanError, of_scan
from normscan.identity import about_files, keeping_names
from normscan.parallel import ahead, read_ahead
from normscan.progress import Progress

if TYPE_CHECKING:
    from normscan.detector import Detector, Finding
    from normscan.detector.regions import Regions


@dataclass(frozen=True)
class Setup:
    """What a process needs to score scans; paths are absolute.

    Attributes:
        run: of the detector.
        device: that it runs on.
        folder: of the results.
        overlay: draw pictures.
        formats: of the results.
        regions: file of healthy scores of regions, or None.
        force: score what the quality gate refuses, too.
        kept: leave names of scans in what travels.
    """

    run: str
    device: str
    folder: str
    overlay: bool
    formats: tuple[str, ...]
    regions: str | None
    force: bool
    kept: bool

    @property
    def details(self) -> bool:
        """Whether restorations are written."""
        return "view" in self.formats


@dataclass(frozen=True)
class Answer:
    """What is said of a scan.

    Attributes:
        line: of the table of scores.
        said: sentences for the terminal.
        subject: of the scan.
        failed: it could not be predicted.
        new: the detector didn't know it, so it may stand on a worklist.
    """

    line: dict[str, Any]
    said: tuple[str, ...]
    subject: str
    failed: bool = False
    new: bool = False


Found = tuple[CohortRow, "Finding | NormscanError"]


def here(
    setup: Setup,
    detector: Detector,
    healthy: Regions | None,
    rows: Iterable[CohortRow],
    workers: int | None,
) -> Iterator[Answer]:
    """Score scans in this process, while threads read ahead and one writes."""
    found = detector.predict_cohort(rows, setup.details, setup.force, workers)
    writers = min(1, read_ahead() if workers is None else workers)
    for row, result in ahead(
        partial(_written, setup, healthy), found, writers, lambda one: _size(one[1])
    ):
        yield _answer(row, result)


def by_ray(
    setup: Setup, rows: list[CohortRow], workers: int, threads: int, address: str | None
) -> Iterator[Answer]:
    """Score scans in workers of Ray, which write the results, too.

    A task is one volume, or as many images as share a batch, so that numbers have the same bits as
    in one process.
    """
    from normscan.ray import LostError, over

    size = _together(rows)
    tasks = [[_absolute(row) for row in rows[k : k + size]] for k in range(0, len(rows), size)]
    gpus = 1 if setup.device.startswith("cuda") else 0
    bar = Progress()
    results = over(partial(_scorer, setup, threads), tasks, workers, address, threads, gpus)
    for number, (task, result) in enumerate(zip(tasks, results, strict=True), 1):
        if isinstance(result, LostError):
            yield from (_answer(row, result) for row in task)
        else:
            yield from result
        bar.update("predict", min(number * size, len(rows)), len(rows))


def _scorer(setup: Setup, threads: int) -> Callable[[list[CohortRow]], list[Answer]]:
    """Load the detector once in a worker; return what scores the rows of a task."""
    from normscan.detector import load
    from normscan.detector.regions import Regions
    from normscan.parallel import use_threads

    if not setup.run.endswith(".onnx"):
        use_threads(threads)
    detector = load(setup.run, setup.device, threads)
    healthy = None if setup.regions is None else Regions.load(Path(setup.regions), detector)

    def score(rows: list[CohortRow]) -> list[Answer]:
        with keeping_names(setup.kept):
            return list(here(setup, detector, healthy, rows, 0))

    return score


def _together(rows: list[CohortRow]) -> int:
    """How many scans a task holds: images share batches, and a volume is one by itself."""
    from normscan.detector.prediction import BATCH
    from normscan.io import probe

    try:
        return BATCH if len(probe(rows[0].paths[0]).shape) == 2 else 1
    except (NormscanError, OSError, IndexError):
        return 1  # it says itself what is wrong with it


def _absolute(row: CohortRow) -> CohortRow:
    """A row whose files are found from any folder."""

    def place(path: Path | None) -> Path | None:
        return None if path is None else Path(os.path.abspath(path))

    return replace(
        row, mask=place(row.mask), foreground=place(row.foreground),
        structures=place(row.structures),
        paths=tuple(Path(os.path.abspath(path)) for path in row.paths),
        targets=tuple(Path(os.path.abspath(path)) for path in row.targets),
        further={name: Path(os.path.abspath(path)) for name, path in row.further.items()},
    )  # fmt: skip


def _written(setup: Setup, healthy: Regions | None, found: Found) -> Found:
    """Write a finding, in any thread; return it, or what is wrong with it."""
    from normscan.detector.regions import locate

    row, result = found
    if not isinstance(result, NormscanError):
        try:
            with of_scan(row.scan):
                locate(result, row, healthy)
                result.save(Path(setup.folder), row.scan, setup.overlay, setup.formats)
        except NormscanError as error:
            return row, error
    return found


def _size(result: Finding | NormscanError) -> int:
    """Bytes that a finding takes, about."""
    return 0 if isinstance(result, NormscanError) else 4 * result.scan.data.nbytes


def _answer(row: CohortRow, result: Finding | NormscanError) -> Answer:
    from normscan.detector.prediction import SEEN

    if isinstance(result, NormscanError):
        left = {"scan": row.scan, "left_out": about_files(str(result), row.called())}
        return Answer(left, (f"{row.scan}: left out: {result}",), row.subject, failed=True)
    notes = (*(result.quality.sentences if result.quality else ()), *result.notes)
    p_value = "" if result.p_value is None else f"  p {result.p_value:.3f}"
    rates = result.false_alarms
    line = {
        "scan": row.scan,
        "score": result.score,
        "p_value": result.p_value,
        "anomalous": result.anomalous,
        "false_alarms_expected": None if rates is None else rates["expected"],
        "quality": result.quality.status if result.quality else None,
        "notes": " ".join(notes),
        "left_out": None,
    }
    said = f"{row.scan}: score {result.score:.5g}{p_value}  {result.decision}"
    return Answer(
        line, (said, *(f"  note: {note}" for note in notes)), row.subject,
        new=not set(SEEN.values()) & set(result.notes),
    )  # fmt: skip
