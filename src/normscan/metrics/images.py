"""Image-level metrics: does the score tell anomalous scans from healthy ones?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from normscan.errors import ArgumentError
from normscan.metrics import curves
from normscan.metrics.curves import Floats
from normscan.metrics.estimates import Estimate, bootstrap, number_subjects, to_json

_RANKING = (
    "auroc",
    "ap",
    "f1_max",
    "accuracy_max",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
    "fpr95",
)
Subjects = Sequence[Hashable] | npt.NDArray[Any] | None


@dataclass(frozen=True)
class ImageMetrics:
    """Image-level results.

    Attributes:
        auroc: area under the ROC curve, ties counted half.
        ap: step-wise average precision; random scores reach `prevalence`.
        f1_max: best F1 over all thresholds; an oracle, it uses the labels.
        accuracy_max: best accuracy over all thresholds; an oracle, never below the larger class.
        sensitivity_at_specificity: highest sensitivity at a specificity of at least `fixed`, not
            interpolated; the threshold is chosen on these scans.
        specificity_at_sensitivity: highest specificity at a sensitivity of at least `fixed`.
        fpr95: lowest false-positive rate at a true-positive rate of at least 0.95; see `fpr_at`
            for the other positive class.
        fpr95_positive: the class that `fpr95` calls positive, `anomalous`.
        fixed: specificity and sensitivity at which the other is taken.
        threshold: the threshold that was given, if any.
        accuracy: fraction of scans that `score > threshold` calls rightly.
        sensitivity: fraction of anomalous scans above the threshold.
        specificity: fraction of healthy scans not above the threshold.
        prevalence: fraction of anomalous scans.
        n: number of scans.
        subjects: number of subjects.
    """

    auroc: Estimate
    ap: Estimate
    f1_max: Estimate
    accuracy_max: Estimate
    sensitivity_at_specificity: Estimate
    specificity_at_sensitivity: Estimate
    fpr95: Estimate
    fpr95_positive: str
    fixed: float
    threshold: float | None
    accuracy: Estimate | None
    sensitivity: Estimate | None
    specificity: Estimate | None
    prevalence: float
    n: int
    subjects: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


class _Counts:
    """Positives and negatives per score cell, of any weighting of the subjects."""

    def __init__(
        self,
        scores: Floats,
        labels: npt.NDArray[np.bool_],
        subject: Any,
        subjects: int,
        fixed: float = 0.95,
        threshold: float | None = None,
    ):
        self.fixed = fixed
        edges = curves.exact_edges(scores[labels])
        # Cell k is [edge_k, edge_(k-1)): the first edge, from the top, that the score reaches.
        cell = edges.size - np.searchsorted(edges[::-1], scores, side="right")
        shape = (subjects, edges.size)

        def table(rows: npt.NDArray[np.bool_]) -> csr_array:
            ones = np.ones(int(rows.sum()))
            return csr_array((ones, (subject[rows], cell[rows])), shape=shape)

        self.positives, self.negatives, self.cells = table(labels), table(~labels), edges.size
        self.above: tuple[Floats, ...] | None = None
        if threshold is not None:
            called = scores > threshold
            rows = (labels & called, ~labels & ~called, labels, ~labels)
            self.above = tuple(
                np.bincount(subject, row, subjects).astype(np.float64) for row in rows
            )

    def metrics(self, weights: Floats) -> dict[str, Floats]:
        """Return each metric (r,) under the subject weights (r, subjects)."""
        positives, negatives = weights @ self.positives, weights @ self.negatives
        found = {
            "auroc": curves.auroc(positives, negatives),
            "ap": curves.average_precision(positives, negatives),
            "f1_max": curves.best_dice(positives, negatives)[0],
            "accuracy_max": curves.best_accuracy(positives, negatives),
            "sensitivity_at_specificity": curves.sensitivity_at(positives, negatives, self.fixed),
            "specificity_at_sensitivity": curves.specificity_at(positives, negatives, self.fixed),
            "fpr95": 1 - curves.specificity_at(positives, negatives, 0.95),
        }
        if self.above is not None:
            hits, passed, sick, healthy = (weights @ part for part in self.above)
            found["accuracy"] = curves.divide(hits + passed, sick + healthy, np.nan)
            found["sensitivity"] = curves.divide(hits, sick, np.nan)
            found["specificity"] = curves.divide(passed, healthy, np.nan)
        return found


def image_metrics(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    subjects: Subjects = None,
    *,
    threshold: float | None = None,
    fixed: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> ImageMetrics:
    """Return the image-level metrics with exact bootstrap intervals by subject.

    Args:
        scores: anomaly score of each scan (n,), higher is more anomalous; may be infinite.
        labels: 0 or 1 for each scan (n,).
        subjects: subject of each scan; None where every scan is a subject of its own.
        threshold: `score > threshold` is anomalous; None leaves accuracy, sensitivity and
            specificity out.
        fixed: specificity (sensitivity) in (0, 1) at which the sensitivity (specificity) is taken.
        replicates: bootstrap resamples; 0 for no intervals.
        seed: seed of the resampling.
        confidence: coverage of the intervals.

    Raises:
        ArgumentError: no scans, lengths that differ, a NaN score, a label other than 0 and 1, or
            a threshold or a fixed rate out of range.
    """
    values, truth = _checked(scores, labels)
    if not 0 < fixed < 1 or (threshold is not None and np.isnan(threshold)):
        raise ArgumentError(
            f"The fixed rate must be between 0 and 1 and the threshold a number, not {fixed} "
            f"and {threshold}."
        )
    subject, count = number_subjects(subjects, values.size)
    counts = _Counts(values, truth, subject, count, fixed, threshold)
    point = {name: float(v[0]) for name, v in counts.metrics(np.ones((1, count))).items()}
    estimates: dict[str, Any] = bootstrap(
        counts.metrics,
        point,
        count,
        cells=max(counts.cells, count),
        replicates=replicates,
        seed=seed,
        confidence=confidence,
    )
    positive, negative = (set(subject[rows].tolist()) for rows in (truth, ~truth))
    if point["auroc"] in (0, 1) and not positive & negative and replicates:
        pairs = min(len(positive), len(negative))
        low, high = separated(point["auroc"], pairs, confidence)
        estimates["auroc"] = replace(estimates["auroc"], low=low, high=high)
    if threshold is None:
        estimates |= dict.fromkeys(("accuracy", "sensitivity", "specificity"))
    return ImageMetrics(
        **estimates,
        fpr95_positive="anomalous",
        fixed=fixed,
        threshold=threshold,
        prevalence=float(truth.mean()),
        n=values.size,
        subjects=count,
    )


def separated(value: float, pairs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval of an AUROC of 0 or 1, where resampling has none.

    Of m disjoint pairs of an anomalous and a healthy subject, which are independent, all are in
    order with probability AUROC^m: what is observed is unlikely below the bound. It is
    Clopper-Pearson's interval of m successes in m trials.

    Args:
        value: 0 or 1.
        pairs: subjects of the smaller class.
        confidence: coverage, in (0, 1).
    """
    least = float(((1 - confidence) / 2) ** (1 / pairs))
    return (least, 1.0) if value == 1 else (0.0, 1 - least)


def oracle_sensitivity(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    subjects: Subjects = None,
    *,
    fpr: float = 0.05,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Return the sensitivity at exactly the asked rate on these healthy scans: an oracle.

    A healthy subject stands with its highest score, as where a threshold is set. Of the rules
    "anomalous above t" the most sensitive one counts that flags at most `fpr` of the healthy
    subjects: t is the (k + 1)-th highest of n, k = floor(fpr n), and what ties with it isn't
    flagged. It is chosen again in each bootstrap replicate. NaN with one class.

    Args:
        scores: anomaly score of each scan (n,), higher is more anomalous; may be infinite.
        labels: 0 or 1 for each scan (n,).
        subjects: subject of each scan; None where every scan is a subject of its own.
        fpr: false-positive rate in (0, 1).
        replicates: bootstrap resamples; 0 for no interval.
        seed: seed of the resampling.
        confidence: coverage of the interval.

    Raises:
        ArgumentError: as in `image_metrics`, or a rate outside (0, 1).
    """
    values, truth = _checked(scores, labels)
    if not 0 < fpr < 1:
        raise ArgumentError(f"The false-positive rate must be between 0 and 1, not {fpr}.")
    subject, count = number_subjects(subjects, values.size)
    # Sorted by score, the last healthy scan of a subject is its highest.
    order = np.argsort(values, kind="stable")
    last = {int(subject[i]): int(i) for i in order if not truth[i]}
    kept = np.concatenate([np.flatnonzero(truth), np.array(list(last.values()), dtype=np.intp)])
    counts = _Counts(values[kept], truth[kept], subject[kept], count, 1 - fpr)

    def sensitivity(weights: Floats) -> dict[str, Floats]:
        positives, negatives = weights @ counts.positives, weights @ counts.negatives
        return {"oracle": curves.sensitivity_at(positives, negatives, counts.fixed)}

    return bootstrap(
        sensitivity,
        {"oracle": float(sensitivity(np.ones((1, count)))["oracle"][0])},
        count,
        cells=max(counts.cells, count),
        replicates=replicates,
        seed=seed,
        confidence=confidence,
    )["oracle"]


def fpr_at(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    sensitivity: float = 0.95,
    *,
    positive: Literal["anomalous", "healthy"],
) -> float:
    """Return the lowest FPR at a TPR of at least `sensitivity`: FPR95 at 0.95; NaN with one class.

    The literature differs in what is positive, so it must be named: with `healthy` it is the
    fraction of anomalous scans that pass as healthy when 95 % of the healthy do. Not interpolated.

    Args:
        scores: anomaly score of each scan (n,), higher is more anomalous.
        labels: 0 or 1 for each scan (n,).
        sensitivity: wanted TPR in (0, 1].
        positive: class that counts as positive.

    Raises:
        ArgumentError: as in `image_metrics`, or another class.
    """
    values, truth = _checked(scores, labels)
    if positive not in ("anomalous", "healthy") or not 0 < sensitivity <= 1:
        raise ArgumentError(
            f"FPR needs positive='anomalous' or 'healthy' and a TPR in (0, 1], not "
            f"'{positive}' and {sensitivity}."
        )
    if positive == "healthy":
        values, truth = -values, ~truth
    edges = curves.exact_edges(values[truth])
    found, false = (curves.cells(np.sort(values[rows]), edges) for rows in (truth, ~truth))
    return float(1 - curves.specificity_at(found, false, sensitivity))


def bootstrap_difference(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    labels: npt.ArrayLike,
    subjects: Subjects = None,
    *,
    metric: str = "auroc",
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Return a metric of method A minus that of method B on the same scans, with its interval.

    Both methods are evaluated on the same resampled subjects, so what makes a scan hard for both
    cancels. An interval without 0 is a difference at that confidence.

    Args:
        scores_a: scores of method A (n,).
        scores_b: scores of method B (n,), same scans in the same order.
        labels: 0 or 1 for each scan (n,).
        subjects: subject of each scan; None where every scan is a subject of its own.
        metric: `auroc`, `ap`, `f1_max`, `sensitivity_at_specificity` or another threshold-free
            name of `ImageMetrics`.
        replicates: bootstrap resamples; 0 for no interval.
        seed: seed of the resampling.
        confidence: coverage of the interval.

    Raises:
        ArgumentError: as in `image_metrics`, or an unknown metric.
    """
    if metric not in _RANKING:
        raise ArgumentError(f"Unknown metric '{metric}'; choose from {', '.join(_RANKING)}.")
    (a, truth), (b, _) = _checked(scores_a, labels), _checked(scores_b, labels)
    subject, count = number_subjects(subjects, truth.size)
    first, second = (_Counts(values, truth, subject, count) for values in (a, b))

    def difference(weights: Floats) -> dict[str, Floats]:
        return {metric: first.metrics(weights)[metric] - second.metrics(weights)[metric]}

    return bootstrap(
        difference,
        {metric: float(difference(np.ones((1, count)))[metric][0])},
        count,
        cells=max(first.cells, second.cells, count),
        replicates=replicates,
        seed=seed,
        confidence=confidence,
        flat=True,
    )[metric]


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return scores as float64 and labels as booleans, or say what is wrong with them."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != truth.shape or not values.size:
        raise ArgumentError(
            f"Image metrics need one score and one label for each scan, not arrays of shapes "
            f"{values.shape} and {truth.shape}."
        )
    if np.isnan(values).any():
        raise ArgumentError(
            f"{int(np.isnan(values).sum())} of {values.size} image scores are NaN; "
            f"leave those scans out and report them."
        )
    if not np.isin(truth, (0, 1)).all():
        raise ArgumentError("Image labels must be 0 (healthy) or 1 (anomalous).")
    return values, truth.astype(bool)
