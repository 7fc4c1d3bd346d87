"""Calibration of p-values: on healthy scans they must be uniform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.estimates import Estimate, to_json


@dataclass(frozen=True)
class Calibration:
    """How p-values of healthy test scans spread.

    Attributes:
        distance: largest distance of their distribution from the uniform one (Kolmogorov-Smirnov).
        p_value: how often calibrated p-values lie as far from uniform; small where these are not
            calibrated. With ``behind`` of ``calibration`` it counts that all share one set of
            healthy scans; else it is that of the Kolmogorov-Smirnov test for independent ones,
            which says "not uniform" too easily where that set is small.
        below: for each level the fraction of healthy scans with p <= level, with its exact
            (Clopper-Pearson) interval. A fraction above its level is a false-positive rate higher
            than promised.
        n: number of scans.
    """

    distance: float
    p_value: float
    below: dict[str, Estimate]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


def calibration(
    p_values: npt.ArrayLike,
    levels: Sequence[float] = (0.01, 0.05, 0.1),
    confidence: float = 0.95,
    behind: int | None = None,
    repeats: int = 2000,
) -> Calibration:
    """Return how far the p-values of healthy scans are from uniform.

    Give one p-value for each subject: the interval and the test take them as independent.

    Args:
        p_values: of healthy test scans (n,), in [0, 1].
        levels: levels in (0, 1).
        confidence: coverage of the intervals, in (0, 1).
        behind: number of healthy subjects that all the p-values were counted against; None for
            p-values that are independent.
        repeats: draws of exchangeable scores that the null of ``p_value`` is simulated by, with a
            fixed seed, where ``behind`` is given.

    Raises:
        ArgumentError: no p-values, or a number outside its range.
    """
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1)).all():
        raise ArgumentError("Calibration needs p-values between 0 and 1, at least one.")
    if not 0 < confidence < 1 or any(not 0 < level < 1 for level in levels):
        raise ArgumentError(
            f"The levels and the confidence must be between 0 and 1, not {list(levels)} and "
            f"{confidence}."
        )
    from scipy.stats import binomtest, kstest

    test = kstest(values, "uniform")
    p_value = float(test.pvalue)
    if behind is not None:
        null = _distances(behind, values.size, repeats)
        p_value = (1 + int((null >= test.statistic - 1e-12).sum())) / (1 + repeats)
    below = {}
    for level in levels:
        count = int((values <= level + 1e-12).sum())
        ends = binomtest(count, values.size).proportion_ci(confidence, method="exact")
        fraction = count / values.size
        below[f"{level:g}"] = Estimate(fraction, float(ends.low), float(ends.high), values.size, 0)
    return Calibration(float(test.statistic), p_value, below, values.size)


def _distances(behind: int, tested: int, repeats: int) -> npt.NDArray[np.float64]:
    """Distances from uniform of conformal p-values, where all scores are exchangeable."""
    rng = np.random.default_rng(0)
    steps, found = np.arange(tested + 1) / tested, np.empty(repeats)
    for i in range(repeats):
        healthy = np.sort(rng.random(behind))
        as_high = behind - np.searchsorted(healthy, rng.random(tested))
        values = np.sort(1 + as_high) / (behind + 1)
        found[i] = max((steps[1:] - values).max(), (values - steps[:-1]).max())
    return found
