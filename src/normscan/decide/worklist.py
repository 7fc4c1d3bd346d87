"""Which scans of a worklist to look at, so that few of them are healthy: a false discovery rate."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from normscan.decide.cross import CrossThreshold
from normscan.decide.scans import Floats, ScanThreshold
from normscan.errors import ArgumentError

# q-values are sums and quotients of whole numbers; what differs by rounding alone is equal.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Worklist:
    """Subjects whose scans were scored, and which of them are chosen at a false discovery rate.

    A subject stands with the lowest p-value of its scans, as at the threshold. Chosen is by
    Benjamini and Hochberg: of those chosen, at most the wanted share is healthy, on average over
    worklists and calibration sets. p-values of one calibration set depend on each other, in the way
    (PRDS) that the rule allows (Bates et al., Annals of Statistics 2023, theorem 2).

    Attributes:
        wanted: false discovery rate in (0, 1).
        p_values: by subject.
        q_values: by subject: the lowest rate at which it is chosen.
    """

    wanted: float
    p_values: Mapping[Hashable, float]
    q_values: Mapping[Hashable, float]

    @classmethod
    def of(
        cls, p_values: npt.ArrayLike, wanted: float, subjects: Sequence[Hashable] | None = None
    ) -> Worklist:
        """Return the worklist of scans.

        Args:
            p_values: of the scans (n,), in (0, 1].
            wanted: false discovery rate in (0, 1).
            subjects: of the scans; each its own by default.

        Raises:
            ArgumentError: a rate or a p-value outside its range, or lengths that differ.
        """
        check_rate(wanted)
        values = np.asarray(p_values, dtype=np.float64)
        owners: Sequence[Hashable] = range(len(values)) if subjects is None else subjects
        if values.ndim != 1 or len(owners) != len(values):
            raise ArgumentError(
                f"{len(owners)} subjects came with p-values of shape {values.shape}."
            )
        if not ((values > 0) & (values <= 1)).all():
            raise ArgumentError("a p-value of a worklist lies outside 0..1.")
        lowest: dict[Hashable, float] = {}
        for owner, value in zip(owners, values.tolist(), strict=True):
            lowest[owner] = min(value, lowest.get(owner, 1.0))
        adjusted = q_values(list(lowest.values())).tolist()
        return cls(wanted, lowest, dict(zip(lowest, adjusted, strict=True)))

    @classmethod
    def of_looks(
        cls,
        looks: Sequence[npt.ArrayLike],
        wanted: float,
        subjects: Sequence[Hashable] | None = None,
        inner: float | None = None,
    ) -> Worklist:
        """Return one worklist of scans that were looked at several times.

        Looks may be by detectors of other seeds or methods, or against other healthy scans; they may
        depend on each other in any way, which p-values don't forgive. Each becomes an e-value: one
        over the highest p-value that is chosen in its look at the rate ``inner``, for those that are
        chosen there, else 0. Their mean over the looks is an e-value again, and Benjamini and
        Hochberg's rule on one over it keeps the rate (e-BH: Wang and Ramdas, JRSS B 2022; such
        e-values of conformal p-values: Bashari et al., NeurIPS 2023). ``p_values`` are then one over
        the e-values, at most 1.

        Args:
            looks: p-values of the scans (n,), one array for each look.
            wanted: false discovery rate in (0, 1).
            subjects: of the scans; each its own by default.
            inner: rate in (0, 1) within a look; half of ``wanted`` by default.

        Raises:
            ArgumentError: no look, a rate or a p-value outside its range, or lengths that differ.
        """
        rate = wanted / 2 if inner is None else check_rate(inner)
        each = [cls.of(look, rate, subjects) for look in looks]
        if not each or len({len(look.p_values) for look in each}) > 1:
            raise ArgumentError("a worklist of looks needs one or more, all of the same scans.")
        names = list(each[0].p_values)
        means = np.mean([[look.e_value(name) for name in names] for look in each], axis=0)
        return cls.of(1 / np.maximum(means, 1), wanted, names)

    def e_value(self, subject: Hashable) -> float:
        """Return an e-value of a subject: large where it is surely not healthy, 0 if not chosen."""
        if not self.chosen(subject):
            return 0.0
        return 1 / max(p for name, p in self.p_values.items() if self.chosen(name))

    def chosen(self, subject: Hashable) -> bool:
        """Whether a subject is on the list."""
        return self.q_values[subject] <= self.wanted + ROUNDING

    @property
    def count(self) -> int:
        """Number of subjects on the list."""
        return sum(map(self.chosen, self.q_values))

    def promise(self, threshold: ScanThreshold) -> str:
        """Say what the rate means for p-values of this threshold, and what isn't proven of it."""
        text = (
            f"At most {100 * self.wanted:.3g} % of the subjects on such a list are expected to be "
            "healthy, on average over worklists and over draws of the healthy subjects behind the "
            "p-values"
        )
        if isinstance(threshold, CrossThreshold):
            text += "; with p-values from folds that is what to expect, and it isn't proven"
        elif threshold.trim:
            text += f", if those left out of the rank ({threshold.trim}) aren't healthy"
        return f"{text}. It holds for healthy scans like those that set the threshold."

    def short(self, threshold: ScanThreshold) -> str:
        """Say how many subjects must share the lowest p-value before any is chosen, if several."""
        least = min((t.n for t in _parts(threshold)), default=threshold.n)
        needed = math.ceil(len(self.p_values) / (self.wanted * (least + 1)) - ROUNDING)
        if needed <= 1:
            return ""
        enough = math.ceil(len(self.p_values) / self.wanted - ROUNDING) - 1
        return (
            f"With {least} healthy subjects no p-value is below {1 / (least + 1):.3g}, so of these "
            f"{len(self.p_values)} subjects at least {needed} must score above all healthy ones before "
            f"any is chosen. With {enough} healthy subjects one would do."
        )


def q_values(p_values: npt.ArrayLike) -> Floats:
    """Return the p-values (n,) after Benjamini and Hochberg: the lowest rate that chooses each."""
    from scipy.stats import false_discovery_control

    values = np.asarray(p_values, dtype=np.float64)
    return values if not values.size else np.asarray(false_discovery_control(values, method="bh"))


def check_rate(wanted: float) -> float:
    """Return a false discovery rate.

    Raises:
        ArgumentError: it lies outside (0, 1).
    """
    if not 0 < wanted < 1:
        raise ArgumentError(f"the false discovery rate is {wanted}; it must lie between 0 and 1.")
    return wanted


def _parts(threshold: ScanThreshold) -> list[ScanThreshold]:
    """The thresholds of groups, where there are some."""
    alone = list(getattr(threshold, "alone", {}).values())
    rest = getattr(threshold, "rest", None)
    return [*alone, *([rest] if rest is not None else [])]
