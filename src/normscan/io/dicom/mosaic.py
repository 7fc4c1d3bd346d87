"""Siemens mosaics: the planes of a volume as tiles of one picture.

The tiles run row by row from the upper left. Where they lie, three things say: the position of the
first is that of the picture moved by half of what the picture is larger than a tile, since the
header is made as if one plane filled it; the step is Spacing Between Slices; and its direction is
the slice normal of the private CSA header, which may run against row direction x column direction.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.dicom.values import fetch, number, numbers

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MOST_TILES = 4096
_SIEMENS, _IMAGE_HEADER = "SIEMENS CSA HEADER", 0x10


def place_tiles(
    data: Dataset, size: tuple[int, int], plane: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[int, np.ndarray]:
    """Find the tiles of a mosaic.

    Args:
        data: its header.
        size: rows and columns of the whole picture.
        plane: position, orientation and spacing that its header gives.

    Returns:
        How many tiles lie in a row, and (n, 3) LPS mm of the first pixel of each.

    Raises:
        ScanError: with the reason alone.
    """
    count, normal = _private(data)
    step = number(fetch(data, "SpacingBetweenSlices"))
    if step is None or step <= 0:
        raise ScanError("a mosaic without Spacing Between Slices, so its planes can't be placed")
    grid = math.isqrt(count - 1) + 1
    if size[0] % grid or size[1] % grid:
        raise ScanError(f"a mosaic of {count} planes that don't fill {size[0]} x {size[1]} pixels")
    position, orientation, spacing = plane
    row, column = orientation[:3], orientation[3:]
    if abs(abs(float(np.cross(row, column) @ normal)) - 1) > 0.01:
        raise ScanError("a mosaic whose slice normal isn't that of its orientation")
    rows, columns = (n - n // grid for n in size)
    first = position + row * spacing[1] * columns / 2 + column * spacing[0] * rows / 2
    return grid, first + np.arange(count)[:, None] * step * normal


def _private(data: Dataset) -> tuple[int, np.ndarray]:
    """Return the number of planes and the slice normal of the CSA header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its own reader experimental
        from nibabel.nicom import csareader

    try:
        raw = data.private_block(0x29, _SIEMENS)[_IMAGE_HEADER].value
        tags: dict[str, Any] = csareader.read(raw)["tags"]
        count = number(tags["NumberOfImagesInMosaic"]["items"][0])
        normal = numbers(tags["SliceNormalVector"]["items"], 3)
    except Exception:  # missing, or anything at all in a private block
        count = normal = None
    if count is None or normal is None or not 1 <= count <= MOST_TILES:
        raise ScanError(
            "a mosaic: many planes side by side in one picture, without the private CSA header that "
            "places them. Export it again with its private elements, or convert it with dcm2niix"
        )
    return int(count), normal / max(float(np.linalg.norm(normal)), 1e-6)
