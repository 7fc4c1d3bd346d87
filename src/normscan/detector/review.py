"""The healthy scans are questioned: which set the threshold, stand alone or stand twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normscan.cohort import Cohort
from normscan.cohort.splits import copies as content_of
from normscan.decide import ScanThreshold
from normscan.decide.scans import highest_of
from normscan.detector.finding import Finding
from normscan.detector.healthy import Healthy
from normscan.detector.prediction import predict_rows
from normscan.detector.state import State
from normscan.progress import Progress
from normscan.quality.copies import near_copies
from normscan.report.healthy import write_healthy
from normscan.report.picture import Picture

PAGE = "healthy.html"
PICTURES = 12

# A fitted state that didn't see the healthy scans beside it.
Judge = tuple[State, Cohort]


def review(
    state: State, healthy: Healthy, judges: Sequence[Judge], folder: Path, bar: Progress
) -> dict[str, Any]:
    """Look at the healthy scans that were scored and write a page about them.

    Args:
        state: with thresholds.
        healthy: the scored scans.
        judges: who scored which of them; scans are predicted again for their pictures, one by one.
        folder: for the page.
        bar: shows progress.

    Returns:
        What was found, as plain values: ``sets_threshold``, ``doubt``, ``copies``.
    """
    threshold = state.scan_threshold
    if threshold is None or not healthy.scores:
        return {}
    scan, said = setter(healthy, threshold)
    doubt, pairs = healthy.doubt(), copies(healthy, judges)
    if pairs:
        first = " and ".join(pairs[0]["scans"])
        bar.say(f"copies among the healthy scans: {len(pairs)}, such as {first}; see {PAGE}")
    write_healthy(
        folder / PAGE,
        method=state.card.id,
        sentences=[text for text in (doubt, said, state.training["calibration"]) if text],
        scores=np.concatenate([threshold.scores, threshold.trimmed]),
        threshold=threshold.threshold,
        pictures=bar.track(pictures(state, healthy, judges), "pictures", PICTURES),
        copies=pairs,
        excluded=state.training.get("excluded", ()),
        failures=state.training.get("not_scored", ()),
        pixel_threshold=state.pixel_threshold,
    )
    return {"sets_threshold": scan, "doubt": doubt, "copies": pairs}


def setter(healthy: Healthy, threshold: ScanThreshold) -> tuple[str, str]:
    """Return the scan whose score is the threshold, and what to say of it."""
    highest = highest_of(np.array(healthy.scores), healthy.subjects)
    place = threshold.trim + threshold.rank
    order = sorted(highest, key=lambda subject: -highest[subject])
    subject = order[place - 1]
    scan = next(
        s
        for s, owner, score in zip(healthy.scans, healthy.subjects, healthy.scores, strict=True)
        if owner == subject and score == highest[subject]
    )
    said = f"The threshold {threshold.threshold:.4g} is the score of {scan}, "
    said += "the highest" if place == 1 else f"number {place} from the top"
    said += f" of {len(order)} healthy subjects."
    if threshold.rank == 1:
        said = said.removesuffix(".") + ", which sets it by itself."
    others = [score for other, score in highest.items() if other != subject]
    if len(others) > threshold.trim:
        without = ScanThreshold(others, threshold.fpr, threshold.trim).threshold
        said += f" Without it the threshold would be {without:.4g}."
    return scan, said


def copies(healthy: Healthy, judges: Sequence[Judge]) -> list[dict[str, Any]]:
    """Return pairs of healthy scans that are copies: all exact ones, near ones across subjects."""
    pairs: list[dict[str, Any]] = []
    known = set()
    table, root = _together(judges)
    first: dict[tuple[str, ...], str] = {}
    for scan, key in zip(table["scan"], content_of(table, root), strict=True):
        if key is not None and first.setdefault(key, scan) != scan:
            pairs.append({"scans": [first[key], scan], "kind": "exact copy"})
            known.add((first[key], scan))
    for i, j, away in near_copies(healthy.looks, healthy.subjects):
        both = healthy.scans[i], healthy.scans[j]
        if not known & {both, both[::-1]}:
            kind = f"near copy, difference {away:.3f}"
            pairs.append({"scans": list(both), "kind": kind})
    return pairs


def _together(judges: Sequence[Judge]) -> tuple[Any, Path]:
    import pandas as pd

    parts = [part for _, part in judges]
    return pd.concat([part.table for part in parts], ignore_index=True), parts[0].root


def pictures(state: State, healthy: Healthy, judges: Sequence[Judge]) -> Iterator[Picture]:
    """Predict the highest scans again, one by one, each by the judge that scored it."""
    home = {row.scan: (judge, row) for judge, part in judges for row in part}
    for place in healthy.order()[:PICTURES]:
        judge, row = home[healthy.scans[place]]
        # How maps become scores may have been settled after it scored.
        judge = judge.changed(
            reduction=state.reduction, replaces=state.replaces, places=state.places
        )
        for _, finding in predict_rows(judge, [row], details=True, force=True):
            if isinstance(finding, Finding):
                score = healthy.scores[place]
                finding.anomalous = bool(
                    state.scan_threshold and state.scan_threshold.is_anomalous(score)
                )
                finding.p_value = None
                yield finding.picture(None, 0, row.scan)
