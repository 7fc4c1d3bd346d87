"""A few labelled anomalies to learn from, drawn by a seed; the test keeps the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from normscan.cohort.division import Division, content_of
from normscan.cohort.row import CohortRow
from normscan.cohort.splits import groups
from normscan.errors import ArgumentError, CohortError, nearest

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FewAnomalies:
    """Which anomalous scans may be learnt from.

    Attributes:
        count: how many, each of another subject.
        seed: of the draw.
        seen: ``COLUMN=VALUE`` for the hard setting: only anomalies of this class are drawn, and
            none of it is tested. Empty for the general one, where any class may be drawn.

    Raises:
        ArgumentError: less than one, or a class without its column.
    """

    count: int
    seed: int = 0
    seen: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ArgumentError(f"{self.count} anomalies: ask for 1 or more, or leave it out.")
        if self.seen and not all(self.seen.partition("=")):
            raise ArgumentError(
                f"the class of anomalies '{self.seen}': give a column and its value, such as "
                "kind=tumour."
            )

    def __str__(self) -> str:
        """In words."""
        kind = f"the class {self.seen}, which the test lacks" if self.seen else "any class"
        return f"{self.count} labelled anomalies of {kind}, drawn by seed {self.seed}"


def draw_anomalies(table: pd.DataFrame, root: Path, few: FewAnomalies) -> pd.DataFrame:
    """Return the table with so many anomalous scans in extra, each of another subject.

    They are drawn from the anomalous scans of extra where it has some, else from those of test. Of
    a drawn subject nothing is tested: its further scans, and what shares an exact copy of a file
    with it, belong to no part. Anomalous scans of extra that are not drawn belong to none either.

    Args:
        table: a normalised table with splits.
        root: folder of its relative paths.
        few: how many, and of which class.

    Raises:
        CohortError: it has fewer, or no others to test; no such column or class.
    """
    table = table.copy()
    group, split = groups(table, root), list(table["split"])
    ill = list((table["label"] == 1).fillna(False))
    seen = _seen(table, few, ill)
    home = "extra" if any(i and s == "extra" for i, s in zip(ill, split, strict=True)) else "test"
    taught = {g for g, s in zip(group, split, strict=True) if s in ("train", "val")}
    rows: dict[str, list[int]] = {}
    for at, name in enumerate(group):
        if ill[at] and seen[at] and split[at] == home and not (home == "test" and name in taught):
            rows.setdefault(name, []).append(at)
    if len(rows) < few.count:
        kind = f" with {few.seen}" if few.seen else ""
        raise CohortError(
            f"{few.count} anomalies were asked for, and {home} has anomalous scans{kind} of "
            f"{len(rows)} subjects. Ask for fewer, or give more."
        )
    generator, names = np.random.default_rng(few.seed), sorted(rows)
    drawn = [names[i] for i in generator.permutation(len(names))[: few.count]]
    chosen = {sorted(rows[name])[generator.integers(len(rows[name]))] for name in drawn}
    for at, name in enumerate(group):
        of_class = bool(few.seen) and ill[at] and seen[at]
        tested = split[at] == "test" and not (name in drawn or of_class)
        if at in chosen:
            split[at] = "extra"
        elif (split[at] == "test" and not tested) or (split[at] == "extra" and ill[at]):
            split[at] = ""
    if not any(i and s == "test" for i, s in zip(ill, split, strict=True)):
        raise CohortError(
            f"no anomalous scan would be left to test with {few}. Ask for fewer, or another class."
        )
    table["split"] = split
    return table


def _seen(table: pd.DataFrame, few: FewAnomalies, ill: list[bool]) -> list[bool]:
    """Return which scans are of the class that is seen."""
    if not few.seen:
        return [True] * len(table)
    column, _, value = few.seen.partition("=")
    if column not in table.columns:
        raise CohortError(
            f"the cohort has no column '{column}' for classes of anomalies."
            f"{nearest(column, list(table.columns))}"
        )
    values = [str(v) for v in table[column]]
    known = sorted({v for v, i in zip(values, ill, strict=True) if i})
    if value not in known:
        raise CohortError(
            f"no anomalous scan has '{value}' in the column '{column}'.{nearest(value, known)} "
            f"There: {', '.join(known[:20])}."
        )
    return [v == value for v in values]


def learnt_from(rows: Iterable[CohortRow], division: Division) -> list[bool]:
    """Return which scans of test a detector was given as anomalies, or set aside beside these.

    Args:
        rows: scans of a cohort, which may be the one before the draw.
        division: of the detector.
    """
    rows = list(rows)
    tested = [row for row in rows if row.split == "test"]
    places, _ = division.places([(r.scan, r.subject, content_of(r.paths)) for r in tested])
    known = {row.scan for row, at in zip(tested, places, strict=True) if at in ("extra", "")}
    return [row.split == "test" and row.scan in known for row in rows]
