"""NaN around the anatomy, as SPM and fMRIPrep write it, is background; NaN inside it is a hole."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from normscan.errors import ScanError

SAID = "NaN around the anatomy is taken as background, as SPM and fMRIPrep mean it."


def fill_background(data: np.ndarray, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Give NaN around the anatomy the value of the background.

    That value is 0 where no value is below 0, else the lowest one. NaN lies around the anatomy where
    it is joined to the sides of the image, of a volume to those of two axes: a hole in the first
    slice is a hole.

    Args:
        data: (C, *spatial) without infinite values.
        path: to name it.

    Returns:
        The data without NaN, and what is to be said. A warning says it once in a process.

    Raises:
        ScanError: NaN inside of the anatomy, or nothing else.
    """
    if data.dtype.kind != "f":
        return data, ()
    holes = np.isnan(data)
    count = int(np.count_nonzero(holes))
    if count == 0:
        return data, ()
    if count == data.size:
        raise ScanError(
            f"{path}: {count} of {count} values are NaN, so there is nothing to see. Check the export."
        )
    inside = count - sum(_outside(channel) for channel in holes)
    if inside:
        raise ScanError(
            f"{path}: {inside} of {data.size} values are NaN inside of the anatomy, not around it. "
            "Replace them in the file, for example by the background value (numpy.nan_to_num)."
        )
    value = min(0.0, float(np.nanmin(data)))
    warnings.warn(SAID, stacklevel=2)
    note = f"{count} of {data.size} values are NaN around the anatomy: taken as background ({value:g})."
    return np.where(holes, data.dtype.type(value), data), (note,)


def _outside(holes: np.ndarray) -> int:
    """Count what is joined to the sides of the image."""
    from scipy.ndimage import label

    parts, _ = label(holes, np.ones((3,) * holes.ndim))
    long = [axis for axis in range(holes.ndim) if holes.shape[axis] > 1]
    touched = np.zeros(int(parts.max()) + 1, int)
    for axis in long:
        sides = np.concatenate([parts.take(0, axis).ravel(), parts.take(-1, axis).ravel()])
        touched[np.unique(sides)] += 1
    touched[0] = 0
    return int((touched >= min(2, len(long) - 1))[parts].sum())
