"""The section on calibration: p-values of healthy subjects against the uniform distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from normscan.report.charts import ACCENT, FAINT, canvas, style, svg
from normscan.report.summary import known


def calibration_section(test: pd.DataFrame, decision: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the template shows of the p-values of healthy scans, or None without any.

    Args:
        test: test scans with the columns subject, label and p_value.
        decision: `decision` of an evaluation's results, with `calibration`.
    """
    found = decision.get("calibration")
    if not found:
        return None
    healthy = test[(test["label"] == 0) & test["p_value"].between(0, 1)]
    chart = None
    if len(healthy) and "subject" in healthy:
        # A subject stands with its lowest p-value, as in the numbers and at the threshold.
        lowest = healthy.groupby("subject")["p_value"].min().to_numpy(dtype=float)
        chart = calibration_chart(lowest, decision.get("n_validation"))
    return {
        "chart": Markup(chart) if chart else None,
        "levels": [{"level": float(k), "m": m} for k, m in found["below"].items()],
        "distance": found["distance"],
        "p_value": found["p_value"],
        "n": found["n"],
    }


def calibration_chart(p_values: np.ndarray, n_validation: int | None = None) -> str:
    """Draw the distribution of p-values over the uniform one.

    Args:
        p_values: (n,) in [0, 1], one for each healthy subject.
        n_validation: healthy validation subjects behind the p-values. With it, the band that holds
            95 % of detectors whose test scans are like the validation scans.
    """
    values = np.sort(p_values)
    with style():
        figure, axes = canvas(5.0, 4.6)
        if known(n_validation) and n_validation > 0:
            level, low, high = expected_band(len(values), int(n_validation))
            axes.fill_between(level, low, high, step="post", color=FAINT, alpha=0.3, linewidth=0,
                              label="95% of calibrated detectors")  # fmt: skip
        axes.plot(
            [0, 1], [0, 1], color=FAINT, linewidth=1.1, linestyle=(0, (2, 2)), label="uniform"
        )
        share = np.arange(len(values) + 1) / len(values)
        axes.step(np.r_[0, values, 1], np.r_[share, 1], where="post", color=ACCENT, zorder=3,
                  label=f"healthy subjects ({len(values)})", clip_on=False)  # fmt: skip
        ticks = np.linspace(0, 1, 6)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xticks=ticks, yticks=ticks, aspect="equal",
                 xlabel="p-value", ylabel="share of healthy subjects at or below")  # fmt: skip
        axes.legend(loc="upper left", fontsize=9)
        return svg(figure, "calibration", "Distribution of the p-values of healthy subjects")


def expected_band(
    n: int, n_validation: int, coverage: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return levels and the band of the share of n subjects with a p-value at or below each.

    A conformal p-value is k / (n_validation + 1); with exchangeable scans without ties the number
    of test subjects at or below it is beta-binomial with k and n_validation + 1 - k. This holds at
    each level by itself, and counts that the validation scans are a sample too.

    Args:
        n: test subjects.
        n_validation: validation subjects.
        coverage: of the band at each level.

    Returns:
        Levels (n_validation + 1,) from 0, and both ends of the share at each.
    """
    from scipy.stats import betabinom

    k = np.arange(1, n_validation + 1)
    tail = (1 - coverage) / 2
    low, high = (betabinom.ppf(q, n, k, n_validation + 1 - k) / n for q in (tail, 1 - tail))
    return np.r_[0, k] / (n_validation + 1), np.r_[0, low], np.r_[0, high]
