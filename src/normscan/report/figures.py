"""Outlines and colours of lesion and finding in the pictures of a report."""

from __future__ import annotations

import numpy as np

from normscan.display import (
    LEVELS,
    display_image,
    map_scale,
    overlay_levels,
    overlay_table,
    png_data_uri,
    shrink,
    upright,
    window,
)

__all__ = [
    "LEVELS",
    "display_image",
    "map_scale",
    "outlines",
    "overlay_levels",
    "overlay_table",
    "png_data_uri",
    "shrink",
    "upright",
    "window",
]

# Cyan is absent from inferno and from grey, so it can't be taken for a hot pixel; the finding is
# dashed as well as white, so that the two are told apart without colour.
MASK_COLOUR = "#22d3ee"
REGION_COLOUR = "#ffffff"


def outlines(
    field: np.ndarray, level: float, most: int = 400, tolerance: float = 0.15
) -> list[np.ndarray]:
    """Return the closed outlines of ``field > level``.

    Args:
        field: (H, W) map or mask.
        level: value on the line.
        most: keep so many, the longest: a noisy map has thousands of specks.
        tolerance: pixels by which a line may be off where points are left out; 0 keeps all.

    Returns:
        Polygons (n, 2) of (x, y) in pixels, where the first pixel spans 0 to 1.
    """
    from skimage.measure import approximate_polygon, find_contours

    field = field.astype(np.float64)
    finite = field[np.isfinite(field)]
    if not (finite > level).any():
        return []
    # The frame lies as far below the level as the peak above: the line runs along the border.
    high = float(finite.max())
    below = min(float(finite.min()), 2 * level - high)
    filled = np.nan_to_num(field, nan=below, neginf=below, posinf=high)
    lines = find_contours(np.pad(filled, 1, constant_values=below), level)
    lines = sorted(lines, key=len, reverse=True)[:most]
    if tolerance:
        lines = [approximate_polygon(line, tolerance) for line in lines]
    return [line[:, ::-1] - 0.5 for line in lines]
