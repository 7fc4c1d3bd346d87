"""Components of a picture as polygons."""

from __future__ import annotations

import numpy as np


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the outer border of a component.

    A pixel belongs to the component where its centre lies within the polygon, but for holes, which
    are within too.

    Args:
        mask: (rows, columns) bool, one component whose pixels touch at a side or a corner.

    Returns:
        (n, 2) column and row, the last point equal to the first. As in PS3.3 C.18.6.1.2, 0 is the
        left or upper border of the first pixel and its centre is at 0.5.
    """
    from skimage.measure import find_contours

    padded = np.pad(mask.astype(np.float32), 1)
    lines = find_contours(padded, 0.5, fully_connected="high")
    # Of a component with holes the border encloses every other line.
    border = max(lines, key=lambda line: np.ptp(line[:, 0]) * np.ptp(line[:, 1]))
    return np.asarray(border[:, ::-1] - 1 + 0.5)
