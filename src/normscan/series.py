"""What a scan from DICOM carries beside its array: every plane's true place, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.errors import ScanError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Layout:
    """How planes become a grid.

    Attributes:
        order: (n,) which plane comes first, second, ... along the normal.
        affine: (4, 4) grid index (column, row, plane) to RAS mm.
        shape: (X, Y, Z) of the grid.
        steps: (n - 1,) mm along the normal.
        regular: the grid is the planes themselves.
        tilted: the planes drift within their plane.
        tilt: degrees between the normal and the way of the planes.
        weights: of an irregular series: per grid plane the stored plane below, and the part of the
            way to the next.
        shifts: (Z, 2) column and row of the stored pixels at which the grid's first pixel lies.
    """

    order: np.ndarray
    affine: np.ndarray
    shape: tuple[int, int, int]
    steps: np.ndarray
    regular: bool = True
    tilted: bool = False
    tilt: float = 0.0
    weights: tuple[np.ndarray, np.ndarray] | None = None
    shifts: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Series:
    """The planes of a DICOM series, in the order of the array.

    The stored grid is (n, rows, columns), planes sorted along their normal. The scan grid is what
    ``Scan.data`` and ``Scan.affine`` describe: (columns, rows, planes) for a volume, (rows, columns)
    for a single plane. For a regular series the two hold the same values; an irregular one is
    resampled, see ``regular``.

    Attributes:
        uid: Series Instance UID.
        modality: CT, MR, DX, ...
        positions: (n, 3) float64 LPS mm, centre of the first pixel of each plane.
        orientations: (n, 6) float64 direction of the rows (along which the column index grows), then
            of the columns.
        spacings: (n, 2) float64 mm between rows, between columns.
        uids: SOP Instance UID of each plane.
        frames: frame number in its file, from 1; 0 for single-frame files.
        size: rows, columns.
        shape: spatial shape of the scan grid.
        affine: (4, 4) scan grid index to RAS mm.
        steps: (n - 1,) mm between planes along the normal.
        regular: the planes are evenly spaced, parallel and don't drift.
        tilted: they drift sideways, as with a tilted gantry.
        tilt: degrees.
        placed: False for pictures without a place in the patient: their positions are those of a
            raster picture.
        frame_of_reference: UID, or an empty string.
        lossy: values were lost in compression.
        inverted: MONOCHROME1, turned over so that higher is brighter.
        window: how the file wants to be shown (``window`` pairs of centre and width, ``function``,
            ``table``, ``shape``); not applied.
        notes: what was changed or decided on the way, one sentence each.
        layout: how the planes became the grid.
        read_headers: gives the cleaned headers when they are asked for, see ``headers``.
    """

    uid: str
    modality: str
    positions: np.ndarray
    orientations: np.ndarray
    spacings: np.ndarray
    uids: tuple[str, ...]
    frames: tuple[int, ...]
    size: tuple[int, int]
    shape: tuple[int, ...]
    affine: np.ndarray
    steps: np.ndarray
    regular: bool = True
    tilted: bool = False
    tilt: float = 0.0
    placed: bool = True
    frame_of_reference: str = ""
    lossy: bool = False
    inverted: bool = False
    window: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layout: Layout | None = field(default=None, repr=False)
    read_headers: Callable[[], tuple[Dataset, ...]] = field(default=tuple, repr=False)

    @cached_property
    def headers(self) -> tuple[Dataset, ...]:
        """One cleaned header a plane, without pixels; see ``normscan.io.dicom.header.clean``.

        The planes of a multi-frame file share one. They hold the patient's identity, as whoever
        writes results beside the series needs it: never print or log them.
        """
        return self.read_headers()

    def points(self, plane: Any, row: Any, column: Any) -> np.ndarray:
        """Return where stored pixels lie, exactly as their headers say (PS3.3 C.7.6.2.1.1).

        Args:
            plane: number of the plane, or an array of them.
            row: row index, whole or between two rows.
            column: column index.

        Returns:
            (..., 3) RAS mm, of the shape to which the three broadcast.
        """
        planes, rows, columns = np.broadcast_arrays(plane, row, column)
        planes = planes.astype(int)
        across = (columns * self.spacings[planes, 1])[..., None] * self.orientations[planes, :3]
        down = (rows * self.spacings[planes, 0])[..., None] * self.orientations[planes, 3:]
        return (self.positions[planes] + (across + down)) @ LPS_TO_RAS[:3, :3]

    def to_planes(self, array: np.ndarray, order: int = 1) -> np.ndarray:
        """Bring a map from the scan grid back onto the stored planes.

        A regular series is copied value by value. For an irregular one each stored pixel looks up
        its true place in the map, so what comes out lies on the images as they are in the archive.

        Args:
            array: map of the shape of the scan grid.
            order: 1 linear, 0 nearest (masks).

        Returns:
            (n, rows, columns).

        Raises:
            ScanError: another shape.
        """
        array = np.asarray(array)
        if array.shape != self.shape:
            raise ScanError(f"a map of shape {array.shape} on a series of {self.shape}.")
        if array.ndim == 2:
            return array[None].copy()
        if self.regular:
            return np.ascontiguousarray(array.transpose(2, 1, 0))
        from scipy.ndimage import map_coordinates

        kind = array.dtype if order == 0 or array.dtype.kind == "f" else np.dtype(np.float32)
        values = array.astype(kind if array.dtype != bool else np.uint8, copy=False)
        result = np.empty((len(self.positions), *self.size), kind)
        inverse = np.linalg.inv(self.affine)
        rows, columns = np.meshgrid(*map(np.arange, self.size), indexing="ij")
        for k in range(len(result)):
            index = self.points(k, rows, columns) @ inverse[:3, :3].T + inverse[:3, 3]
            # Rounding may put an edge a hair outside, where the last voxel holds.
            found = map_coordinates(values, np.moveaxis(index, -1, 0), order=order, mode="nearest")
            result[k] = found
        return result

    def from_planes(self, array: np.ndarray, order: int = 1, fill: float = 0.0) -> np.ndarray:
        """Bring values from the stored planes onto the scan grid, as the images themselves were.

        Args:
            array: (n, rows, columns).
            order: 1 linear, 0 nearest (masks).
            fill: value of the grid outside the stored pixels.

        Returns:
            Array of the shape of the scan grid.

        Raises:
            ScanError: another shape.
        """
        array = np.asarray(array)
        if array.shape != (len(self.positions), *self.size):
            raise ScanError(
                f"planes of shape {array.shape} for a series of "
                f"{(len(self.positions), *self.size)}."
            )
        if len(self.shape) == 2:
            return np.asarray(array[0].copy())
        if self.layout is None or self.regular:
            return np.ascontiguousarray(array.transpose(2, 1, 0))
        kind = np.float32 if array.dtype.kind != "f" else array.dtype
        found = from_planes(self.layout, array.astype(kind, copy=False), order, fill)
        return found.astype(array.dtype) if order == 0 else found


def from_planes(layout: Layout, stack: np.ndarray, order: int = 1, fill: float = 0.0) -> np.ndarray:
    """Bring sorted planes (n, rows, columns) onto the grid (X, Y, Z), linearly or by the nearest.

    Between two planes both are taken at the same pixel and moved to where that pixel lies, so a
    structure is followed along the drift of a tilted series. Outside the stored pixels is ``fill``.
    """
    if layout.weights is None or layout.shifts is None:
        return stack.transpose(2, 1, 0)
    below, part = layout.weights
    result = np.empty(layout.shape[::-1], np.float32)
    for k in range(layout.shape[2]):
        first, weight = stack[below[k]], float(part[k])
        if order == 0 or weight in (0.0, 1.0):
            blended = stack[below[k] + (weight >= 0.5)]
        else:
            blended = first + np.float32(weight) * (stack[below[k] + 1] - first)
        result[k] = _moved(blended, layout.shifts[k], layout.shape[1::-1], order, fill)
    return result.transpose(2, 1, 0)


def _moved(
    plane: np.ndarray, shift: np.ndarray, size: tuple[int, ...], order: int, fill: float
) -> np.ndarray:
    """Sample a plane (rows, columns) at places that are all moved by (columns, rows)."""
    for axis, (n, by) in enumerate(zip(size, shift[::-1], strict=True)):
        have = plane.shape[axis]
        places = np.arange(n) + by
        if order == 0:
            places = np.round(places)
        outside = (places < -0.01) | (places > have - 1 + 0.01)
        places = np.clip(places, 0, have - 1)
        low = np.minimum(places.astype(int), max(have - 2, 0))
        part = (places - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        lower = np.take(plane, low, axis)
        plane = lower + part * (np.take(plane, np.minimum(low + 1, have - 1), axis) - lower)
        plane[(outside, slice(None)) if axis == 0 else (slice(None), outside)] = fill
    return plane
