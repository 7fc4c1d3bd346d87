"""Which healthy scans set the threshold, and what rate they can promise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from normscan.errors import ArgumentError

Kind = Literal["auto", "split", "cross"]
KINDS = ("auto", "split", "cross")


@dataclass(frozen=True)
class Calibration:
    """How the decision is calibrated.

    Attributes:
        kind: ``split`` takes the healthy scans of val; ``cross`` all healthy scans of train and
            val, each scored by a detector that didn't see its subject; ``auto`` takes ``cross``
            where val is too small for the rate and all healthy subjects aren't, see ``gains``.
        folds: detectors that ``cross`` fits, each without one part of the healthy subjects.
        refit: keep one detector fitted to all healthy scans, rather than the folds' together.
        trim: so many of the highest healthy subjects are left out of the rank, see ``ScanThreshold``.
    """

    kind: Kind = "auto"
    folds: int = 5
    refit: bool = False
    trim: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"calibration is '{self.kind}'; it is one of {', '.join(KINDS)}.")
        if self.folds < 2:
            raise ArgumentError(f"folds is {self.folds}; cross-calibration needs 2 or more.")
        if self.trim < 0:
            raise ArgumentError(f"trim is {self.trim}; it must be 0 or more subjects.")

    def settled(self, val: int, healthy: int, fpr: float, processes: int = 1) -> Calibration:
        """Return what it is for a cohort, ``split`` or ``cross``.

        Args:
            val: healthy subjects in val.
            healthy: healthy subjects in train and val.
            fpr: wanted false-positive rate.
            processes: that train together; ``cross`` needs one.

        Raises:
            ArgumentError: ``cross`` was asked for and can't be had.
        """
        if self.kind == "cross" and processes > 1:
            raise ArgumentError("calibration cross works in one process: leave out devices.")
        if self.kind == "cross" and healthy < 2:
            raise ArgumentError("calibration cross needs two healthy subjects or more.")
        split = replace(self, kind="split")
        if self.kind == "split" or (self.kind == "auto" and processes > 1):
            return split
        ranked = max(0, val - self.trim), max(0, healthy - self.trim)
        if self.kind == "auto" and val and not gains(*ranked, fpr):
            return split
        if healthy < 2:
            return split
        return replace(self, kind="cross", folds=min(self.folds, healthy))


SPLIT = Calibration("split")


def gains(val: int, healthy: int, fpr: float) -> bool:
    """Whether all healthy subjects support the rate better than those of val alone.

    They do where val can't promise it, and where the highest score of val would set the threshold
    by itself, but not that of all.
    """
    if 1 / (val + 1) > fpr:
        return healthy > val
    return rank(val, fpr) == 1 < rank(healthy, fpr)


def rank(n: int, fpr: float) -> int:
    """Return which of n healthy scores, counted from the highest, is the threshold."""
    # 0.29 * 100 is 28.999...: the slack makes it the 29 that is meant.
    return min(max(1, math.floor(fpr * (n + 1) + 1e-9)), max(1, n))


def promise(n: int, fpr: float) -> str:
    """Say what rate n healthy subjects can promise, such as ``4.8 %, by the highest 3 of 62``."""
    if n < 1:
        return "nothing, there are none"
    k = rank(n, fpr)
    what = "the highest of" if k == 1 else f"the {k} highest of"
    return f"{k / (n + 1):.1%}, set by {what} {n} score{'' if n == 1 else 's'}"


def nearby(n: int, fpr: float) -> float | None:
    """Return a rate nearer to the wanted one than what n healthy scores promise, a little above it.

    Few scores promise far less than is wanted, and the fewer set the threshold the more it hangs on
    an odd scan: of 37 the highest promises 2.6 % where 5 % are wanted, the second 5.3 %. None where
    no such rate is nearer, or more than two scores set the threshold already.
    """
    k = rank(n, fpr)
    above = (k + 1) / (n + 1)
    if k > 2 or k >= n or not 0 < above - fpr < fpr - k / (n + 1):
        return None
    return math.ceil(1e4 * above) / 1e4
