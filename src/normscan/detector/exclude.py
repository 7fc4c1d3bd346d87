"""Healthy scans that are left out of a fit by hand, each with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from normscan.cohort import Cohort
from normscan.cohort.table import TABLES, read_table
from normscan.errors import ArgumentError, CohortError, nearest

# Reasons by scan; a table with the columns scan and reason; or texts ``ID=REASON``.
Excluded = Mapping[str, str] | str | os.PathLike[str] | Iterable[str]


def reasons_of(given: Excluded | None) -> dict[str, str]:
    """Return the reason by scan.

    Args:
        given: reasons by scan; the path of a table with the columns ``scan`` and ``reason``; or
            texts, each ``ID=REASON`` or such a path.

    Raises:
        ArgumentError: a scan without a reason, or with two.
        CohortError: a table that can't be read or lacks a column.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs = [(str(scan), str(reason)) for scan, reason in given.items()]
    else:
        texts = [given] if isinstance(given, str | os.PathLike) else given
        pairs = [pair for text in texts for pair in _pairs(str(text))]
    found: dict[str, str] = {}
    for scan, reason in pairs:
        scan, reason = scan.strip(), " ".join(reason.split())
        if not scan or not reason:
            raise ArgumentError(
                f"exclude '{scan or reason}': give the scan and why it is left out, such as "
                "17=motion; the reason is recorded with the detector."
            )
        if found.setdefault(scan, reason) != reason:
            raise ArgumentError(f"exclude: '{scan}' is named twice, with different reasons.")
    return found


def _pairs(text: str) -> list[tuple[str, str]]:
    if Path(text).suffix.lower() in TABLES and "=" not in text:
        table = read_table(Path(text))
        if missing := {"scan", "reason"} - set(table.columns):
            raise CohortError(
                f"{text}: has no column '{min(missing)}'. A table of scans that are left out has the "
                "columns scan and reason."
            )
        return list(zip(table["scan"].astype(str), table["reason"].astype(str), strict=True))
    scan, _, reason = text.partition("=")
    return [(scan, reason)]


def without(cohort: Cohort, reasons: Mapping[str, str]) -> Cohort:
    """Return the cohort without the named scans.

    Raises:
        CohortError: there is no such scan, or it is not a healthy one of train or val.
    """
    if not reasons:
        return cohort
    rows = {row.scan: row for row in cohort}
    for scan in reasons:
        if scan not in rows:
            raise CohortError(
                f"exclude: the cohort has no scan '{scan}'.{nearest(scan, rows)} `healthy.csv` of a "
                "run and the column 'scan' of a cohort's table name the scans."
            )
        row = rows[scan]
        if row.split not in ("train", "val") or row.label != 0:
            raise CohortError(
                f"exclude: '{scan}' is no healthy scan of train or val (split "
                f"'{row.split or 'none'}', label {row.label}), so no fit learns from it. Leave it "
                "out of the table instead."
            )
    return cohort.select([row.scan not in reasons for row in cohort])
