"""Steps that change the grid: orientation, resampling, cropping."""

from __future__ import annotations

import numpy as np

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.grid import Grid, orient
from normscan.preprocess.steps import Working, step


def _through(working: Working, grid: Grid) -> Working:
    """Hand on the scan and its foreground on an axis-parallel grid of its own."""
    data = working.scan.data
    low = data.min(axis=tuple(range(1, data.ndim)), keepdims=True)
    mask = working.foreground
    if mask is not None:
        mask = grid.forward(mask[None].astype(np.float32))[0] > 0.5
    affine = grid.affine(working.scan.affine)
    return working.moved(grid.forward(data - low) + low, affine, mask)


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
