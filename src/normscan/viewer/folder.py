"""The folder of a run as the viewer sees it: a worklist, findings, the files of each scan."""

from __future__ import annotations

import csv
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscan.errors import ArgumentError, NormscanError, OutputError
from normscan.io import probe
from normscan.io.values import finite, read_json
from normscan.version import __version__

FINDING, SCORES, SCANS = "_finding.json", "scores.csv", "scans.csv"
# The endings under which a finding writes what the page shows, see ``Finding.save``.
FILES = {
    "scan": ("_scan.nii.gz",),
    "map": ("_map.nii.gz", "_map.tif"),
    "restoration": ("_restoration.nii.gz",),
}
PICTURE = "_overlay.png"
NUMBERS = ("score", "p_value", "q_value")
FLAGS = ("anomalous", "chosen", "label")
TEXTS = ("subject", "split", "quality", "notes", "left_out")
# Of an evaluation: how it went, nothing to sort a worklist by.
PASSED_OVER = {"seconds", "false_alarms_expected", "path", "mask", "why", "stages"}


@dataclass(frozen=True)
class Place:
    """Where the results of a run lie.

    Attributes:
        findings: folder of ``*_finding.json``, or None.
        evaluation: folder of ``scans.csv``, or None.
        home: the folder that the viewer serves, and in which verdicts are kept.
        chosen: scan to begin with, if one was named.
        title: name of the run.
    """

    findings: Path | None
    evaluation: Path | None
    home: Path
    chosen: str | None
    title: str


def locate(path: str | os.PathLike[str]) -> Place:
    """Find the results in a run folder, a folder of findings or of an evaluation, or at a finding.

    Raises:
        ArgumentError: there are none, and which command writes them.
    """
    given = Path(path)
    if given.is_file() and given.name.endswith(FINDING):
        folder = given.parent
        chosen = given.name.removesuffix(FINDING)
        return Place(folder, None, folder, chosen, folder.resolve().name)
    if not given.is_dir():
        raise ArgumentError(
            f"{given}: is neither a folder nor a *{FINDING}. Name a run, or the folder in which "
            "`normscan predict` wrote."
        )
    title = given.resolve().name
    if _has_findings(given):
        return Place(given, None, given, None, title)
    if (given / SCANS).is_file():
        return Place(None, given, given, None, title)
    findings, evaluation = given / "predictions", given / "evaluation"
    found = findings if _has_findings(findings) else None
    table = evaluation if (evaluation / SCANS).is_file() else None
    if found is None and table is None:
        state = "" if (given / "detector.json").exists() else " (nor a whole detector)"
        raise ArgumentError(
            f"{given}: holds no findings and no evaluation{state}. Write some first: "
            f"normscan predict {given} SCAN... --format nifti,view"
        )
    return Place(found, table, found or evaluation, None, title)


def _has_findings(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return (folder / SCORES).is_file() or any(folder.glob(f"*{FINDING}"))


@dataclass
class Results:
    """What lies at a place, read again where it has changed; safe to use from several threads.

    Attributes:
        place: where.
        known: further columns of scans by name, such as label and site of a cohort.
    """

    place: Place
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: Any = None
        self._rows: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the row of each scan by name, in the order of the tables."""
        with self._lock:
            if (now := self._signature()) != self._seen:
                self._notes = []
                self._rows = self._read()
                self._seen = now
            return self._rows

    def notes(self) -> list[str]:
        """Return what is wrong with the folder, in sentences."""
        self.rows()
        return list(self._notes)

    def finding(self, name: str) -> dict[str, Any] | None:
        """Return what ``*_finding.json`` says of a scan; None where there is none.

        Raises:
            NormscanError: it can't be read.
        """
        path = self._file(name, FINDING)
        if path is None:
            return None
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{path.name}: can't be read ({error}). Predict the scan again."
            ) from error
        if not isinstance(found, dict):
            raise OutputError(f"{path.name}: is no finding. Predict the scan again.")
        return dict(finite(found))

    def volume(self, name: str, kind: str) -> Path | None:
        """Return the file of the ``scan``, its ``map`` or its ``restoration``; None without one."""
        found = (self._file(name, ending) for ending in FILES.get(kind, ()))
        return next((path for path in found if path is not None), None)

    def volumes(self, name: str) -> tuple[dict[str, list[int]], list[str]]:
        """Return the shape of each volume that can be shown, and what is wrong with the others."""
        shapes, said = {}, []
        for kind in FILES:
            path = self.volume(name, kind)
            if path is None:
                continue
            try:
                shapes[kind] = [int(n) for n in probe(path).shape]
            except (NormscanError, OSError) as error:
                said.append(str(error))
        others = [kind for kind in shapes if kind != "scan"]
        for kind in others if "scan" in shapes else []:
            if shapes[kind] != shapes["scan"]:
                said.append(
                    f"The {kind} has the shape {shapes[kind]} and the scan {shapes['scan']}: it "
                    "belongs to another scan or another version of it, and is left out. "
                    "Predict the scan again."
                )
                del shapes[kind]
        return shapes, said

    def picture(self, name: str) -> Path | None:
        """Return the file of the overlay picture, or None."""
        return self._file(name, PICTURE)

    def _file(self, name: str, ending: str) -> Path | None:
        """Return a file of a scan in the worklist; nothing outside the folder of the findings."""
        home = self.place.findings
        if home is None or name not in self.rows():
            return None
        path = home / f"{name}{ending}"
        inside = path.resolve().parent == home.resolve()
        return path if inside and path.is_file() else None

    def _signature(self) -> Any:
        """Tell one state of the folder from another, at the cost of three file stamps."""
        paths = [self.place.findings, *self._tables()]
        return [(p.stat().st_mtime_ns, p.stat().st_size) for p in paths if p and p.exists()]

    def _tables(self) -> list[Path]:
        found, evaluated = self.place.findings, self.place.evaluation
        tables = [found / SCORES] if found else []
        return tables + ([evaluated / SCANS] if evaluated else [])

    def _read(self) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        for path in self._tables():
            for line in self._lines(path):
                name = line.pop("scan")
                # The finding that is looked at counts, not one that an evaluation made.
                rows[name] = {**line, **rows.get(name, {})}
        for path in sorted(self.place.findings.glob(f"*{FINDING}")) if self.place.findings else ():
            name = path.name.removesuffix(FINDING)
            if name not in rows and not name.startswith(".tmp-"):
                rows[name] = self._told(path)
        for name, columns in self.known.items():
            if name in rows:
                rows[name] |= {k: v for k, v in columns.items() if v is not None}
        return rows

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for line in csv.DictReader(file):
                    if line.get("scan"):
                        yield {k: v for k, v in _values(line) if v is not None}
        except FileNotFoundError:
            self._notes.append(f"{path.name} isn't there yet: a prediction may still be running.")
        except (OSError, ValueError, csv.Error) as error:
            self._notes.append(f"{path.name} can't be read ({error}).")

    def _told(self, path: Path) -> dict[str, Any]:
        """Return the row of a finding that stands in no table."""
        try:
            found = read_json(path)
            return {k: found.get(k) for k in ("score", "p_value", "anomalous")}
        except (OSError, ValueError, AttributeError):
            return {"left_out": f"{path.name} can't be read. Predict the scan again."}


def _values(line: Mapping[str, str | None]) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a row with their types."""
    for name, text in line.items():
        if name is None or name in PASSED_OVER:
            continue
        text = text if isinstance(text, str) else ""
        if name in NUMBERS:
            yield name, number(text)
        elif name in FLAGS:
            yield name, truth(text)
        else:
            yield name, text or None


def number(text: str) -> float | None:
    """Return a finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def truth(text: str) -> bool | None:
    """Return what a table says with True, 1.0, false, and so on; None for anything else."""
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    return known.get(text.strip().lower())


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns of a worklist: the usual ones that any row has, then the others by name.

    Of the others there are those that tell scans apart: with two values or more.
    """
    values: dict[str, set[Any]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None and len(known := values.setdefault(name, set())) < 2:
                known.add(value)
    there = set(values)
    usual = [
        name for name in ("score", "p_value", "q_value", "anomalous", "label") if name in there
    ]
    texts = [name for name in TEXTS if name in there]
    return [*usual, *texts, *sorted(n for n in there - {*usual, *texts} if len(values[n]) > 1)]


def about(place: Place) -> dict[str, Any]:
    """Return the ``method`` that made the findings and the ``version`` of normscan, where known."""
    for folder in (place.home, place.home.parent):
        try:
            told = read_json(folder / "detector.json")
            method = told["configuration"]["method"]
            return {"method": str(method), "version": str(told["versions"]["normscan"])}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def newer(version: Any) -> str | None:
    """Return a sentence where a later version of normscan than this one wrote something."""
    try:
        later, ours = (tuple(map(int, str(v).split(".")[:3])) for v in (version, __version__))
    except ValueError:
        return None
    if later <= ours:
        return None
    return (
        f"Written by normscan {version}, and this is {__version__}: something may be missing here."
    )
