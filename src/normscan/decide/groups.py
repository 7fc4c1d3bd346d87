"""Decisions by a column, such as the scanner: a scan is compared with healthy ones of its group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.decide.cross import CrossThreshold
from normscan.decide.scans import ScanThreshold, highest_of, plain_score, without_nan
from normscan.errors import ArgumentError


class GroupedThreshold(ScanThreshold):
    """Thresholds and p-values within groups (Mondrian conformal predictors, Vovk 2012).

    A group with enough healthy subjects for the wanted rate has a threshold of its own, and the
    rate holds for its healthy scans by themselves. Smaller groups are put together; together they
    may still be too few. Then, and for a group that no healthy scan is of, all healthy scans are
    compared with, and the rate holds on average over groups only. Which groups stand alone follows
    from their sizes, never from scores, so it costs nothing of what is promised.

    As a threshold without a group it is that of all healthy scans.

    Args:
        groups: healthy scores by group, each subject's highest.
        column: that names the groups.
        fpr: wanted false-positive rate in (0, 1).

    Attributes:
        alone: thresholds of the groups that have one of their own.
        together: names of the smaller groups.
        rest: threshold of these together, or None where they are too few.
    """

    def __init__(self, groups: Mapping[str, npt.ArrayLike], column: str, fpr: float = 0.05) -> None:
        scores = {name: without_nan(values) for name, values in sorted(groups.items())}
        if not scores:
            raise ArgumentError("A threshold needs at least one healthy validation score.")
        super().__init__(np.concatenate(list(scores.values())), fpr)
        self.column, self.groups = column, scores
        self.alone = {
            name: ScanThreshold(values, fpr) for name, values in scores.items()
            if name and len(values) >= self.needed
        }  # fmt: skip
        # Those of which the column says nothing are no group; they count among all.
        self.together = tuple(name for name in scores if name and name not in self.alone)
        pooled = [scores[name] for name in self.together]
        joined = np.concatenate(pooled) if pooled else np.empty(0)
        self.rest = ScanThreshold(joined, fpr) if len(joined) >= self.needed else None

    @classmethod
    def of_subjects(
        cls,
        scores: npt.ArrayLike,
        names: Sequence[str],
        column: str,
        fpr: float = 0.05,
        subjects: Sequence[Hashable] | None = None,
    ) -> GroupedThreshold:
        """Return the threshold for scores (n,) of scans in groups (n,).

        A subject stands with its highest score, in the group of most of its scans.
        """
        values = without_nan(scores)
        if len(names) != values.size:
            raise ArgumentError(f"{values.size} scores came with {len(names)} groups.")
        owners: list[Hashable] = list(range(values.size)) if subjects is None else list(subjects)
        counts: dict[Hashable, Counter[str]] = {}
        for owner, name in zip(owners, names, strict=True):
            counts.setdefault(owner, Counter())[name] += 1
        groups: dict[str, list[float]] = {}
        for owner, value in highest_of(values, owners).items():
            groups.setdefault(counts[owner].most_common(1)[0][0], []).append(value)
        return cls(groups, column, fpr)

    @property
    def grouped_by(self) -> str:
        return self.column

    def among(self, columns: Mapping[str, Any]) -> tuple[ScanThreshold, str]:
        name = group_of(columns, self.column)
        if name in self.alone:
            found = self.alone[name]
            return found, f"Compared with {found.n} healthy subjects of {self.column} {name}."
        if name in self.together and self.rest is not None:
            others = ", ".join(self.together)
            return self.rest, (
                f"Compared with {self.rest.n} healthy subjects of {self.column} {others}, which are "
                "too few by themselves."
            )
        why = f"{self.column} {name} has too few" if name else f"no {self.column} was given"
        return self, f"Compared with all {self.n} healthy subjects: {why}."

    def describe(self) -> str:
        """Return the operating point in some sentences, group by group."""
        parts = [f"{name} {t.expected_fpr:.1%} from {t.n}" for name, t in self.alone.items()]
        if self.rest is not None:
            parts.append(
                f"{', '.join(self.together)} {self.rest.expected_fpr:.1%} from {self.rest.n}"
            )
        elif self.together:
            parts.append(f"{', '.join(self.together)} with all")
        by = f" By {self.column}: {'; '.join(parts)}."
        return ScanThreshold.describe(self) + by

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that restore the threshold exactly; infinities are strings."""
        groups = {k: [plain_score(s) for s in v.tolist()] for k, v in self.groups.items()}
        return {**super().to_dict(), "column": self.column, "groups": groups}


def group_of(columns: Mapping[str, Any], column: str) -> str:
    """Return the group of a scan, or an empty string where it isn't told."""
    value = columns.get(column)
    return "" if value is None else str(value).strip()


def restored(state: Mapping[str, Any]) -> ScanThreshold:
    """Return the threshold that ``to_dict`` of any kind wrote.

    Raises:
        ArgumentError: a part is missing, or the scores don't give the stored threshold.
    """
    if "groups" not in state:
        return CrossThreshold.from_dict(state)
    try:
        groups = {name: [float(s) for s in scores] for name, scores in state["groups"].items()}
        found = GroupedThreshold(groups, str(state["column"]), float(state["fpr"]))
        stored = float(state["threshold"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"This is no stored scan threshold: {error!r}.") from error
    if found.threshold != stored:
        raise ArgumentError("The stored threshold is not the one that its scores give.")
    return found
