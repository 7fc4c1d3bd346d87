"""How large the pixels of a TIFF are: OME and ImageJ descriptions, resolution tags."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from normscan.scan import RASTER_AFFINE

# Millimetres per unit. Inches are print resolutions in practice (72 dpi), so they tell nothing.
_UNIT_TAG = {3: 10.0, 4: 1.0, 5: 1e-3}
_UNIT_NAME = {
    "m": 1000.0, "meter": 1000.0, "metre": 1000.0,
    "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0,
    "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0,
    "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3,
    "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6,
}  # fmt: skip

Spacing = tuple[float, float, float]


def spacing_of(tif: Any, page: Any) -> Spacing | None:
    """Return mm between pages (0 where unknown), rows and columns, or None where unknown.

    Args:
        tif: the open ``tifffile.TiffFile``.
        page: whose tags count.
    """
    found = _from_ome(tif) if tif.is_ome else None
    found = found or _from_tags(tif, page)
    if found is None or not all(math.isfinite(s) and s > 0 for s in found[1:]):
        return None
    return (found[0] if math.isfinite(found[0]) and found[0] > 0 else 0.0, *found[1:])


def geometry(
    dims: int, known: Spacing | None, orientation: int
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the affine: columns towards +x, rows towards -y, pages towards +z."""
    if known is not None and orientation in (5, 6, 7, 8):
        known = (known[0], known[2], known[1])
    complete = known is not None and (dims == 2 or known[0] > 0)
    pages, rows, columns = known if complete and known is not None else (1.0, 1.0, 1.0)
    if dims == 2:
        affine = RASTER_AFFINE @ np.diag([rows, columns, 1.0, 1.0])
    else:
        affine = np.array([[0, 0, columns, 0], [0, -rows, 0, 0], [pages, 0, 0, 0], [0, 0, 0, 1.0]])
    return affine, {"spacing_known": True} if complete else {}


def _from_ome(tif: Any) -> Spacing | None:
    """Take PhysicalSizeX, Y and Z of the first image; micrometres unless a unit is named."""
    # No XML parser is let loose on what anyone may have written.
    start = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", tif.ome_metadata or "")
    if start is None:
        return None
    steps = {}
    for axis in "XYZ":
        size = re.search(rf'\bPhysicalSize{axis}\s*=\s*"([^"]*)"', start.group())
        unit = re.search(rf'\bPhysicalSize{axis}Unit\s*=\s*"([^"]*)"', start.group())
        scale = _unit(unit.group(1)) if unit else 1e-3
        steps[axis] = _number(size.group(1) if size else "") * (scale or math.nan)
    return (steps["Z"], steps["Y"], steps["X"])


def _from_tags(tif: Any, page: Any) -> Spacing | None:
    described = dict(tif.imagej_metadata or {})
    for entry in tif.shaped_metadata or ():
        described |= entry
    unit = _unit(str(described.get("unit", "")))
    tag = page.tags.get(296)
    unit_xy = _UNIT_TAG.get(int(tag.value)) if tag is not None else None
    if tif.is_imagej and "unit" in described:  # what ImageJ describes goes before the tag
        unit_xy = unit
    if unit_xy is None:
        return None
    columns, rows = (_step(page, code) * unit_xy for code in (282, 283))
    return (_number(described.get("spacing", 0)) * (unit or 0.0), rows, columns)


def _unit(text: str) -> float | None:
    """Return mm per unit, or None for one that says nothing of the anatomy (pixel, inch)."""
    word = text.replace("\\u00B5", "µ").strip().lower()
    return _UNIT_NAME.get(word) or _UNIT_NAME.get(word.removesuffix("s"))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _step(page: Any, code: int) -> float:
    tag = page.tags.get(code)
    value = tag.value if tag is not None else (0, 1)
    over, under = value if isinstance(value, tuple) else (value, 1)
    return float(under / over) if over else math.nan
