"""The one idea behind every metric: mass per score cell, cumulated from the highest score down.

A list of descending edges e_1 > e_2 > ... > e_K = -inf cuts the scores into cells
[e_1, inf), [e_2, e_1), ...; a cell holds how many positives and negatives (or how much region
weight) fall into it, and lowering the threshold from edge to edge cumulates them. All functions
work along the last axis, so that (K,) is one exact evaluation and (replicates, K) a bootstrap.

The cells needn't be single scores: between two neighbouring positive scores every metric here is
linear in the number of negatives passed, or takes its value only at positives, so one cell for the
whole gap gives the exact result. `exact_edges` uses that; `coarse_edges` are a
subset.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.metrics.counting import bin_start

Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[np.floating[Any]]

# Coarse edges: positives over all ranks, finer where Dice is near its best; negatives over the
# ranks below the AUPRO limit, and in geometric steps from the very top, where a handful of false
# positives moves the precision. An edge may move by half a step to where counting is quick.
POSITIVE_EDGES, FINER, NEGATIVE_EDGES, TOP_EDGES = 768, 4, 768, 192
NEAR_BEST = 0.9
TOP_STEP = 0.03
FEW_EDGES = 4096  # Up to here all are kept.
# Rates such as 1 - 0.95 carry rounding errors far below one scan.
_SLACK = 1e-9


def exact_edges(positives: Scores) -> Scores:
    """Return descending edges whose cells give exact metrics.

    Every distinct positive score has a cell of its own (with the negatives tied to it), and so has
    every gap between two of them.

    Args:
        positives: scores of the positives (n,), in any order.

    Returns:
        Edges (2 * distinct + 1,) of the same dtype, the last one -inf.
    """
    distinct = np.unique(positives)[::-1]
    edges = np.full(2 * distinct.size + 1, -np.inf, dtype=positives.dtype)
    edges[0:-1:2] = np.nextafter(distinct, np.array(np.inf, dtype=positives.dtype))
    edges[1::2] = distinct
    return edges


def coarse_edges(edges: Scores, positives: Floats, negatives: Floats, limit: float = 0.3) -> Scores:
    """Return about 2000 edges that resolve both classes, or all of the exact ones if fewer than 4096.

    A cell holds at most 1.5 steps of 1/768 of the positives, where Dice reaches 90 % of its best
    1/2048; and within the false-positive rates that AUPRO integrates 1.5 steps of limit/768 of the
    negatives. An exact cell that is larger stays by itself. What a cell blurs is at most half of its
    positives times its negatives: against the exact edges AUROC and AUPRO differ by less than 1e-3,
    best Dice by at most 1e-3 downwards. Average precision has no such worst-case bound, but stayed
    within 1e-3 wherever it was tested.

    Args:
        edges: `exact_edges` (K,) of float32 scores.
        positives: mass of the positives in their cells (K,).
        negatives: mass of the negatives in their cells (K,).
        limit: false-positive rate up to which the negatives are resolved evenly.
    """
    if edges.size <= FEW_EDGES:
        return edges
    true, false = np.cumsum(positives), np.cumsum(negatives)
    dice = divide(true, true + false + true[-1], 0.0)
    near = dice >= NEAR_BEST * dice.max()
    step = true[-1] / np.where(near, FINER * POSITIVE_EDGES, POSITIVE_EDGES)
    width = limit * false[-1] / NEGATIVE_EDGES
    fine = np.linspace(0, true[-1], FINER * POSITIVE_EDGES + 1)[1:]
    at, again = _reached(true, fine)
    picked = [at[near[at]], again[near[again]], np.array([edges.size - 1])]
    for mass, ranks in (
        (true, fine[FINER - 1 :: FINER]),
        (false, np.linspace(0, limit * false[-1], NEGATIVE_EDGES + 1)[1:]),
        (false, np.geomspace(1, max(1.0, false[-1]), TOP_EDGES)),
    ):
        picked += _reached(mass, ranks)
    kept = np.unique(np.concatenate(picked))
    # Moved down to the end of a bin, an edge passes less than lies above the exact edge below it.
    moved = bin_start(edges[kept])
    below = np.minimum(np.searchsorted(-edges, -moved), edges.size - 1)
    allowed = np.where(false[kept] > limit * false[-1], np.inf, width / 2)
    allowed = np.minimum(allowed, TOP_STEP * false[kept])
    quick = (moved > -np.inf) & (true[below] - true[kept] <= step[kept] / 2)
    quick &= false[below] - false[kept] <= allowed
    return np.unique(np.where(quick, moved, edges[kept]))[::-1]


def _reached(mass: Floats, ranks: Floats) -> list[npt.NDArray[np.intp]]:
    """Return the cells (...,) at which a cumulated mass reaches some ranks.

    With them those above cells of more than one step, which they then hold by themselves.
    """
    # Rounding must not ask for more than there is.
    at = np.minimum(np.searchsorted(mass, ranks * (1 - 1e-12)), mass.size - 1)
    return [at, np.maximum(at[1:][at[1:] == at[:-1]] - 1, 0)]


def cells(scores: Scores, edges: Scores, weights: Floats | None = None) -> Floats:
    """Return the mass (K,) of the scores in each cell [edge_k, edge_(k-1)).

    Args:
        scores: ascending scores (n,).
        edges: descending edges (K,) of the same dtype, the last one -inf.
        weights: mass of every score (n,); 1 by default.
    """
    first = np.searchsorted(scores, edges)
    if weights is None:
        at_least = (scores.size - first).astype(np.float64)
    else:
        cumulated = np.concatenate([[0.0], np.cumsum(weights)])
        at_least = cumulated[-1] - cumulated[first]
    return np.diff(at_least, prepend=0.0)


def auroc(positives: Floats, negatives: Floats) -> Floats:
    """Return P(s+ > s-) + P(s+ = s-) / 2, the area under the ROC curve; NaN with one class.

    Args:
        positives: mass of the positives per cell (..., K).
        negatives: mass of the negatives per cell (..., K).
    """
    above = np.cumsum(positives, axis=-1) - positives / 2
    wins = np.sum(above * negatives, axis=-1)
    return divide(wins, positives.sum(-1) * negatives.sum(-1), np.nan)


def average_precision(positives: Floats, negatives: Floats) -> Floats:
    """Return sum_n (R_n - R_(n-1)) P_n over descending thresholds, without interpolation.

    Its value for random scores is the prevalence. NaN with one class.

    Args:
        positives: mass of the positives per cell (..., K).
        negatives: mass of the negatives per cell (..., K).
    """
    true = np.cumsum(positives, axis=-1)
    precision = divide(true, true + np.cumsum(negatives, axis=-1), 0.0)
    value = divide(np.sum(positives * precision, axis=-1), positives.sum(-1), np.nan)
    return _both_classes(value, positives, negatives)


def best_dice(positives: Floats, negatives: Floats) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Return max over thresholds of 2TP / (2TP + FP + FN) and the cell (...,) that reaches it.

    The same number is F1-max. An oracle: the threshold is chosen with the labels. The prediction is
    every score at or above the lower edge of that cell. NaN (cell 0) with one class.

    Args:
        positives: mass of the positives per cell (..., K).
        negatives: mass of the negatives per cell (..., K).
    """
    true = np.cumsum(positives, axis=-1)
    predicted = true + np.cumsum(negatives, axis=-1)
    dice = divide(2 * true, predicted + true[..., -1:], 0.0)
    return _both_classes(dice.max(-1), positives, negatives), dice.argmax(-1)


def aupro(regions: Floats, negatives: Floats, limit: float = 0.3) -> Floats:
    """Return the area under the per-region overlap up to a false-positive rate, over the limit.

    PRO(t) is the mean over all regions of the part of the region at or above t; every region pixel
    therefore weighs 1/area. The curve starts at (0, 0) and is linear between thresholds, also
    where the limit cuts it. NaN without regions or without negatives (Bergmann et al., CVPR 2020).

    Args:
        regions: region weight per cell (..., K), summing to the number of regions.
        negatives: mass of the negatives per cell (..., K).
        limit: false-positive rate in (0, 1] to integrate to.
    """
    count = regions.sum(-1, keepdims=True)
    width = divide(negatives, negatives.sum(-1, keepdims=True), np.nan)
    end = np.cumsum(width, axis=-1)
    inside = np.minimum(end, limit) - np.minimum(end - width, limit)
    # Overlap in the middle of the part of the segment that lies inside the limit.
    before = np.cumsum(regions, axis=-1) - regions
    middle = before + regions * divide(inside, width, 0.0) / 2
    return divide(np.sum(inside * middle, axis=-1), count[..., 0] * limit, np.nan)


def cumulated(true: Floats, false: Floats, overlap: Floats, limit: float) -> dict[str, Floats]:
    """Return AUROC, AP, AUPRO and best Dice of many resamples, in few passes over the numbers.

    The same as `auroc`, `average_precision`, `aupro` and `best_dice`, from mass that is cumulated
    already: a resample's is the weighted sum of its subjects' cumulated mass.

    Args:
        true: positives at or above each edge (r, K).
        false: negatives at or above each edge (r, K).
        overlap: region weight at or above each edge (r, K).
        limit: see `aupro`.
    """
    positives, negatives, regions = true[:, -1], false[:, -1], overlap[:, -1]
    both = (positives > 0) & (negatives > 0)
    gained, lost = _steps(true), _steps(false)
    wins = np.einsum("rk,rk->r", true, lost) - np.einsum("rk,rk->r", gained, lost) / 2
    predicted = true + false
    # Where nothing is predicted nothing is true: 0 / tiny.
    tiny = np.finfo(true.dtype).tiny
    precision = np.einsum("rk,rk->r", gained, true / np.maximum(predicted, tiny))
    predicted += positives[:, None]
    dice = 2 * np.max(true / np.maximum(predicted, tiny), axis=-1)
    share = divide(np.ones_like(negatives), negatives, np.nan)[:, None]
    rate = (false * share).astype(false.dtype, copy=False)
    width = _steps(np.minimum(rate, limit))
    covered = _steps(overlap)
    area = np.einsum("rk,rk->r", overlap, width) - np.einsum("rk,rk->r", covered, width) / 2
    # In the cell that the limit cuts, the curve has risen by a part only.
    rows, cut = np.arange(len(false)), (rate < limit).sum(-1).clip(max=false.shape[-1] - 1)
    inside, full = width[rows, cut], (lost * share)[rows, cut]
    area -= covered[rows, cut] * inside * (1 - divide(inside, full, 1.0)) / 2
    return {
        "auroc": np.where(both, divide(wins, positives * negatives, np.nan), np.nan),
        "ap": np.where(both, divide(precision, positives, np.nan), np.nan),
        "aupro": divide(area, regions * limit, np.nan),
        "best_dice": np.where(both, dice, np.nan),
    }


def _steps(cumulated: Floats) -> Floats:
    """Return the mass (r, K) of each cell; `np.diff` would copy twice."""
    mass = cumulated.copy()
    mass[:, 1:] -= cumulated[:, :-1]
    return mass


def divide(above: Floats, below: Floats, otherwise: float) -> Floats:
    """Return above / below, and another value where the denominator is not positive."""
    out = np.full(np.broadcast_shapes(above.shape, below.shape), otherwise, dtype=np.float64)
    return np.divide(above, below, out=out, where=below > 0)


def sensitivity_at(positives: Floats, negatives: Floats, specificity: float = 0.95) -> Floats:
    """Return the highest TPR over thresholds with FPR <= 1 - specificity; NaN with one class.

    Not interpolated: a point of the curve, which a threshold reaches (0 where only the threshold
    above all scores does).

    Args:
        positives: mass of the positives per cell (..., K).
        negatives: mass of the negatives per cell (..., K).
        specificity: in [0, 1].
    """
    total = negatives.sum(-1, keepdims=True)
    allowed = np.cumsum(negatives, axis=-1) <= (1 - specificity) * total + _SLACK
    found = np.max(np.cumsum(positives, axis=-1) * allowed, axis=-1)
    value = divide(found, positives.sum(-1), np.nan)
    return _both_classes(value, positives, negatives)


def specificity_at(positives: Floats, negatives: Floats, sensitivity: float = 0.95) -> Floats:
    """Return the highest 1 - FPR over thresholds with TPR >= sensitivity; NaN with one class.

    Not interpolated. One minus it is the FPR at that sensitivity, FPR95 at 0.95.

    Args:
        positives: mass of the positives per cell (..., K).
        negatives: mass of the negatives per cell (..., K).
        sensitivity: in [0, 1].
    """
    total = positives.sum(-1, keepdims=True)
    enough = np.cumsum(positives, axis=-1) >= sensitivity * total - _SLACK
    false = np.where(enough, np.cumsum(negatives, axis=-1), np.inf).min(-1)
    if sensitivity <= 0:
        false = np.zeros_like(false)  # the threshold above all scores
    value = 1 - divide(false, negatives.sum(-1), np.nan)
    return _both_classes(value, positives, negatives)


def best_accuracy(positives: Floats, negatives: Floats) -> Floats:
    """Return max over thresholds of (TP + TN) / (P + N), an oracle; NaN with one class.

    Args:
        positives: mass of the positives per cell (..., K).
        negatives: mass of the negatives per cell (..., K).
    """
    gain = np.cumsum(positives, axis=-1) - np.cumsum(negatives, axis=-1)
    healthy = negatives.sum(-1)
    right = healthy + np.maximum(gain.max(-1), 0)  # 0: nothing is called anomalous
    value = divide(right, positives.sum(-1) + healthy, np.nan)
    return _both_classes(value, positives, negatives)


def _both_classes(value: Floats, positives: Floats, negatives: Floats) -> Floats:
    """Return the value, NaN where one of the classes has no mass."""
    return np.where((positives.sum(-1) > 0) & (negatives.sum(-1) > 0), value, np.nan)
