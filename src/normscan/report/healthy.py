"""The page of the healthy scans behind a threshold: which score highest, set it, stand twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from normscan.io.atomic import atomic_path
from normscan.report import charts, figures
from normscan.report.page import environment
from normscan.report.picture import Picture
from normscan.report.rows import make_row

MOST_COPIES = 50


def write_healthy(
    path: Path,
    *,
    method: str,
    sentences: Sequence[str],
    scores: np.ndarray,
    threshold: float,
    pictures: Iterable[Picture],
    copies: Sequence[dict[str, Any]],
    excluded: Sequence[dict[str, str]] = (),
    failures: Sequence[dict[str, str]] = (),
    pixel_threshold: float | None = None,
) -> Path:
    """Write the page.

    Args:
        path: HTML file to write; an older one is replaced at the end, in one step.
        method: id.
        sentences: what to say of the scans, the most important first.
        scores: highest score of each healthy subject (n,).
        threshold: above which a scan is flagged.
        pictures: of the scans with the highest scores, the highest first.
        copies: pairs with ``scans`` and ``kind``.
        excluded: ``scan`` and ``reason`` of those that were left out by hand.
        failures: likewise of those that could not be scored.
        pixel_threshold: map value above which a pixel belongs to the finding, or None.

    Returns:
        The path.
    """
    planes = list(pictures)
    scale = figures.map_scale([p.map for p in planes], pixel_threshold)
    rows = [make_row(p, f"healthy-{i}", scale, pixel_threshold) for i, p in enumerate(planes)]
    nothing = np.empty(0)
    chart = charts.score_strip(scores, nothing, nothing, threshold)
    text = environment().get_template("healthy.html.j2").render(
        method=method, sentences=sentences, chart=Markup(chart) if chart else "", rows=rows,
        restorations=any(row.restoration for row in rows), copies=copies[:MOST_COPIES],
        more_copies=max(0, len(copies) - MOST_COPIES), excluded=excluded, failures=failures,
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
