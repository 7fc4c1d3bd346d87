"""Do the scans that come in still look like those before? A test that may be looked at all the time."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normscan.decide.scans import Floats
from normscan.errors import ArgumentError

JUMP = 0.01
"""Share of the stake that changes its bet at every scan, so that a late change is found too."""


def _bets(p: float) -> Floats:
    """Return what each bet pays on a p-value: functions of mean 1 on (0, 1), none below 0.

    One stays at home; four bet that p-values became lower or higher (linear), two that they spread
    to both ends or crowd in the middle (the second Legendre polynomial).
    """
    x = 2 * p - 1
    curve = 1.5 * x * x - 0.5
    return np.array(
        [1, 1 - 0.95 * x, 1 + 0.95 * x, 1 - 0.5 * x, 1 + 0.5 * x, 1 + 1.5 * curve, 1 - 0.95 * curve]
    )


class DriftTest:
    """A conformal test martingale: evidence that scores aren't exchangeable with those before them.

    Each score gets its p-value among *all* scores so far, the reference included, with ties broken
    at random. Where all are exchangeable these p-values are independent and uniform, exactly and for
    any size of the reference (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World,
    2nd ed. 2022, chapter 8). p-values against a fixed reference aren't: they share its accidents, so
    that a test of their uniformity raises false alarms sooner or later.

    Bets against uniformity start with a stake of 1. Their wealth is a test martingale, so the
    chance that it *ever* reaches 1 / alpha without a change is at most alpha (Ville's inequality):
    it may be looked at after every scan. A share of the stake moves between bets at each step (the
    Simple Jumper of Vovk et al., COPA 2021).

    Args:
        reference: scores that the first one is compared with, such as those of healthy calibration
            scans; none to ask whether the stream itself changes.

    Attributes:
        scores: that came since.
        log_wealth: natural logarithm of the wealth.
        peak: highest it ever was; evidence is what counts at its best moment.
    """

    def __init__(self, reference: Sequence[float] = ()) -> None:
        self._sorted = sorted(map(float, reference))
        self.scores: list[float] = []
        self.log_wealth = self.peak = 0.0
        self._shares = np.full(len(_bets(0.5)), 1 / len(_bets(0.5)))

    def update(self, score: float, tie: float) -> float:
        """Take the next score; return its p-value.

        Args:
            score: of the scan, higher is more anomalous.
            tie: uniform in [0, 1), drawn for this scan and independent of all scores.

        Raises:
            ArgumentError: a score that is NaN, a tie outside [0, 1).
        """
        if math.isnan(score) or not 0 <= tie < 1:
            raise ArgumentError(
                f"A drift test takes a number and a tie in [0, 1), not {score}, {tie}."
            )
        low = bisect.bisect_left(self._sorted, score)
        high = bisect.bisect_right(self._sorted, score)
        count = len(self._sorted)
        p = (count - high + tie * (high - low + 1)) / (count + 1)
        self._sorted.insert(high, score)
        self.scores.append(float(score))
        shares = (1 - JUMP) * self._shares + JUMP / len(self._shares)
        won = shares * _bets(p)
        total = float(won.sum())
        self._shares, self.log_wealth = won / total, self.log_wealth + math.log(total)
        self.peak = max(self.peak, self.log_wealth)
        return float(p)

    def alarm(self, alpha: float) -> bool:
        """Whether the evidence ever reached 1 / alpha."""
        return self.peak >= -math.log(alpha)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the reference is given again to ``restored``."""
        return {
            "scores": self.scores, "log_wealth": self.log_wealth, "peak": self.peak,
            "shares": self._shares.tolist(),
        }  # fmt: skip

    @classmethod
    def restored(cls, state: Mapping[str, Any], reference: Sequence[float] = ()) -> DriftTest:
        """Return the test that ``to_dict`` wrote, with the same reference."""
        made = cls(reference)
        made.scores = [float(s) for s in state["scores"]]
        made._sorted = sorted([*made._sorted, *made.scores])
        made.log_wealth, made.peak = float(state["log_wealth"]), float(state["peak"])
        made._shares = np.array(state["shares"], dtype=np.float64)
        return made
