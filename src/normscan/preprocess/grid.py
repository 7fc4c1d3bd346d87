"""Axis-parallel grids: orientation, cropping, padding and resampling as one linear step.

A working grid is the scan's own grid with its axes permuted, flipped, scaled and shifted, so the
obliquity of an oblique scan stays in its affine and resampling separates into one small matrix per
axis. The same object brings a map back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from normscan.scan import Scan
from normscan.scores.components import box_of

# World axes (0 right, 1 anterior, 2 superior) and directions of the working axes. A slice is drawn
# upright: rows run down, columns to the right of the picture.
RAS = ((0, 1), (1, 1), (2, 1))
UPRIGHT_SLICES = ((1, -1), (0, 1), (2, 1))

Fit = Literal["pad", "cover", "stretch"]


def axis_weights(n_in: int, centres: np.ndarray, step: float) -> np.ndarray:
    """Return the (n_out, n_in) matrix of linear interpolation at given places along an axis.

    Where the step between samples is above 1 the triangle widens with it, which removes what the
    coarser grid can't show (no aliasing). A ramp stays the same ramp, so nothing shifts. Rows whose
    centre lies outside the voxels are zero.

    Args:
        n_in: number of voxels along the axis.
        centres: (n_out,) places in voxel indices.
        step: distance between two places in voxels.
    """
    width = max(1.0, abs(step))
    away = np.arange(n_in)[None] - centres[:, None]
    weights = np.maximum(0.0, 1 - np.abs(away) / width)
    if width > 1:
        # The voxels lie unevenly under a wide triangle: tilt it until its centre of mass is right.
        first, second = ((weights * away**k).sum(axis=1) for k in (1, 2))
        within = (centres - width >= -1) & (centres + width <= n_in)
        tilt = np.divide(first, second, out=np.zeros_like(first), where=within & (second > 0))
        weights *= 1 - tilt[:, None] * away
    outside = (centres < -0.5) | (centres > n_in - 0.5)
    sums = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
    weights[outside] = 0
    return weights.astype(np.float32)


def apply_axes(array: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    """Apply one matrix to each spatial axis of (C, *spatial), one axis after the other.

    What all weights of an axis pass over is left out. The result lies in memory as the array does.
    """
    spans = [box_of(matrix != 0) for matrix in matrices]
    rows, columns = zip(*spans, strict=True)
    shape = (len(array), *map(len, matrices))
    order = sorted(range(array.ndim), key=lambda a: -abs(array.strides[a]) if a else -math.inf)
    back = np.argsort(order)
    whole = np.zeros([shape[a] for a in order], np.float32).transpose(back)
    if not all(row.stop for row in rows):
        return whole  # no place lies on the array
    inner = np.asarray(array[(slice(None), *columns)], np.float32).transpose(order)
    for axis, (matrix, row, column) in enumerate(
        zip(matrices, rows, columns, strict=True), start=1
    ):
        inner = _along(inner, order.index(axis), matrix[row, column])
    whole[(slice(None), *rows)] = inner.transpose(back)
    return whole


def _along(array: np.ndarray, axis: int, matrix: np.ndarray) -> np.ndarray:
    """Apply a matrix to one axis; of an array whose axes lie in order no number is moved."""
    if len(matrix) == array.shape[axis] and np.array_equal(matrix, np.eye(len(matrix))):
        return array  # slices that stay what they are
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    if after:
        flat = array.reshape(-1, array.shape[axis], math.prod(after))
        found = np.matmul(matrix, flat)
    else:
        found = array.reshape(-1, array.shape[axis]) @ matrix.T
    return found.reshape(*before, len(matrix), *after)


@dataclass(frozen=True)
class Grid:
    """A working grid: place w along working axis a lies at source index start[a] + step[a] * w.

    Attributes:
        axes: source axis of each working axis.
        start: source index of the first working voxel, per working axis.
        step: source voxels per working voxel, signed, per working axis.
        shape: shape of the working grid.
        source_shape: spatial shape of the scan.
    """

    axes: tuple[int, ...]
    start: tuple[float, ...]
    step: tuple[float, ...]
    shape: tuple[int, ...]
    source_shape: tuple[int, ...]

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Bring numbers (C, *source_shape) onto the working grid; outside the scan it is zero."""
        moved = array.transpose(0, *(a + 1 for a in self.axes))
        matrices = [
            axis_weights(
                moved.shape[i + 1], self.start[i] + self.step[i] * np.arange(n), self.step[i]
            )
            for i, n in enumerate(self.shape)
        ]
        return np.ascontiguousarray(apply_axes(moved, matrices))

    def nearest(self, array: np.ndarray) -> np.ndarray:
        """Bring labels (C, *source_shape) onto the working grid; outside the scan they are zero."""
        moved = array.transpose(0, *(a + 1 for a in self.axes))
        for axis, n in enumerate(self.shape):
            size = moved.shape[axis + 1]
            centres = self.start[axis] + self.step[axis] * np.arange(n)
            places = np.clip(np.floor(centres + 0.5).astype(int), 0, size - 1)
            moved = np.take(moved, places, axis + 1)
            outside = (centres < -0.5) | (centres > size - 0.5)
            moved[(slice(None),) * (axis + 1) + (outside,)] = 0
        return np.ascontiguousarray(moved)

    def backward(self, array: np.ndarray) -> np.ndarray:
        """Bring (C, *shape) onto the scan's own grid; outside the working grid it is zero.

        The first axis of a volume is the one whose voxels lie next to each other in memory.
        """
        matrices = [
            axis_weights(
                n,
                (np.arange(self.source_shape[a]) - self.start[i]) / self.step[i],
                1 / self.step[i],
            )
            for i, (n, a) in enumerate(zip(self.shape, self.axes, strict=True))
        ]
        back = np.argsort(self.axes) + 1
        # In memory a volume lies as files store it, so that it needn't be turned over to be written.
        order = [0, *(back if len(back) == 2 else back[::-1])]
        turned = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
        return apply_axes(turned, matrices).transpose(0, *back)

    def affine(self, source: np.ndarray) -> np.ndarray:
        """Return the affine of the working grid, (4, 4)."""
        to_source = np.eye(4)
        to_source[: len(self.axes), : len(self.axes)] = 0
        for i, a in enumerate(self.axes):
            to_source[a, i] = self.step[i]
            to_source[a, 3] = self.start[i]
        return source @ to_source


def orient(scan: Scan, upright: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return source axis and sign for each working axis.

    Args:
        scan: 2D or 3D.
        upright: a volume is to be cut into axial slices, so its first two axes are laid out as a
            picture; otherwise RAS+. A 2D scan is always upright.
    """
    world = _axes(np.ascontiguousarray(scan.affine, np.float64).tobytes())[: scan.dims]
    target: tuple[tuple[int, int], ...]
    if scan.dims == 3:
        target = UPRIGHT_SLICES if upright else RAS
    else:
        low, high = sorted(int(w) for w in world[:, 0])
        target = ((high, -1), (low, 1))
    found = {int(w): (axis, int(sign)) for axis, (w, sign) in enumerate(world)}
    axes = tuple(found[w][0] for w, _ in target)
    signs = tuple(found[w][1] * sign for w, sign in target)
    return axes, signs


@lru_cache(maxsize=256)
def _axes(affine: bytes) -> np.ndarray:
    """World axis and direction of each array axis; the pictures of a cohort share an affine."""
    from nibabel.orientations import io_orientation

    found = io_orientation(np.frombuffer(affine).reshape(4, 4))
    found.setflags(write=False)
    return found


def fit_grid(
    scan: Scan,
    box: tuple[tuple[int, int], ...],
    size: tuple[int | None, ...],
    spacing: float | None,
    fit: Fit,
    upright: bool,
    share: float = 1.0,
) -> Grid:
    """Lay a working grid of a given size over a box of the scan.

    Args:
        scan: 2D or 3D.
        box: first and last+1 index of the region of interest, per source axis.
        size: voxels per working axis; None keeps the scan's own slices along that axis.
        spacing: millimetres per working voxel; None scales the box to fill the grid.
        fit: ``stretch`` scales each axis on its own; ``pad`` all alike, so that the longest fills the
            grid; ``cover`` so that the shortest does, and the others reach beyond it.
        upright: see ``orient``.
        share: of each scaled axis, about its middle, that fills the grid.
    """
    axes, signs = orient(scan, upright)
    extent = [box[a][1] - box[a][0] for a in axes]
    mm = [scan.spacing[a] for a in axes]
    fitted = [share * e * m / n for e, m, n in zip(extent, mm, size, strict=True) if n]
    common = min(fitted) if fit == "cover" else max(fitted, default=0.0)
    start, step, shape = [], [], []
    for i, n in enumerate(size):
        if n is None:
            scale, n = 1.0, extent[i]
        elif spacing is not None:
            scale = spacing / mm[i]
        else:
            scale = share * extent[i] / n if fit == "stretch" else common / mm[i]
        middle = (box[axes[i]][0] + box[axes[i]][1] - 1) / 2
        start.append(middle - signs[i] * scale * (n - 1) / 2)
        step.append(signs[i] * scale)
        shape.append(n)
    return Grid(axes, tuple(start), tuple(step), tuple(shape), scan.shape)
