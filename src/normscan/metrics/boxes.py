"""Detection by boxes and points: average precision, hit rate, FROC, for sets without lesion masks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.estimates import Estimate, bootstrap, number_subjects, to_json
from normscan.metrics.lesions import froc

Floats = npt.NDArray[np.float64]

IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class BoxMetrics:
    """How well found boxes meet the true ones.

    Attributes:
        ap30: average precision at an intersection over union of 0.3 or more.
        ap50: at 0.5 or more.
        map: mean of those at 0.5, 0.55, ..., 0.95.
        hit_rate: share of the scans with a box or a point whose highest map value lies in a box, or
            within the tolerance of a point (the pointing game of Zhang et al., IJCV 2018).
        found: share of the boxes and points in which the peak of a found component lies.
        froc: share of the boxes and points found at so many false positives per scan.
        boxes: number of true boxes and points.
        scans: number of scans.
        tolerance: of points, in pixels.
    """

    ap30: Estimate
    ap50: Estimate
    map: Estimate
    hit_rate: Estimate
    found: Estimate
    froc: dict[str, float]
    boxes: int
    scans: int
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return to_json(self)


@dataclass
class _Scan:
    scores: Floats  # of the found boxes, the highest first
    matched: dict[float, npt.NDArray[np.bool_]]  # by intersection over union: met a true box
    boxes: int
    peaks: Floats  # for each box and point the highest score of a peak inside, -inf without
    alarms: Floats  # scores of the peaks inside none
    hit: float  # 1 or 0; NaN where there is no box and no point


@dataclass
class BoxScores:
    """Collects found and true boxes scan by scan.

    Boxes are (low, high) corners in array indices, (x0, y0, x1, y1) or (x0, y0, z0, x1, y1, z1), the
    upper end beyond the last pixel; which axis comes first is one's own choice, the same for all.

    Args:
        tolerance: distance in pixels within which a peak meets a point.
    """

    tolerance: float = 10.0
    _scans: list[_Scan] = field(default_factory=list)
    _subjects: list[Hashable] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._scans)

    def join(self, other: BoxScores) -> BoxScores:
        """Return the scans of both together."""
        return BoxScores(
            self.tolerance, self._scans + other._scans, self._subjects + other._subjects
        )

    def take(self, other: BoxScores) -> None:
        """Add the scans of another."""
        self._scans += other._scans
        self._subjects += other._subjects

    def add(
        self,
        found: npt.ArrayLike,
        scores: npt.ArrayLike,
        peaks: npt.ArrayLike,
        boxes: npt.ArrayLike,
        subject: Hashable,
        points: npt.ArrayLike = (),
        highest: npt.ArrayLike | None = None,
    ) -> None:
        """Add a scan.

        Args:
            found: boxes that were found (n, 2 * axes).
            scores: of each (n,), higher is surer.
            peaks: place of the peak in each (n, axes).
            boxes: true ones (m, 2 * axes); none of a healthy scan.
            subject: whose scan it is.
            points: true points (k, axes).
            highest: place (axes,) of the highest map value.

        Raises:
            ArgumentError: shapes that don't fit, NaN, or a box whose ends are the wrong way round.
        """
        true, marks = _table(boxes, "boxes"), _table(points, "points")
        axes = true.shape[1] // 2 or marks.shape[1]
        mine, at = _table(found, "boxes"), _table(peaks, "points")
        values = np.asarray(scores, np.float64).ravel()
        wide = {t.shape[1] for t in (true, mine) if t.size}
        wide |= {2 * t.shape[1] for t in (marks, at) if t.size}
        if len(wide) > 1 or not len(mine) == len(values) == len(at) or np.isnan(values).any():
            raise ArgumentError("boxes, points and scores of a scan don't fit each other.")
        for each in (true, mine):
            half = each.shape[1] // 2
            if (each[:, half:] <= each[:, :half]).any():
                raise ArgumentError("a box ends before it begins; give (x0, y0, x1, y1).")
        order = np.argsort(-values, kind="stable")
        mine, at, values = mine[order], at[order], values[order]
        overlap = iou(mine, true)
        inside = np.hstack([_inside(at, true), _near(at, marks, self.tolerance)])
        hit = math.nan
        if len(true) + len(marks):
            top = np.asarray(highest if highest is not None else at[:1], np.float64).reshape(
                -1, axes
            )
            met = np.hstack([_inside(top, true), _near(top, marks, self.tolerance)])
            hit = float(met.any())
        best = np.where(inside, values[:, None], -np.inf)
        self._scans.append(
            _Scan(
                values,
                {level: matches(overlap, level) for level in (0.3, *IOUS)},
                len(true),
                best.max(axis=0, initial=-np.inf),
                values[~inside.any(axis=1)],
                hit,
            )
        )
        self._subjects.append(subject)

    def evaluate(
        self, replicates: int = 1000, seed: int = 0, confidence: float = 0.95
    ) -> BoxMetrics:
        """Return the metrics with bootstrap intervals by subject; NaN where there is no true box."""
        subject, count = number_subjects(self._subjects, len(self._scans))
        owner = np.repeat(subject, [len(s.scores) for s in self._scans]).astype(int)
        scores = np.concatenate([np.empty(0), *(s.scores for s in self._scans)])
        order = np.argsort(-scores, kind="stable")
        true = np.bincount(subject, weights=[s.boxes for s in self._scans], minlength=count)
        hits = {
            level: np.concatenate([np.empty(0, bool), *(s.matched[level] for s in self._scans)])[
                order
            ]
            for level in (0.3, *IOUS)
        }
        told = np.array([not math.isnan(s.hit) for s in self._scans], float)
        hit = np.array([0.0 if math.isnan(s.hit) else s.hit for s in self._scans])
        marks = np.array([len(s.peaks) for s in self._scans], float)
        met = np.array([float((s.peaks > -np.inf).sum()) for s in self._scans])
        sums = {
            name: np.bincount(subject, weights=values, minlength=count)
            for name, values in (("told", told), ("hit", hit), ("marks", marks), ("met", met))
        }

        def statistics(weights: Floats) -> dict[str, Floats]:
            mine, total = weights[:, owner[order]], weights @ true
            each = {level: precision(h, mine, total) for level, h in hits.items()}
            with np.errstate(invalid="ignore", divide="ignore"):
                return {
                    "ap30": each[0.3],
                    "ap50": each[0.5],
                    "map": np.mean([each[level] for level in IOUS], axis=0),
                    "hit_rate": (weights @ sums["hit"]) / (weights @ sums["told"]),
                    "found": (weights @ sums["met"]) / (weights @ sums["marks"]),
                }

        point = {n: float(v[0]) for n, v in statistics(np.ones((1, count))).items()}
        cells = max(1, len(scores)) * 4
        estimates = bootstrap(
            statistics, point, count, cells=cells, replicates=replicates, seed=seed,
            confidence=confidence,
        )  # fmt: skip
        return BoxMetrics(
            **estimates, froc=froc(self._scans), boxes=int(marks.sum()), scans=len(self._scans),
            tolerance=self.tolerance,
        )  # fmt: skip


def iou(one: Floats, other: Floats) -> Floats:
    """Return the intersection over union (n, m) of boxes (n, 2 * axes) and (m, 2 * axes)."""
    if not len(one) or not len(other):
        return np.zeros((len(one), len(other)))
    half = one.shape[1] // 2
    low = np.maximum(one[:, None, :half], other[None, :, :half])
    high = np.minimum(one[:, None, half:], other[None, :, half:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    sizes = [(b[:, half:] - b[:, :half]).prod(axis=1) for b in (one, other)]
    return np.asarray(both / (sizes[0][:, None] + sizes[1][None] - both))


def matches(overlap: Floats, level: float) -> npt.NDArray[np.bool_]:
    """Return which found boxes meet a true one, each true one once, as COCO matches them.

    Args:
        overlap: (n, m), the surest box first.
        level: least intersection over union.
    """
    free, met = np.ones(overlap.shape[1], bool), np.zeros(len(overlap), bool)
    for i, row in enumerate(overlap):
        open_ = np.where(free & (row >= min(level, 1 - 1e-10)), row, -1.0)
        if open_.size and open_.max() >= 0:
            best = int(open_.size - 1 - open_[::-1].argmax())  # of equals the last, as COCO does
            free[best], met[i] = False, True
    return met


def precision(met: npt.NDArray[np.bool_], weights: Floats, total: Floats) -> Floats:
    """Return the average precision (r,) over 101 recalls (COCO), NaN without true boxes.

    Args:
        met: which found boxes of all scans met a true one (n,), the surest first.
        weights: of each of them (r, n).
        total: weighted number of true boxes (r,).
    """
    right = np.cumsum(weights * met, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / total[:, None]
        share = np.nan_to_num(right / np.cumsum(weights, axis=1))
    # The precision at a recall is the highest at that recall or any above.
    envelope = np.maximum.accumulate(share[:, ::-1], axis=1)[:, ::-1]
    found = np.full(len(total), np.nan)
    for r in np.flatnonzero(total > 0):
        at = np.searchsorted(recall[r], RECALLS, side="left")
        # A recall that is never reached has the precision 0.
        found[r] = np.append(envelope[r], 0.0)[at].mean()
    return found


def _table(values: npt.ArrayLike, what: str) -> Floats:
    array = np.asarray(values, np.float64)
    if not array.size:
        return np.zeros((0, 0))
    widths = (4, 6) if what == "boxes" else (2, 3)
    if array.ndim != 2 or array.shape[1] not in widths or not np.isfinite(array).all():
        raise ArgumentError(
            f"{what} are rows of {widths[0]} numbers in 2D or {widths[1]} in 3D, not {array.shape}."
        )
    return array


def _inside(points: Floats, boxes: Floats) -> npt.NDArray[np.bool_]:
    if not len(points) or not len(boxes):
        return np.zeros((len(points), len(boxes)), bool)
    half = boxes.shape[1] // 2
    above = points[:, None] >= boxes[None, :, :half]
    return np.asarray((above & (points[:, None] < boxes[None, :, half:])).all(axis=2))


def _near(points: Floats, marks: Floats, tolerance: float) -> npt.NDArray[np.bool_]:
    if not len(points) or not len(marks):
        return np.zeros((len(points), len(marks)), bool)
    away = np.linalg.norm(points[:, None] - marks[None], axis=2)
    return np.asarray(away <= tolerance)


def as_boxes(text: Any, what: str) -> list[Sequence[float]]:
    """Return boxes or points of a cohort's cell: JSON such as ``[[10, 20, 30, 40]]``, or empty.

    Raises:
        ArgumentError: it is no such list.
    """
    import json

    if text is None or (isinstance(text, float) and math.isnan(text)) or not str(text).strip():
        return []
    try:
        rows = json.loads(text) if isinstance(text, str) else list(text)
        rows = [rows] if rows and not isinstance(rows[0], Sequence) else rows
        _table(rows, what)
    except (ValueError, TypeError, ArgumentError) as error:
        raise ArgumentError(
            f"the column '{what}' holds '{str(text)[:60]}'; write JSON such as "
            f"{'[[10, 20, 30, 40]]' if what == 'boxes' else '[[15, 25]]'}, empty where there is none."
        ) from error
    return rows
