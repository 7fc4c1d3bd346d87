"""Image-level metrics: does the score tell anomalous scans from healthy ones?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from normscan.errors import ArgumentError
from normscan.metrics.curves import Floats, auroc, average_precision, best_dice, exact_edges
from normscan.metrics.estimates import Estimate, bootstrap, number_subjects, to_json

Subjects = Sequence[Hashable] | npt.NDArray[Any] | None


@dataclass(frozen=True)
class ImageMetrics:
    """Image-level results.

    Attributes:
        auroc: area under the ROC curve, ties counted half.
        ap: step-wise average precision; random scores reach `prevalence`.
        f1_max: best F1 over all thresholds; an oracle, it uses the labels.
        prevalence: fraction of anomalous scans.
        n: number of scans.
        subjects: number of subjects.
    """

    auroc: Estimate
    ap: Estimate
    f1_max: Estimate
    prevalence: float
    n: int
    subjects: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


class _Counts:
    """Positives and negatives per score cell, of any weighting of the subjects."""

    def __init__(self, scores: Floats, labels: npt.NDArray[np.bool_], subject: Any, subjects: int):
        edges = exact_edges(scores[labels])
        # Cell k is [edge_k, edge_(k-1)): the first edge, from the top, that the score reaches.
        cell = edges.size - np.searchsorted(edges[::-1], scores, side="right")
        shape = (subjects, edges.size)

        def table(rows: npt.NDArray[np.bool_]) -> csr_array:
            ones = np.ones(int(rows.sum()))
            return csr_array((ones, (subject[rows], cell[rows])), shape=shape)

        self.positives, self.negatives, self.cells = table(labels), table(~labels), edges.size

    def metrics(self, weights: Floats) -> dict[str, Floats]:
        """Return each metric (r,) under the subject weights (r, subjects)."""
        positives, negatives = weights @ self.positives, weights @ self.negatives
        return {
            "auroc": auroc(positives, negatives),
            "ap": average_precision(positives, negatives),
            "f1_max": best_dice(positives, negatives)[0],
        }


def image_metrics(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    subjects: Subjects = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> ImageMetrics:
    """Return AUROC, average precision and F1-max with exact bootstrap intervals by subject.

    Args:
        scores: anomaly score of each scan (n,), higher is more anomalous; may be infinite.
        labels: 0 or 1 for each scan (n,).
        subjects: subject of each scan; None where every scan is a subject of its own.
        replicates: bootstrap resamples; 0 for no intervals.
        seed: seed of the resampling.
        confidence: coverage of the intervals.

    Raises:
        ArgumentError: no scans, lengths that differ, a NaN score, or a label other than 0 and 1.
    """
    values, truth = _checked(scores, labels)
    subject, count = number_subjects(subjects, values.size)
    counts = _Counts(values, truth, subject, count)
    point = {name: float(v[0]) for name, v in counts.metrics(np.ones((1, count))).items()}
    estimates = bootstrap(
        counts.metrics,
        point,
        count,
        cells=max(counts.cells, count),
        replicates=replicates,
        seed=seed,
        confidence=confidence,
    )
    return ImageMetrics(**estimates, prevalence=float(truth.mean()), n=values.size, subjects=count)


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
        metric: `auroc`, `ap` or `f1_max`.
        replicates: bootstrap resamples; 0 for no interval.
        seed: seed of the resampling.
        confidence: coverage of the interval.

    Raises:
        ArgumentError: as in `image_metrics`, or an unknown metric.
    """
    if metric not in ("auroc", "ap", "f1_max"):
        raise ArgumentError(f"Unknown metric '{metric}'; choose auroc, ap or f1_max.")
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
