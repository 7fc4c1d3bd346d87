"""Volumes as the page takes them: NIfTI in 16 bits on the scan's own grid, planes as pictures."""

from __future__ import annotations

import io
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from normscan.display import cut, painted
from normscan.io import read_scan
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
    over = None if map is None else map.data[0]
    plane = cut(scan.data, scan.affine, axis, index, over, radiological, scan.is_rgb)
    drawn = painted(replace(plane, map=None), SIDE)
    if over is not None:
        drawn = Image.blend(drawn, painted(plane, SIDE, scale), opacity)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
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
