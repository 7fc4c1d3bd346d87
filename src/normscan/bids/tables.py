"""The tables of a BIDS data set: participants, sessions and scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from normscan.errors import CohortError, nearest

MOST_BYTES = 2**26
Cells = dict[str, str]


def read_json(path: Path) -> Any:
    """Read a JSON file that anyone may have written.

    Raises:
        OSError: it can't be read.
        ValueError: no JSON, larger than 64 MiB, or nested beyond reason.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError("larger than 64 MiB")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_tsv(path: Path, key: str) -> dict[str, Cells]:
    """Read a BIDS table: tabs, one header line, ``n/a`` for what is missing.

    Args:
        path: the table.
        key: column that names the rows, for example ``participant_id``.

    Returns:
        The cells of each row by the value of its key, without the key; ``n/a`` as an empty text.

    Raises:
        CohortError: not UTF-8, larger than 64 MiB, no such column, a line with more or fewer
            cells than the header, a key that is empty or stands twice. It names file and line.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CohortError(f"{path}: is larger than 64 MiB, which no table of scans is.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CohortError(f"{path}: can't be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise CohortError(f"{path}: isn't UTF-8 text. Save it as UTF-8.") from error
    lines = text.split("\n")
    header = [name.strip() for name in lines[0].split("\t")]
    if key not in header:
        found = ", ".join(name[:40] for name in header[:8]) or "nothing"
        raise CohortError(
            f"{path}: line 1 has no column {key}, only {found}.{nearest(key, header)} "
            "A BIDS table is separated by tabs."
        )
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise CohortError(f"{path}: line 1 has the column {doubled[0]} twice. Keep one.")
    rows: dict[str, Cells] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != len(header):
            raise CohortError(
                f"{path}: line {number} has {len(cells)} cells, the header {len(header)}. "
                "Separate cells by tabs and write n/a where a value is missing."
            )
        row = {k: "" if v.lower() == "n/a" else v for k, v in zip(header, cells, strict=True)}
        name = row.pop(key)
        if not name or name in rows:
            what = f"'{name}' stands twice" if name else "is empty"
            raise CohortError(f"{path}: line {number}: the {key} {what}. Give each row its own.")
        rows[name] = row
    return rows


def with_prefix(name: str, prefix: str) -> str:
    """Return ``sub-01`` for ``01`` and for ``sub-01``."""
    return name if name.startswith(prefix) else prefix + name


def participants(*roots: Path) -> dict[str, Cells] | None:
    """Return the cells of each participant from the first ``participants.tsv``; None without one.

    Raises:
        CohortError: as ``read_tsv``.
    """
    for root in roots:
        path = root / "participants.tsv"
        if path.is_file():
            rows = read_tsv(path, "participant_id")
            return {with_prefix(name, "sub-"): cells for name, cells in rows.items()}
    return None


class SubjectTables:
    """``sub-X_sessions.tsv`` and ``*_scans.tsv``, each read once, when first asked for.

    Args:
        root: of the data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[Path, dict[str, Cells]] = {}

    def _table(self, path: Path, key: str) -> dict[str, Cells]:
        if path not in self._read:
            self._read[path] = read_tsv(path, key) if path.is_file() else {}
        return self._read[path]

    def cells(self, subject: str, session: str, path: Path) -> Cells:
        """Return what the tables say of a file; the scan's own goes before its session's.

        Args:
            subject: ``sub-01``.
            session: ``ses-1`` or an empty text.
            path: the file.

        Raises:
            CohortError: as ``read_tsv``.
        """
        found: Cells = {}
        folder = self.root / subject
        if session:
            sessions = self._table(folder / f"{subject}_sessions.tsv", "session_id")
            named = {with_prefix(name, "ses-"): cells for name, cells in sessions.items()}
            found |= named.get(session, {})
            folder = folder / session
        prefix = f"{subject}_{session}" if session else subject
        scans = self._table(folder / f"{prefix}_scans.tsv", "filename")
        own = scans.get(f"{path.parent.name}/{path.name}", scans.get(path.name, {}))
        # An empty cell says nothing, so it doesn't hide the value of the table above.
        return found | {k: v for k, v in own.items() if v or k not in found}
