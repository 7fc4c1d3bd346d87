"""Values of a data set that anyone may have written: what can't be parsed is not there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def fetch(data: Any, keyword: str) -> Any:
    """Return a value, or None where there is none that can be parsed."""
    try:
        return data.get(keyword)
    except RecursionError:
        raise
    except Exception:  # pydicom raises anything on a damaged value
        return None


def text(data: Any, keyword: str) -> str:
    """Return a value as stripped text, or an empty string."""
    value = fetch(data, keyword)
    return "" if value is None else str(value).strip(" \0")


def words(value: Any) -> list[str]:
    """Return one value or several as texts."""
    if value is None:
        return []
    many = not isinstance(value, str | bytes) and hasattr(value, "__iter__")
    return [str(v).strip() for v in (value if many else [value])]


def number(value: Any) -> float | None:
    """Return a finite number, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> str:
    """Return a whole number from 0 up as text, or an empty string."""
    found = number(value)
    return str(int(found)) if found is not None and 0 <= found < 1e12 else ""


def numbers(value: Any, count: int) -> np.ndarray | None:
    """Return so many finite numbers as float64, or None."""
    if value is None or isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return None
    found = [number(v) for v in value]
    good = [v for v in found if v is not None]
    return np.array(good) if len(good) == count == len(found) else None


class Groups:
    """The functional groups of a multi-frame file: what holds for a frame, for all, for the file."""

    def __init__(self, data: Dataset) -> None:
        shared = fetch(data, "SharedFunctionalGroupsSequence") or []
        self.data = data
        self.shared = shared[0] if shared else {}
        self.frames = list(fetch(data, "PerFrameFunctionalGroupsSequence") or [])

    def get(self, frame: int, sequence: str, *keywords: str) -> Any:
        """Return the first of the values that stands in the frame, in all frames, in the file."""
        for keyword in keywords:
            for item in self.items(frame, sequence):
                value = fetch(item, keyword)
                if value is not None and value != "":
                    return value
        return None

    def items(self, frame: int, sequence: str) -> Iterator[Any]:
        """Iterate over the items in which a value may stand, the frame's own first."""
        for place in (self.frames[frame] if frame < len(self.frames) else {}, self.shared):
            found = fetch(place, sequence) if sequence else None
            if found:
                yield found[0]
        yield self.data
