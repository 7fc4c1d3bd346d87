"""Evaluation of a detector on a cohort: one prediction path, exact metrics, one page."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from normscan import storage
from normscan.cohort import Cohort, CohortRow
from normscan.detector import Detector
from normscan.errors import CohortError, NormscanError, nearest
from normscan.finding import Finding
from normscan.io import atomic_path
from normscan.metrics import PixelScores, calibration, image_metrics
from normscan.metrics.segmentation import SegmentationScores
from normscan.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

Region = Literal["whole", "foreground"]

BASELINES = ("mean_image", "image_statistics")
PICTURES = 6
MOST_GROUPS = 12

# name: (title, description, whether it uses the test labels to choose something)
METRICS: dict[str, tuple[str, str, bool]] = {
    "image_auroc": ("Image AUROC", "anomalous against healthy scans; ties count half", False),
    "image_ap": ("Image AP", "step-wise average precision over scans", False),
    "pixel_auroc": ("Pixel AUROC", "all pixels of all scans pooled", False),
    "pixel_ap": ("Pixel AP", "step-wise average precision over pixels", False),
    "aupro": ("AUPRO(0.3)", "mean overlap of lesions up to 30 % false-positive pixels", False),
    "dice": ("Dice", "pooled, at the threshold from healthy scans", False),
    "subject_dice": ("Dice per subject", "mean over subjects, at the same threshold", False),
    "lesion_sensitivity": ("Lesion sensitivity", "lesions that the segmentation touches", False),
    "lesion_precision": ("Lesion precision", "segmented components that touch a lesion", False),
    "lesion_f1": ("Lesion F1", "of lesion sensitivity and precision", False),
    "hd95": ("HD95 (mm)", "95 % Hausdorff distance, mean over segmented scans", False),
    "best_dice": ("Best Dice", "pooled, at the best of all thresholds", True),
    "image_f1_max": ("Image F1-max", "at the best of all thresholds", True),
    "image_sensitivity_at_95_specificity": (
        "Sensitivity at 95 % specificity",
        "of scans, at a threshold from the healthy test scans",
        True,
    ),
}


@dataclass
class Scores:
    """What an evaluation collects while it goes from scan to scan."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)
    segmentations: SegmentationScores = field(default_factory=SegmentationScores)
    groups: dict[str, PixelScores] = field(default_factory=dict)
    masked: int = 0
    unmasked: int = 0

    def add(self, row: CohortRow, finding: Finding, region: Region, group: str | None) -> None:
        """Take in one scan, or nothing of it if its mask is bad."""
        mask = row.load_mask(finding.scan)
        self.rows.append(
            {
                "scan": row.scan,
                "subject": row.subject,
                "label": row.label,
                "split": row.split,
                "score": finding.score,
                "p_value": finding.p_value,
                "anomalous": finding.anomalous,
                **({"quality": finding.quality.status} if finding.quality else {}),
                "seconds": round(finding.seconds, 4),
                **row.columns,
            }
        )
        if finding.map is None:
            return
        if mask is None:
            self.unmasked += 1
            return
        where = finding.foreground if region == "foreground" else None
        self.pixels.add(finding.map, mask, row.subject, where)
        if (found := finding.segmentation) is not None:
            spacing = finding.scan.spacing
            self.segmentations.add(found, finding.map, mask, row.subject, spacing, where)
        self.masked += bool(mask.any())
        if group and mask.any():
            value = str(row.columns.get(group, ""))
            self.groups.setdefault(value, PixelScores()).add(finding.map, mask, row.subject, where)


def score_cohort(
    detector: Detector,
    rows: Cohort,
    region: Region = "whole",
    group: str | None = None,
    progress: Progress | None = None,
    name: str = "predict",
) -> Scores:
    """Predict every scan; bad ones are reported and passed over."""
    scores = Scores()
    bar = progress or Progress(False)
    tracked: Iterable[CohortRow] = bar.track(rows, name, len(rows))
    for row, result in detector.predict_cohort(tracked, details=region == "foreground", force=True):
        try:
            if isinstance(result, NormscanError):
                raise result
            scores.add(row, result, region, group)
        except NormscanError as error:
            # Results and reports travel: they name files as the table does, not where they lie.
            reason = str(error).replace(f"{rows.root}{os.sep}", "")
            scores.failures.append({"scan": row.scan, "reason": reason})
            bar.say(f"left out {row.scan}: {error}")
    return scores


def summarise(
    scores: Scores, threshold: float | None, masks: bool, seed: int = 0
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Return the metrics by name, and what was evaluated of the pixels."""
    labelled = [r for r in scores.rows if r["label"] is not None]
    found: dict[str, Any] = {}
    if labelled:
        image = image_metrics(
            [r["score"] for r in labelled],
            [r["label"] for r in labelled],
            [r["subject"] for r in labelled],
            seed=seed,
        )
        found |= {"image_auroc": image.auroc, "image_ap": image.ap, "image_f1_max": image.f1_max}
        found["image_sensitivity_at_95_specificity"] = image.sensitivity_at_specificity
    pixels: dict[str, Any] | None = None
    if masks and scores.masked:
        result = scores.pixels.evaluate(threshold, seed=seed)
        found |= {"pixel_auroc": result.auroc, "pixel_ap": result.ap, "aupro": result.aupro}
        found |= {"best_dice": result.best_dice}
        if result.dice is not None and result.subject_dice is not None:
            found |= {"dice": result.dice, "subject_dice": result.subject_dice}
        pixels = {
            "region": result.evaluated,
            "threshold": threshold,
            "prevalence": result.prevalence,
            "regions": result.regions,
            "scans_with_mask": scores.masked,
            "scans_without_mask": scores.unmasked,
            "best_dice_threshold": result.best_dice_threshold,
        }
        if len(scores.segmentations):
            parts = scores.segmentations.evaluate(seed=seed)
            found |= {"lesion_sensitivity": parts.lesions.sensitivity, "hd95": parts.hd95}
            found |= {"lesion_precision": parts.lesions.precision, "lesion_f1": parts.lesions.f1}
            pixels["segmentation"] = parts.to_dict()
    metrics = {}
    for name, (title, description, oracle) in METRICS.items():
        if name in found:
            text = {"oracle": oracle, "title": title, "description": description}
            metrics[name] = {**found[name].to_dict(), **text}
    if "hd95" in metrics:
        metrics["hd95"]["description"] = (
            f"95 % Hausdorff distance, mean over {parts.surfaces} of "
            f"{parts.surfaces + parts.surfaces_undefined} scans with a lesion, those with a "
            "segmentation"
        )
    return metrics, pixels


def _groups(scores: Scores, column: str, threshold: float | None) -> list[dict[str, Any]]:
    """Metrics of the anomalous scans of each value of a column, against all healthy scans."""
    healthy = [r for r in scores.rows if r["label"] == 0]
    anomalous = [r for r in scores.rows if r["label"] == 1]
    entries = []
    for value in sorted({str(r.get(column, "")) for r in anomalous}):
        some = Scores(rows=healthy + [r for r in anomalous if str(r.get(column, "")) == value])
        if value in scores.groups:
            some.pixels, some.masked = scores.groups[value], len(scores.groups[value])
        metrics, _ = summarise(some, threshold, masks=some.masked > 0)
        n = len(some.rows) - len(healthy)
        entries.append({"value": value, "n": n, **metrics})
    return entries


def group_column(cohort: Cohort) -> str | None:
    """Return the free text column that tells kinds of anomalies apart, if there is one."""
    for name in ("kind", "defect", "pathology", "diagnosis"):
        values = {str(r.columns[name]) for r in cohort if r.label == 1 and name in r.columns}
        if 1 < len(values) <= MOST_GROUPS:
            return name
    return None


def fit_baseline(name: str, detector: Detector, cohort: Cohort) -> Detector:
    """Fit a baseline with the preprocessing of a detector."""
    settings = {**detector.preprocess.to_dict(), "colour": "auto"}
    dims = detector.arguments["dims"] or 2
    baseline = Detector(
        name,
        preprocess=settings,
        size=detector.preprocess.size,
        dims=dims,
        seed=detector.seed,
        gate=False,
    )
    return baseline.fit(cohort)


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
) -> dict[str, Any]:
    """Evaluate a detector and write ``results.json``, ``scans.csv`` and ``report.html``.

    Args:
        detector: fitted.
        cohort: a cohort, or the path of its table or folder.
        out: folder for the files; those of an earlier evaluation are replaced.
        split: part of the cohort.
        region: ``whole`` evaluates all pixels of a scan, ``foreground`` those of the foreground.
        group: column whose values are told apart; one called kind, defect, pathology or diagnosis
            is taken by itself.
        baselines: methods that are fitted with the same preprocessing and stand beside.
        report: path of the page; ``report.html`` in ``out`` by default.
        command: to be recorded.
        progress: show progress on stderr.

    Returns:
        The results, as in ``results.json``.

    Raises:
        CohortError: no scan in that part, or none could be predicted.
        OutputError: ``out`` is a file.
    """
    cohort = cohort if isinstance(cohort, Cohort) else Cohort.read(cohort, seed=detector.seed)
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
    storage.check_folder(out)
    with Progress(progress) as bar:
        scores = score_cohort(detector, rows, region, group, bar)
        if not scores.rows:
            raise CohortError(
                f"none of the {len(rows)} scans could be predicted: {scores.failures[0]['reason']}"
            )
        results = _results(detector, cohort, scores, split, region, rows.has_masks, command)
        if group:
            results["groups"] = {group: _groups(scores, group, detector.pixel_threshold)}
        results["baselines"] = _baselines(detector, cohort, rows, region, baselines, bar)
        table = _write_scans(out / "scans.csv", scores)
        bar.say("drawing the report")
        storage.write_json(out / "results.json", _finite(results))
        page = Path(report) if report else out / "report.html"
        _write_page(page, detector, rows, results, table)
    return results


def _results(
    detector: Detector,
    cohort: Cohort,
    scores: Scores,
    split: str,
    region: Region,
    masks: bool,
    command: str,
) -> dict[str, Any]:
    metrics, pixels = summarise(scores, detector.pixel_threshold, masks)
    if pixels is not None:
        pixels |= {
            "fpr": detector.pixel_fpr,
            "region": "whole image" if region == "whole" else "foreground",
        }
    card, threshold = detector.card, detector.scan_threshold
    assert threshold is not None
    low, high = threshold.fpr_interval()
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
        "cohort": {"split": split, "counts": _counts(cohort), "notes": list(cohort.notes)},
        "metrics": metrics,
        "decision": {
            "threshold": threshold.threshold,
            "fpr_wanted": threshold.fpr,
            "fpr_expected": threshold.expected_fpr,
            "fpr_low": low,
            "fpr_high": high,
            "n_validation": threshold.n,
            "warning": None if threshold.certified else threshold.describe(),
            "flagged_anomalous": _flagged(scores, 1),
            "flagged_healthy": _flagged(scores, 0),
            "calibration": _calibration(scores),
        },
        "pixels": pixels,
        "quality_gate": _gate_counts(scores),
        "failures": scores.failures,
        "config": {**detector.configuration(), "training": detector.training},
        "versions": storage.versions(),
        "seconds": {"predict_per_scan": float(np.mean(seconds))},
    }


def _gate_counts(scores: Scores) -> dict[str, int] | None:
    """How many scans the quality gate lets pass, flags and would refuse; None without a gate."""
    verdicts = [r["quality"] for r in scores.rows if "quality" in r]
    return {s: verdicts.count(s) for s in ("ok", "flag", "refuse")} if verdicts else None


def _calibration(scores: Scores) -> dict[str, Any] | None:
    """Calibration of the p-values of healthy subjects, each with its lowest, as at the threshold."""
    lowest: dict[str, float] = {}
    for row in scores.rows:
        if row["label"] == 0 and row["p_value"] is not None:
            lowest[row["subject"]] = min(row["p_value"], lowest.get(row["subject"], 1.0))
    return calibration(list(lowest.values())).to_dict() if lowest else None


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


def _baselines(
    detector: Detector,
    cohort: Cohort,
    rows: Cohort,
    region: Region,
    names: Iterable[str],
    bar: Progress,
) -> dict[str, dict[str, Any]]:
    """Metrics of the baselines; none where the cohort has no healthy training scans."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if name == detector.card.id:
            continue
        try:
            baseline = fit_baseline(name, detector, cohort)
        except CohortError as error:
            bar.say(f"no baseline {name}: {error}")
            continue
        scores = score_cohort(baseline, rows, region, None, bar, f"baseline {name}")
        found[name] = summarise(scores, baseline.pixel_threshold, rows.has_masks)[0]
    return found


def _write_scans(path: Path, scores: Scores) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(scores.rows)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
    return table


def _finite(value: Any) -> Any:
    """Strict JSON: no NaN, no infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def choose(table: pd.DataFrame) -> dict[str, list[str]]:
    """Return the scans worth a picture, by section."""
    anomalous = table[table["label"] == 1].sort_values("score", ascending=False, kind="stable")
    healthy = table[table["label"] == 0].sort_values("score", ascending=False, kind="stable")
    ranked = table.sort_values("score", ascending=False, kind="stable")
    missed = anomalous[~anomalous["anomalous"].astype(bool)].iloc[::-1]
    alarms = healthy[healthy["anomalous"].astype(bool)]
    sections = {
        "Most anomalous scans": ranked,
        "Worst misses": missed,
        "Worst false alarms": alarms,
    }
    return {
        title: [str(s) for s in part["scan"].head(PICTURES)] for title, part in sections.items()
    }


def _write_page(
    path: Path, detector: Detector, rows: Cohort, results: dict[str, Any], table: pd.DataFrame
) -> None:
    from normscan.report import write_report

    by_name = {row.scan: row for row in rows}
    drawn: dict[str, Any] = {}
    sections = choose(table)
    for name in dict.fromkeys(s for names in sections.values() for s in names):
        row = by_name[name]
        scan = row.load()
        finding = detector.predict(scan, row.load_foreground(scan), force=True)
        mask = row.load_mask(scan) if row.mask else None
        drawn[name] = finding.picture(mask, row.label, name)
    write_report(
        path,
        results=results,
        scans=table,
        pictures={title: [drawn[n] for n in names] for title, names in sections.items()},
        pixel_threshold=detector.pixel_threshold,
    )


def text_summary(results: dict[str, Any]) -> str:
    """Return the figures of an evaluation as a few lines for a terminal."""
    lines = []
    names = {name: m["title"] for name, m in results["metrics"].items()}
    width = max([16, *map(len, names.values())]) + 2
    for name, metric in results["metrics"].items():
        line = f"  {names[name]:<{width}}{_interval(metric):<24}"
        beside = [
            f"{b} {metrics[name]['value']:.3f}"
            for b, metrics in results.get("baselines", {}).items()
            if name in metrics and metrics[name]["value"] is not None
        ]
        if metric["oracle"]:
            line += "oracle  "
        lines.append(line + ("(" + ", ".join(beside) + ")" if beside else ""))
    decision = results["decision"]
    split = results["cohort"]["counts"].get(results["cohort"]["split"], {})
    lines.append(
        f"  {'flagged':<{width}}{decision['flagged_anomalous']} of {split.get('anomalous', 0)} anomalous, "
        f"{decision['flagged_healthy']} of {split.get('healthy', 0)} healthy scans"
    )
    if decision["warning"]:
        lines.append(f"  {'note':<{width}}{decision['warning']}")
    gate = results["quality_gate"]
    if gate and (gate["flag"] or gate["refuse"]):
        lines.append(
            f"  {'quality gate':<{width}}flags {gate['flag']} and would refuse {gate['refuse']} of these "
            "scans, see scans.csv; all were scored"
        )
    if results["failures"]:
        lines.append(f"  {'left out':<{width}}{len(results['failures'])} scans, see results.json")
    return "\n".join(lines)


def _interval(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "undefined"
    text = f"{metric['value']:.3f}"
    return text if metric["low"] is None else f"{text} [{metric['low']:.3f}, {metric['high']:.3f}]"
