"""The outcome in plain words, and numbers as a reader wants them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import pandas as pd

DASH = "–"


def number(value: Any, digits: int = 3) -> str:
    """Write a number with ``digits`` decimals, or as many significant figures from 10 up."""
    if not known(value):
        return DASH
    value = float(value)
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return f"{value:.{digits}g}"
    if abs(value) >= 1e6:
        return f"{value:.{digits}g}"
    before = len(str(int(abs(value))))
    return f"{value:.{digits if before == 1 else max(0, digits - before)}f}"


def percent(value: Any, digits: int = 0) -> str:
    """Write a share as percent."""
    return f"{100 * float(value):.{digits}f}%" if known(value) else DASH


def p_value(value: Any) -> str:
    """Write a p-value with two significant figures."""
    if not known(value):
        return DASH
    return "< 0.001" if float(value) < 0.001 else f"{float(value):.2g}"


def known(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a finite number."""
    return isinstance(value, int | float | np.number) and math.isfinite(float(value))


def day(text: str | None) -> str:
    """Write an ISO date as ``3 May 2026, 14:05``; anything else as it is."""
    try:
        moment = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        return text or ""
    written = f"{moment.day} {moment:%B %Y}"
    return written if len(text or "") <= 10 else f"{written}, {moment:%H:%M}"


@dataclass(frozen=True)
class Outcome:
    """What happened to the test scans.

    Attributes:
        anomalous: number of anomalous scans.
        healthy: number of healthy scans.
        unlabelled: number of scans without a label.
        flagged_anomalous: how many of the anomalous ones were flagged; None if not known.
        flagged_healthy: how many of the healthy ones.
        flagged_unlabelled: how many of those without a label.
    """

    anomalous: int
    healthy: int
    unlabelled: int
    flagged_anomalous: int | None
    flagged_healthy: int | None
    flagged_unlabelled: int | None


def outcome_of(test: pd.DataFrame, results: Mapping[str, Any]) -> Outcome:
    """Count the flagged scans; the decision's own counts come first."""
    decision = results["decision"]
    if decision.get("open"):
        label = test["label"]
        sick, healthy, unknown = (int(n.sum()) for n in (label == 1, label == 0, label.isna()))
        return Outcome(sick, healthy, unknown, None, None, None)
    if test.empty:
        counts = ((results.get("cohort") or {}).get("counts") or {}).get("test", {})
        return Outcome(
            counts.get("anomalous", 0),
            counts.get("healthy", 0),
            0,
            decision.get("flagged_anomalous"),
            decision.get("flagged_healthy"),
            None,
        )
    label, flagged = test["label"], test["anomalous"].astype(bool)
    found, alarms = decision.get("flagged_anomalous"), decision.get("flagged_healthy")
    return Outcome(
        anomalous=int((label == 1).sum()),
        healthy=int((label == 0).sum()),
        unlabelled=int(label.isna().sum()),
        flagged_anomalous=int(flagged[label == 1].sum()) if found is None else found,
        flagged_healthy=int(flagged[label == 0].sum()) if alarms is None else alarms,
        flagged_unlabelled=int(flagged[label.isna()].sum()),
    )


def sentences(outcome: Outcome, decision: Mapping[str, Any]) -> list[str]:
    """Say in plain words what was flagged and how the threshold came about."""
    said = []
    found = _clause(outcome.flagged_anomalous, outcome.anomalous, "anomalous")
    alarms = _clause(outcome.flagged_healthy, outcome.healthy, "healthy")
    if found and alarms:
        said.append(f"{found}; {alarms[0].lower()}{alarms[1:]}.")
    elif found:
        said.append(f"{found}. There are no healthy test scans, so false alarms were not counted.")
    elif alarms:
        said.append(
            f"{alarms}. There are no anomalous test scans, so nothing can be said about what the "
            "detector finds."
        )
    if decision.get("open"):
        total = outcome.anomalous + outcome.healthy + outcome.unlabelled
        return [
            f"{total} scan{_s(total)} {'was' if total == 1 else 'were'} scored and mapped. The "
            "detector was not calibrated on healthy scans, so the decision is left open: no scan "
            "is flagged, and scores only rank."
        ]
    if outcome.unlabelled:
        said.append(f"{_clause(outcome.flagged_unlabelled, outcome.unlabelled, 'unlabelled')}.")
    if not said:
        said.append("No test scan was scored.")
    if sentence := _promise(decision):
        said.append(sentence)
    return said


METRICS = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP within lesioned scans"}
BASELINES = {"mean_image": "the mean image", "image_statistics": "image statistics"}
_SAID = {"better": "better than", "worse": "worse than", "unclear": "not clearly better than"}


def verdict_sentences(verdicts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say whether the scans are ranked better than by the baselines, by how much and how surely.

    Args:
        verdicts: of ``normscan.evaluation``, one for each baseline and metric.
    """
    given = list(verdicts)
    said = []
    for metric, name in METRICS.items():
        said += _said([v for v in given if v.get("metric", "image_auroc") == metric], name)
    return said


def _said(verdicts: list[Mapping[str, Any]], metric: str) -> list[str]:
    parts, undefined = [], []
    for entry in verdicts:
        name = BASELINES.get(entry["baseline"], entry["baseline"].replace("_", " "))
        if entry["verdict"] not in _SAID:
            undefined.append(name)
            continue
        text = f"{_SAID[entry['verdict']]} {name} (difference {signed(entry['difference'])}"
        if known(entry.get("low")) and known(entry.get("high")):
            text += f", 95% interval {signed(entry['low'])} to {signed(entry['high'])}"
        parts.append(f"{text}, p {p_value(entry['p_value'])})")
    said = []
    if parts:
        first = f"In {metric} it is {' and '.join(parts)}"
        holm = ", p corrected after Holm" if len(parts) > 1 else ""
        said.append(f"{first}; paired by subject{holm}.")
    if undefined:
        said.append(f"There is no verdict against {' and '.join(undefined)}: AUROC is not defined.")
    return said


def signed(value: float) -> str:
    """Write a difference with its sign, such as ``+0.112``."""
    return f"{float(value):+.3f}".replace("-", "−")


def _promise(decision: Mapping[str, Any]) -> str:
    """Say what rate of false alarms the threshold can promise, beside the one that was wanted."""
    count, wanted = decision.get("n_validation"), decision.get("fpr_wanted")
    expected = decision.get("fpr_expected")
    if not count or not known(wanted):
        return ""
    whose = f"{count} healthy validation subject{_s(count)}"
    if decision.get("kind") == "cross":
        whose = f"out-of-fold scores of all {count} healthy subjects"
    text = f"The threshold was set on {whose}"
    rate = percent(wanted, 0 if float(wanted) >= 0.01 else 1)
    if not known(expected):
        text += f" to flag {rate} of healthy scans"
    else:
        text += f": it is expected to flag {percent(expected, 1)} of healthy scans"
        low, high = decision.get("fpr_low"), decision.get("fpr_high")
        if known(low) and known(high):
            text += f" (95% interval {percent(low, 1)} to {percent(high, 1)})"
        if float(expected) > float(wanted) + 1e-9:
            text += f", not the {rate} that were wanted, for which they are too few"
    return f"{text}. No anomalous scan was used for it."


def _clause(flagged: int | None, total: int, kind: str) -> str:
    if not total or flagged is None:
        return ""
    verb = "was" if flagged == 1 else "were"
    count = "none" if flagged == 0 else str(flagged)
    return f"Of {total} {kind} scan{_s(total)}, {count} {verb} flagged ({percent(flagged / total)})"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
