"""Counting scores into cells without sorting them: what makes the exact metrics fast.

Sorting tens of millions of healthy pixels is most of the work of an exact metric, yet only the
edges at the lesion pixels matter. Scores are turned into integer keys of the same order and counted
into small bins, finer where the edges are dense. A bin without an edge inside lies in one cell as a
whole; only the scores in the few other bins are compared one by one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint32]

_BLOCK = 2**16  # Scores worked on at once: their keys and bins stay in the cache.
_BINS_PER_EDGE = 3  # Finer bins leave fewer scores to compare, but fall out of the cache.
_LOW_BITS = np.uint32(
    12
)  # What `Lookup` leaves out of a key; what is used of the rest fits in the cache.
_TABLE = 2 ** (32 - int(_LOW_BITS))


def ordered_keys(scores: Singles) -> Keys:
    """Return integers (n,) in the order of the scores, equal where the scores are equal.

    Args:
        scores: float32 scores (n,); may be infinite, not NaN.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # -0.0 + 0 is 0.0: one key for both zeros
    negative = (bits.view(np.int32) >> 31).view(np.uint32)
    return bits ^ (negative | np.uint32(0x80000000))


def scores_of(keys: Keys) -> Singles:
    """Return the scores (n,) of ordered keys (n,), the inverse of `ordered_keys`."""
    negative = ~(keys.view(np.int32) >> 31).view(np.uint32)
    return (keys ^ (negative | np.uint32(0x80000000))).view(np.float32)


def unsorted_cells(parts: list[Singles], edges: Singles) -> Floats:
    """Return how many scores (K,) lie in each cell [edge_k, edge_(k-1)), as `curves.cells` does.

    Args:
        parts: float32 scores in any order, in any number of arrays.
        edges: descending float32 edges (K,), the last one -inf.
    """
    if 4 * edges.size > sum(part.size for part in parts):
        return _sorted_cells(parts, edges)
    bins = _Bins(ordered_keys(edges)[::-1])
    for part in parts:
        for start in range(0, part.size, _BLOCK):
            bins.add(ordered_keys(part[start : start + _BLOCK]))
    return bins.cells()[::-1]


class Lookup:
    """The cells of unsorted scores, by a table over the upper bits of their keys.

    Made for few edges and many small arrays. A bin of the table with an edge inside is looked up
    score by score, so edges at the ends of bins, as `bin_start` gives them, are the quick ones.

    Args:
        edges: descending float32 edges (K,), the last one -inf.
    """

    def __init__(self, edges: Singles) -> None:
        self.edges = ordered_keys(edges)[::-1].copy()
        self.edges[0] = 0  # nothing is below -inf
        first = (self.edges >> _LOW_BITS).astype(np.intp)
        inside = self.edges & ((np.uint32(1) << _LOW_BITS) - np.uint32(1)) != 0
        # The cell of a bin's lowest key: an edge inside counts from the next bin on.
        starts = np.append(first + inside, _TABLE)
        self.table = np.repeat(np.arange(edges.size)[::-1].astype(np.int32), np.diff(starts))
        self.table[first[inside]] = -1

    def __call__(self, scores: Singles) -> npt.NDArray[np.int32]:
        """Return the cell (n,) in [0, K) of each score (n,)."""
        keys = ordered_keys(scores)
        found = self.table[keys >> _LOW_BITS]
        unclear = np.flatnonzero(found < 0)
        at = np.searchsorted(self.edges, keys[unclear], side="right")
        found[unclear] = self.edges.size - at
        return found


def bin_start(edges: Singles) -> Singles:
    """Return the lowest score (K,) of the bin of `Lookup` in which each edge (K,) lies."""
    lowest = ordered_keys(
        np.full(1, -np.inf, np.float32)
    )  # no score lies below: those bits are NaN
    return scores_of(np.maximum(ordered_keys(edges) >> _LOW_BITS << _LOW_BITS, lowest))


def _sorted_cells(parts: list[Singles], edges: Singles) -> Floats:
    scores = np.concatenate([np.empty(0, edges.dtype), *parts])
    scores.sort()
    return np.diff((scores.size - np.searchsorted(scores, edges)).astype(np.float64), prepend=0.0)


class _Bins:
    """Bins over the ordered keys, about `_BINS_PER_EDGE` times as many as there are edges.

    Each of the 2^16 ranges of keys that share their upper 16 bits is cut into 1, 2, 4, ... 2^16
    equal bins, by the number of edges in it. The upper bits hold sign, exponent and 7 bits of the
    mantissa, so no spread of the scores, zeros or clipped values included, crowds the bins.
    """

    def __init__(self, edges: Keys) -> None:
        self.edges = edges  # ascending
        inside = np.bincount(edges >> np.uint32(16), minlength=2**16)
        bits = np.ceil(np.log2(np.maximum(1, _BINS_PER_EDGE * inside))).clip(0, 16).astype(np.uint8)
        ends = np.cumsum(np.int64(1) << bits)
        self.size = int(ends[-1])
        self.shift = (16 - bits).astype(np.uint8)
        # bin = first bin of the range + (lower half >> shift), as one shift and one sum.
        upper = np.arange(2**16, dtype=np.int64) << 16
        self.base = ends - (np.int64(1) << bits) - (upper >> self.shift)
        where = self._number(edges)
        at_low = edges & ((np.uint32(1) << self.shift[edges >> np.uint32(16)]) - np.uint32(1)) == 0
        inner = np.bincount(where[~at_low], minlength=self.size)
        self.split = inner > 0
        # The cell of a bin's lowest key: the last edge up to there.
        upto = np.cumsum(np.bincount(where, minlength=self.size)) - inner
        self.first = np.maximum(upto - 1, 0)
        self.counts = np.zeros(self.size, np.int64)
        self.unclear: list[Keys] = []

    def _number(self, keys: Keys) -> npt.NDArray[np.int64]:
        upper = keys >> np.uint32(16)
        return (keys >> self.shift[upper]) + self.base[upper]

    def add(self, keys: Keys) -> None:
        """Count some keys."""
        where = self._number(keys)
        np.add.at(self.counts, where, 1)
        self.unclear.append(keys[self.split[where]])

    def cells(self) -> Floats:
        """Return how many of the keys lie in each cell of the ascending edges (K,)."""
        counts = np.where(self.split, 0, self.counts)
        total = np.bincount(self.first, counts, self.edges.size).astype(np.float64)
        unclear = np.concatenate([np.empty(0, np.uint32), *self.unclear])
        unclear.sort()
        cell = np.searchsorted(self.edges, unclear, side="right") - 1
        return total + np.bincount(cell, minlength=self.edges.size)
