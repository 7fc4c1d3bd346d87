"""The page of a day at the node: what came, what became of it, whether scans still look the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from normscan.io.atomic import atomic_path
from normscan.report import charts
from normscan.report.page import environment

NAMES = {"healthy": "unlike healthy", "time": "unlike before"}


def write_drift_page(
    path: Path,
    *,
    day: str,
    outcomes: Mapping[str, int],
    rules: Mapping[str, int],
    reasons: Sequence[tuple[str, int]],
    streams: Sequence[Mapping[str, Any]],
    p_values: Sequence[float],
    alpha: float,
) -> Path:
    """Write the page.

    Args:
        path: HTML file to write; an older one is replaced at the end, in one step.
        day: as ``2026-11-30``.
        outcomes: how many jobs ended that day, by outcome.
        rules: how many scans each rule scored that day.
        reasons: of refusals and failures, with how often each was told, the most frequent first.
        streams: of each detector on each scanner its ``detector``, ``scanner``, number of ``scans``
            in the window, log10 ``evidence`` by test, ``scores`` in their order, and the day on
            which each test raised an alarm that still stands (``since``).
        p_values: of all scans of the last days, for a look at whether they are uniform.
        alpha: chance of a false alarm in a window.

    Returns:
        The path.
    """
    alarms = [
        (stream, test, since) for stream in streams for test, since in stream["since"].items()
    ]
    found = [
        {**stream, "chart": Markup(_course(stream["scores"], f"course-{number}") or "")}
        for number, stream in enumerate(streams)
    ]
    text = environment().get_template("drift.html.j2").render(
        day=day, outcomes=outcomes, rules=rules, reasons=reasons, streams=found, alarms=alarms,
        names=NAMES, alpha=alpha, line=-np.log10(alpha / 2), count=len(p_values),
        chart=Markup(_uniform(p_values) or ""),
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _course(scores: Sequence[float], name: str) -> str | None:
    """Draw the scores in the order in which the scans came."""
    values = np.asarray(scores, float)
    if values.size < 2:
        return None
    with charts.style():
        figure, axes = charts.canvas(11.6, 1.7)
        axes.plot(np.arange(1, values.size + 1), values, "o", color=charts.ACCENT, markersize=3.5)
        axes.axhline(np.median(values), color=charts.FAINT, linewidth=1, zorder=0)
        axes.set(xlabel="scan", ylabel="score")
        return charts.svg(figure, name, (
            f"Scores of {values.size} scans in their order, from {values.min():.4g} to "
            f"{values.max():.4g}, median {np.median(values):.4g}."
        ))  # fmt: skip


def _uniform(p_values: Sequence[float]) -> str | None:
    """Draw how many scans have a p-value in each tenth, and how many would if all were healthy."""
    values = np.asarray(p_values, float)
    if values.size < 10:
        return None
    counts, edges = np.histogram(values, 10, (0, 1))
    with charts.style():
        figure, axes = charts.canvas(11.6, 2.0)
        axes.bar(edges[:-1], counts, 0.1, align="edge", color=charts.HEALTHY, alpha=0.7)
        axes.axhline(values.size / 10, color=charts.INK, linestyle=(0, (4, 3)), linewidth=1.2)
        axes.set(xlim=(0, 1), xlabel="p-value against the healthy scans", ylabel="scans")
        return charts.svg(figure, "uniform", (
            f"Of {values.size} scans in each tenth of the p-values: {', '.join(map(str, counts))}; "
            f"{values.size / 10:.3g} would be if all were like the healthy ones."
        ))  # fmt: skip
