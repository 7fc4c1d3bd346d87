"""Is one method better than another? Paired tests by subject, and ranks over several data sets."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics import curves
from normscan.metrics.curves import Floats
from normscan.metrics.estimates import check_bootstrap, number_subjects
from normscan.metrics.images import Subjects, _checked
from normscan.metrics.statistics import delong

Metric = Callable[[Floats, npt.NDArray[np.bool_]], float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A difference, A minus B, and how surprising it would be if there were none.

    Attributes:
        test: name of the test, with what was enumerated or drawn.
        difference: the metric of A minus that of B.
        low: lower end of the difference's interval; NaN for tests that give none.
        high: upper end.
        statistic: the test statistic; NaN where the difference is the statistic.
        p_value: two-sided; NaN where undefined.
        n: number of subjects the test rests on.
    """

    test: str
    difference: float
    low: float
    high: float
    statistic: float
    p_value: float
    n: int


def delong_test(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    labels: npt.ArrayLike,
    subjects: Subjects = None,
    confidence: float = 0.95,
) -> Comparison:
    """Return DeLong's paired test of two AUROCs, clustered where subjects have several scans.

    The p-value is 1 where the methods rank all scans alike, NaN where they differ but the variance
    of the difference is 0 or undefined.

    Args:
        scores_a: scores of method A (n,).
        scores_b: scores of method B (n,), same scans in the same order.
        labels: 0 or 1 for each scan (n,).
        subjects: subject of each scan; None where every scan is a subject of its own.
        confidence: coverage of the interval of the difference, in (0, 1).

    Raises:
        ArgumentError: lengths that differ, a NaN score, or a label other than 0 and 1.
    """
    from scipy.special import ndtr, ndtri

    check_bootstrap(0, confidence)
    pair = np.stack([_checked(scores, labels)[0] for scores in (scores_a, scores_b)])
    both = delong(pair, labels, subjects)
    difference = float(both.auroc[0] - both.auroc[1])
    variance = float(both.covariance[0, 0] + both.covariance[1, 1] - 2 * both.covariance[0, 1])
    # Identical rankings leave nothing but rounding.
    if not variance > 1e-15:
        same = abs(difference) < 1e-12 and not math.isnan(variance)
        p_value = 1.0 if same else math.nan
        return Comparison(
            "delong", difference, math.nan, math.nan, math.nan, p_value, both.subjects
        )
    error = math.sqrt(variance)
    half = float(ndtri((1 + confidence) / 2)) * error
    z = difference / error
    return Comparison(
        test="delong",
        difference=difference,
        low=difference - half,
        high=difference + half,
        statistic=z,
        p_value=2 * float(ndtr(-abs(z))),
        n=both.subjects,
    )


def permutation_test(
    difference: Callable[[npt.NDArray[np.bool_]], float],
    subjects: int,
    *,
    permutations: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Return the two-sided paired permutation test of a difference between two methods.

    If the methods were alike, swapping their results on any subject would change nothing. All
    2^subjects swaps are enumerated where that is no more work than the permutations asked for, and
    the p-value is exact; otherwise swaps are drawn and p = (b + 1)/(m + 1) (Phipson and Smyth,
    Statistical Applications in Genetics and Molecular Biology 9, 2010).

    Args:
        difference: the metric of A minus that of B, after the results of the marked subjects
            (subjects,) were swapped.
        subjects: number of subjects.
        permutations: number of swaps to draw.
        seed: seed of the draws.

    Raises:
        ArgumentError: no subject or no permutation.
    """
    if subjects < 1 or permutations < 1:
        raise ArgumentError(
            f"A permutation test needs subjects and permutations, not {subjects} and "
            f"{permutations}."
        )
    observed = float(difference(np.zeros(subjects, bool)))
    exact = subjects < 63 and 2**subjects <= permutations + 1
    swaps: Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_]
    if exact:
        swaps = np.array(list(itertools.product((False, True), repeat=subjects)))
    else:
        swaps = np.random.default_rng(seed).random((permutations, subjects)) < 0.5
    values = np.array([difference(swap) for swap in swaps], dtype=np.float64)
    # Equal differences may come out a rounding apart: count them as equal, which is the safe side.
    extreme = int(np.sum(np.abs(values) >= abs(observed) * (1 - 1e-9) - 1e-12))
    p_value = extreme / len(swaps) if exact else (extreme + 1) / (permutations + 1)
    if math.isnan(observed) or np.isnan(values).any():
        p_value = math.nan
    name = f"permutation, all {len(swaps)}" if exact else f"permutation, {permutations} drawn"
    return Comparison(name, observed, math.nan, math.nan, math.nan, p_value, subjects)


def compare_scores(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    labels: npt.ArrayLike,
    subjects: Subjects = None,
    *,
    metric: str | Metric = "auroc",
    permutations: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Return the permutation test of an image metric between two methods on the same scans.

    Scores of both methods are replaced by their midranks first: methods score on different scales,
    and only ranks can be swapped (Venkatraman and Begg, Biometrika 83, 1996). A metric that isn't
    a function of the ranks alone needs `permutation_test`.

    Args:
        scores_a: scores of method A (n,).
        scores_b: scores of method B (n,), same scans in the same order.
        labels: 0 or 1 for each scan (n,).
        subjects: subject of each scan; all scans of a subject are swapped together.
        metric: `auroc`, `ap`, `f1_max`, or a function of (ranks, labels).
        permutations: number of swaps to draw where not all are enumerated.
        seed: seed of the draws.

    Raises:
        ArgumentError: lengths that differ, a NaN score, a label other than 0 and 1, or an unknown
            metric.
    """
    from scipy.stats import rankdata

    (a, truth), (b, _) = _checked(scores_a, labels), _checked(scores_b, labels)
    if not callable(metric) and metric not in _METRICS:
        raise ArgumentError(f"Unknown metric '{metric}'; choose {', '.join(_METRICS)}.")
    measure = metric if callable(metric) else _METRICS[metric]
    subject, count = number_subjects(subjects, truth.size)
    a, b = rankdata(a), rankdata(b)

    def difference(swap: npt.NDArray[np.bool_]) -> float:
        rows = swap[subject]
        return measure(np.where(rows, b, a), truth) - measure(np.where(rows, a, b), truth)

    return permutation_test(difference, count, permutations=permutations, seed=seed)


def _ranked(name: str) -> Metric:
    """Return a metric of the curves as a function of scores and labels."""

    def measure(scores: Floats, labels: npt.NDArray[np.bool_]) -> float:
        edges = curves.exact_edges(scores[labels])
        masses = [curves.cells(np.sort(scores[rows]), edges) for rows in (labels, ~labels)]
        value = getattr(curves, name)(*masses)
        return float(value[0] if isinstance(value, tuple) else value)

    return measure


_METRICS = {
    "auroc": _ranked("auroc"),
    "ap": _ranked("average_precision"),
    "f1_max": _ranked("best_dice"),
}


def wilcoxon(
    values_a: npt.ArrayLike, values_b: npt.ArrayLike, subjects: Subjects = None
) -> Comparison:
    """Return the Wilcoxon signed-rank test on one value per subject, such as Dice.

    Scans of a subject are averaged first. Pairs with NaN are left out; so are subjects without a
    difference, as Wilcoxon did. `difference` is the median over the subjects of the pairs.

    Args:
        values_a: values of method A (n,), one for each scan.
        values_b: values of method B (n,), same scans in the same order.
        subjects: subject of each scan; None where every scan is a subject of its own.

    Raises:
        ArgumentError: lengths that differ.
    """
    from scipy import stats

    a, b = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ArgumentError(
            f"A paired test needs one value of each method a scan, not {a.shape} and {b.shape}."
        )
    gap = per_subject(a - b, subjects)
    gap = gap[~np.isnan(gap)]
    middle = float(np.median(gap)) if gap.size else math.nan
    statistic, p_value = math.nan, 1.0 if gap.size else math.nan
    if (gap != 0).any():
        result = stats.wilcoxon(gap)
        statistic, p_value = float(result.statistic), float(result.pvalue)
    return Comparison("wilcoxon", middle, math.nan, math.nan, statistic, p_value, gap.size)


def per_subject(values: npt.ArrayLike, subjects: Subjects = None) -> Floats:
    """Return the mean (subjects,) over each subject's scans, NaN scans left out.

    Args:
        values: one value for each scan (n,).
        subjects: subject of each scan; None where every scan is a subject of its own.
    """
    each = np.asarray(values, np.float64)
    subject, count = number_subjects(subjects, each.size)
    known = ~np.isnan(each)
    total = np.bincount(subject[known], weights=each[known], minlength=count)
    scans = np.bincount(subject[known], minlength=count)
    return np.where(scans > 0, total / np.maximum(scans, 1), np.nan)


def holm(p_values: npt.ArrayLike) -> Floats:
    """Return Holm's adjusted p-values; NaN ones stay NaN and aren't counted as tests.

    Args:
        p_values: (tests,) in [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)[: int(np.sum(~np.isnan(p)))]
    stepped = np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1))
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Methods ranked over several data sets: what a critical-difference diagram shows.

    Attributes:
        methods: names, best mean rank first.
        mean_ranks: (methods,), 1 is best, ties shared.
        chi_square: Friedman's statistic, corrected for ties.
        chi_square_p: its p-value with methods - 1 degrees of freedom.
        f_statistic: Iman and Davenport's form, less conservative.
        f_p: its p-value.
        critical_difference: mean ranks further apart than this differ (Nemenyi).
        p_values: (methods, methods) Nemenyi p-values, already corrected for all pairs.
        groups: largest runs of neighbours (first, last) within the critical difference: the bars.
        datasets: number of data sets.
        alpha: level of the critical difference.
    """

    methods: tuple[str, ...]
    mean_ranks: Floats
    chi_square: float
    chi_square_p: float
    f_statistic: float
    f_p: float
    critical_difference: float
    p_values: Floats
    groups: tuple[tuple[int, int], ...]
    datasets: int
    alpha: float


def rank_methods(
    values: npt.ArrayLike,
    methods: Sequence[str],
    *,
    alpha: float = 0.05,
    higher_is_better: bool = True,
) -> Ranking:
    """Return Friedman's test and Nemenyi's critical difference of methods over data sets.

    The data sets must be independent of each other: seeds or folds of one data set are averaged
    first. Nemenyi's bars mean something only where Friedman's test rejects (Demšar, Journal of
    Machine Learning Research 7, 2006).

    Args:
        values: one figure of each method on each data set (datasets, methods), without NaN.
        methods: names of the columns.
        alpha: level of the critical difference, in (0, 1).
        higher_is_better: whether a larger value is better.

    Raises:
        ArgumentError: NaN, fewer than two data sets or two methods, names that don't fit, or a
            level outside (0, 1).
    """
    from scipy import stats

    table = np.asarray(values, np.float64)
    if table.ndim != 2 or min(table.shape) < 2 or table.shape[1] != len(methods):
        raise ArgumentError(
            f"Ranking needs a table of at least 2 data sets by 2 named methods, not shape "
            f"{table.shape} with {len(methods)} names."
        )
    if np.isnan(table).any() or not 0 < alpha < 1:
        raise ArgumentError(
            f"Ranking needs every value ({int(np.isnan(table).sum())} are NaN) and a level between "
            f"0 and 1, not {alpha}. Leave out the data sets that some method lacks."
        )
    count, k = table.shape
    ranks = stats.rankdata(-table if higher_is_better else table, axis=1)
    mean = ranks.mean(axis=0)
    # The variance of the ranks themselves corrects for ties.
    spread = np.sum((ranks - (k + 1) / 2) ** 2)
    chi = float((k - 1) * count**2 * np.sum((mean - (k + 1) / 2) ** 2) / spread) if spread else 0.0
    below = count * (k - 1) - chi
    f = (count - 1) * chi / below if below > 1e-12 else math.inf
    error = math.sqrt(k * (k + 1) / (6 * count))
    # The studentised range counts the error of one mean, Nemenyi that of a difference: sqrt 2.
    critical = float(stats.studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2) * error
    order = np.argsort(mean, kind="stable")
    mean = mean[order]
    gaps = np.abs(mean[:, None] - mean[None, :])
    p_values = stats.studentized_range.sf(gaps / error * math.sqrt(2), k, np.inf)
    return Ranking(
        methods=tuple(methods[i] for i in order),
        mean_ranks=mean,
        chi_square=chi,
        chi_square_p=float(stats.chi2.sf(chi, k - 1)),
        f_statistic=f,
        f_p=float(stats.f.sf(f, k - 1, (k - 1) * (count - 1))),
        critical_difference=critical,
        p_values=np.minimum(p_values, 1),
        groups=_bars(mean, critical),
        datasets=count,
        alpha=alpha,
    )


def _bars(mean: Floats, critical: float) -> tuple[tuple[int, int], ...]:
    """Return the largest runs of sorted mean ranks that lie within the critical difference."""
    bars: list[tuple[int, int]] = []
    for first in range(mean.size):
        last = int(np.searchsorted(mean, mean[first] + critical, side="right")) - 1
        if last > first and (not bars or last > bars[-1][1]):
            bars.append((first, last))
    return tuple(bars)
