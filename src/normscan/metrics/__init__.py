"""Exact detection and localisation metrics with confidence intervals by subject.

Scores are higher where more anomalous; labels are 0 (healthy) or 1 (anomalous). Where only one
class is present a metric is NaN, never 0. Figures that choose their threshold with the test labels
(`f1_max`, `best_dice`) are oracles: report them beside the deployable ones, never alone.
"""

from __future__ import annotations

from normscan.metrics.curves import aupro, auroc, average_precision, best_dice
from normscan.metrics.estimates import Estimate, bootstrap, resamples
from normscan.metrics.images import ImageMetrics, bootstrap_difference, image_metrics
from normscan.metrics.pixels import PixelMetrics, PixelScores

__all__ = [
    "Estimate",
    "ImageMetrics",
    "PixelMetrics",
    "PixelScores",
    "aupro",
    "auroc",
    "average_precision",
    "best_dice",
    "bootstrap",
    "bootstrap_difference",
    "image_metrics",
    "resamples",
]
