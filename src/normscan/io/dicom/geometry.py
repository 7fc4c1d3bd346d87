"""The grid of a series: planes sorted in space, and a regular grid where they have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from normscan.errors import ScanError
from normscan.io.files import check_size
from normscan.series import LPS_TO_RAS, Layout

TOLERANCE_MM = 0.01
TOLERANCE_STEP = 0.01
"""A series is regular if no plane is further from its even place than 0.01 mm, or than a hundredth
of the step where that is more."""

LARGEST_GAP = 3.0
LARGEST_GAP_MM = 20.0
"""Between planes further apart than three median steps, or than 20 mm in a series that is not
regular, nothing is interpolated: that would invent anatomy."""

STEEPEST_DRIFT = 2.0
"""Largest shift in the plane per mm along the normal (63 degrees of tilt)."""


def lay_out(
    path: Path,
    positions: np.ndarray,
    orientation: np.ndarray,
    spacing: np.ndarray,
    size: tuple[int, int],
) -> Layout:
    """Sort planes along their normal and lay a regular grid over them.

    Args:
        path: to name it in messages.
        positions: (n, 3) LPS mm, n > 1, no two at one place along the normal.
        orientation: (6,) row and column direction.
        spacing: (2,) mm between rows, between columns.
        size: rows, columns.

    Raises:
        ScanError: a gap that is too large to interpolate, a grid that is too large.
    """
    row, column = orientation[:3], orientation[3:]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    order = np.argsort(positions @ normal, kind="stable")
    sorted_ = positions[order]
    along = sorted_ @ normal
    steps = np.diff(along)
    mean = (sorted_[-1] - sorted_[0]) / len(steps)
    even = sorted_[0] + np.arange(len(sorted_))[:, None] * mean
    step = float(mean @ normal)
    allowed = max(TOLERANCE_MM, TOLERANCE_STEP * step)
    uneven = np.abs((sorted_ - even) @ normal).max() > allowed
    drift = np.stack([sorted_ @ row, sorted_ @ column], axis=1)
    off = drift - drift[0]
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(mean - step * normal), step)))
    # Where the planes drift by less than the rounding of the headers, the affine holds the drift.
    tilted = bool(np.abs(off).max() > max(TOLERANCE_MM, 0.02 * float(spacing.min())) and tilt > 0.1)
    wobbles = np.abs((sorted_ - even) @ np.stack([row, column]).T).max() > allowed
    shape = (size[1], size[0], len(sorted_))
    if not (uneven or tilted or wobbles):
        affine = _affine(row, column, mean, spacing, sorted_[0])
        check_size(path, shape)
        return Layout(order, affine, shape, steps)
    _check_gaps(path, steps, drift, bool(uneven))
    return _resampled(path, Layout(order, np.eye(4), shape, steps, False, tilted, tilt),
                      sorted_, orientation, spacing)  # fmt: skip


def _affine(
    row: np.ndarray, column: np.ndarray, step: np.ndarray, spacing: np.ndarray, first: np.ndarray
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3] = np.stack([row * spacing[1], column * spacing[0], step, first], axis=1)
    return LPS_TO_RAS @ affine


def _check_gaps(path: Path, steps: np.ndarray, drift: np.ndarray, uneven: bool) -> None:
    usual, largest = float(np.median(steps)), float(steps.max())
    if uneven and (largest > LARGEST_GAP * usual or largest > max(LARGEST_GAP_MM, 1.01 * usual)):
        raise ScanError(
            f"{path}: between two planes lie {largest:.4g} mm, elsewhere {usual:.4g} mm. Nothing is "
            f"interpolated over more than {LARGEST_GAP:g} steps or {LARGEST_GAP_MM:g} mm: images "
            "seem to be missing. Export the series again, or give one part of it as a list of files."
        )
    if (np.linalg.norm(np.diff(drift, axis=0), axis=1) > STEEPEST_DRIFT * steps).any():
        raise ScanError(
            f"{path}: its planes drift sideways by more than {STEEPEST_DRIFT:g} mm per mm, so they "
            "are no volume. Check that the files belong together."
        )


def _resampled(
    path: Path, base: Layout, positions: np.ndarray, orientation: np.ndarray, spacing: np.ndarray
) -> Layout:
    """Lay an orthogonal grid over all pixels, its first and last plane on those of the series."""
    row, column = orientation[:3], orientation[3:]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    along = (positions - positions[0]) @ normal
    # Finer than the median step: where slices lie close, their detail is worth keeping.
    count = max(1, round(float(along[-1] / np.quantile(base.steps, 0.25)))) + 1
    places = np.linspace(0, along[-1], count)
    below = np.clip(np.searchsorted(along, places, side="right") - 1, 0, len(along) - 2)
    part = np.clip((places - along[below]) / np.diff(along)[below], 0, 1)
    # Where the corner of a plane would lie at each place of the grid, in the series' own pixels.
    in_plane = np.linalg.inv(np.stack([row * spacing[1], column * spacing[0], normal], axis=1))
    corners = ((positions - positions[0]) @ in_plane.T)[:, :2]
    corners -= np.where(np.abs(corners) < 1e-6, corners, 0)
    low = np.floor(corners.min(axis=0) + 1e-6)
    high = np.ceil(corners.max(axis=0) - 1e-6)
    wide, tall = (int(n) for n in np.array(base.shape[:2]) + high - low)
    shape = (wide, tall, count)
    check_size(path, shape)
    here = corners[below] * (1 - part)[:, None] + corners[below + 1] * part[:, None]
    first = positions[0] + low[0] * spacing[1] * row + low[1] * spacing[0] * column
    step = normal * along[-1] / (count - 1)
    return Layout(
        base.order, _affine(row, column, step, spacing, first), shape, base.steps, False,
        base.tilted, base.tilt, (below, part), low - here,
    )  # fmt: skip
