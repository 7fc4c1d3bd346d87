"""Which of several scores of the same scans finds planted lesions best, at a rate of false alarms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.decide.calibration import rank
from normscan.decide.scans import Floats, highest_of, without_nan

# Standard errors that another score must gain. With one the choice among equals would raise the rate
# of false alarms by half, see benchmarks/results/scores.md: it looks at the scans of the threshold.
CLEAR = 2.0
DRAWS = 200  # of the subjects, for a standard error
FEWEST_ABOVE = 3


@dataclass(frozen=True)
class Judged:
    """What a score finds of planted lesions.

    Attributes:
        name: of the score.
        sensitivity: mean over the kinds of ``by_kind``.
        worst: lowest of ``by_kind``.
        auroc: mean over the kinds of the AUROC against the healthy scans.
        by_kind: share of the lesions of each kind that are flagged.
        behind: how much lower the sensitivity is than that of the highest.
        error: standard error of ``behind``, by drawing the subjects again.
    """

    name: str
    sensitivity: float
    worst: float
    auroc: float
    by_kind: dict[str, float]
    behind: float = 0.0
    error: float = 0.0

    @property
    def level_with_best(self) -> bool:
        """Whether it lies within one standard error of the highest sensitivity."""
        return self.behind <= self.error

    @property
    def clearly_behind(self) -> bool:
        """Whether it lies further behind the highest sensitivity than two standard errors."""
        return self.behind > CLEAR * self.error

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def judging_rank(subjects: int, fpr: float) -> int:
    """Return which healthy score of the others, from the highest, a lesion must exceed.

    That of ``ScanThreshold``, but at least the third: where few healthy scans let the highest set
    the threshold, one odd scan would choose the score, too.
    """
    return min(max(FEWEST_ABOVE, rank(subjects - 1, fpr)), max(1, subjects - 1))


@dataclass(frozen=True)
class Trials:
    """Planted lesions beside the healthy scans of *other* subjects.

    A lesion is planted into a healthy scan, whose own score must not stand in its way: it is
    compared with the healthy scans of the other subjects, as a new subject's is with all.

    Attributes:
        subjects: of the healthy scans.
        owners: numbers (m,) of the subjects whose scans the lesions are in.
        kinds: (m,) of the lesions.
        rank: see ``judging_rank``.
    """

    subjects: list[Hashable]
    owners: npt.NDArray[np.int_]
    kinds: npt.NDArray[np.str_]
    rank: int

    @classmethod
    def of(
        cls,
        subjects: Sequence[Hashable],
        owners: Sequence[Hashable],
        kinds: Sequence[str],
        fpr: float,
    ) -> Trials:
        """Return the trials; every owner has a healthy scan."""
        known = list(dict.fromkeys(subjects))
        numbers = {subject: i for i, subject in enumerate(known)}
        whose = np.array([numbers[owner] for owner in owners], int)
        return cls(list(subjects), whose, np.array(kinds), judging_rank(len(known), fpr))

    def flagged(
        self, healthy: npt.ArrayLike, planted: npt.ArrayLike, draws: Floats
    ) -> npt.NDArray[np.bool_]:
        """Return which lesions (m, B) lie above the threshold of the other subjects.

        Args:
            healthy: scores of the healthy scans.
            planted: scores (m,) of those with a lesion.
            draws: how often each subject was drawn (subjects, B); ones for once each.
        """
        highest = np.array(list(highest_of(without_nan(healthy), self.subjects).values()))
        as_high = highest >= without_nan(planted)[:, None]
        as_high[np.arange(len(self.owners)), self.owners] = False
        return np.asarray(as_high.astype(float) @ draws < self.rank)

    def sensitivity(self, flagged: npt.NDArray[np.bool_], draws: Floats) -> dict[str, Floats]:
        """Return the share (B,) of the lesions of each kind that are flagged."""
        weights, found = draws[self.owners], {}
        for kind in sorted(set(self.kinds.tolist())):
            mine = self.kinds == kind
            total = np.maximum(weights[mine].sum(0), 1e-12)
            found[kind] = (weights[mine] * flagged[mine]).sum(0) / total
        return found


def judge(
    healthy: Mapping[str, npt.ArrayLike],
    planted: Mapping[str, npt.ArrayLike],
    trials: Trials,
    seed: int = 0,
) -> list[Judged]:
    """Judge several scores of the same scans, each in the order that they come in.

    Args:
        healthy: by the name of the score, those of healthy scans (n,).
        planted: by the same names, those of scans with a planted lesion (m,).
        trials: whose they are; every kind of lesion weighs the same.
        seed: of the subjects that are drawn again for the standard error.
    """
    n = len(set(trials.subjects))
    once = np.ones((n, 1))
    again = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS).T.astype(float)
    shares: dict[str, dict[str, Floats]] = {}
    spread: dict[str, dict[str, Floats]] = {}
    for name in healthy:
        for draws, into in ((once, shares), (again, spread)):
            flags = trials.flagged(healthy[name], planted[name], draws)
            into[name] = trials.sensitivity(flags, draws)
    means = {n: {k: float(v[0]) for k, v in kinds.items()} for n, kinds in shares.items()}
    best = max(means, key=lambda name: float(np.mean(list(means[name].values()))))
    judged = []
    for name, by_kind in means.items():
        plain, lesioned = np.asarray(healthy[name], float), np.asarray(planted[name], float)
        areas = [_auroc(plain, lesioned[trials.kinds == kind]) for kind in by_kind]
        behind = np.mean([means[best][k] - by_kind[k] for k in by_kind])
        drawn = np.mean([spread[best][k] - spread[name][k] for k in by_kind], axis=0)
        judged.append(
            Judged(
                name, float(np.mean(list(by_kind.values()))), min(by_kind.values()),
                float(np.mean(areas)), by_kind, float(behind), float(drawn.std()),
            )
        )  # fmt: skip
    return judged


def choose(judged: Sequence[Judged]) -> Judged:
    """Return the score to take; the first of them is the one that is taken without evidence.

    The first stays unless it is ``clearly_behind``. Else, among the scores within one standard error
    of the highest sensitivity, the sensitivity of the worst kind decides, then the AUROC, then the
    order.
    """
    if not judged[0].clearly_behind:
        return judged[0]
    level = [entry for entry in judged if entry.level_with_best]
    return max(level, key=lambda entry: (entry.worst, entry.auroc))


def recorded(what: str, judged: Sequence[Judged], best: Judged, **more: Any) -> dict[str, Any]:
    """Return what was chosen, why, and all figures, as JSON values.

    Args:
        what: was to be chosen: score, scaling.
        judged: the usual one first.
        best: that is taken.
        more: values beside.
    """
    usual = judged[0]
    if best is usual:
        reason = (
            f"the usual {what}, {usual.name}, stays: it finds {usual.sensitivity:.0%} of the planted "
            "lesions, and no other finds more by over two standard errors."
        )
    else:
        reason = (
            f"{best.name} finds {best.sensitivity:.0%} of the planted lesions (worst kind "
            f"{best.worst:.0%}), the usual {usual.name} {usual.sensitivity:.0%} ({usual.worst:.0%})."
        )
    return {
        "chosen": best.name, "usual": usual.name, "reason": reason, **more,
        "judged": [entry.to_dict() for entry in judged],
    }  # fmt: skip


def _auroc(healthy: Floats, lesioned: Floats) -> float:
    ordered = np.sort(healthy)
    below = np.searchsorted(ordered, lesioned, "left") + np.searchsorted(ordered, lesioned, "right")
    return float(below.mean() / (2 * len(ordered)))
