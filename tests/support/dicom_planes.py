"""Where the planes of the DICOM files made by the tests lie, and how their ramps are stored.

The geometry follows the standard alone (PS3.3 C.7.6.2.1.1, Image Position and Orientation): the
centre of the pixel in column i and row j lies at

    position + row_direction * column_spacing * i + column_direction * row_spacing * j

in LPS millimetres, where Image Orientation (Patient) holds the row direction, then the column
direction, and Pixel Spacing holds the row spacing, then the column spacing. Nothing of the package
under test is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Planes:
    """Where the planes of a series lie, in LPS millimetres.

    Attributes:
        positions: (n, 3) centre of the first pixel of each plane.
        rows_along: (3,) row direction, in which the column index grows.
        columns_along: (3,) column direction, in which the row index grows.
        spacing: row spacing (between rows), column spacing (between columns).
        shape: rows, columns.
    """

    positions: np.ndarray
    rows_along: np.ndarray
    columns_along: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.rows_along, self.columns_along)

    @property
    def points(self) -> np.ndarray:
        """(n, rows, columns, 3) centre of every pixel by C.7.6.2.1.1."""
        across = np.arange(self.shape[1])[None, :, None] * self.spacing[1] * self.rows_along
        down = np.arange(self.shape[0])[:, None, None] * self.spacing[0] * self.columns_along
        return self.positions[:, None, None, :] + (across + down)

    def take(self, order: Sequence[int] | slice) -> Planes:
        """Some of the planes, in another order."""
        return replace(self, positions=self.positions[order])

    def inside(self, points: np.ndarray, margin: float = 1e-6) -> np.ndarray:
        """Which points (..., 3) lie between the first and last plane and within their pixels."""
        along = self.positions @ self.normal
        assert (np.diff(along) > 0).all(), "planes in the order of the normal"
        t = points @ self.normal
        origin = np.stack([np.interp(t, along, p) for p in self.positions.T], axis=-1)
        i = (points - origin) @ self.rows_along / self.spacing[1]
        j = (points - origin) @ self.columns_along / self.spacing[0]
        rows, columns = self.shape
        return (
            (t >= along[0] - margin) & (t <= along[-1] + margin)
            & (i >= -margin) & (i <= columns - 1 + margin)
            & (j >= -margin) & (j <= rows - 1 + margin)
        )  # fmt: skip


AXIAL, CORONAL, SAGITTAL = (
    np.array(rows, float)
    for rows in ([[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, -1]], [[0, 1, 0], [0, 0, -1]])
)


def oblique(degrees: Sequence[float] = (17, -23, 31)) -> np.ndarray:
    """(2, 3) row and column direction of the axial planes turned about x, y and z."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", degrees, degrees=True).apply(AXIAL)


def make_planes(
    directions: np.ndarray = AXIAL,
    steps: float | Sequence[float] = 2.5,
    tilt: float = 0.0,
    count: int = 9,
    shape: tuple[int, int] = (14, 17),
    spacing: tuple[float, float] = (0.9, 1.3),
    origin: tuple[float, float, float] = (-31.25, 12.5, 40.0),
) -> Planes:
    """Planes sorted along their normal; ``tilt`` degrees turn the way of the table off the normal."""
    along, down = directions
    way = np.cos(np.radians(tilt)) * np.cross(along, down) + np.sin(np.radians(tilt)) * down
    steps = [float(steps)] * (count - 1) if np.isscalar(steps) else list(steps)
    travelled = np.concatenate([[0.0], np.cumsum(steps)])
    return Planes(np.array(origin) + travelled[:, None] * way, along, down, spacing, shape)


@dataclass(frozen=True)
class Encoding:
    """How numbers are stored: value = slope * stored + intercept, quantised to half a slope."""

    slope: float
    intercept: float
    bits: int = 16
    signed: bool = False
    allocated: int = 16

    @classmethod
    def of(cls, values: np.ndarray, bits: int = 16, signed: bool = False) -> Encoding:
        """The finest power-of-two slope that holds the values, exact as a decimal string."""
        low, high = np.floor(values.min()), np.ceil(values.max())
        slope = 2.0 ** np.ceil(np.log2((high - low) / (2**bits - 1)))
        half = slope * 2 ** (bits - 1) if signed else 0.0
        return cls(float(slope), float(low + half), bits, signed, 8 if bits <= 8 else 16)

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Values as the integers of the file."""
        whole = np.rint((values - self.intercept) / self.slope)
        low = -(2 ** (self.bits - 1)) if self.signed else 0
        assert whole.min() >= low and whole.max() < low + 2**self.bits, "ramp beyond the bits"
        return whole.astype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")
