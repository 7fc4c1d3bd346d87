"""A fitted detector decides anew by healthy scans of another place; nothing is trained."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normscan.cohort import Cohort, Division
from normscan.cohort.division import CALIBRATION, EXCLUDED, content_of
from normscan.decide import GroupedThreshold, ScanThreshold, promise
from normscan.decide.groups import group_of
from normscan.detector.filled import without
from normscan.detector.healthy import Healthy, score_healthy, thresholded
from normscan.detector.run import HEALTHY
from normscan.detector.signed import check_trusted
from normscan.detector.state import State
from normscan.detector.storage import read_state, write_state
from normscan.errors import ArgumentError, CohortError, OutputError, nearest
from normscan.io.atomic import check_folder
from normscan.progress import Progress

Rates = tuple[float | None, float | None]


def calibrate_run(
    run: Path, cohort: Cohort, out: Path, rates: Rates, by: str | None, device: str, bar: Progress,
    lacking: Sequence[str] = (),
) -> State:  # fmt: skip
    """Calibrate a stored detector and write it to a new folder, which is whole or not there.

    Args:
        run: run folder of the detector, which stays as it is.
        cohort: see ``calibrated``.
        out: new folder.
        rates: see ``calibrated``.
        by: see ``calibrated``.
        device: that scores the scans.
        bar: shows progress.
        lacking: channels to do without, see ``normscan.detector.filled``.

    Raises:
        OutputError: ``out`` exists, or there is no detector in ``run``.
        ArgumentError: no such channel.
    """
    check_new(out)
    check_trusted(run)
    state = read_state(run, device)
    if lacking:
        state = without(state, lacking)
    return stored(*calibrated(state, cohort, rates, by, bar), out)


def check_new(out: Path) -> None:
    """Refuse a folder that holds something, or that can't be made.

    Raises:
        OutputError: it is so.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists. Choose another folder with --out, or remove it.")
    check_folder(out.parent)


def stored(state: State, healthy: Healthy | None, out: Path) -> State:
    """Write a state, and the healthy scores that set its thresholds, to a new folder in one go."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / "run"
        folder.mkdir()
        if healthy is not None:
            healthy.write(folder / HEALTHY)
        state = write_state(state, folder)
        os.replace(folder, out)
    return state


def calibrated(
    state: State, cohort: Cohort, rates: Rates, by: str | None, bar: Progress
) -> tuple[State, Healthy]:
    """Return the state with thresholds from healthy scans that did not train, and their scores.

    The scores of several members are averaged before they are compared: a fixed function of a scan
    that none of them saw, so the rate of a split holds for new healthy scans like these.

    Args:
        state: fitted.
        cohort: whose healthy scans are taken, see ``chosen``.
        rates: of false positives, of scans and of pixels; None keeps the detector's own.
        by: column whose groups are decided apart, see ``GroupedThreshold``.
        bar: shows progress.

    Raises:
        ArgumentError: the detector was not fitted, or a rate lies outside 0..1.
        CohortError: no healthy scans, none that can be predicted, or no such column.
    """
    if not state.fitted:
        raise ArgumentError("this detector was not fitted; call fit(cohort) or load(folder).")
    for name, rate in zip(("fpr", "pixel_fpr"), rates, strict=True):
        if rate is not None and not 0 < rate < 1:
            raise ArgumentError(f"{name} is {rate}; it must lie between 0 and 1.")
    healthy, seen, excluded = apart(state, chosen(cohort))
    groups = grouped(healthy, by)
    n = len({row.subject for row in healthy})
    asked = state.changed(fpr=rates[0] or state.fpr, pixel_fpr=rates[1] or state.pixel_fpr)
    bar.say(f"threshold: {asked.fpr:.3g} false alarms are wanted; {promise(n, asked.fpr)}")
    found = score_healthy(asked, healthy, bar)
    if not found.scores:
        reason = found.failures[0][1] if found.failures else ""
        raise CohortError(
            f"no healthy scan for the threshold could be predicted: no threshold. {reason}".rstrip()
        )
    for line in doubts(found, seen, excluded, len(healthy)):
        bar.say(line)
    threshold = ScanThreshold.fit(found.scores, asked.fpr, found.subjects)
    if by is not None:
        names = [groups[scan] for scan in found.scans]
        threshold = GroupedThreshold.of_subjects(found.scores, names, by, asked.fpr, found.subjects)
    about = {
        "cohort_sha256": healthy.digest(),
        "scans": len(found.scores),
        "subjects": threshold.n,
        "left_out": [scan for scan, _ in found.failures] + seen + excluded,
    }
    training = {**state.training, "earlier": [*state.training.get("earlier", []), decision(state)]}
    decided = thresholded(asked.changed(training=training, pixel_threshold=None), found, threshold)
    training, division = {**decided.training, "elsewhere": about}, state.division
    training.pop("stale", None)
    if division is not None:
        division = division.joined(Division.of(healthy, CALIBRATION), instead_of=CALIBRATION)
    return decided.changed(training=training, division=division), found


def chosen(cohort: Cohort) -> Cohort:
    """Return the healthy scans of train and val; where there are none, all healthy scans.

    Raises:
        CohortError: no scan has the label 0.
    """
    labelled = (cohort.table["label"] == 0).fillna(False).to_numpy(bool)
    own = labelled & cohort.table["split"].isin(["train", "val"]).to_numpy(bool)
    if not labelled.any():
        raise CohortError(
            f"the cohort under {cohort.root} has no healthy scans to set a threshold with ({cohort!r}). "
            "Give them the label 0."
        )
    return cohort.select(own if own.any() else labelled)


def grouped(cohort: Cohort, by: str | None) -> dict[str, str]:
    """Return the group of each scan by a column; none without one.

    Raises:
        CohortError: the cohort has no such column, or it says nothing of any scan.
    """
    if by is None:
        return {}
    groups = {row.scan: group_of({**row.columns, "site": row.site}, by) for row in cohort}
    if not any(groups.values()):
        known = sorted({name for row in cohort for name in row.columns} | {"site"})
        raise CohortError(
            f"the column '{by}' tells no healthy scan's group.{nearest(by, known)} "
            f"The cohort has: {', '.join(known)}."
        )
    return groups


def apart(state: State, cohort: Cohort) -> tuple[Cohort, list[str], list[str]]:
    """Return the scans that may set a threshold, and the names of the others.

    Others are those that the detector learnt from, and those that were left out of its fit by hand.

    Raises:
        CohortError: no scan may.
    """
    seen = [state.seen(row.paths) == "trained" for row in cohort]
    if all(seen):
        raise CohortError(
            "the detector learnt from all of these scans, so their scores are too low for a "
            "threshold. Take healthy scans that did not train."
        )
    members = () if state.division is None else state.division.members
    aside = {m.content for m in members if m.split == EXCLUDED and m.content}
    left = [content_of(row.paths) in aside if aside else False for row in cohort]
    kept = [not (known or out) for known, out in zip(seen, left, strict=True)]
    if not any(kept):
        raise CohortError(
            "the healthy scans that the detector did not learn from were left out by "
            "hand, so none is left to set a threshold with."
        )
    learnt = [row.scan for row, known in zip(cohort, seen, strict=True) if known]
    return cohort.select(kept), learnt, [r.scan for r, out in zip(cohort, left, strict=True) if out]


def doubts(found: Healthy, seen: list[str], excluded: list[str], count: int) -> list[str]:
    """What somebody should know of the scans that set the threshold."""
    lines = []
    reasons = ("the detector learnt from them", "its fit left them out by hand")
    for names, why in zip((seen, excluded), reasons, strict=True):
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"left out, since {why}: {len(names)} scans ({some})")
    for scan, reason in found.failures:
        lines.append(f"{scan}: left out: {reason}")
    if found.refused:
        lines.append(
            f"the quality gate would refuse {len(found.refused)} of these {count} scans, "
            f"{found.refused[0]} among them: they are unlike the training scans. predict then needs "
            "--force; a detector trained on such scans would be better."
        )
    return [*lines, *filter(None, [found.doubt()])]


def decision(state: State) -> dict[str, Any]:
    """The decision that another one replaces, as plain values; its healthy scores among them."""
    threshold = state.scan_threshold
    return {
        "calibration": state.training.get("calibration", ""),
        "scan_threshold": None if threshold is None else threshold.to_dict(),
        "pixel_threshold": state.pixel_threshold,
        "pixel_fpr": state.pixel_fpr,
        "elsewhere": state.training.get("elsewhere"),
    }
