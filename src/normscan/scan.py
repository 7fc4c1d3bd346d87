"""The one image type: an array with its geometry, from one PNG slice to a multi-channel volume."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan import notebook
from normscan.display import RASTER_AFFINE as RASTER_AFFINE
from normscan.display import planes
from normscan.errors import ScanError, printable

if TYPE_CHECKING:
    from normscan.series import Series


def is_colour(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Tell whether an array lies as pictures do, with three colours or four with alpha last."""
    return len(shape) == 3 and shape[-1] in (3, 4) and dtype.kind == "u" and dtype.itemsize <= 2


def colour_first(array: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (H, W, 3 or 4) as channels first without alpha; three equal ones become grey."""
    data = np.moveaxis(array[..., :3], -1, 0)
    if np.array_equal(data[0], data[1]) and np.array_equal(data[0], data[2]):
        return data[:1], ("grey",)
    return data, ("red", "green", "blue")


@dataclass(frozen=True, eq=False)
class Scan:
    """One image or volume.

    Attributes:
        data: array (C, *spatial) float32 with two or three spatial axes, in the units of the file.
        affine: (4, 4) float64, array index (i, j, k) to RAS+ millimetres; k = 0 for a 2D scan.
        channels: one name per channel.
        source: path of the file it came from, or None for an array.
        dtype: data type in the file, for example ``uint16``.
        extra: what a writer needs to put a map back beside the file (header codes, stored shape).
        series: where every plane of a DICOM series lies, and the way back onto its planes.
    """

    data: np.ndarray
    affine: np.ndarray
    channels: tuple[str, ...]
    source: Path | None = None
    dtype: str = "float32"
    extra: dict[str, Any] = field(default_factory=dict)
    series: Series | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        name = self.name
        if self.data.ndim not in (3, 4):
            raise ScanError(
                f"{name}: a scan has 2 or 3 spatial axes and a channel axis in front, not the shape "
                f"{self.data.shape}. Split a series into its volumes."
            )
        if self.data.size == 0 or min(self.data.shape) == 0:
            raise ScanError(f"{name}: the image is empty, its shape is {self.data.shape}.")
        if len(self.channels) != self.data.shape[0]:
            raise ScanError(
                f"{name}: {len(self.channels)} channel names for {self.data.shape[0]} channels."
            )
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ScanError(f"{name}: the affine must be a finite 4 x 4 matrix.")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ScanError(f"{name}: the affine is singular, so the voxels have no size.")
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "data", np.asarray(self.data, dtype=np.float32))

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        spacing: float | tuple[float, ...] | None = None,
        affine: np.ndarray | None = None,
        channels: tuple[str, ...] | None = None,
        source: Path | None = None,
        dtype: str | None = None,
        stack: bool = False,
    ) -> Scan:
        """Make a scan of an array.

        Args:
            array: (H, W) or (D, H, W) for one channel; (C, H, W) or (C, D, H, W) with ``channels``.
                Eight or 16 bits without a sign of (H, W, 3) or (H, W, 4) are a colour picture, as
                Pillow and OpenCV give it, unless ``stack``, ``affine`` or three spacings say that
                it is a volume.
            spacing: millimetres per step along each spatial axis; 1 by default.
            affine: (4, 4) index to RAS+ millimetres, instead of ``spacing``.
            channels: names of the channels of the leading axis; None means that there is no
                channel axis.
            source: path to name in messages.
            dtype: data type of the file; that of the array by default.
            stack: an array of three axes is a volume, whatever the length of the last.

        Raises:
            ScanError: wrong number of axes, spacing that is not positive, singular affine.
        """
        array = np.asarray(array)
        volume = isinstance(spacing, tuple) and len(spacing) == 3
        told = stack or volume or channels is not None or affine is not None
        if not told and is_colour(array.shape, array.dtype):
            array, channels = colour_first(array)
        data = array if channels is not None else array[None]
        dims = data.ndim - 1
        known = affine is not None or spacing is not None
        if affine is None:
            steps = np.ones(3)
            if spacing is not None:
                given = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (dims,))
                if not (np.isfinite(given).all() and (given > 0).all()):
                    raise ScanError(
                        f"{source or 'array'}: spacing {spacing} must be positive (mm)."
                    )
                steps[:dims] = given
            base = RASTER_AFFINE if dims == 2 else np.eye(4)
            affine = base @ np.diag([*steps, 1.0])
        return cls(
            data=data.astype(np.float32, copy=False),
            affine=affine,
            channels=channels or ("image",),
            source=source,
            dtype=dtype or str(array.dtype),
            extra={"spacing_known": True} if known else {},
        )

    @property
    def name(self) -> str:
        """File name without the folder, or ``array``."""
        return printable(self.source.name) if self.source else "array"

    @property
    def dims(self) -> int:
        """Number of spatial axes: 2 or 3."""
        return self.data.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape, without channels."""
        return self.data.shape[1:]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres per step along each spatial axis."""
        columns = np.linalg.norm(self.affine[:3, : self.dims], axis=0)
        return tuple(float(s) for s in columns)

    @property
    def measured(self) -> bool:
        """Whether its millimetres are known; without a spacing in the file they are pixels."""
        told = "nifti" in self.extra or bool(self.extra.get("spacing_known"))
        return told or not np.allclose(self.spacing, 1)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm3; for a 2D scan the area of a pixel in mm2."""
        return float(np.prod(self.spacing))

    @property
    def is_rgb(self) -> bool:
        """Whether its three channels are red, green and blue."""
        return len(self.data) == 3 and self.channels == ("red", "green", "blue")

    def _repr_html_(self) -> str:
        """Return small pictures of it, and what it is, for a notebook."""
        size = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{s:.3g}" for s in self.spacing) if self.measured else ""
        facts = {
            "size": size,
            "spacing": f"{spacing} mm" if spacing else None,
            "channels": ", ".join(self.channels),
            "in the file": self.dtype,
        }
        found = planes(self.data, self.affine, rgb=self.is_rgb)
        return notebook.page(f"Scan {self.name}", facts, [(plane, None, "") for plane in found])

    def show(self, at: tuple[int, ...] | None = None, turn: bool = True) -> Any:
        """Return a figure of it; a volume in a notebook as a widget, where ipyniivue is installed.

        Args:
            at: index of the voxel through which planes go; the middle by default.
            turn: show a volume as a widget; else its planes.
        """
        if turn and at is None and self.dims == 3:
            named = [(self.name, self.data[0], None)]
            if (widget := notebook.turned(named, self.affine)) is not None:
                return widget
        return notebook.draw(
            planes(self.data, self.affine, at=at, rgb=self.is_rgb), title=self.name
        )

    def with_note(self, said: str) -> Scan:
        """Return the scan with a further note for its finding."""
        return replace(self, extra={**self.extra, "notes": (*self.extra.get("notes", ()), said)})

    def with_data(self, data: np.ndarray, channels: tuple[str, ...] | None = None) -> Scan:
        """Return the same geometry with other values, (C, *shape)."""
        if data.shape[1:] != self.shape:
            raise ScanError(
                f"{self.name}: data of shape {data.shape[1:]} on a grid of {self.shape}."
            )
        names = channels or (
            self.channels if len(data) == len(self.channels) else tuple(map(str, range(len(data))))
        )
        return replace(self, data=data, channels=names)
