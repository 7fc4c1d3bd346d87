"""Agreement of predicted and true masks beyond overlap: surface distances and volumes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.estimates import number_subjects, to_json
from normscan.metrics.maps import checked_mask
from normscan.metrics.statistics import Interval, bca


def surface_distances(
    prediction: npt.ArrayLike, mask: npt.ArrayLike, spacing: Sequence[float] | None = None
) -> tuple[float, float]:
    """Return the 95 % Hausdorff distance and the average symmetric surface distance.

    The surface of a mask are its pixels with a neighbour outside, across a face. The Hausdorff
    distance is the larger of the two directed 95th percentiles; the average runs over the surface
    points of both masks. Equal to MONAI's to 1e-3 mm.

    Args:
        prediction: predicted mask (H, W) or (D, H, W).
        mask: true mask of the same shape.
        spacing: mm for each axis; None gives pixels.

    Returns:
        Both distances in mm; NaN where the prediction or the mask is empty, which has no surface.
        Average over what is defined with `mean_defined`, and report how many were left out.

    Raises:
        ArgumentError: shapes that differ, another number of dimensions, or a spacing that isn't
            one positive number for each axis.
    """
    predicted = np.asarray(prediction).astype(bool)
    truth = checked_mask(mask, predicted.shape, "true mask")
    if predicted.ndim not in (2, 3):
        raise ArgumentError(f"A mask has 2 or 3 dimensions, not shape {predicted.shape}.")
    steps = [1.0] * predicted.ndim if spacing is None else [float(step) for step in spacing]
    if len(steps) != predicted.ndim or not all(0 < step < math.inf for step in steps):
        raise ArgumentError(
            f"The spacing must be {predicted.ndim} positive numbers, not {spacing}."
        )
    if not predicted.any() or not truth.any():
        return math.nan, math.nan
    from scipy.ndimage import binary_erosion
    from scipy.spatial import KDTree

    # Only the box around both matters; a margin keeps the surface of what touches it closed.
    box = tuple(
        slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(predicted | truth)
    )
    surfaces = []
    for part in (predicted, truth):
        part = np.pad(part[box], 1)
        surfaces.append(np.argwhere(part & ~binary_erosion(part)) * steps)
    trees = [KDTree(points) for points in surfaces]
    there, back = trees[1].query(surfaces[0])[0], trees[0].query(surfaces[1])[0]
    furthest = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(furthest), float(np.concatenate([there, back]).mean())


def mean_defined(values: Iterable[float]) -> tuple[float, int, int]:
    """Return the mean of the values that aren't NaN, and how many are defined and undefined.

    Args:
        values: numbers, NaN where a metric has no value; the mean of none is NaN.
    """
    numbers = np.array(list(values), np.float64)
    defined = numbers[~np.isnan(numbers)]
    mean = float(defined.mean()) if defined.size else math.nan
    return mean, defined.size, numbers.size - defined.size


@dataclass(frozen=True)
class VolumeAgreement:
    """How predicted volumes agree with true ones, subject by subject.

    Attributes:
        bias: mean of predicted minus true, in the unit given.
        low: lower limit of agreement, bias - 1.96 standard deviations of the differences.
        high: upper limit of agreement.
        pearson: correlation; NaN where one side doesn't vary. Blind to a bias.
        icc: intraclass correlation ICC(2,1): absolute agreement, two-way random, single measures.
        n: number of subjects.
    """

    bias: float
    low: float
    high: float
    pearson: float
    icc: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


def volume_agreement(predicted: npt.ArrayLike, true: npt.ArrayLike) -> VolumeAgreement:
    """Return bias and limits of agreement, correlation and ICC of two lists of volumes.

    Args:
        predicted: volume of each subject (n,), such as ml.
        true: true volume of each subject (n,) in the same unit.

    Raises:
        ArgumentError: no volumes, lengths that differ, or a volume that isn't finite.

    Note:
        Bland and Altman, Lancet 1986; Shrout and Fleiss, Psychological Bulletin 1979.
    """
    pair = [np.asarray(part, np.float64) for part in (predicted, true)]
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape or not pair[0].size:
        raise ArgumentError(
            f"Volumes must come in pairs, not as arrays of shapes {pair[0].shape} and "
            f"{pair[1].shape}."
        )
    table = np.stack(pair, axis=1)
    if not np.isfinite(table).all():
        raise ArgumentError("A volume isn't finite; leave that subject out and report it.")
    differences = table[:, 0] - table[:, 1]
    bias, n = float(differences.mean()), len(table)
    spread = 1.96 * float(differences.std(ddof=1)) if n > 1 else math.nan
    varies = n > 1 and all(side.min() < side.max() for side in pair)
    pearson = float(np.corrcoef(table[:, 0], table[:, 1])[0, 1]) if varies else math.nan
    return VolumeAgreement(bias, bias - spread, bias + spread, pearson, icc(table), n)


def icc(ratings: npt.ArrayLike) -> float:
    """Return ICC(2,1) of ratings (subjects, raters); NaN without variance or with one of either.

    Absolute agreement of single measures in a two-way random model (Shrout and Fleiss 1979).
    """
    table = np.asarray(ratings, np.float64)
    n, k = table.shape
    if n < 2 or k < 2:
        return math.nan
    mean = table.mean()
    by_row, by_column = np.mean(table, axis=1), np.mean(table, axis=0)
    rows = k * np.sum((by_row - mean) ** 2) / (n - 1)
    columns = n * np.sum((by_column - mean) ** 2) / (k - 1)
    total = np.sum((table - mean) ** 2)
    rest = (total - rows * (n - 1) - columns * (k - 1)) / ((n - 1) * (k - 1))
    below = rows + (k - 1) * rest + k * (columns - rest) / n
    return float((rows - rest) / below) if total > 0 and below > 0 else math.nan


def cohen_kappa(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    subjects: Sequence[Any] | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return Cohen's kappa of two raters who said yes or no, with its interval by subject.

    1 is full agreement, 0 what chance gives (Cohen, Educational and Psychological Measurement 20,
    1960). The interval is BCa.

    Args:
        first: ratings (n,) of 0 and 1.
        second: ratings (n,) of the same scans.
        subjects: (n,) subject of each scan; each its own by default.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The estimate; NaN where both say the same of every scan, since chance then agrees fully.

    Raises:
        ArgumentError: lengths that differ, no ratings, or other ratings than 0 and 1.
    """
    pair = [np.asarray(ratings, dtype=np.float64).ravel() for ratings in (first, second)]
    if pair[0].size != pair[1].size or not pair[0].size:
        raise ArgumentError(
            f"Two raters rate the same scans, not {pair[0].size} and {pair[1].size}."
        )
    if not all(np.isin(ratings, (0, 1)).all() for ratings in pair):
        raise ArgumentError("Ratings are 0 or 1; leave out what is unsure.")
    number, count = number_subjects(subjects, pair[0].size)
    cells = np.zeros((count, 4))
    np.add.at(cells, (number, (2 * pair[0] + pair[1]).astype(int)), 1)

    def kappa(weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
        neither, only_second, only_first, both = (weights @ cells).T
        total = neither + only_second + only_first + both
        yes = (both + only_first) * (both + only_second)
        no = (neither + only_first) * (neither + only_second)
        by_chance = (yes + no) / total**2
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"kappa": ((neither + both) / total - by_chance) / (1 - by_chance)}

    point = {"kappa": float(kappa(np.ones((1, count)))["kappa"][0])}
    found = bca(kappa, point, count, cells=4, replicates=replicates, seed=seed)["kappa"]
    assert isinstance(found, Interval)
    return found
