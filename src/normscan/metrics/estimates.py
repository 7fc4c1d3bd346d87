"""A number with its confidence interval, from a bootstrap over subjects."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.curves import Floats

# Cells (replicates x thresholds) worked on at once: 16 MiB per temporary array.
CHUNK_CELLS = 2**21


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its percentile interval.

    Attributes:
        value: the point estimate on all subjects; NaN where undefined.
        low: lower end of the interval; NaN where there is none.
        high: upper end of the interval; NaN where there is none.
        n: number of subjects.
        replicates_used: bootstrap replicates on which the value was defined.
    """

    value: float
    low: float
    high: float
    n: int
    replicates_used: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, None for NaN."""
        return to_json(self)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resamples(subjects: int, replicates: int, seed: int, chunk: int) -> Iterator[Floats]:
    """Yield how often each subject is drawn: weights (at most `chunk`, subjects) at a time.

    Each row draws as many subjects as there are, with replacement. `chunk` doesn't change the rows.
    """
    generator = np.random.default_rng(seed)
    chances = np.full(subjects, 1 / subjects)
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        yield generator.multinomial(subjects, chances, size=size).astype(np.float64)


def draws(
    statistics: Callable[[Floats], Mapping[str, Floats]],
    names: Iterable[str],
    subjects: int,
    *,
    cells: int = 1,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Floats]:
    """Return the bootstrap replicates (replicates,) of each named statistic, NaN kept.

    Args:
        statistics: maps subject weights (r, subjects) to named values (r,); called in chunks.
        names: the statistics to keep.
        subjects: number of subjects.
        cells: size of the largest row that `statistics` makes per replicate, to bound the memory.
        replicates: number of resamples.
        seed: seed of the resampling.
    """
    kept: dict[str, list[Floats]] = {name: [np.empty(0)] for name in names}
    chunk = max(1, CHUNK_CELLS // max(cells, subjects))
    for weights in resamples(subjects, replicates, seed, chunk):
        values = statistics(weights)
        for name, parts in kept.items():
            parts.append(values[name])
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def check_bootstrap(replicates: int, confidence: float) -> None:
    """Refuse a negative number of replicates or a confidence outside (0, 1)."""
    if replicates < 0 or not 0 < confidence < 1:
        raise ArgumentError(
            f"An interval needs replicates >= 0 and confidence between 0 and 1, "
            f"not {replicates} and {confidence}."
        )


def bootstrap(
    statistics: Callable[[Floats], Mapping[str, Floats]],
    point: Mapping[str, float],
    subjects: int,
    *,
    cells: int = 1,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    flat: bool = False,
) -> dict[str, Estimate]:
    """Return the point estimates with percentile intervals over resampled subjects.

    Replicates on which a statistic is NaN (one class drawn) are dropped for it and show in
    `replicates_used`. One subject, no replicate, or replicates that all agree (a perfect score of a
    few subjects) give no interval: NaN.

    Args:
        statistics: maps subject weights (r, subjects) to named values (r,); called in chunks.
        point: the named values on all subjects, one for each statistic.
        subjects: number of subjects.
        cells: size of the largest row that `statistics` makes per replicate, to bound the memory.
        replicates: number of resamples; 0 for no intervals.
        seed: seed of the resampling; the same seed draws the same subjects.
        confidence: coverage of the interval, in (0, 1).
        flat: replicates that all agree are an interval, as of a difference that is always 0.

    Raises:
        ArgumentError: a negative number of replicates or a confidence outside (0, 1).
    """
    check_bootstrap(replicates, confidence)
    many = replicates if subjects > 1 else 0
    drawn = draws(statistics, point, subjects, cells=cells, replicates=many, seed=seed)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    estimates = {}
    for name, value in point.items():
        values = drawn[name][~np.isnan(drawn[name])]
        low, high = np.quantile(values, tails) if values.size else (np.nan, np.nan)
        if low == high and not flat:
            low = high = np.nan
        estimates[name] = Estimate(float(value), float(low), float(high), subjects, values.size)
    return estimates


def number_subjects(
    subjects: Sequence[Hashable] | npt.NDArray[Any] | None, scans: int
) -> tuple[npt.NDArray[np.intp], int]:
    """Return the subject number (scans,) of each scan and how many subjects there are.

    Args:
        subjects: subject of each scan; None where every scan is a subject of its own.
        scans: number of scans.

    Raises:
        ArgumentError: the lengths differ.
    """
    if subjects is None:
        return np.arange(scans), scans
    if len(subjects) != scans:
        raise ArgumentError(
            f"{scans} scores came with {len(subjects)} subjects; give one for each."
        )
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(subject, len(numbers)) for subject in subjects]
    return np.array(index, dtype=np.intp), len(numbers)


def to_json(result: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON values, None for what isn't a finite number."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in dataclasses.asdict(result).items()}
