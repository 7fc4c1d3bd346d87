"""Volumes as the page takes them: NIfTI in 16 bits on the scan's own grid, planes as pictures."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from normscan.io import read_scan
from normscan.io.shown import is_colour_scan
from normscan.report.figures import (
    display_image,
    overlay_levels,
    overlay_table,
    upright,
    window,
)
from normscan.report.orientation import display_of, is_raster, upright_spacing
from normscan.scan import Scan

# Pixels of the longer side of a plane, as a picture.
SIDE = 420


class Volumes:
    """The last few files that were read: a page asks for several views of the same scan.

    Args:
        most: volumes kept in memory; one at a time is read.
    """

    def __init__(self, most: int = 3) -> None:
        self.most = most
        self._lock = Lock()
        self._kept: OrderedDict[tuple[Path, int, int], Scan] = OrderedDict()

    def read(self, path: Path) -> Scan:
        """Read a file, or return it as it was read before."""
        stamp = path.stat()
        key = (path, stamp.st_mtime_ns, stamp.st_size)
        with self._lock:
            if key not in self._kept:
                while len(self._kept) >= self.most:
                    self._kept.popitem(last=False)
                self._kept[key] = read_scan(path)
            self._kept.move_to_end(key)
            return self._kept[key]


def as_plane(
    scan: Scan,
    axis: int,
    index: int,
    map: Scan | None = None,
    scale: tuple[float, float] = (0.0, 1.0),
    opacity: float = 0.7,
    radiological: bool = True,
) -> bytes:
    """Draw one plane of a scan, with its map over it, as PNG.

    Args:
        scan: what is shown.
        axis: of the array, across which the plane lies; the last one of a picture.
        index: of the plane; the nearest there is.
        map: on the same grid.
        scale: map values where the overlay begins and where it is brightest.
        opacity: of the overlay, 0 to 1.
        radiological: the patient's right at the left, where the scan lies in a patient.
    """
    affine = scan.affine
    image, over = scan.data, None if map is None else map.data[0]
    if scan.dims == 3:
        axis = int(np.clip(axis, 0, 2))
        index = int(np.clip(index, 0, scan.shape[axis] - 1))
        affine = affine[:, [*(k for k in range(3) if k != axis), axis, 3]]
        limits = window(image, False)
        image = image.take(index, axis + 1)
        over = None if over is None else over.take(index, axis)
    else:
        limits = window(image, is_colour_scan(scan))
    drawn = Image.fromarray(
        np.ascontiguousarray(display_image(upright(image, affine), limits, is_colour_scan(scan)))
    ).convert("RGBA")
    if over is not None:
        table = overlay_table().copy()
        table[:, 3] = np.round(255 * opacity)
        table[0, 3] = 0
        levels = overlay_levels(upright(over, affine), scale)
        drawn.alpha_composite(Image.fromarray(table[levels], "RGBA"))
    mirrored = radiological and not is_raster(scan.affine) and display_of(affine).column_axis == 0
    if mirrored:
        drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    row_mm, column_mm = upright_spacing(affine)
    extent = np.array([drawn.width * column_mm, drawn.height * row_mm])
    width, height = np.maximum(1, np.round(SIDE * extent / extent.max())).astype(int)
    buffer = io.BytesIO()
    drawn.resize((int(width), int(height)), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()


def place_of(scan: Scan, index: list[int]) -> list[float]:
    """Return where a voxel lies in the space of the volume, in RAS+ millimetres."""
    at = np.array([*index, *[0] * (3 - len(index)), 1.0])
    return [round(float(v), 3) for v in (scan.affine @ at)[:3]]


def map_range(scan: Scan, threshold: float | None) -> dict[str, float]:
    """Return ``low``, ``high`` and ``start`` of a map: its ends, and where the overlay begins."""
    values = scan.data[0][np.isfinite(scan.data[0])]
    if not values.size:
        values = np.zeros(1)
    low, high = float(values.min()), float(values.max())
    start = threshold if threshold is not None else float(np.percentile(values, 98))
    high = high if high > low else low + 1.0
    return {"low": low, "high": high, "start": min(max(start, low), high)}
