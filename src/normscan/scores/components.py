"""Connected components of masks and volumes, quick on large ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def connected(mask: Mask, faces: bool = False) -> npt.NDArray[Any]:
    """Return connected component labels, 0 outside.

    Args:
        mask: (H, W) or (D, H, W) bool.
        faces: neighbours share a side (4 in the plane, 6 in space) instead of touching at an edge
            or a corner, too (8 and 26).
    """
    import cc3d

    if mask.flags.f_contiguous and not mask.flags.c_contiguous:
        return connected(mask.T, faces).T
    # cc3d 4.1.1 splits components of booleans in 2D, and of views into larger arrays.
    plain = np.ascontiguousarray(mask, bool).view(np.uint8)
    near, all_around = (4, 8) if mask.ndim == 2 else (6, 26)
    return cc3d.connected_components(plain, connectivity=near if faces else all_around)


def box_of(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box that holds all that is true; an empty one where nothing is."""
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0))
    return tuple(box)
