"""Steps that change the grid: orientation, resampling, cropping."""

from __future__ import annotations

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.foreground import bounding_box, foreground_mask
from normscan.preprocess.grid import Grid, orient
from normscan.preprocess.steps import Working, step


def _through(working: Working, grid: Grid) -> Working:
    """Hand on the scan and its foreground on an axis-parallel grid of its own."""
    data = working.scan.data
    low = data.min(axis=tuple(range(1, data.ndim)), keepdims=True)
    mask = working.foreground
    if mask is not None:
        mask = grid.forward(mask[None])[0] > 0.5
    affine = grid.affine(working.scan.affine)
    return working.moved(grid.forward(data - low if low.any() else data) + low, affine, mask)


@step("reorient")
def reorient(working: Working) -> Working:
    """Permute and flip the axes of a volume to RAS+, as near as whole axes allow.

    No value is interpolated; an oblique volume stays oblique. A 2D scan is left as it is.
    """
    scan = working.scan
    if scan.dims == 2:
        return working
    axes, signs = orient(scan, upright=False)
    shape = tuple(scan.shape[a] for a in axes)
    start = tuple(0.0 if s > 0 else n - 1.0 for s, n in zip(signs, shape, strict=True))
    return _through(working, Grid(axes, start, tuple(map(float, signs)), shape, scan.shape))


@step("resample")
def resample(working: Working, spacing: float = 1.0) -> Working:
    """Resample to cubic voxels (or square pixels), linearly and without aliasing.

    Args:
        working: any scan with a spacing in mm.
        spacing: mm.
    """
    if not spacing > 0:
        raise ArgumentError(f"resample: the spacing {spacing} must be positive (mm).")
    scan = working.scan
    ratio = [spacing / s for s in scan.spacing]
    shape = tuple(max(1, round(n / r)) for n, r in zip(scan.shape, ratio, strict=True))
    if int(np.prod(shape)) > 2**29:
        raise ScanError(
            f"{scan.name}: at {spacing} mm it would have {shape} voxels, too many. Take a larger "
            "spacing."
        )
    # The first and the last voxel of the new grid lie equally far inside the old one.
    start = tuple(
        (n - 1) / 2 - r * (m - 1) / 2 for n, r, m in zip(scan.shape, ratio, shape, strict=True)
    )
    return _through(working, Grid(tuple(range(scan.dims)), start, tuple(ratio), shape, scan.shape))


@step("crop_foreground")
def crop_foreground(working: Working, margin: float = 5.0) -> Working:
    """Cut away what lies farther than a margin from the box round the foreground.

    Args:
        working: any scan; its foreground is computed where no step found it.
        margin: mm.
    """
    if margin < 0:
        raise ArgumentError(f"crop_foreground: the margin {margin} must be 0 or more (mm).")
    scan = working.scan
    mask = working.foreground
    box = bounding_box(foreground_mask(scan.data) if mask is None else mask)
    away = [int(np.ceil(margin / s - 1e-6)) for s in scan.spacing]
    low = [max(first - a, 0) for (first, _), a in zip(box, away, strict=True)]
    high = [min(last + a, n) for (_, last), a, n in zip(box, away, scan.shape, strict=True)]
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, : scan.dims] @ np.asarray(low, float)
    return working.moved(scan.data[:, *part], affine, None if mask is None else mask[part])


@step("to_shape")
def to_shape(working: Working, shape: list[int], spacing: float | None = None) -> Working:
    """Lay a grid of a given shape over the middle of the scan, cropping or padding.

    Args:
        working: any scan.
        shape: voxels along each axis.
        spacing: mm of cubic voxels; None keeps the scan's own.
    """
    scan = working.scan
    if len(shape) != scan.dims or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise ArgumentError(f"to_shape: shape {shape} must be {scan.dims} positive whole numbers.")
    if spacing is not None and not spacing > 0:
        raise ArgumentError(f"to_shape: the spacing {spacing} must be positive (mm).")
    if int(np.prod(shape)) > 2**29:
        raise ArgumentError(f"to_shape: {shape} are too many voxels.")
    steps = [1.0 if spacing is None else spacing / s for s in scan.spacing]
    start = [
        (n - 1) / 2 - r * (m - 1) / 2 for n, r, m in zip(scan.shape, steps, shape, strict=True)
    ]
    if spacing is None:
        start = [float(round(s)) for s in start]  # whole voxels: nothing is interpolated
    grid = Grid(tuple(range(scan.dims)), tuple(start), tuple(steps), tuple(shape), scan.shape)
    return _through(working, grid)
