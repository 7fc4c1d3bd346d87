"""One cell of a benchmark: fit a method with one seed, evaluate it, write down what it took.

``python -m normscan.benchmark.cell JOB.json`` runs a job in a process of its own, so that memory is
measured for it alone and its end can't take the others along.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import sys
import threading
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from normscan.errors import NormscanError
from normscan.io.values import plain, read_json, write_json

if TYPE_CHECKING:
    from normscan.cohort import Cohort

CELL, ERROR, PIXELS = "cell.json", "error.json", "pixels.csv"


@dataclass(frozen=True)
class Job:
    """A method with a seed, fitted once and evaluated on one set or on several.

    Attributes:
        method: id.
        seed: of everything random.
        detector: options of ``Detector``, arguments included.
        table: cohort table to fit on.
        run: run folder of the detector.
        cells: folder of the cell of each set, by the set's id.
        tables: cohort table of each set, by id.
        region: pixels that count.
        variants: to compute.
        features: network of the indices of restorations; empty where they are not asked for.
        device: where to run; does not belong to the configuration.
        dropped: arguments that the method doesn't have.
        command: to be recorded.
        anomalies: fields of ``FewAnomalies``; empty for none.
        contents: hash of the files that a table names, by the table; see ``contents_of``.
    """

    method: str
    seed: int
    detector: dict[str, Any]
    table: str
    run: str
    cells: dict[str, str]
    tables: dict[str, str]
    region: str = "whole"
    variants: list[str] = field(default_factory=list)
    features: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    dropped: list[str] = field(default_factory=list)
    command: str = ""
    anomalies: dict[str, Any] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)

    def cohort(self, table: str) -> Cohort:
        """Read a table; the anomalies to learn from are drawn for every method, so all test alike.

        Of a case of several images a method that sees one gets the one in ``path``, which is noted.
        """
        from normscan.cohort import Cohort
        from normscan.registry import card

        cohort = Cohort.read(table)
        if "further" not in card(self.method).defaults:
            cohort = cohort.alone()
        return cohort.with_anomalies(**self.anomalies) if self.anomalies else cohort

    def digest(self, set_id: str) -> str:
        """Return the hash of all that decides the figures of a cell."""
        config = [self.method, self.seed, self.detector, self.region, self.variants]
        config += [part for part in (self.features, self.anomalies) if part]
        tables = (self.table, self.tables[set_id])
        hashes = [_hash(Path(path).read_bytes()) for path in tables]
        hashes += [self.contents[path] for path in tables if path in self.contents]
        return _hash(repr(plain([config, hashes])).encode())

    def state(self, set_id: str) -> str:
        """Say whether a cell is ``done``, ``failed``, ``open``, or ``other`` (other settings)."""
        folder = Path(self.cells[set_id])
        for name in (CELL, ERROR):
            if (folder / name).exists():
                if read_json(folder / name).get("digest") != self.digest(set_id):
                    return "other"
                if name == ERROR:
                    return "failed"
                results = folder / "evaluation" / "results.json"
                return "done" if results.exists() else "open"
        return "open"


def contents_of(table: str | Path) -> str:
    """Return the hash of all files of a cohort, images and masks: a table alone doesn't tell them."""
    from normscan.cohort import Cohort
    from normscan.cohort.division import content_of

    found = [content_of(row.called()) for row in Cohort.read(table)]
    return _hash(repr(found).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def clear(job: Job, everything: bool) -> None:
    """Forget the failures of a job's cells, or (``everything``) all that was made."""
    for folder in {job.run, *job.cells.values()} if everything else ():
        shutil.rmtree(folder, ignore_errors=True)
    for folder in job.cells.values():
        (Path(folder) / ERROR).unlink(missing_ok=True)


def run_job(job: Job, progress: bool = False) -> None:
    """Run a job; what goes wrong is written to ``error.json`` of its cells, and nothing is raised.

    A job that was stopped goes on from the last checkpoint of its detector.
    """
    waiting = [name for name in job.cells if job.state(name) == "open"]
    try:
        detector = _fit(job, progress)
    except Exception as error:
        for name in waiting:
            fail(job, name, error)
        return
    for name in waiting:
        try:
            _evaluate(job, name, detector, progress)
        except Exception as error:
            fail(job, name, error)


def _fit(job: Job, progress: bool) -> Any:
    from normscan.detector import Detector

    detector = Detector(
        job.method, seed=job.seed, gate=False, **{"calibration": "split", **job.detector}
    )
    return detector.fit(
        job.cohort(job.table), job.run, device=job.device, resume=True, progress=progress
    )


def _evaluate(job: Job, name: str, detector: Any, progress: bool) -> None:
    from normscan import evaluation
    from normscan.benchmark.measures import Watched
    from normscan.benchmark.restorations import RESTORATIONS, Restorations
    from normscan.cohort.cohort import ALONE
    from normscan.detector import Detector

    folder = Path(job.cells[name])
    cohort = job.cohort(job.tables[name])
    restored = None
    if job.features:
        training = cohort.part("train")
        healthy = training.select([row.label != 1 for row in training])
        restored = Restorations(detector, healthy, job.features, job.region)
    alone = [f"{job.method}: {note}" for note in cohort.notes if note.startswith(ALONE)]
    watched = Watched(detector, job.region, job.variants, restored)
    results = evaluation.evaluate(
        cast(Detector, watched), cohort, folder / "evaluation",
        region=cast(evaluation.Region, job.region), baselines=(), command=job.command,
        progress=progress, overwrite=True,
    )  # fmt: skip
    values, note = watched.variants()
    indices = restored.indices() if restored else {}
    values |= {index: estimate["value"] for index, estimate in indices.items()}
    _write_rows(folder / "evaluation" / PIXELS, watched.scans)
    _write_rows(folder / "evaluation" / RESTORATIONS, restored.rows if restored else [])
    training = detector.training
    write_json(
        folder / CELL,
        {
            "digest": job.digest(name),
            "set": name,
            "method": job.method,
            "seed": job.seed,
            "seconds": {
                "fit": training["seconds"]["total"],
                "predict_per_scan": results["seconds"]["predict_per_scan"],
            },
            "memory_mib": _peak_memory(),
            "device": training["device"],
            "variants": values,
            "restorations": indices,
            "notes": [n for n in (note, restored.note if restored else "", *alone) if n],
            "dropped": job.dropped,
            "job": asdict(job),
        },
    )


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    from normscan.io import atomic_path

    if not rows:
        return
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _peak_memory() -> dict[str, float]:
    """Return the largest memory of this process, and of the accelerator, in MiB."""
    import torch

    peak = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak["host"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
    if torch.cuda.is_available():
        peak["device"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def fail(job: Job, name: str, error: BaseException | str) -> None:
    """Write down why a cell failed; the traceback of an unexpected error goes to the log."""
    if isinstance(error, NormscanError | str):
        reason = str(error)
    else:
        traceback.print_exception(error)
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
    write_json(
        Path(job.cells[name]) / ERROR,
        {
            "digest": job.digest(name), "set": name, "method": job.method, "seed": job.seed,
            "reason": reason,
        },
    )  # fmt: skip


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: its end of the pipe then closes."""
    # Not through sys.stdin, whose lock the interpreter wants when it ends.
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_job(Job(**read_json(Path(sys.argv[1]))), progress=True)
