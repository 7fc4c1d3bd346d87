"""Intervals by subject: BCa bootstrap, DeLong for the AUROC, and runs with several seeds.

The subject is the unit everywhere: scans of one subject are drawn, left out and summed together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError, nearest
from normscan.metrics.curves import Floats
from normscan.metrics.estimates import (
    CHUNK_CELLS,
    Estimate,
    check_bootstrap,
    draws,
    number_subjects,
)
from normscan.metrics.images import Subjects, _checked, _Counts

Statistics = Callable[[Floats], Mapping[str, Floats]]
Statistic = Callable[[Floats], Floats]


@dataclasses.dataclass(frozen=True)
class Interval(Estimate):
    """An estimate that says where its interval comes from.

    Attributes:
        method: `bca`, `percentile`, `delong`, `wilson`, ...; `none` without an interval.
        reason: why the interval isn't the one asked for; empty where it is.
    """

    method: str = "percentile"
    reason: str = ""


def jackknife(
    statistics: Statistics, names: Iterable[str], subjects: int, *, cells: int = 1
) -> dict[str, Floats]:
    """Return each named statistic (subjects,) with one subject left out in turn.

    Args:
        statistics: maps subject weights (r, subjects) to named values (r,); called in chunks.
        names: the statistics to keep.
        subjects: number of subjects.
        cells: size of the largest row that `statistics` makes, to bound the memory.
    """
    kept: dict[str, list[Floats]] = {name: [] for name in names}
    chunk = max(1, CHUNK_CELLS // max(cells, subjects))
    for start in range(0, subjects, chunk):
        out = np.arange(start, min(start + chunk, subjects))
        weights = np.ones((out.size, subjects))
        weights[np.arange(out.size), out] = 0
        values = statistics(weights)
        for name, parts in kept.items():
            parts.append(values[name])
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def bca(
    statistics: Statistics,
    point: Mapping[str, float],
    subjects: int,
    *,
    cells: int = 1,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Return the point estimates with bias-corrected and accelerated intervals by subject.

    Takes what `estimates.bootstrap` takes and draws the same subjects. The bias correction counts
    replicates tied with the point half; the acceleration comes from leaving out one subject at a
    time. Where either is undefined the interval is the percentile one and `reason` says why
    (Efron, Journal of the American Statistical Association 82, 1987).

    Args:
        statistics: maps subject weights (r, subjects) to named values (r,); called in chunks.
        point: the named values on all subjects.
        subjects: number of subjects.
        cells: size of the largest row that `statistics` makes per replicate, to bound the memory.
        replicates: number of resamples; 0 for no intervals. 1000 or more is sensible: the tails
            that BCa reads lie further out than those of the percentile interval.
        seed: seed of the resampling.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        An `Interval` for each name.

    Raises:
        ArgumentError: a negative number of replicates or a confidence outside (0, 1).
    """
    check_bootstrap(replicates, confidence)
    if subjects < 2 or not replicates:
        why, nan = "one subject" if replicates else "no replicates", math.nan
        return {k: Interval(float(v), nan, nan, subjects, 0, "none", why) for k, v in point.items()}
    drawn = draws(statistics, point, subjects, cells=cells, replicates=replicates, seed=seed)
    left_out = jackknife(statistics, point, subjects, cells=cells)
    return {
        name: _bca_interval(float(value), drawn[name], left_out[name], subjects, confidence)
        for name, value in point.items()
    }


def percentile(
    value: float, drawn: Floats, subjects: int, confidence: float, reason: str = ""
) -> Interval:
    """Return a value with the percentile interval of its replicates, NaN ones left out.

    Replicates that all agree have none: they say nothing of how far the value may be off.
    """
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return Interval(value, math.nan, math.nan, subjects, 0, "none", reason or "undefined")
    # Between a number and infinity nothing can be interpolated.
    how: Literal["linear", "nearest"] = "linear" if np.isfinite(drawn).all() else "nearest"
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], method=how)
    if low == high:
        why = reason or "all resamples give the same value"
        return Interval(value, math.nan, math.nan, subjects, drawn.size, "none", why)
    return Interval(value, float(low), float(high), subjects, drawn.size, "percentile", reason)


def _bca_interval(
    value: float, drawn: Floats, left_out: Floats, subjects: int, confidence: float
) -> Interval:
    from scipy.special import ndtr, ndtri

    def fall_back(reason: str) -> Interval:
        return percentile(value, drawn, subjects, confidence, reason)

    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not defined.size:
        return fall_back("the statistic is undefined")
    if np.isnan(left_out).any():
        return fall_back("undefined without one of the subjects")
    # A likelihood ratio without a false alarm, of all subjects or of all but one.
    if not (math.isfinite(value) and np.isfinite(left_out).all() and np.isfinite(defined).all()):
        return fall_back("infinite for some of the subjects")
    share = (np.mean(defined < value) + np.mean(defined <= value)) / 2
    if not 0 < share < 1:
        return fall_back("all replicates lie on one side of the value")
    deviation = left_out.mean() - left_out
    scale = np.sum(deviation**2)
    # Leaving out a subject changes nothing but rounding: the acceleration would be noise.
    if scale <= (1e-12 * max(1.0, abs(value))) ** 2:
        return fall_back("no single subject changes the value")
    acceleration = np.sum(deviation**3) / (6 * scale**1.5)
    tails = ndtri(share) + ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    stretch = 1 - acceleration * tails
    if (stretch <= 0).any():
        return fall_back("the acceleration is too large for this confidence")
    low, high = np.quantile(defined, ndtr(ndtri(share) + tails / stretch))
    return Interval(value, float(low), float(high), subjects, defined.size, "bca")


@dataclasses.dataclass(frozen=True)
class Delong:
    """AUROCs of one or several methods on the same scans, with their covariance.

    Attributes:
        auroc: (methods,); NaN with one class.
        covariance: (methods, methods), by subject; NaN where fewer than two subjects have a
            positive or fewer than two a negative scan.
        subjects: number of subjects.
    """

    auroc: Floats
    covariance: Floats
    subjects: int

    def interval(self, method: int = 0, confidence: float = 0.95, logit: bool = True) -> Interval:
        """Return one AUROC with its interval.

        Args:
            method: index of the method.
            confidence: coverage of the interval, in (0, 1).
            logit: on the logit scale, which never leaves (0, 1) and covers well near 1. False gives
                the symmetric interval of the article and of other programs, cut at 0 and 1.
        """
        check_bootstrap(0, confidence)
        value, variance = float(self.auroc[method]), float(self.covariance[method, method])
        if not variance > 0:
            why = "undefined" if math.isnan(variance) else "the estimated variance is 0"
            return Interval(value, math.nan, math.nan, self.subjects, 0, "none", why)
        from scipy.special import expit, ndtri
        from scipy.special import logit as to_logit

        half = ndtri((1 + confidence) / 2) * math.sqrt(variance)
        if logit and 0 < value < 1:
            spread = half / (value * (1 - value))
            low, high = expit(to_logit(value) + np.array([-spread, spread]))
            return Interval(value, float(low), float(high), self.subjects, 0, "delong, logit")
        low, high = max(0.0, value - half), min(1.0, value + half)
        return Interval(value, low, high, self.subjects, 0, "delong")


def delong(scores: npt.ArrayLike, labels: npt.ArrayLike, subjects: Subjects = None) -> Delong:
    """Return AUROCs with DeLong's covariance, or its clustered form for several scans a subject.

    The structural components of all scans come from midranks in n log n time. Their sums over the
    scans of a subject give the variance of Obuchowski, which is DeLong's where every scan is a
    subject of its own (DeLong et al., Biometrics 44, 1988; Sun and Xu, IEEE Signal Processing
    Letters 21, 2014; Obuchowski, Biometrics 53, 1997).

    Args:
        scores: (n,) or (methods, n), higher is more anomalous; may be infinite.
        labels: 0 or 1 for each scan (n,).
        subjects: subject of each scan; None where every scan is a subject of its own.

    Raises:
        ArgumentError: lengths that differ, a NaN score, or a label other than 0 and 1.
    """
    from scipy.stats import rankdata

    checked = [_checked(row, labels) for row in np.atleast_2d(np.asarray(scores, np.float64))]
    values, truth = np.stack([row for row, _ in checked]), checked[0][1]
    subject, count = number_subjects(subjects, truth.size)
    m, n = int(truth.sum()), int((~truth).sum())
    if not m or not n:
        nan = np.full((len(values), len(values)), np.nan)
        return Delong(nan[0], nan, count)
    ranks = rankdata(values, axis=1)
    above = (ranks[:, truth] - rankdata(values[:, truth], axis=1)) / n
    below = 1 - (ranks[:, ~truth] - rankdata(values[:, ~truth], axis=1)) / m
    auroc = above.mean(axis=1)

    def totals(components: Floats, owner: npt.NDArray[np.intp]) -> tuple[Floats, float]:
        """Sum the centred components of each subject; return the small-sample factor too."""
        centred = components - auroc[:, None]
        sums = np.zeros((len(centred), count))
        for row, total in zip(centred, sums, strict=True):
            total += np.bincount(owner, weights=row, minlength=count)
        owners = np.unique(owner).size
        return sums, owners / (owners - 1) if owners > 1 else math.nan

    positive, first = totals(above, subject[truth])
    negative, second = totals(below, subject[~truth])
    both = positive @ negative.T * (count / (count - 1) if count > 1 else math.nan)
    covariance = (
        first * (positive @ positive.T) / m**2
        + second * (negative @ negative.T) / n**2
        + (both + both.T) / (m * n)
    )
    return Delong(auroc, covariance, count)


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """A metric, or a difference between two methods, over several training seeds.

    Attributes:
        values: the metric of each seed on all subjects; for a difference that of each seed of A
            minus the mean of B.
        mean: mean over the seeds.
        std: standard deviation over the seeds, with n - 1; NaN for one seed.
        low: smallest value of a seed.
        high: largest value of a seed.
        subjects_only: the mean with its interval over subjects: these trained models, new subjects.
        estimate: the mean with its interval over subjects and seeds: a new training, new subjects.
        p_value: two-sided, from `estimate`'s replicates, of a difference of 0; NaN for one method.
    """

    values: tuple[float, ...]
    mean: float
    std: float
    low: float
    high: float
    subjects_only: Interval
    estimate: Interval
    p_value: float = math.nan


def over_seeds(
    runs: Sequence[Statistic],
    subjects: int,
    against: Sequence[Statistic] | None = None,
    *,
    cells: int = 1,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> SeedSummary:
    """Return mean, spread and intervals of one method, or of A minus B, over seeds and subjects.

    Subjects and seeds are resampled independently, since every model sees the same subjects (a
    crossed design). Both methods see the same drawn subjects; their seeds are drawn independently,
    as nothing ties seed 1 of A to seed 1 of B. Drawing S seeds with replacement shows only
    (S - 1)/S of their variance, so deviations from the seeds' mean are stretched by
    sqrt(S/(S - 1)). Three seeds say little about the spread between seeds; with one seed it isn't
    in the interval at all and `estimate.reason` says so.

    Args:
        runs: for each seed of the method, the metric (r,) under subject weights (r, subjects);
            `scan_statistic` makes one from scores.
        subjects: number of subjects, the same for every run.
        against: the same for method B; its number of seeds may differ.
        cells: size of the largest row that a run makes per replicate, to bound the memory.
        replicates: number of resamples; 0 for no intervals.
        seed: seed of the resampling.
        confidence: coverage of the intervals, in (0, 1).

    Raises:
        ArgumentError: no run, or an argument outside its range.
    """
    check_bootstrap(replicates, confidence)
    groups = [list(runs)] + ([list(against)] if against is not None else [])
    if not all(groups):
        raise ArgumentError("A summary over seeds needs at least one run of each method.")
    ones = np.ones((1, subjects))
    points = [np.array([float(run(ones)[0]) for run in group]) for group in groups]
    offset = points[1].mean() if against is not None else 0.0
    values = points[0] - offset
    mean = float(values.mean())

    def statistics(weights: Floats) -> dict[str, Floats]:
        each = [np.stack([run(weights) for run in group], axis=1) for group in groups]
        return {f"{g} {s}": rows[:, s] for g, rows in enumerate(each) for s in range(rows.shape[1])}

    names = [f"{g} {s}" for g, group in enumerate(groups) for s in range(len(group))]
    many = replicates if subjects > 1 else 0
    drawn = draws(statistics, names, subjects, cells=cells, replicates=many, seed=seed)
    generator = np.random.default_rng([seed, 1])
    fixed, crossed = np.zeros(many), np.zeros(many)
    for g, group in enumerate(groups):
        sign, count = 1 - 2 * g, len(group)
        table = np.stack([drawn[f"{g} {s}"] for s in range(count)], axis=1)
        picks = generator.multinomial(count, np.full(count, 1 / count), size=many) / count
        middle = table.mean(axis=1)
        stretch = math.sqrt(count / (count - 1)) if count > 1 else 1.0
        fixed += sign * middle
        crossed += sign * (middle + stretch * (np.sum(picks * table, axis=1) - middle))
    single = min(len(group) for group in groups) < 2
    reason = "one seed: the spread between seeds is unknown" if single else ""
    p_value = math.nan
    defined = crossed[~np.isnan(crossed)]
    if against is not None and defined.size:
        tail = min(np.sum(defined <= 0), np.sum(defined >= 0))
        p_value = min(1.0, 2 * float(tail + 1) / (defined.size + 1))
    return SeedSummary(
        values=tuple(float(v) for v in values),
        mean=mean,
        std=float(values.std(ddof=1)) if values.size > 1 else math.nan,
        low=float(values.min()),
        high=float(values.max()),
        subjects_only=percentile(mean, fixed, subjects, confidence),
        estimate=percentile(mean, crossed, subjects, confidence, reason),
        p_value=p_value,
    )


def scan_statistic(
    scores: npt.ArrayLike, labels: npt.ArrayLike, subjects: Subjects = None, metric: str = "auroc"
) -> tuple[Statistic, int]:
    """Return an image metric as a function of subject weights, and the number of subjects.

    Args:
        scores: anomaly score of each scan (n,), higher is more anomalous; may be infinite.
        labels: 0 or 1 for each scan (n,).
        subjects: subject of each scan; None where every scan is a subject of its own.
        metric: `auroc`, `ap`, `f1_max` or another threshold-free name of `ImageMetrics`.

    Raises:
        ArgumentError: as in `image_metrics`, or an unknown metric.
    """
    values, truth = _checked(scores, labels)
    subject, count = number_subjects(subjects, values.size)
    counts = _Counts(values, truth, subject, count)
    known = sorted(counts.metrics(np.ones((1, count))))
    if metric not in known:
        raise ArgumentError(f"Unknown metric '{metric}'.{nearest(metric, known)}")
    return lambda weights: counts.metrics(weights)[metric], count
