"""Figures of a scored cohort: metrics, groups of anomalies, the baselines beside them."""

from __future__ import annotations

import math
from typing import Any

from normscan.detector import Detector
from normscan.evaluation.columns import column_name
from normscan.evaluation.scoring import Scores
from normscan.metrics import image_metrics, oracle_sensitivity
from normscan.metrics.predictive import decision_metrics
from normscan.metrics.statistics import Interval
from normscan.report.summary import verdict_sentences

# name: (title, description, whether it uses the test labels to choose something)
METRICS: dict[str, tuple[str, str, bool]] = {
    "sensitivity": ("Sensitivity", "anomalous scans flagged, at the threshold kept", False),
    "false_alarms": ("False alarms", "healthy scans flagged, at the same threshold", False),
    "sensitivity_at_rate": (
        "Sensitivity at the rate",
        "anomalous scans above the threshold that flags just the wanted share of the healthy test "
        "subjects",
        True,
    ),
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
    "hd95": ("HD95", "95 % Hausdorff distance, mean over segmented scans", False),
    "box_ap30": ("Box AP at IoU 0.3", "boxes around the segmentation's components", False),
    "box_ap50": ("Box AP at IoU 0.5", "the same", False),
    "box_map": ("Box mAP", "mean over IoU 0.5 to 0.95", False),
    "hit_rate": ("Hit rate", "scans whose highest map value lies in a box or at a point", False),
    "boxes_found": ("Boxes found", "boxes and points with the peak of a component", False),
    "best_dice": ("Best Dice", "pooled, at the best of all thresholds", True),
    "image_f1_max": ("Image F1-max", "at the best of all thresholds", True),
    "image_sensitivity_at_95_specificity": (
        "Sensitivity at 95 % specificity",
        "of scans, at a threshold from the healthy test scans",
        True,
    ),
}


def summarise(
    scores: Scores, threshold: float | None, masks: bool, fpr: float, seed: int = 0
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Return the metrics by name, and what was evaluated of the pixels.

    Args:
        scores: of a cohort.
        threshold: of the map.
        masks: whether the cohort has lesion masks.
        fpr: wanted false-positive rate of the decision.
        seed: of the bootstrap.
    """
    labelled = [r for r in scores.rows if r["label"] is not None]
    found: dict[str, Any] = {}
    if labelled:
        found |= _decided(labelled, seed)
        columns = [[r[name] for r in labelled] for name in ("score", "label", "subject")]
        image = image_metrics(*columns, seed=seed)
        found["sensitivity_at_rate"] = oracle_sensitivity(*columns, fpr=fpr, seed=seed)
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
    if len(scores.boxes):
        boxes = scores.boxes.evaluate(seed=seed)
        found |= {"box_ap30": boxes.ap30, "box_ap50": boxes.ap50, "box_map": boxes.map}
        found |= {"hit_rate": boxes.hit_rate, "boxes_found": boxes.found}
    metrics = {}
    for name, (title, description, oracle) in METRICS.items():
        if name in found:
            text = {"oracle": oracle, "title": title, "description": description}
            metrics[name] = {**found[name].to_dict(), **text}
    if "hd95" in metrics:
        metrics["hd95"]["title"] += f" ({parts.unit})"
        metrics["hd95"]["description"] = (
            f"95 % Hausdorff distance, mean over {parts.surfaces} of "
            f"{parts.surfaces + parts.surfaces_undefined} scans with a lesion, those with a "
            "segmentation"
        )
    return metrics, pixels


def _decided(rows: list[dict[str, Any]], seed: int) -> dict[str, Interval]:
    """What was flagged of the anomalous and of the healthy scans, where there are some."""
    told = [r for r in rows if r["anomalous"] is not None]
    if not told:
        return {}
    decided = decision_metrics(
        [r["anomalous"] for r in told],
        [r["label"] for r in told],
        [r["subject"] for r in told],
        method="exact",
        seed=seed,
    )
    both = {"sensitivity": decided.sensitivity, "false_alarms": decided.false_alarms}
    return {name: figure for name, figure in both.items() if not math.isnan(figure.value)}


def accepted_metrics(scores: Scores, detector: Detector, masks: bool) -> dict[str, Any] | None:
    """The metrics without the scans that the quality gate refuses, and how many it does refuse.

    What is refused is neither a hit nor a false alarm. None where nothing is.
    """
    if scores.accepted is None:
        return None
    kept = {r["scan"] for r in scores.accepted.rows}
    labels = [r["label"] for r in scores.rows if r["scan"] not in kept]
    counts = {"healthy": labels.count(0), "anomalous": labels.count(1)}
    metrics: dict[str, Any] = {}
    if kept:
        metrics, _ = summarise(scores.accepted, detector.pixel_threshold, masks, detector.fpr)
    return {"refused": {**counts, "unlabelled": labels.count(None)}, "metrics": metrics}


def group_metrics(scores: Scores, column: str, detector: Detector) -> list[dict[str, Any]]:
    """Metrics of the anomalous scans of each value of a column, against all healthy scans."""
    healthy = [r for r in scores.rows if r["label"] == 0]
    anomalous = [r for r in scores.rows if r["label"] == 1]
    column = column_name(column)
    entries = []
    for value in sorted({str(r.get(column, "")) for r in anomalous}):
        some = Scores(rows=healthy + [r for r in anomalous if str(r.get(column, "")) == value])
        if value in scores.groups:
            some.pixels, some.masked = scores.groups[value], len(scores.groups[value])
        metrics, _ = summarise(some, detector.pixel_threshold, some.masked > 0, detector.fpr)
        n = len(some.rows) - len(healthy)
        entries.append({"value": value, "n": n, **metrics})
    return entries


def text_summary(results: dict[str, Any]) -> str:
    """Return the figures of an evaluation as a few lines for a terminal."""
    lines = []
    names = {name: m["title"] for name, m in results["metrics"].items()}
    width = max([16, *map(len, names.values())]) + 2
    for name, metric in results["metrics"].items():
        line = f"  {names[name]:<{width}}{_interval(metric):<24} "
        beside = [
            f"{b} {metrics[name]['value']:.3f}"
            for b, metrics in results.get("baselines", {}).items()
            if name in metrics and metrics[name]["value"] is not None
        ]
        if metric["oracle"]:
            line += "oracle  "
        lines.append(line + ("(" + ", ".join(beside) + ")" if beside else ""))
    for sentence in verdict_sentences(results.get("verdict") or ()):
        lines.append(f"  {'verdict':<{width}}{sentence}")
    decision = results["decision"]
    split = results["cohort"]["counts"].get(results["cohort"]["split"], {})
    flagged = "nothing: the decision is open"
    if not decision["open"]:
        flagged = (
            f"{decision['flagged_anomalous']} of {split.get('anomalous', 0)} anomalous, "
            f"{decision['flagged_healthy']} of {split.get('healthy', 0)} healthy scans"
        )
    lines.append(f"  {'flagged':<{width}}{flagged}")
    if told := decision["warning"] or decision.get("promise"):
        lines.append(f"  {'threshold':<{width}}{told}")
    if any(m["value"] is None for m in results["metrics"].values()):
        lacking = [word for word in ("anomalous", "healthy") if not split.get(word)]
        if lacking:
            lines.append(f"  {'undefined':<{width}}for want of {' and '.join(lacking)} scans")
    lines += [f"  {'note':<{width}}{note}" for note in results["cohort"].get("doubts", ())]
    gate = results["quality_gate"]
    if gate and (gate["flag"] or gate["refuse"]):
        lines.append(
            f"  {'quality gate':<{width}}flags {gate['flag']} and would refuse {gate['refuse']} of these "
            "scans, see scans.csv; all were scored"
        )
    if results["failures"]:
        lines.append(f"  {'left out':<{width}}{len(results['failures'])} scans, see results.json")
    if accepted := results.get("accepted"):
        lines.append(f"{refused_clause(accepted['refused'])}:")
        lines += [
            f"  {m['title']:<{width}}{_interval(m):<24}{'oracle' if m['oracle'] else ''}".rstrip()
            for m in accepted["metrics"].values()
        ]
    return "\n".join(lines)


def refused_clause(refused: dict[str, int]) -> str:
    """Say how many scans were refused, such as ``without the 3 scans ... (2 healthy, 1 anomalous)``."""
    total = sum(refused.values())
    kinds = ", ".join(f"{n} {kind}" for kind, n in refused.items() if n)
    return (
        f"without the {total} scan{'' if total == 1 else 's'} that the quality gate refuses ({kinds}), "
        "neither hits nor false alarms"
    )


def _interval(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "undefined"
    text = f"{metric['value']:.3f}"
    if metric["low"] is None:
        return f"{text} [no interval]"
    return f"{text} [{metric['low']:.3f}, {metric['high']:.3f}]"
