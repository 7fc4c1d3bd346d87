"""A table of scans: read, divided into splits, looked at, cut into slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.cohort.bids import read_bids as read_bids
    from normscan.cohort.cohort import Cohort as Cohort
    from normscan.cohort.division import Division as Division
    from normscan.cohort.row import CohortRow as CohortRow
    from normscan.cohort.row import Opened as Opened
    from normscan.cohort.summary import CohortSummary as CohortSummary
    from normscan.cohort.table import COLUMNS as COLUMNS
    from normscan.cohort.table import SPLITS as SPLITS

__all__ = [
    "COLUMNS",
    "SPLITS",
    "Cohort",
    "CohortRow",
    "CohortSummary",
    "Division",
    "Opened",
    "read_bids",
]

__getattr__ = lazily(
    __name__,
    {
        "COLUMNS": "table",
        "SPLITS": "table",
        "Cohort": "cohort",
        "CohortRow": "row",
        "Division": "division",
        "Opened": "row",
        "CohortSummary": "summary",
        "read_bids": "bids",
    },
)
