"""Exact detection and localisation metrics with confidence intervals by subject.

Scores are higher where more anomalous; labels are 0 (healthy) or 1 (anomalous). Where only one
class is present a metric is NaN, never 0. Figures that choose their threshold with the test labels
(`f1_max`, `accuracy_max`, `best_dice`, `best_iou`) are oracles: report them beside the deployable
ones, never alone. Forms that single repositories compute differently are in `variants`.
"""

from __future__ import annotations

from normscan.metrics.agreement import (
    VolumeAgreement,
    cohen_kappa,
    mean_defined,
    surface_distances,
    volume_agreement,
)
from normscan.metrics.calibration import Calibration, calibration
from normscan.metrics.comparisons import (
    Comparison,
    compare_scores,
    delong_test,
    holm,
    permutation_test,
    rank_methods,
    wilcoxon,
)
from normscan.metrics.curves import aupro, auroc, average_precision, best_dice
from normscan.metrics.estimates import Estimate, bootstrap, resamples
from normscan.metrics.images import (
    ImageMetrics,
    bootstrap_difference,
    fpr_at,
    image_metrics,
    oracle_sensitivity,
)
from normscan.metrics.lesions import (
    RULES,
    LesionMetrics,
    LesionScores,
    MatchRule,
    froc,
    match_lesions,
)
from normscan.metrics.pixels import PixelMetrics, PixelScores
from normscan.metrics.predictive import decision_metrics
from normscan.metrics.statistics import Interval, bca, delong, over_seeds, scan_statistic
from normscan.metrics.streaming import StreamingMetrics, StreamingPixelScores

__all__ = [
    "RULES",
    "Calibration",
    "Comparison",
    "Estimate",
    "ImageMetrics",
    "Interval",
    "LesionMetrics",
    "LesionScores",
    "MatchRule",
    "PixelMetrics",
    "PixelScores",
    "StreamingMetrics",
    "StreamingPixelScores",
    "VolumeAgreement",
    "aupro",
    "auroc",
    "average_precision",
    "bca",
    "best_dice",
    "bootstrap",
    "bootstrap_difference",
    "calibration",
    "cohen_kappa",
    "compare_scores",
    "decision_metrics",
    "delong",
    "delong_test",
    "fpr_at",
    "froc",
    "holm",
    "image_metrics",
    "match_lesions",
    "mean_defined",
    "oracle_sensitivity",
    "over_seeds",
    "permutation_test",
    "rank_methods",
    "resamples",
    "scan_statistic",
    "surface_distances",
    "volume_agreement",
    "wilcoxon",
]
