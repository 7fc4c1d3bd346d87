"""What readers say of findings: kept line by line, never overwritten, and held against each other."""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from normscan.errors import ArgumentError, OutputError
from normscan.metrics import cohen_kappa

JOURNAL = "verdicts.jsonl"
WORDS = ("agree", "disagree", "unsure")
LONGEST_NOTE, LONGEST_NAME = 4000, 60
# Replicates of the intervals of kappa: a page asks after each verdict.
REPLICATES = 1000

Word = Literal["agree", "disagree", "unsure"]
Entry = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """Verdicts in a file of JSON lines, to which several viewers may add at once.

    Attributes:
        path: the file; made with the first verdict.
    """

    path: Path

    def add(
        self, reader: str, scan: str, verdict: str, note: str = "", flagged: bool | None = None
    ) -> Entry:
        """Add a verdict and return it; on return it is on the disk.

        Args:
            reader: who reads, a name or a sign.
            scan: name of the scan.
            verdict: agree, disagree or unsure.
            note: free text.
            flagged: what the detector had decided.

        Raises:
            ArgumentError: another verdict, no reader, a note that is too long.
            OutputError: the folder can't be written.
        """
        if verdict not in WORDS:
            raise ArgumentError(f"'{verdict}' is no verdict; {', '.join(WORDS)} are.")
        reader = checked_reader(reader)
        if len(note) > LONGEST_NOTE:
            raise ArgumentError(f"a note has at most {LONGEST_NOTE} letters, not {len(note)}.")
        entry = {
            "id": secrets.token_hex(8),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "reader": reader,
            "scan": scan,
            "verdict": verdict,
            "note": note,
            "flagged": flagged,
        }
        try:
            append_line(self.path, json.dumps(entry, ensure_ascii=False).encode())
        except OSError as error:
            raise OutputError(
                f"{self.path.name}: the verdict can't be saved ({error.strerror or error}). Check "
                "the free space and the rights of the folder."
            ) from error
        return entry

    def entries(self) -> tuple[list[Entry], int]:
        """Return all verdicts, the oldest first, and how many lines can't be read."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return [], 0
        found = []
        for line in lines:
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("verdict") in WORDS:
                    found.append({k: entry.get(k) for k in FIELDS})
        return found, sum(1 for line in lines if line.strip()) - len(found)


def checked_reader(reader: str) -> str:
    """Return who reads, without needless space.

    Raises:
        ArgumentError: nobody, or a name that is too long.
    """
    reader = " ".join(reader.split())
    if not reader or len(reader) > LONGEST_NAME:
        raise ArgumentError(f"say who reads, in 1 to {LONGEST_NAME} letters.")
    return reader


def append_line(path: Path, line: bytes) -> None:
    """Add a line whole: others wait, and one that was torn by a crash is closed first."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _lock(file)
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        os.write(file, (b"\n" if torn else b"") + line + b"\n")
        os.fsync(file)
    finally:
        os.close(file)


FIELDS = ("id", "time", "reader", "scan", "verdict", "note", "flagged")


def _lock(file: int) -> None:
    """Wait until no other viewer writes; the lock goes with the file."""
    with suppress(ImportError, OSError):  # no such locks on Windows and on some network disks
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def standing(entries: Iterable[Entry]) -> list[Entry]:
    """Return the last verdict of each reader on each scan."""
    last = {(str(e["reader"]), str(e["scan"])): e for e in entries}
    return list(last.values())


def as_csv(entries: Iterable[Entry]) -> str:
    """Return all verdicts as CSV; ``stands`` tells the last ones from those that they replaced."""
    entries = list(entries)
    kept = {e["id"] for e in standing(entries)}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*FIELDS, "anomalous", "stands"])
    for e in entries:
        says = rating(e)
        cells = [_cell(e[k]) for k in FIELDS]
        writer.writerow([*cells, "" if says is None else says, e["id"] in kept])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """Return a value that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value[:1] in "=+-@\t\r" and value:
        return f"'{value}"
    return "" if value is None else value


def rating(entry: Mapping[str, Any]) -> bool | None:
    """Return whether a reader calls a scan anomalous; None if unsure, or nothing was decided."""
    if entry["verdict"] == "unsure" or not isinstance(entry["flagged"], bool):
        return None
    return entry["flagged"] if entry["verdict"] == "agree" else not entry["flagged"]


def agreement(
    entries: Iterable[Entry], rows: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return Cohen's kappa of each reader with the detector, the label, and other readers.

    Args:
        entries: verdicts.
        rows: of the worklist, with what the detector decided, the label and the subject.

    Returns:
        For each pair ``first``, ``second``, ``scans``, the share of them ``equal``, ``kappa`` with
        ``low`` and ``high``, None where they are undefined.
    """
    said: dict[str, dict[str, bool]] = {}
    for entry in standing(entries):
        if (says := rating(entry)) is not None:
            said.setdefault(str(entry["reader"]), {})[str(entry["scan"])] = says
    detector = {s: r["anomalous"] for s, r in rows.items() if r.get("anomalous") is not None}
    label = {s: r["label"] for s, r in rows.items() if r.get("label") is not None}
    pairs = [(a, said[a], b, said[b]) for a, b in itertools.combinations(sorted(said), 2)]
    for reader in sorted(said):
        pairs += [
            (reader, said[reader], "detector", detector),
            (reader, said[reader], "label", label),
        ]
    subject: Callable[[str], str] = lambda s: str(rows.get(s, {}).get("subject") or s)  # noqa: E731
    return [
        _pair(first, one, second, other, subject)
        for first, one, second, other in pairs
        if one.keys() & other.keys()
    ]


def _pair(
    first: str,
    one: Mapping[str, Any],
    second: str,
    other: Mapping[str, Any],
    subject: Callable[[str], str],
) -> dict[str, Any]:
    both = sorted(one.keys() & other.keys())
    ratings = [[int(bool(each[s])) for s in both] for each in (one, other)]
    found = cohen_kappa(
        ratings[0], ratings[1], [subject(s) for s in both], replicates=REPLICATES
    ).to_dict()
    equal = sum(a == b for a, b in zip(*ratings, strict=True)) / len(both)
    figures = {"kappa": found["value"], "low": found["low"], "high": found["high"]}
    return {"first": first, "second": second, "scans": len(both), "equal": equal, **figures}
