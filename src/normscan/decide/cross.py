"""The scan-level decision when every healthy scan calibrates: cross-conformal p-values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.decide.scans import Floats, ScanThreshold, highest_of, plain_score, without_nan
from normscan.errors import ArgumentError


class CrossThreshold(ScanThreshold):
    """A threshold from out-of-fold scores: each healthy subject's, of a member that didn't see it.

    The healthy subjects lie in K folds; member k was fitted without fold k and scores it. A new scan
    gets a score from each member and is compared, in each fold, with that fold's member alone:

        p = (1 + sum over k of #{healthy i of fold k: score_i >= score by member k}) / (n + 1).

    It is anomalous where p <= r / (n + 1) with r = max(1, floor(fpr * (n + 1))), as with a split.
    Members differ by the fold that they lack, so the rate r / (n + 1) is what to expect, not what
    is proven: that is ``guaranteed`` (cross-conformal predictors: Vovk, Annals of Mathematics and
    Artificial Intelligence 2015; the bound: Barber et al., Annals of Statistics 2021, theorem 4).

    One score instead of K, of a detector that was fitted again to all healthy scans, is compared
    with all out-of-fold scores. Nothing is proven of that rate.

    A fold of which no scan could be scored stays empty: its member then takes part in the mean score,
    not in the p-value, and n counts the others.

    Attributes:
        folds: ranked healthy scores of each fold, ascending.
        refit: scans are judged by one detector that was fitted again to all healthy scans.
        threshold: the r-th largest of all out-of-fold scores. Where the members agree on a scan, it
            is anomalous above it.
    """

    def __init__(
        self,
        folds: Sequence[npt.ArrayLike],
        fpr: float = 0.05,
        refit: bool = False,
        trim: int = 0,
    ) -> None:
        self.refit = refit
        # With those that are trimmed, for storage.
        self._every: list[Floats] = [np.sort(without_nan(fold)) for fold in folds]
        sizes = [fold.size for fold in self._every]
        if len(sizes) < 2 or not sum(sizes):
            raise ArgumentError(f"Cross-calibration needs two folds or more with scores: {sizes}.")
        values = np.concatenate(self._every)
        super().__init__(values, fpr, trim)
        ranked = np.ones(values.size, bool)
        ranked[np.argsort(values, kind="stable")[self.n :]] = False
        ends = np.cumsum(sizes)[:-1]
        parts = zip(self._every, np.split(ranked, ends), strict=True)
        self.folds: list[Floats] = [fold[kept] for fold, kept in parts]

    @classmethod
    def of_subjects(
        cls,
        scores: npt.ArrayLike,
        folds: Sequence[int],
        fpr: float = 0.05,
        subjects: Sequence[Hashable] | None = None,
        refit: bool = False,
        trim: int = 0,
        members: int | None = None,
    ) -> CrossThreshold:
        """Return the threshold for out-of-fold scores; each subject stands with its highest.

        Args:
            scores: of healthy scans (n,), each by the member that didn't see its subject.
            folds: fold of each scan; scans of one subject share it.
            fpr: wanted false-positive rate in (0, 1).
            subjects: subject of each scan; None where every scan is a subject of its own.
            refit: scans are judged by one detector that was fitted again to all healthy scans.
            trim: so many of the highest subjects are left out of the rank.
            members: number of folds, counted from 1, where some may be without a score.

        Raises:
            ArgumentError: lengths that differ, NaN, fewer than two folds, or a subject in two.
        """
        values = without_nan(scores)
        if len(folds) != values.size:
            raise ArgumentError(f"{values.size} scores came with {len(folds)} folds.")
        owners = list(range(values.size)) if subjects is None else list(subjects)
        home = dict(zip(owners, folds, strict=True))
        if any(home[owner] != fold for owner, fold in zip(owners, folds, strict=True)):
            raise ArgumentError("a subject lies in two folds; folds are by subject.")
        highest = highest_of(values, owners)
        numbers = sorted(set(folds)) if members is None else range(1, members + 1)
        parts = [[v for o, v in highest.items() if home[o] == k] for k in numbers]
        return cls(parts, fpr, refit, trim)

    @property
    def guaranteed(self) -> float:
        """Largest false-positive rate that exchangeable subjects allow; 1 after a refit."""
        if self.refit:
            return 1.0
        k, n = sum(fold.size > 0 for fold in self._every), self.n + self.trim
        excess = min(2 * (1 - 1 / k) / (n / k + 1), (1 - k / n) / (k + 1))
        return min(1.0, 2 * self.expected_fpr + excess)

    def p_values_of(self, scores: npt.ArrayLike) -> Floats:
        """Return the p-values (m,) of scans by the scores (m, K) of all members, or (m, 1).

        Raises:
            ArgumentError: NaN, or another number of members.
        """
        values = np.atleast_2d(np.asarray(scores, dtype=np.float64))
        without_nan(values.ravel())
        if values.shape[1] not in (1, len(self.folds)):
            raise ArgumentError(f"{values.shape[1]} scores came for {len(self.folds)} members.")
        columns = np.broadcast_to(values, (len(values), len(self.folds))).T
        as_high = sum(
            fold.size - np.searchsorted(fold, column, side="left")
            for fold, column in zip(self.folds, columns, strict=True)
        )
        return (1 + np.asarray(as_high)) / (self.n + 1)

    def describe(self) -> str:
        """Return the operating point in some sentences."""
        low, high = self.fpr_interval()
        proven = "nothing is" if self.refit else f"at most {self.guaranteed:.1%} is"
        text = (
            f"Expected false-positive rate about {self.expected_fpr:.1%} (95 % interval {low:.1%} to "
            f"{high:.1%}; {proven} proven) from out-of-fold scores of all "
            f"{self.n + self.trim} healthy subjects in {len(self.folds)} folds."
        )
        return text + self._few()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that restore the threshold exactly; infinities are strings."""
        sizes = [fold.size for fold in self._every]
        # By fold, since each fold is compared by itself.
        scores = [plain_score(s) for fold in self._every for s in fold.tolist()]
        return {
            **super().to_dict(), "scores": scores, "folds": sizes, "refit": self.refit,
            "guaranteed_fpr": self.guaranteed,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ScanThreshold:
        """Return the threshold that ``to_dict`` wrote, this kind's or that of a split."""
        if "folds" not in state:
            return ScanThreshold.from_dict(state)
        try:
            scores = [float(score) for score in state["scores"]]
            ends = np.cumsum(state["folds"])
            restored = cls(
                np.split(np.array(scores), ends[:-1]), float(state["fpr"]), bool(state["refit"]),
                int(state.get("trim", 0)),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"This is no stored scan threshold: {error!r}.") from error
        if ends[-1] != len(scores) or restored.threshold != float(state["threshold"]):
            raise ArgumentError("The stored threshold is not the one that its scores give.")
        return restored
