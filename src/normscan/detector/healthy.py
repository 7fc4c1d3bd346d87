"""Healthy scans that a detector scored without having learnt from them, and what they decide."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from normscan.cohort import Cohort
from normscan.decide import ComponentThreshold, CrossThreshold, PixelThreshold, ScanThreshold
from normscan.decide.components import component_levels
from normscan.decide.scans import highest_of
from normscan.detector.evidence import Maps, settle
from normscan.detector.finding import ALONE, UNDECIDED, Finding
from normscan.detector.prediction import each_row, predict_rows
from normscan.detector.sheets import Sheets, learns
from normscan.detector.state import State
from normscan.errors import CohortError
from normscan.io import atomic_path
from normscan.io.sheets import inert
from normscan.metrics.maps import Singles
from normscan.progress import Progress
from normscan.quality.copies import look_of


@dataclass
class Healthy:
    """Scores of healthy scans by a detector that did not see their subjects.

    Attributes:
        scans: id of each.
        subjects: whose it is.
        scores: of each.
        folds: number of the fold that it lies in, from 1; 0 where val alone was scored.
        looks: thumbnail of each, by which near copies are found, see ``quality.copies``.
        images: what the pixel threshold needs of each map, see ``PixelThreshold``.
        levels: what the pixel threshold by components needs of each, see ``ComponentThreshold``.
        failures: (scan, reason) of those that could not be predicted.
        refused: those that the quality gate would have refused.
        sheets: paths of the maps that were kept, see ``detector.sheets``; empty where none are needed.
    """

    scans: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    folds: list[int] = field(default_factory=list)
    looks: list[np.ndarray] = field(default_factory=list)
    images: list[tuple[Singles, int]] = field(default_factory=list)
    levels: list[Singles] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    sheets: list[str] = field(default_factory=list)

    @classmethod
    def join(cls, parts: Sequence[Healthy]) -> Healthy:
        """Return several as one."""
        return cls(*([v for p in parts for v in getattr(p, name)] for name in vars(cls())))

    def doubt(self) -> str:
        """Say which healthy scan stands alone at the top, so that somebody looks at it, if one does.

        It does where it lies further above the next subject than that one above the median.
        """
        highest = np.sort(list(highest_of(np.array(self.scores), self.subjects).values()))
        if len(highest) < 3 or not np.isfinite(highest[-2:]).all():
            return ""
        top, second, middle = highest[-1], highest[-2], np.median(highest)
        if top - second <= second - middle:
            return ""
        scan = self.scans[int(np.argmax(self.scores))]
        return (
            f"{scan} is among the healthy scans and scores {top:.4g}, the others at most "
            f"{second:.4g}; look at it. If it isn't healthy, leave it out: --exclude '{scan}=REASON'."
        )

    def order(self) -> list[int]:
        """Places of the scans, the highest score first."""
        return [int(i) for i in np.argsort(-np.asarray(self.scores), kind="stable")]

    def write(self, path: Path) -> None:
        """Write a table of scans, subjects, folds and scores, the highest score first."""
        text = io.StringIO()
        lines = csv.writer(text)
        lines.writerow(["scan", "subject", "fold", "score"])
        for i in self.order():
            lines.writerow(
                [inert(self.scans[i]), inert(self.subjects[i]), self.folds[i], self.scores[i]]
            )
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def score_healthy(
    state: State, cohort: Cohort, bar: Progress, fold: int = 0, sheets: Sheets | None = None
) -> Healthy:
    """Score healthy scans that the state's method did not see.

    Args:
        state: with a fitted method.
        cohort: healthy scans.
        bar: shows progress.
        fold: that they lie in.
        sheets: where their maps are kept, for a reduction that is still to be settled.
    """
    pixels, found = PixelThreshold(state.pixel_fpr), Healthy()
    rows = bar.track(cohort, "calibrate", len(cohort))
    if sheets is None:
        results = predict_rows(state, rows, force=True)
    else:
        results = each_row(state, rows, partial(sheets.score, state))
    for row, result in results:
        if not isinstance(result, Finding):
            found.failures.append((row.scan, str(result)))
            continue
        found.scans.append(row.scan)
        found.subjects.append(row.subject)
        found.scores.append(result.score)
        found.folds.append(fold)
        if result.quality is not None and not result.quality.passed:
            found.refused.append(row.scan)
        found.looks.append(look_of(result.scan))
        if result.map is not None:
            pixels.add(result.map)
            if state.false_components is not None:
                found.levels.append(component_levels(result.map, result.smallest_component))
        if sheets is not None:
            found.sheets.append(str(sheets.path(row.scan)))
    found.images = pixels.images
    if found.failures:
        scan, reason = found.failures[0]
        bar.say(
            f"{len(found.failures)} of {len(cohort)} healthy scans could not be scored and set no "
            f"threshold; {scan}: {reason}"
        )
    return found


def decided(state: State, healthy: Healthy) -> State:
    """Return the state with thresholds from scored healthy scans, of val or of several folds.

    A reduction that was still to be settled is so first, and the scores become those by it.
    Where there were none to score, a method that may do without leaves the decision open; so does
    any other whose cohort has a single healthy subject.

    Raises:
        CohortError: none of them could be predicted.
    """
    if learns(state.reduction):
        state, healthy.scores = settle(state, Maps(healthy.sheets, healthy.subjects))
    if not (healthy.scores or healthy.failures):
        subjects = state.training.get("subjects", {})
        alone = not state.card.may_stay_open and sum(subjects.values()) == 1
        if alone:
            said = {"calibration": f"{UNDECIDED} {ALONE}", "alone": True}
            return state.changed(training={**state.training, **said})
        if state.may_stay_open:
            return state.changed(training={**state.training, "calibration": UNDECIDED})
    if not healthy.scores:
        raise CohortError("no healthy scan for the threshold could be predicted: no threshold.")
    how, scores = state.calibration, healthy.scores
    threshold: ScanThreshold
    if how.kind == "cross":
        threshold = CrossThreshold.of_subjects(
            scores, healthy.folds, state.fpr, healthy.subjects, how.refit, how.trim, how.folds
        )
    else:
        threshold = ScanThreshold.fit(scores, state.fpr, healthy.subjects, how.trim)
    return thresholded(state, healthy, threshold)


def thresholded(state: State, healthy: Healthy, threshold: ScanThreshold) -> State:
    """Return the state with this threshold of scans and that of the healthy maps' pixels."""
    training = {**state.training, "calibration": threshold.describe()}
    if healthy.failures:
        training["not_scored"] = [{"scan": s, "reason": reason} for s, reason in healthy.failures]
    state = state.changed(scan_threshold=threshold, training=training)
    return with_pixels(state, healthy) if healthy.images else state.changed(pixel_threshold=None)


def with_pixels(state: State, healthy: Healthy) -> State:
    """Return the state with its pixel threshold, by share and, where asked for, by components."""
    pixels = PixelThreshold(state.pixel_fpr, healthy.images)
    about = pixels.to_dict() | {"shares": pixels.shares()}
    chosen = pixels.threshold
    if state.false_components is not None:
        components = ComponentThreshold(state.false_components, healthy.levels)
        chosen = max(chosen, components.threshold(healthy.subjects))
        about |= {
            "threshold": chosen if np.isfinite(chosen) else str(chosen),
            "fraction_above": pixels.fraction_above(chosen),
            "false_components": state.false_components,
            "components_above": components.expected(chosen, healthy.subjects),
        }
    training = {**state.training, "pixel_threshold": about}
    return state.changed(pixel_threshold=chosen, training=training)
