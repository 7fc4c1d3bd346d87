"""Evaluation of a detector on a cohort: one prediction path, exact metrics, one page."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normscan.cohort import Cohort, Division
from normscan.detector import Detector, storage
from normscan.errors import CohortError, OutputError, nearest
from normscan.evaluation.baselines import BASELINES, fit_baselines
from normscan.evaluation.results import Results
from normscan.evaluation.scoring import Region, Scores, group_column, score_together
from normscan.evaluation.summary import (
    accepted_metrics,
    group_metrics,
    summarise,
)
from normscan.evaluation.verdict import verdicts
from normscan.evaluation.writing import write_page, write_scans
from normscan.io.atomic import check_folder
from normscan.io.lock import one_writer
from normscan.io.values import finite, read_json, write_json
from normscan.metrics import calibration
from normscan.progress import Progress


def evaluate(
    detector: Detector,
    cohort: Cohort | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "test",
    region: Region = "whole",
    group: str | None = None,
    baselines: Iterable[str] = BASELINES,
    report: str | os.PathLike[str] | None = None,
    command: str = "",
    progress: bool = False,
    overwrite: bool = False,
    radiological: bool | None = None,
) -> Results:
    """Evaluate a detector and write ``results.json``, ``scans.csv`` and ``report.html``.

    Args:
        detector: fitted.
        cohort: a cohort, or the path of its table or folder.
        out: folder for the files; those of an earlier evaluation of the same scans are replaced.
        split: part of the cohort.
        region: ``whole`` evaluates all pixels of a scan, ``foreground`` those of the foreground.
        group: column whose values are told apart; one called kind, defect, pathology or diagnosis
            is taken by itself.
        baselines: methods that are fitted with the same preprocessing and stand beside.
        report: path of the page; ``report.html`` in ``out`` by default.
        command: to be recorded.
        progress: show progress on stderr.
        overwrite: replace an evaluation of other scans, too.
        radiological: pictures have the patient's right at the left; by default those of scans from
            DICOM have.

    Returns:
        The results, as in ``results.json``; a dictionary that a notebook shows and ``plot()`` draws.

    Raises:
        CohortError: no scan in that part, or none could be predicted.
        OutputError: ``out`` is a file, or holds an evaluation of other scans.
    """
    cohort = cohort if isinstance(cohort, Cohort) else detector.read_cohort(cohort)
    rows = cohort.part(split)
    if not len(rows):
        raise CohortError(f"the cohort has no scans in the split '{split}'.")
    columns = sorted({name for row in rows for name in row.columns})
    if group is not None and group not in columns:
        raise CohortError(
            f"the cohort has no free column '{group}'.{nearest(group, columns)} "
            f"It has: {', '.join(columns) or 'none'}."
        )
    group = group or group_column(rows)
    out = Path(out)
    check_folder(out)
    division = Division.of(rows)
    scanned = division.digest()
    if not overwrite:
        _refuse_other(out, scanned, split)
    with one_writer(out), Progress(progress) as bar:
        beside = fit_baselines(baselines, detector, cohort, bar)
        scores, *others = score_together([detector, *beside.values()], rows, region, group, bar)
        if not scores.rows:
            raise CohortError(
                f"none of the {len(rows)} scans could be predicted: {scores.failures[0]['reason']}"
            )
        content = [member.content for member in division.members]
        doubts = detector.doubts(list(rows), split, content)
        doubts += detector.left_out()
        for note in (*doubts, *scores.masks.notes()):
            bar.say(note)
        results = Results(
            _results(detector, cohort, scores, split, region, rows.has_masks, command, doubts)
        )
        results["cohort"]["sha256"] = scanned
        if drawn := detector.training.get("anomalies"):
            results["cohort"]["anomalies"] = drawn
        results["tested"] = _tested(detector, rows, split, scanned)
        if group:
            results["groups"] = {group: group_metrics(scores, group, detector)}
        results["baselines"] = {
            name: summarise(found, one.pixel_threshold, rows.has_masks, one.fpr)[0]
            for (name, one), found in zip(beside.items(), others, strict=True)
        }
        results["verdict"] = verdicts(scores, dict(zip(beside, others, strict=True)))
        # Killed from here on, nothing of an older evaluation stands beside what is written.
        (out / "results.json").unlink(missing_ok=True)
        table = write_scans(out / "scans.csv", scores)
        bar.say("drawing the report")
        write_json(out / "results.json", finite(results))
        page = Path(report) if report else out / "report.html"
        write_page(page, detector, rows, results, table, radiological)
    return results


def _refuse_other(out: Path, scanned: str, split: str) -> None:
    """Refuse a folder with an evaluation of other scans: it would be lost."""
    try:
        before = read_json(out / "results.json")["cohort"]
        known, part = before.get("sha256"), before.get("split")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # there is none, or nothing that could be kept
    if known and known != scanned:
        raise OutputError(
            f"{out} holds an evaluation of other scans (split '{part}', now '{split}'). Name another "
            "folder with --out, or replace it with --overwrite."
        )


def _results(
    detector: Detector,
    cohort: Cohort,
    scores: Scores,
    split: str,
    region: Region,
    masks: bool,
    command: str,
    doubts: Sequence[str] = (),
) -> dict[str, Any]:
    metrics, pixels = summarise(scores, detector.pixel_threshold, masks, detector.fpr)
    if pixels is not None:
        pixels |= {
            "fpr": detector.pixel_fpr,
            "region": "whole image" if region == "whole" else "foreground",
        }
    card = detector.card
    seconds = [r["seconds"] for r in scores.rows]
    return {
        "method": {
            "id": card.id,
            "family": card.family,
            "paper": card.paper,
            "regime": card.regime,
        },
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cohort": {
            "split": split,
            "counts": _counts(cohort),
            "doubts": list(doubts),
            "notes": list(dict.fromkeys([*doubts, *cohort.notes, *scores.masks.notes()])),
        },
        "metrics": metrics,
        "decision": _decision(detector, scores),
        "pixels": pixels,
        "boxes": scores.boxes.evaluate(0).to_dict() if len(scores.boxes) else None,
        "quality_gate": _gate_counts(scores),
        "accepted": accepted_metrics(scores, detector, masks),
        "failures": scores.failures,
        "card": storage.model_card(detector),
        "config": {**detector.configuration(), "training": detector.training},
        "versions": storage.versions(),
        "seconds": {"predict_per_scan": float(np.mean(seconds)), "stages": scores.stages()},
    }


def _tested(detector: Detector, rows: Cohort, split: str, digest: str) -> dict[str, Any]:
    """What was tested on what: all that tells one report from another."""
    return {
        "cohort": rows.name,
        "split": split,
        "scans": len(rows),
        "subjects": len({row.subject for row in rows}),
        "cohort_sha256": digest,
        **detector.provenance(),
    }


def _decision(detector: Detector, scores: Scores) -> dict[str, Any]:
    """The operating point and who was flagged; what is left open is None."""
    threshold = detector.scan_threshold
    if threshold is None:
        names = ("threshold", "fpr_wanted", "fpr_expected", "fpr_low", "fpr_high", "n_validation",
                 "promise", "flagged_anomalous", "flagged_healthy", "calibration")  # fmt: skip
        return {**dict.fromkeys(names), "open": True, "warning": detector.training["calibration"]}
    low, high = threshold.fpr_interval()
    return {
        "threshold": threshold.threshold,
        "fpr_wanted": threshold.fpr,
        "fpr_expected": threshold.expected_fpr,
        "fpr_low": low,
        "fpr_high": high,
        "n_validation": threshold.n,
        "kind": detector.decided_by,
        "healthy_scores": threshold.scores.tolist(),
        "open": False,
        "warning": None if threshold.certified else threshold.describe(),
        "promise": threshold.describe(),
        "flagged_anomalous": _flagged(scores, 1),
        "flagged_healthy": _flagged(scores, 0),
        "calibration": _calibration(scores, threshold.n),
    }


def _gate_counts(scores: Scores) -> dict[str, int] | None:
    """How many scans the quality gate lets pass, flags and would refuse; None without a gate."""
    verdicts = [r["quality"] for r in scores.rows if "quality" in r]
    return {s: verdicts.count(s) for s in ("ok", "flag", "refuse")} if verdicts else None


def _calibration(scores: Scores, behind: int) -> dict[str, Any] | None:
    """Calibration of the p-values of healthy subjects, each with its lowest, as at the threshold."""
    lowest: dict[str, float] = {}
    for row in scores.rows:
        if row["label"] == 0 and row["p_value"] is not None:
            lowest[row["subject"]] = min(row["p_value"], lowest.get(row["subject"], 1.0))
    return calibration(list(lowest.values()), behind=behind).to_dict() if lowest else None


def _flagged(scores: Scores, label: int) -> int:
    return sum(bool(r["anomalous"]) for r in scores.rows if r["label"] == label)


def _counts(cohort: Cohort) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, Any]] = {}
    for row in cohort:
        entry = counts.setdefault(
            row.split or "none", {"healthy": 0, "anomalous": 0, "subjects": set()}
        )
        if row.label is not None:
            entry["anomalous" if row.label else "healthy"] += 1
        entry["subjects"].add(row.subject)
    return {k: {**v, "subjects": len(v["subjects"])} for k, v in counts.items()}
