"""Pixel-level metrics over a whole test set: does the map show where the lesion is?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics import counting, curves
from normscan.metrics.curves import Floats
from normscan.metrics.estimates import Estimate, bootstrap, to_json
from normscan.metrics.maps import Mask, Singles, checked_map, checked_mask
from normscan.scores.components import connected

# Resamples are worked on in smaller chunks than memory would allow, so that they stay in the cache.
IN_CACHE = 8


@dataclass(frozen=True)
class PixelMetrics:
    """Pixel-level results over all evaluated pixels of the test set.

    Attributes:
        auroc: pooled area under the ROC curve.
        ap: pooled step-wise average precision; random maps reach `prevalence`.
        aupro: area under the per-region overlap up to `limit`, divided by it.
        best_dice: best pooled Dice over all thresholds; an oracle, it uses the masks.
        best_iou: the IoU at the same threshold, the best of all; an oracle.
        best_dice_threshold: `map > best_dice_threshold` reaches it.
        threshold: the threshold that was given, if any.
        dice: pooled Dice of `map > threshold`.
        iou: pooled intersection over union of `map > threshold`.
        sensitivity: pooled fraction of lesion pixels in `map > threshold`.
        subject_dice: mean over subjects of the Dice of `map > threshold`; 1 where both the
            prediction and the mask of a subject are empty.
        limit: false-positive rate up to which `aupro` integrates.
        prevalence: fraction of lesion pixels.
        pixels: number of evaluated pixels.
        regions: number of connected lesion components with evaluated pixels.
        scans: number of maps.
        subjects: number of subjects.
        evaluated: `whole image`, `region`, or `mixed`: whether a region restricted the pixels.
    """

    auroc: Estimate
    ap: Estimate
    aupro: Estimate
    best_dice: Estimate
    best_iou: Estimate
    best_dice_threshold: float
    threshold: float | None
    dice: Estimate | None
    iou: Estimate | None
    sensitivity: Estimate | None
    subject_dice: Estimate | None
    limit: float
    prevalence: float
    pixels: int
    regions: int
    scans: int
    subjects: int
    evaluated: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


@dataclass(frozen=True)
class _Scan:
    """Scores of one scan: healthy pixels, lesion pixels, and 1/area of the component of these."""

    subject: int
    negatives: Singles
    positives: Singles
    weights: Floats
    regions: int
    restricted: bool


class PixelScores:
    """Collects maps and masks scan by scan, then evaluates them exactly.

    Scores are kept as float32, 4 bytes for a healthy pixel and 12 for a lesion pixel; evaluation
    needs as much again. Maps of another precision are rounded to float32, and so is the threshold.
    """

    def __init__(self) -> None:
        self._scans: list[_Scan] = []
        self._subjects: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._scans)

    def join(self, other: PixelScores) -> PixelScores:
        """Return the scans of both together; they share the pixels."""
        both = PixelScores()
        for part in (self, other):
            names = list(part._subjects)
            for scan in part._scans:
                number = both._subjects.setdefault(names[scan.subject], len(both._subjects))
                both._scans.append(replace(scan, subject=number))
        return both

    def add(
        self,
        map: npt.ArrayLike,
        mask: npt.ArrayLike | None,
        subject: Hashable,
        region: npt.ArrayLike | None = None,
    ) -> None:
        """Add the map of one scan.

        A lesion component is one of the whole mask (8-connected in 2D, 26-connected in 3D); where a
        region hides part of it, its visible pixels stand for it.

        Args:
            map: anomaly map (H, W) or (D, H, W), higher is more anomalous; may be infinite.
            mask: lesion mask of the same shape, 0 is healthy; None for a healthy scan.
            subject: whose scan it is; intervals resample subjects.
            region: pixels to evaluate, same shape; None for the whole image.

        Raises:
            ArgumentError: NaN in the evaluated map, shapes that differ, or an empty region.
        """
        values, inside = checked_map(map, region)
        negatives, positives, weights, regions = split_scores(values, inside, mask)
        self._scans.append(
            _Scan(
                subject=self._subjects.setdefault(subject, len(self._subjects)),
                negatives=negatives,
                positives=positives,
                weights=weights,
                regions=regions,
                restricted=region is not None,
            )
        )

    def subject_ap(self) -> dict[Hashable, float]:
        """Return the mean average precision within each lesioned scan, by subject.

        Pooled figures can't be paired by subject; these can. Scans without healthy pixels are left
        out.
        """
        names, found = list(self._subjects), defaultdict(list)
        for scan in self._scans:
            if scan.positives.size and scan.negatives.size:
                edges = curves.exact_edges(scan.positives)
                masses = [curves.cells(np.sort(x), edges) for x in (scan.positives, scan.negatives)]
                found[names[scan.subject]].append(float(curves.average_precision(*masses)))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def evaluate(
        self,
        threshold: float | None = None,
        *,
        limit: float = 0.3,
        replicates: int = 1000,
        seed: int = 0,
        confidence: float = 0.95,
    ) -> PixelMetrics:
        """Return all pixel-level metrics with bootstrap intervals by subject.

        The values are exact. The intervals of Dice at the threshold are exact too; those of the
        other metrics come from per-subject histograms over `curves.coarse_edges` (within 1e-3).

        Args:
            threshold: where `map > threshold` is a lesion; None leaves `dice` out.
            limit: false-positive rate in (0, 1] up to which AUPRO integrates.
            replicates: bootstrap resamples; 0 for no intervals.
            seed: seed of the resampling.
            confidence: coverage of the intervals.

        Raises:
            ArgumentError: nothing was added, or an argument is outside its range.
        """
        if not self._scans:
            raise ArgumentError("No scan was added; there are no pixels to evaluate.")
        if not 0 < limit <= 1:
            raise ArgumentError(f"The AUPRO limit must be above 0 and at most 1, not {limit}.")
        if threshold is not None and math.isnan(threshold):
            raise ArgumentError("The pixel threshold is NaN.")
        options = {"replicates": replicates, "seed": seed, "confidence": confidence}
        ranked, best_threshold, prevalence, pixels = self._ranking(limit, options)
        fixed = self._at(np.float32(threshold), options) if threshold is not None else {}
        kinds = {"region" if scan.restricted else "whole image" for scan in self._scans}
        evaluated = kinds.pop() if len(kinds) == 1 else "mixed"
        return PixelMetrics(
            **ranked,
            best_dice_threshold=best_threshold,
            threshold=threshold,
            dice=fixed.get("dice"),
            iou=fixed.get("iou"),
            sensitivity=fixed.get("sensitivity"),
            subject_dice=fixed.get("subject_dice"),
            limit=limit,
            prevalence=prevalence,
            pixels=pixels,
            regions=sum(scan.regions for scan in self._scans),
            scans=len(self._scans),
            subjects=len(self._subjects),
            evaluated=evaluated,
        )

    def _ranking(
        self, limit: float, options: dict[str, Any]
    ) -> tuple[dict[str, Estimate], float, float, int]:
        """Return the threshold-free metrics, the best threshold, the prevalence and the pixels."""
        positives = np.concatenate([scan.positives for scan in self._scans])
        order = np.argsort(positives)
        positives, weights = positives[order], self._weights()[order]
        healthy = [scan.negatives for scan in self._scans]

        edges = curves.exact_edges(positives)
        counts = curves.cells(positives, edges), counting.unsorted_cells(healthy, edges)
        point = _ranking_metrics(*counts, curves.cells(positives, edges, weights), limit)
        best_cell = curves.best_dice(*counts)[1]
        # Scores at or above the edge are predicted; with a strict `>` that is the float below it.
        best = float(np.nextafter(edges[best_cell], np.float32(-np.inf)))
        if math.isnan(point["best_dice"]):
            best = math.nan

        table, cells = np.zeros((len(self._subjects), 3)), 1
        if options["replicates"] and len(self._subjects) > 1:
            coarse = curves.coarse_edges(edges, *counts, limit)
            # Single precision is finer than coarse edges are, and twice as quick.
            table = self._cumulated(coarse, np.float64 if coarse is edges else np.float32)
            cells = IN_CACHE * coarse.size

        def metrics(subjects: Floats) -> dict[str, Floats]:
            drawn = subjects.astype(table.dtype) @ table
            true, false, overlap = np.split(drawn, 3, axis=1)
            found = curves.cumulated(true, false, overlap, limit)
            return found | {"best_iou": _iou(found["best_dice"])}

        exact = {name: float(value) for name, value in point.items()}
        estimates = bootstrap(metrics, exact, len(self._subjects), cells=cells, **options)
        pixels = positives.size + sum(scores.size for scores in healthy)
        return estimates, best, positives.size / pixels, pixels

    def _weights(self) -> Floats:
        return np.concatenate([scan.weights for scan in self._scans])

    def _cumulated(self, edges: Singles, dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
        """Return what lies at or above each edge (subjects, 3 K): positives, negatives, weight."""
        table = np.zeros((len(self._subjects), 3, edges.size), dtype)
        cells = counting.Lookup(edges)
        for scan in self._scans:
            lesion, healthy = cells(scan.positives), cells(scan.negatives)
            for row, cell, weights in zip(
                table[scan.subject],
                (lesion, healthy, lesion),
                (None, None, scan.weights),
                strict=True,
            ):
                row += np.bincount(cell, weights, edges.size)
        np.cumsum(table, axis=2, out=table)
        return table.reshape(len(table), -1)

    def _at(self, threshold: np.float32, options: dict[str, Any]) -> dict[str, Estimate]:
        """Return the pooled metrics and the mean per-subject Dice of `score > threshold`, exact."""
        true, false, lesion, healthy = np.zeros((4, len(self._subjects)))
        for scan in self._scans:
            for scores, above, count in (
                (scan.positives, true, lesion),
                (scan.negatives, false, healthy),
            ):
                above[scan.subject] += np.count_nonzero(scores > threshold)
                count[scan.subject] += scores.size
        size = true + false + lesion
        each = np.where(size > 0, 2 * true / np.maximum(size, 1), 1.0)

        def metrics(weights: Floats) -> dict[str, Floats]:
            defined = (weights @ lesion > 0) & (weights @ healthy > 0)
            found, mean = weights @ true, weights @ each / weights.sum(-1)
            pooled = 2 * found / np.maximum(weights @ size, 1)
            return {
                "dice": np.where(defined, pooled, np.nan),
                "iou": np.where(defined, pooled / (2 - pooled), np.nan),
                "sensitivity": curves.divide(found, weights @ lesion, np.nan),
                "subject_dice": mean,
            }

        subjects = len(self._subjects)
        point = {name: float(v[0]) for name, v in metrics(np.ones((1, subjects))).items()}
        return bootstrap(metrics, point, subjects, cells=subjects, **options)


def split_scores(
    values: Singles, inside: Mask, mask: npt.ArrayLike | None
) -> tuple[Singles, Singles, Floats, int]:
    """Return the evaluated scores of healthy and of lesion pixels, 1/area, and the components.

    Args:
        values: anomaly map (H, W) or (D, H, W).
        inside: pixels that count, same shape.
        mask: lesion mask of the same shape, or None.

    Returns:
        Healthy scores (n,), lesion scores (p,), 1 / visible area of the component of each lesion
        pixel (p,), and the number of visible components.
    """
    if mask is not None:
        lesion = checked_mask(mask, values.shape, "lesion mask")
        if lesion.any():
            components = connected(lesion)
            shown = inside & lesion
            member = components[shown]
            area = np.bincount(member.ravel())
            return values[inside & ~lesion], values[shown], 1 / area[member], int((area > 0).sum())
    return values[inside], np.empty(0, np.float32), np.empty(0), 0


def _ranking_metrics(
    positives: Floats, negatives: Floats, regions: Floats, limit: float
) -> dict[str, Floats]:
    """Return the metrics that need no threshold, from mass per cell (..., K)."""
    best = curves.best_dice(positives, negatives)[0]
    return {
        "auroc": curves.auroc(positives, negatives),
        "ap": curves.average_precision(positives, negatives),
        "aupro": curves.aupro(regions, negatives, limit),
        "best_dice": best,
        "best_iou": _iou(best),
    }


def _iou(dice: Floats) -> Floats:
    """It grows with Dice, so the same threshold is the best."""
    return dice / (2 - dice)
