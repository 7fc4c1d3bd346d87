"""Scans that are nearly the same picture: one saved twice, in another format, size or brightness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normscan.quality import measures
from normscan.quality.features import thumbnail
from normscan.scan import Scan

# Cells along each axis of the thumbnail that scans are compared by.
CELLS = {2: 24, 3: 12}
# Root mean square difference of two standardised thumbnails below which they may be one picture:
# 0.05 is a correlation of 0.9988.
CLOSE = 0.05
# It must also be so many times nearer than scans of other subjects usually are: in a cohort of
# aligned scans all of them are close.
TIMES = 3.0
# Beyond so many scans, evenly taken ones are compared.
MOST = 5000


def look_of(scan: Scan) -> np.ndarray:
    """Return a standardised thumbnail (cells,) float32; zeros for a constant scan.

    Args:
        scan: as read.
    """
    grey = measures.shrink(measures.canonical(scan).mean(axis=0, keepdims=True))[0]
    small = thumbnail(grey, CELLS[scan.dims]).ravel()
    spread = float(small.std())
    still = not np.isfinite(spread) or spread <= 1e-6 * max(1.0, float(np.abs(small).max()))
    standard = np.zeros_like(small) if still else (small - small.mean()) / spread
    return np.asarray(standard, dtype=np.float32)


def near_copies(
    looks: Sequence[np.ndarray], subjects: Sequence[str]
) -> list[tuple[int, int, float]]:
    """Return the pairs of scans of different subjects that look like copies, the nearest first.

    Args:
        looks: of each scan, see ``look_of``.
        subjects: whose it is; scans of one subject resemble each other and are not compared.

    Returns:
        Both places and the root mean square difference, 0 for the same picture.
    """
    places = np.arange(len(looks))[:: -(-len(looks) // MOST) or 1]
    sizes = [look.size for look in looks]
    places = np.array([i for i in places if looks[i].any() and sizes[i] == max(sizes)], dtype=int)
    if len(places) < 2:
        return []
    table = np.stack([looks[i] for i in places])
    _, owner = np.unique([subjects[i] for i in places], return_inverse=True)
    pairs, nearest = [], np.full(len(places), np.inf)
    for start in range(0, len(places), 256):
        rows = slice(start, start + 256)
        likeness = table[rows] @ table.T / table.shape[1]
        away = np.sqrt(np.maximum(0, 2 - 2 * likeness))
        away[owner[rows, None] == owner] = np.inf
        nearest[rows] = away.min(axis=1)
        found = ((start + int(i), int(j), float(away[i, j])) for i, j in np.argwhere(away < CLOSE))
        pairs += [pair for pair in found if pair[0] < pair[1]]
    usual = nearest[np.isfinite(nearest)]
    limit = np.median(usual) / TIMES if usual.size else 0.0
    # Where most scans have a copy the usual distance is that of copies: then nearness alone decides.
    crowded = bool(usual.size) and (usual < CLOSE).mean() > 0.5
    kept = [(i, j, d) for i, j, d in pairs if crowded or d < limit]
    return [(int(places[i]), int(places[j]), d) for i, j, d in sorted(kept, key=lambda p: p[2])]
