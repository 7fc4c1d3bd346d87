"""A few scans of a cohort as small pictures, for a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import zip_longest

from normscan.cohort.row import CohortRow
from normscan.cohort.summary import LABELS
from normscan.display import Plane, planes
from normscan.errors import ScanError


def few(cohort: Iterable[CohortRow], n: int) -> list[tuple[Plane, str]]:
    """Return a plane of up to n scans, one of each label in turn, and their names."""
    by_label: dict[int | None, list[CohortRow]] = {}
    for row in cohort:
        by_label.setdefault(row.label, []).append(row)
    turn = [row for rows in zip_longest(*by_label.values()) for row in rows if row is not None]
    found: list[tuple[Plane, str]] = []
    for row in turn[: 2 * n]:
        if len(found) == n:
            break
        with suppress(ScanError):
            scan = row.load()
            found.append(
                (
                    planes(scan.data, scan.affine, rgb=scan.is_rgb)[0],
                    f"{row.scan}: {LABELS[row.label]}",
                )
            )
    return found
