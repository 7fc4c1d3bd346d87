"""How a plane of a scan lies on the screen: upright, with the letters that a viewer would print."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from normscan.scan import RASTER_AFFINE


class Display(NamedTuple):
    """What turns a plane (i, j) upright, and where it then points.

    Attributes:
        transpose: axis j becomes the rows.
        flip_rows: reverse the rows, after the transposition.
        flip_columns: reverse the columns, after the transposition.
        row_axis: world axis (0 x, 1 y, 2 z) along which the rows run, towards its negative end.
        column_axis: world axis along which the columns run, towards its positive end.
    """

    transpose: bool
    flip_rows: bool
    flip_columns: bool
    row_axis: int
    column_axis: int


def display_of(affine: np.ndarray) -> Display:
    """Return how the plane of the first two axes of an affine (4, 4) is turned upright.

    Each array axis is given to the world axis it follows best, both together, so that a plane
    turned by almost 45 degrees still gets two different axes.
    """
    directions = np.asarray(affine, dtype=np.float64)[:3, :2]
    directions = directions / np.linalg.norm(directions, axis=0)
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    first, second = max(pairs, key=lambda p: abs(directions[p[0], 0]) + abs(directions[p[1], 1]))
    # The plane's higher world axis stands upright: z before y before x.
    transpose = second > first
    row, column = (second, first) if transpose else (first, second)
    row_step, column_step = directions[row, int(transpose)], directions[column, int(not transpose)]
    return Display(transpose, bool(row_step > 0), bool(column_step < 0), row, column)


def upright(plane: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn planes upright for display.

    Rows run from the top along -A, or along -S where the plane contains the z axis; columns run
    along +R, or along +A in a sagittal plane. The patient's right is therefore at the right (the
    neurological convention). A raster image (`RASTER_AFFINE`) comes out unchanged.

    Args:
        plane: array (..., i, j) whose last two axes are the first two of the affine.
        affine: (4, 4) array index to RAS+ millimetres.

    Returns:
        A view (..., rows, columns).
    """
    display = display_of(affine)
    if display.transpose:
        plane = np.swapaxes(plane, -1, -2)
    if display.flip_rows:
        plane = plane[..., ::-1, :]
    if display.flip_columns:
        plane = plane[..., ::-1]
    return plane


def upright_spacing(affine: np.ndarray) -> tuple[float, float]:
    """Return millimetres per row and per column of the upright plane."""
    steps = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :2], axis=0)
    i, j = float(steps[0]), float(steps[1])
    return (j, i) if display_of(affine).transpose else (i, j)


def is_raster(affine: np.ndarray) -> bool:
    """Tell whether the affine is only the stand-in of a picture file, which knows no patient."""
    affine = np.asarray(affine, dtype=np.float64)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(directions, RASTER_AFFINE[:3, :3]) and not affine[:3, 3].any())


def edge_letters(affine: np.ndarray) -> tuple[str, str] | None:
    """Return the letters at the top and the left edge of the upright plane; None for a raster."""
    if is_raster(affine):
        return None
    display = display_of(affine)
    return " AS"[display.row_axis], "LP"[display.column_axis]
