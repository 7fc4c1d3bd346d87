"""The scan-level decision: a conformal p-value against healthy validation scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from normscan.decide.calibration import rank
from normscan.errors import ArgumentError

Floats = npt.NDArray[np.float64]


class ScanThreshold:
    """A threshold on the image score whose false-positive rate is known before any lesion is seen.

    With n healthy validation scores the threshold is the k-th largest of them,
    k = max(1, floor(fpr * (n + 1))), and a scan is anomalous if its score is *above* it. For a new
    healthy scan, exchangeable with the validation scans, that happens with probability k / (n + 1)
    (less where scores tie). Over random validation sets the rate of the fixed threshold is
    Beta(k, n - k + 1) distributed (Vovk 2012; Bates et al., Annals of Statistics 2023).

    ``trim`` leaves the t highest scores out of the rank and of the p-values, as if those subjects
    were not healthy. The wanted rate is then kept if they aren't. If they are, the threshold is the
    (k + t)-th largest of all n + t, so the rate is (k + t) / (n + t + 1): that is ``expected_fpr``,
    and what the interval is of.

    Attributes:
        scores: healthy validation scores (n,), ascending.
        trimmed: those that were left out (t,), ascending.
        fpr: the wanted false-positive rate.
        rank: k, the rank from the top of the score that is the threshold.
        threshold: the decision is score > threshold.
    """

    def __init__(self, scores: npt.ArrayLike, fpr: float = 0.05, trim: int = 0) -> None:
        values = np.sort(without_nan(scores))
        if not values.size:
            raise ArgumentError("A threshold needs at least one healthy validation score.")
        if not 0 < fpr < 1:
            raise ArgumentError(f"The false-positive rate must be between 0 and 1, not {fpr}.")
        if not 0 <= trim < values.size:
            raise ArgumentError(
                f"trim is {trim}, but {values.size} healthy subjects were scored: leave fewer out."
            )
        self.scores: Floats
        self.scores, self.trimmed = np.split(values, [values.size - trim])
        self.fpr = float(fpr)
        self.rank = rank(self.n, fpr)
        self.threshold = float(self.scores[-self.rank])

    @classmethod
    def fit(
        cls,
        scores: npt.ArrayLike,
        fpr: float = 0.05,
        subjects: Sequence[Hashable] | None = None,
        trim: int = 0,
    ) -> ScanThreshold:
        """Return the threshold for a false-positive rate on healthy validation scans.

        Scans of one subject are not exchangeable with those of others. Where subjects are given,
        each stands with its highest score: the rate then holds for the event that *any* scan of a
        new healthy subject is flagged, and with it for each of its scans.

        Args:
            scores: image scores of healthy scans (n,); may be infinite, not NaN.
            fpr: wanted false-positive rate in (0, 1).
            subjects: subject of each scan; None where every scan is a subject of its own.
            trim: so many of the highest subjects are left out of the rank.

        Raises:
            ArgumentError: no scores, NaN, lengths that differ, or a rate outside (0, 1).
        """
        values = without_nan(scores)
        if subjects is None:
            return cls(values, fpr, trim)
        if len(subjects) != values.size:
            raise ArgumentError(
                f"{values.size} scores came with {len(subjects)} subjects; give one for each."
            )
        return cls(list(highest_of(values, subjects).values()), fpr, trim)

    @property
    def n(self) -> int:
        """Number of healthy validation scores (subjects, where they were given) that are ranked."""
        return self.scores.size

    @property
    def trim(self) -> int:
        """Number of scores that were left out of the rank."""
        return self.trimmed.size

    @property
    def expected_fpr(self) -> float:
        """Probability k / (n + 1) that a new healthy scan is called anomalous; less with ties.

        (k + t) / (n + t + 1) where t were left out of the rank.
        """
        return (self.rank + self.trim) / (self.n + self.trim + 1)

    def fpr_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the central interval of the false-positive rate over random validation sets."""
        if not 0 < confidence < 1:
            raise ArgumentError(f"The confidence must be between 0 and 1, not {confidence}.")
        tails = np.array([1 - confidence, 1 + confidence]) / 2
        low, high = betaincinv(self.rank + self.trim, self.n - self.rank + 1, tails)
        return float(low), float(high)

    def rates(self) -> dict[str, float]:
        """Return the false-positive rate that was wanted, and what to expect of it."""
        low, high = self.fpr_interval()
        return {"wanted": self.fpr, "expected": self.expected_fpr, "low": low, "high": high}

    @property
    def needed(self) -> int:
        """Fewest healthy scans with which the wanted rate can be reached: ceil(1 / fpr) - 1."""
        return max(1, math.ceil(1 / self.fpr - 1e-9) - 1)

    @property
    def certified(self) -> bool:
        """Whether the expected rate is at most the wanted one; needs `needed` healthy scans."""
        return self.n >= self.needed and not self.trim

    def describe(self) -> str:
        """Return the operating point in one or two sentences."""
        low, high = self.fpr_interval()
        count = self.n + self.trim
        text = (
            f"Expected false-positive rate {self.expected_fpr:.1%} (95 % interval {low:.1%} to "
            f"{high:.1%}) from {count} healthy validation {'subject' if count == 1 else 'subjects'}."
        )
        return text + self._few()

    def _few(self) -> str:
        if self.trim:
            return (
                f" Left out of the rank are the highest {self.trim} of them, and the next {self.rank} set "
                f"the threshold: the rate is {self.expected_fpr:.1%} if those left out are healthy, "
                f"{self.rank / (self.n + 1):.1%} if they aren't. The wanted rate of {self.fpr:.3g} is "
                "not guaranteed."
            )
        if self.certified:
            return " The highest of them sets the threshold by itself." if self.rank == 1 else ""
        return (
            f" They are too few for the wanted rate of {self.fpr:.3g}: "
            f"at least {self.needed} are needed."
        )

    def is_anomalous(self, score: float) -> bool:
        """Return whether the score is above the threshold; the same as p <= k / (n + 1).

        Raises:
            ArgumentError: the score is NaN.
        """
        return float(without_nan([score])[0]) > self.threshold

    @property
    def grouped_by(self) -> str:
        """The column whose groups have thresholds of their own, or an empty string."""
        return ""

    def among(self, columns: Mapping[str, Any]) -> tuple[ScanThreshold, str]:
        """Return the threshold for a scan by its columns, and whom it is then compared with.

        There is nothing to say where all scans are compared with the same ones.
        """
        return self, ""

    def judge(self, scores: Sequence[float]) -> tuple[float, bool]:
        """Return p-value and decision of a scan by the scores of a detector's members.

        The members of a detector that was calibrated elsewhere stand with the mean of their scores.

        Raises:
            ArgumentError: NaN, or another number of members than calibrated.
        """
        p_value = float(self.p_values_of([scores])[0])
        # Both are multiples of 1 / (n + 1).
        return p_value, round(p_value * (self.n + 1)) <= self.rank

    def ranked(self, p_value: float) -> dict[str, int]:
        """Return what a p-value counts.

        That is so many ``healthy`` subjects, of them so many that score ``as_high``, and how many
        ``may_be_as_high`` where a scan is still anomalous.
        """
        as_high = round(p_value * (self.n + 1)) - 1
        return {"healthy": self.n, "as_high": as_high, "may_be_as_high": self.rank - 1}

    def p_values_of(self, scores: npt.ArrayLike) -> Floats:
        """Return the p-values (m,) of scans by the means of their members' scores (m, K)."""
        return self.p_values(np.asarray(scores, dtype=np.float64).mean(axis=1))

    def p_value(self, score: float) -> float:
        """Return the conformal p-value (1 + #{healthy >= score}) / (n + 1) of one score.

        Raises:
            ArgumentError: the score is NaN.
        """
        return float(self.p_values([score])[0])

    def p_values(self, scores: npt.ArrayLike) -> Floats:
        """Return the conformal p-values (m,) of scores (m,), each in [1 / (n + 1), 1].

        Raises:
            ArgumentError: a score is NaN.
        """
        below = np.searchsorted(self.scores, without_nan(scores), side="left")
        return (1 + self.n - below) / (self.n + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that restore the threshold exactly; infinities are strings."""
        return {
            "fpr": self.fpr,
            "threshold": plain_score(self.threshold),
            "rank": self.rank,
            "expected_fpr": self.expected_fpr,
            "fpr_interval": list(self.fpr_interval()),
            "certified": self.certified,
            "needed": self.needed,
            "trim": self.trim,
            "scores": [plain_score(s) for s in (*self.scores.tolist(), *self.trimmed.tolist())],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ScanThreshold:
        """Return the threshold that `to_dict` wrote.

        Raises:
            ArgumentError: a part is missing, or the scores don't give the stored threshold.
        """
        try:
            scores = [float(score) for score in state["scores"]]
            restored = cls(scores, float(state["fpr"]), int(state.get("trim", 0)))
            stored = float(state["threshold"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"This is no stored scan threshold: {error!r}.") from error
        if restored.threshold != stored:
            raise ArgumentError(
                f"The stored threshold {stored} is not the one that its healthy scores give "
                f"({restored.threshold}); the file was changed."
            )
        return restored


def highest_of(values: Floats, subjects: Sequence[Hashable]) -> dict[Hashable, float]:
    """Return the highest score of each subject, in the order that they come in."""
    highest: dict[Hashable, float] = {}
    for subject, value in zip(subjects, values.tolist(), strict=True):
        highest[subject] = max(value, highest.get(subject, -math.inf))
    return highest


def without_nan(scores: npt.ArrayLike) -> Floats:
    """Return the scores as float64 (n,), or refuse NaN and other shapes."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ArgumentError(f"Scores must be one number for each scan, not shape {values.shape}.")
    if np.isnan(values).any():
        raise ArgumentError(
            f"{int(np.isnan(values).sum())} of {values.size} scores are NaN; a scan without a "
            f"score has no decision. Leave it out and report it."
        )
    return values


def plain_score(value: float) -> float | str:
    """Return a finite float, or `inf` and `-inf` as strings: JSON knows no infinity."""
    return value if math.isfinite(value) else str(value)
