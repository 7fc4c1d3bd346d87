"""Metrics as single repositories compute them, to compare with their published figures only.

None of these stands under the plain name: each is a coarser or differently normalised form of an
exact metric, and their values don't compare with it. All take whole maps and masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics import curves
from normscan.metrics.counting import unsorted_cells
from normscan.metrics.curves import Floats, divide
from normscan.metrics.maps import Singles, checked_map, checked_mask
from normscan.metrics.pixels import split_scores
from normscan.scores.components import connected

Maps = Sequence[npt.ArrayLike]

MAD_METRICS = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro",
)


def ader_aupro(maps: Maps, masks: Maps, limit: float = 0.3, thresholds: int = 200) -> float:
    """Return AUPRO as ADer computes it: rescaled, over equally spaced thresholds.

    Of `thresholds` equal steps from the lowest score up, those with FPR < limit are kept, their
    FPRs are stretched to [0, 1] by their own minimum and maximum, and the overlap is integrated by
    trapezoids. Slightly above the exact AUPRO, and unstable where few thresholds are left.

    Args:
        maps: anomaly maps (H, W) or (D, H, W).
        masks: lesion masks of the same shapes.
        limit: false-positive rate below which thresholds are kept.
        thresholds: number of steps.

    Returns:
        The area; NaN without lesions, without healthy pixels, or with fewer than two kept points.
    """
    positives, negatives, weights = _pooled(maps, masks)
    if not positives.size or not sum(part.size for part in negatives):
        return math.nan
    low, high = _range(positives, negatives)
    steps = low + (high - low) / thresholds * np.arange(thresholds)
    _, false, pro = _above(positives, negatives, weights, steps)
    fpr = false / sum(part.size for part in negatives)
    kept = fpr < limit
    fpr, pro = fpr[kept], pro[kept] / weights.sum()
    if fpr.size < 2 or fpr.max() == fpr.min():
        return math.nan
    return float(np.trapezoid(pro, (fpr - fpr.min()) / (fpr.max() - fpr.min())))


def ader_pixel_f1(maps: Maps, masks: Maps, thresholds: int = 21) -> float:
    """Return the best pixel F1 of equal steps over maps scaled to [0, 1] by the data set's range.

    ADer takes 21 thresholds, 0 to 1 in steps of 0.05. Never above the exact F1-max (best Dice).
    """
    return _best_of_range(maps, masks, thresholds)


def upd_best_dice(maps: Maps, masks: Maps, thresholds: int = 100) -> float:
    """Return the best pooled Dice of 100 thresholds from the highest score to the lowest (UPD)."""
    return _best_of_range(maps, masks, thresholds)


def medianomaly_best_dice(maps: Maps, masks: Maps, thresholds: int = 200) -> float:
    """Return the best pooled Dice of 200 thresholds at equal ranks of the scores (MedIAnomaly).

    With n pixels these are the scores at ranks 0, n // 200, 2 (n // 200), ... from below.
    """
    positives, negatives, weights = _pooled(maps, masks)
    scores = np.sort(np.concatenate([positives, *negatives]))
    picked = scores[:: max(1, scores.size // thresholds)]
    return _best_dice(positives, negatives, weights, picked)


def trapezoid_aupr(maps: Maps, masks: Maps, strips: int = 1000) -> float:
    """Return the area under the precision-recall curve by trapezoids, as ADEval's "AUPR".

    Over `strips` equal bins of the range, with precision 1 where nothing is predicted. Interpolates
    where average precision doesn't, and is therefore a little above it as a rule.
    """
    positives, negatives, weights = _pooled(maps, masks)
    if not positives.size or not sum(part.size for part in negatives):
        return math.nan
    low, high = _range(positives, negatives)
    edges = np.linspace(low, high, strips + 1)
    true, false, _ = _above(positives, negatives, weights, edges, inclusive=True)
    precision = divide(true, true + false, 1.0)
    return float(np.trapezoid(precision, true / positives.size))


def mad(classes: Sequence[Mapping[str, float]]) -> tuple[float, int]:
    """Return ADer's mAD, the mean of seven metrics that are each first averaged over classes.

    Args:
        classes: for each class the metrics named in `MAD_METRICS`, in one unit. NaN is left out of
            the mean over classes.

    Returns:
        mAD (NaN if a metric is undefined in every class) and how many values were left out.

    Raises:
        ArgumentError: no class, or a metric is missing.
    """
    missing = [name for name in MAD_METRICS if any(name not in values for values in classes)]
    if not classes or missing:
        raise ArgumentError(f"mAD needs classes with {', '.join(missing or MAD_METRICS)}.")
    table = np.array([[values[name] for name in MAD_METRICS] for values in classes], np.float64)
    defined = ~np.isnan(table)
    means = divide(np.where(defined, table, 0).sum(0), defined.sum(0).astype(float), np.nan)
    return float(means.mean()), int((~defined).sum())


def baur_lesions(
    prediction: npt.ArrayLike, mask: npt.ArrayLike, smallest: int = 8, slices: int = 20
) -> tuple[int, int, int]:
    """Return true positives, false positives and misses as Baur et al. 2021 count them.

    In blocks of 20 slices along the first axis: a true positive is a component of the common
    voxels, so one lesion may count twice; a false positive is a predicted component of at least
    8 voxels without common voxels; a miss is a lesion without any. Lesions that cross a block are
    cut.

    Args:
        prediction: predicted mask (D, H, W).
        mask: lesion mask of the same shape.
        smallest: voxels from which a predicted component can be a false positive.
        slices: slices of a block.

    Raises:
        ArgumentError: not three dimensions, or shapes that differ.
    """
    predicted = np.asarray(prediction).astype(bool)
    truth = checked_mask(mask, predicted.shape, "lesion mask")
    if predicted.ndim != 3:
        raise ArgumentError(f"Baur's counting needs volumes, not shape {predicted.shape}.")
    true = false = missed = 0
    for start in range(0, len(predicted), slices):
        some, lesion = predicted[start : start + slices], truth[start : start + slices]
        both = some & lesion
        true += int(connected(both).max(initial=0))
        for whole, least in ((some, smallest), (lesion, 1)):
            labels = connected(whole)
            untouched = np.bincount(labels.ravel()) >= least
            untouched[labels[both]] = untouched[0] = False
            if whole is some:
                false += int(untouched.sum())
            else:
                missed += int(untouched.sum())
    return true, false, missed


def normative_detection(
    map: npt.ArrayLike,
    mask: npt.ArrayLike,
    healthy: npt.ArrayLike,
    threshold: float,
    minimum: float = 0.1,
) -> float:
    """Return the detection F1 of one image as in the code of Bercea et al. 2025.

    Found if more than 10 % of the anomaly's pixels are above the threshold. The false positives are
    floor(sum of the map over the healthy mask / max(sum over the anomaly, 1)). Average over images.

    Args:
        map: residual map (H, W) or (D, H, W).
        mask: anomaly mask of the same shape.
        healthy: mask of the tissue that counts as healthy, same shape.
        threshold: of the map, from healthy images.
        minimum: fraction of the anomaly that must be above it.

    Returns:
        F1 of precision TP / (TP + FP) and recall TP; NaN without an anomaly.
    """
    values, _ = checked_map(map, None)
    lesion = checked_mask(mask, values.shape, "anomaly mask")
    tissue = checked_mask(healthy, values.shape, "healthy mask")
    if not lesion.any():
        return math.nan
    found = float(np.mean(values[lesion] > np.float32(threshold)) > minimum)
    residual = values[lesion].sum(dtype=np.float64)
    false = math.floor(values[tissue].sum(dtype=np.float64) / max(residual, 1.0))
    return 2 * found / (2 * found + false) if found else 0.0


def _pooled(maps: Maps, masks: Maps) -> tuple[Singles, list[Singles], Floats]:
    """Return lesion scores, healthy scores map by map, and 1/area of each lesion pixel."""
    if len(maps) != len(masks) or not len(maps):
        raise ArgumentError(f"{len(maps)} maps came with {len(masks)} masks; give one for each.")
    parts = [
        split_scores(*checked_map(map, None), mask) for map, mask in zip(maps, masks, strict=True)
    ]
    positives = np.concatenate([part[1] for part in parts])
    return positives, [part[0] for part in parts], np.concatenate([part[2] for part in parts])


def _range(positives: Singles, negatives: list[Singles]) -> tuple[float, float]:
    """Return the lowest and highest score; the steps of these variants need them finite."""
    both = [part for part in (positives, *negatives) if part.size]
    low, high = float(min(p.min() for p in both)), float(max(p.max() for p in both))
    if not math.isfinite(low) or not math.isfinite(high):
        raise ArgumentError("Equal steps between the lowest and highest score need finite maps.")
    return low, high


def _above(
    positives: Singles,
    negatives: list[Singles],
    weights: Floats,
    thresholds: npt.ArrayLike,
    inclusive: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """Return lesion pixels, healthy pixels and region weight above each threshold, descending."""
    steps = np.sort(np.asarray(thresholds, np.float32))[::-1]
    if not inclusive:
        steps = np.nextafter(steps, np.float32(np.inf))
    edges = np.append(steps, np.float32(-np.inf))
    order = np.argsort(positives)
    true = curves.cells(positives[order], edges)
    pro = curves.cells(positives[order], edges, weights[order])
    false = unsorted_cells(negatives, edges)
    return tuple(np.cumsum(part)[:-1] for part in (true, false, pro))  # type: ignore[return-value]


def _best_of_range(maps: Maps, masks: Maps, thresholds: int) -> float:
    positives, negatives, weights = _pooled(maps, masks)
    steps = np.linspace(*_range(positives, negatives), thresholds)
    return _best_dice(positives, negatives, weights, steps)


def _best_dice(
    positives: Singles, negatives: list[Singles], weights: Floats, thresholds: npt.ArrayLike
) -> float:
    if not positives.size or not sum(part.size for part in negatives):
        return math.nan
    true, false, _ = _above(positives, negatives, weights, thresholds)
    return float(np.max(2 * true / (true + false + positives.size)))
