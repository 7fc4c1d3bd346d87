"""Does the detector serve everyone alike? Metrics by site, sex, age, scanner or lesion size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.comparisons import Comparison, holm
from normscan.metrics.curves import Floats
from normscan.metrics.estimates import check_bootstrap, draws, number_subjects, to_json
from normscan.metrics.images import Subjects, _checked, _Counts
from normscan.metrics.predictive import proportion
from normscan.metrics.statistics import Interval, bca

Rows = npt.NDArray[np.bool_]

MISSING = "missing"


@dataclasses.dataclass(frozen=True)
class Subgroup:
    """One group of scans, and how it differs from the rest.

    Attributes:
        group: its value of the column, a band such as `40 to 60`, or `missing`.
        subjects: number of subjects.
        scans: number of scans.
        anomalous: number of anomalous scans.
        metrics: `auroc` and `ap`, and with a threshold `sensitivity` and `specificity`. NaN where
            the group has too few subjects for it; `reason` says so.
        gaps: the group's metric minus that of all other scans; `p_value` not corrected.
        holm: the p-values of `gaps` corrected for all groups, metric by metric.
    """

    group: str
    subjects: int
    scans: int
    anomalous: int
    metrics: dict[str, Interval]
    gaps: dict[str, Comparison]
    holm: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)


def subgroups(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    column: Sequence[Any] | npt.NDArray[Any],
    subjects: Subjects = None,
    *,
    cuts: Sequence[float] | None = None,
    quantiles: int | None = None,
    share_healthy: bool = False,
    threshold: float | None = None,
    minimum: int = 5,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Subgroup]:
    """Return metrics and gaps of every group of a cohort column.

    A gap is the group's metric minus that of all other scans, on the same resampled subjects. Its
    p-value is two-sided normal with the bootstrap's standard deviation; Holm corrects it over the
    groups of a metric (two groups are one comparison). AP depends on the share of anomalous scans:
    a gap in AP between groups of other shares isn't a gap in ability.

    A group is never hidden. A metric for which it, or the rest, has fewer than `minimum` subjects
    of a class that the metric needs is NaN.

    Args:
        scores: anomaly score of each scan (n,), higher is more anomalous.
        labels: 0 or 1 for each scan (n,).
        column: value of each scan (n,); None and NaN are the group `missing`.
        subjects: subject of each scan; None where every scan is a subject of its own.
        cuts: ascending borders of bands for a column of numbers; a value on a border belongs to
            the band above.
        quantiles: number of bands of about as many scans each, instead of `cuts`.
        share_healthy: whether every group, and every rest, is set against all healthy scans: for
            columns that only lesions have, such as their size.
        threshold: a scan is flagged if its score is above it; None leaves sensitivity and
            specificity out.
        minimum: fewest subjects of a class.
        replicates: bootstrap resamples; 0 for neither intervals nor tests.
        seed: seed of the resampling.
        confidence: coverage of the intervals, in (0, 1).

    Raises:
        ArgumentError: lengths that differ, a NaN score, a column that isn't numeric where bands are
            asked for, or an argument outside its range.
    """
    check_bootstrap(replicates, confidence)
    values, truth = _checked(scores, labels)
    if len(column) != values.size or minimum < 1:
        raise ArgumentError(
            f"Subgroups need one column value for each of {values.size} scans and a minimum of at "
            f"least 1, not {len(column)} values and {minimum}."
        )
    subject, count = number_subjects(subjects, values.size)
    if share_healthy:  # a size of 0 written for healthy scans must not shift the bands
        column = [v if sick else None for v, sick in zip(column, truth, strict=True)]
    names, order = band_names(column, cuts, quantiles)
    wanted = ["auroc", "ap"] + (["sensitivity", "specificity"] if threshold is not None else [])
    options = {"replicates": replicates, "seed": seed}
    found = []
    for group in order:
        mine = np.array([name == group for name in names])
        if share_healthy:
            inside, outside = mine | ~truth, ~mine | ~truth
            if not (mine & truth).any():
                continue  # healthy scans have no value of their own here: not a group
        else:
            inside, outside = mine, ~mine
        sides = [
            _Side(values, truth, subject, count, rows, threshold) for rows in (inside, outside)
        ]
        metrics, gaps = _group(sides, wanted, minimum, options, confidence)
        found.append((group, sides[0], metrics, gaps))
    # Of two groups each is the other's rest: one comparison, seen from both sides.
    tests = 1 if len(found) == 2 else len(found)
    corrected = {
        name: np.resize(holm([gaps[name].p_value for *_, gaps in found[:tests]]), len(found))
        for name in wanted
    }
    return [
        Subgroup(
            group=group,
            subjects=side.subjects,
            scans=side.scans,
            anomalous=side.anomalous,
            metrics=metrics,
            gaps=gaps,
            holm={name: float(corrected[name][i]) for name in wanted},
        )
        for i, (group, side, metrics, gaps) in enumerate(found)
    ]


def band_names(
    column: Sequence[Any] | npt.NDArray[Any],
    cuts: Sequence[float] | None = None,
    quantiles: int | None = None,
) -> tuple[list[str], list[str]]:
    """Return the group of each scan (n,), and the groups in their order, `missing` last.

    Args:
        column: value of each scan (n,); None and NaN are `missing`.
        cuts: ascending borders of bands; None for one group a value.
        quantiles: number of bands of about as many scans each, instead of `cuts`.

    Raises:
        ArgumentError: a value that isn't a number where bands are asked for, or borders that don't
            ascend.
    """
    absent = [v is None or v != v or str(v) in ("<NA>", "") for v in column]
    if cuts is None and quantiles is None:
        plain = [MISSING if gone else str(v) for v, gone in zip(column, absent, strict=True)]
        return plain, sorted(set(plain) - {MISSING}) + [MISSING] * any(absent)
    try:
        numbers = np.array(
            [math.nan if gone else float(v) for v, gone in zip(column, absent, strict=True)]
        )
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"Bands need a column of numbers: {error}.") from error
    if cuts is None:
        if not isinstance(quantiles, int) or quantiles < 2 or not any(~np.isnan(numbers)):
            raise ArgumentError(
                f"Quantile bands need numbers and at least 2 bands, not {quantiles}."
            )
        inner = np.linspace(0, 1, quantiles + 1)[1:-1]
        borders = np.unique(np.nanquantile(numbers, inner))
    else:
        borders = np.asarray(cuts, np.float64)
        if borders.ndim != 1 or not borders.size or (np.diff(borders) <= 0).any():
            raise ArgumentError(f"Band borders must ascend, not {list(cuts)}.")
    text = [f"{b:g}" for b in borders]
    bands = [f"below {text[0]}"]
    bands += [f"{a} to {b}" for a, b in zip(text[:-1], text[1:], strict=True)] + [
        f"{text[-1]} and above"
    ]
    which = np.searchsorted(borders, numbers, side="right")
    assigned = [MISSING if gone else bands[i] for i, gone in zip(which, absent, strict=True)]
    present = set(assigned)
    return assigned, [band for band in [*bands, MISSING] if band in present]


class _Side:
    """The scans of a group, or of the rest, as functions of the weights of all subjects."""

    def __init__(
        self,
        scores: Floats,
        truth: Rows,
        subject: npt.NDArray[np.intp],
        count: int,
        rows: Rows,
        threshold: float | None,
    ) -> None:
        self.subjects = np.unique(subject[rows]).size
        self.scans, self.anomalous = int(rows.sum()), int((rows & truth).sum())
        positive, negative = rows & truth, rows & ~truth
        self.classes = {1: np.unique(subject[positive]).size, 0: np.unique(subject[negative]).size}
        self._counts = _Counts(scores[rows], truth[rows], subject[rows], count, threshold=threshold)
        self.metrics = self._counts.metrics
        self.cells, self.count = max(self._counts.cells, count), count

    def share(self, metric: str, confidence: float) -> Interval | None:
        """Wilson's interval of a share of scans, where each subject has one scan of the class."""
        if self._counts.above is None or metric not in ("sensitivity", "specificity"):
            return None
        hits, passed, sick, healthy = self._counts.above
        called, every = (hits, sick) if metric == "sensitivity" else (passed, healthy)
        if every.max(initial=0) > 1:
            return None
        return proportion(int(called.sum()), int(every.sum()), confidence=confidence)

    def enough(self, metric: str, minimum: int) -> bool:
        """Whether the classes that the metric needs have enough subjects."""
        needed = {"sensitivity": (1,), "specificity": (0,)}.get(metric, (0, 1))
        return all(self.classes[label] >= minimum for label in needed)


def _group(
    sides: list[_Side],
    wanted: list[str],
    minimum: int,
    options: dict[str, int],
    confidence: float,
) -> tuple[dict[str, Interval], dict[str, Comparison]]:
    """Return the metrics of the first side, and their gaps to the second."""
    group, rest = sides
    metrics, gaps = {}, {}
    able = [name for name in wanted if group.enough(name, minimum)]
    ones = np.ones((1, group.count))
    point = {name: float(group.metrics(ones)[name][0]) for name in able}
    estimates = bca(
        group.metrics, point, group.count, cells=group.cells, confidence=confidence, **options
    )
    pair = [name for name in able if rest.enough(name, minimum)]

    def gap(weights: Floats) -> dict[str, Floats]:
        first, second = group.metrics(weights), rest.metrics(weights)
        return {name: first[name] - second[name] for name in pair}

    drawn = draws(gap, pair, group.count, cells=max(group.cells, rest.cells), **options)
    observed = {name: float(v[0]) for name, v in gap(ones).items()}
    for name in wanted:
        if name in able:
            e = group.share(name, confidence) or estimates[name]
            assert isinstance(e, Interval)
            metrics[name] = dataclasses.replace(e, n=group.subjects)
        else:
            why = f"fewer than {minimum} subjects of a class"
            nan = math.nan
            metrics[name] = Interval(nan, nan, nan, group.subjects, 0, "none", why)
        gaps[name] = _gap(
            observed.get(name, math.nan), drawn.get(name, np.empty(0)), group.count, confidence
        )
    return metrics, gaps


def _gap(value: float, drawn: Floats, subjects: int, confidence: float) -> Comparison:
    from scipy.special import ndtr

    defined = drawn[~np.isnan(drawn)]
    low, high, z, p_value = (math.nan,) * 4
    if defined.size > 1:
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = (float(v) for v in np.quantile(defined, tails))
        error = float(defined.std(ddof=1))
        if error > 0:
            z = value / error
            p_value = 2 * float(ndtr(-abs(z)))
        elif value == 0:
            p_value = 1.0
    return Comparison("bootstrap, normal", value, low, high, z, p_value, subjects)
