"""Checks of anomaly maps, masks and evaluation regions, shared with the pixel threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError

Singles = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def checked_map(map: npt.ArrayLike, region: npt.ArrayLike | None) -> tuple[Singles, Mask]:
    """Return the map as float32 and the boolean region of its pixels that count.

    Args:
        map: anomaly map (H, W) or (D, H, W); may be infinite, not NaN inside the region.
        region: pixels that count, same shape; None for all.

    Raises:
        ArgumentError: another number of dimensions, shapes that differ, NaN, or an empty region.
    """
    values = np.asarray(map, dtype=np.float32)
    if values.ndim not in (2, 3):
        raise ArgumentError(f"An anomaly map has 2 or 3 dimensions, not shape {values.shape}.")
    inside = np.ones(values.shape, bool)
    if region is not None:
        inside = checked_mask(region, values.shape, "evaluation region")
    if not inside.any():
        raise ArgumentError("No pixel of the anomaly map is inside the evaluation region.")
    missing = np.isnan(values)
    bad = int((missing & inside).sum()) if missing.any() else 0
    if bad:
        raise ArgumentError(
            f"{bad} of {int(inside.sum())} evaluated pixels of the anomaly map are NaN."
        )
    return values, inside


def checked_mask(mask: npt.ArrayLike, shape: tuple[int, ...], what: str) -> Mask:
    """Return a mask as booleans (anything but 0 is inside), or refuse a wrong shape or NaN."""
    values: npt.NDArray[Any] = np.asarray(mask)
    if values.shape != shape:
        raise ArgumentError(
            f"The {what} has shape {values.shape}, the anomaly map {shape}; they must agree."
        )
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ArgumentError(f"The {what} contains NaN.")
    return values.astype(bool)
