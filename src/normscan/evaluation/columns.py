"""Columns of ``scans.csv``: what the evaluation says of a scan, and what the cohort does."""

from __future__ import annotations

# What an evaluation says of a scan.
OWN = (
    "scan", "subject", "label", "split", "site", "score", "p_value", "anomalous", "quality", "seen",
    "seconds",
)  # fmt: skip


def column_name(free: str) -> str:
    """Return what a free column of the cohort is called in ``scans.csv``.

    One that is named as a value of the evaluation is ``cohort_score``; so is no other column.
    """
    bare = free
    while bare.startswith("cohort_"):
        bare = bare.removeprefix("cohort_")
    return f"cohort_{free}" if bare in OWN else free
