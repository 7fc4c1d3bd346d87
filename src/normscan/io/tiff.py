"""TIFF through tifffile: any depth, one page or a stack."""

from __future__ import annotations

import logging
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.files import (
    Decoded,
    Header,
    as_float32,
    check_size,
    decoding,
    orient,
    raster_channels,
)
from normscan.scan import RASTER_AFFINE

if TYPE_CHECKING:
    from normscan.scan import Scan

# Millimetres per unit. Inches are print resolutions in practice (72 dpi), so they tell nothing.
_UNIT_TAG = {3: 10.0, 4: 1.0, 5: 1e-3}
_UNIT_NAME = {"mm": 1.0, "cm": 10.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3}
MINISWHITE, MINISBLACK, RGB = 0, 1, 2
# Packings of at most 1032 to 1: none, deflate (two codes), PackBits.
_BOUNDED = (1, 8, 32946, 32773)
# tifffile tells of each odd tag on standard error; what matters is checked and raised here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read_tiff(path: Path) -> Decoded:
    """Decode a TIFF.

    Returns:
        Data (C, H, W) for one page. Several grey pages of the same size and type are a volume
        (1, pages, H, W), pages running towards +z. Spacing is taken where the file gives metric
        units (centimetre tag or ImageJ unit).

    Raises:
        ScanError: damaged file, pages of different sizes, colour stacks, unknown compression.
    """
    import tifffile

    with decoding(path, "TIFF"), tifffile.TiffFile(path) as tif:
        series, page = _series(tif, path)
        photometric = int(page.photometric)
        packed = photometric not in (MINISWHITE, MINISBLACK, RGB)
        try:
            values = None if packed else np.asarray(series.asarray(maxworkers=1))
        except ValueError as error:
            # tifffile alone unpacks deflate; Pillow knows LZW, JPEG and the fax codes.
            if "imagecodecs" not in str(error):
                raise
            values = None
        known = _spacing(tif, page)
        axes, bits, orientation = series.axes, int(page.bitspersample), _orientation(page)
        inverted = photometric == MINISWHITE
        pages = len(tif.pages)
        uncompressed = int(page.compression) == 1
    if values is None:
        return _through_pillow(path, pages)
    if values.shape != tuple(series.shape):  # tifffile logs what is missing and goes on
        raise ScanError(f"{path}: this TIFF is damaged or truncated. Copy it again.")
    if uncompressed and values.nbytes * bits // (8 * values.itemsize) > path.stat().st_size:
        raise ScanError(f"{path}: this TIFF is truncated. Copy it again from its source.")
    if inverted:
        values = _invert(values, bits, path)
    data = _channels_first(values, axes, path)
    dtype = "bool" if bits == 1 else str(values.dtype.newbyteorder("="))
    data, names = raster_channels(orient(data, orientation))
    affine, extra = _geometry(data.ndim - 1, known, orientation)
    return Decoded(as_float32(data, path), names, dtype, affine, extra)


def probe_tiff(path: Path) -> Header:
    """Read shape, type and spacing from the tags alone."""
    import tifffile

    with decoding(path, "TIFF"), tifffile.TiffFile(path) as tif:
        series, page = _series(tif, path)
        known = _spacing(tif, page)
        sizes = dict(zip(series.axes, series.shape, strict=True))
        channels = sizes.pop("S", 1)
        shape = tuple(int(n) for n in sizes.values() if n > 1 or len(sizes) <= 2)
        dtype = "bool" if page.bitspersample == 1 else str(np.dtype(page.dtype).newbyteorder("="))
        colours = {3: 3, 5: 3, 6: 3}.get(int(page.photometric), int(channels))
        kept = {2: 1, 4: 3}.get(colours, colours)
        swapped = _orientation(page) in (5, 6, 7, 8)
    if swapped:
        shape = (*shape[:-2], shape[-1], shape[-2])
    affine, extra = _geometry(len(shape), known, 6 if swapped else 1)
    spacing = None
    if affine is not None and extra.get("spacing_known"):
        spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, : len(shape)], axis=0))
    return Header(shape, kept, dtype, spacing)


def write_tiff(path: Path, array: np.ndarray, like: Scan) -> None:
    """Write (H, W) or (D, H, W) as grey pages, with the spacing in centimetre tags if known."""
    import tifffile

    options: dict[str, Any] = {"photometric": "minisblack"}
    known = "nifti" in like.extra or like.extra.get("spacing_known")
    if known:
        rows, columns = like.spacing[-2:]
        options |= {"resolution": (10 / columns, 10 / rows), "resolutionunit": "CENTIMETER"}
    if array.ndim == 3:
        options["metadata"] = {"axes": "ZYX"}
        if known:
            options["metadata"] |= {"spacing": like.spacing[0], "unit": "mm"}
    tifffile.imwrite(path, array, **options)


def _series(tif: Any, path: Path) -> tuple[Any, Any]:
    if not len(tif.pages) or not tif.series:
        raise ScanError(f"{path}: this TIFF holds no image: it is damaged. Copy it again.")
    if len(tif.series) != 1:
        raise ScanError(
            f"{path}: {len(tif.series)} images of different size or type in one TIFF. "
            "Save the wanted page as a file of its own."
        )
    series = tif.series[0]
    page = series.keyframe
    # Of pixels below a byte each, a packed byte may hold eight times as many.
    bounded = int(page.compression) in _BOUNDED and int(page.bitspersample) >= 8
    check_size(path, series.shape, page.dtype if bounded else None)
    _check_end(tif, path)
    longest = max(max(one.databytecounts, default=0) for one in series.pages if one is not None)
    if longest > path.stat().st_size:
        raise ScanError(f"{path}: this TIFF is damaged or truncated. Copy it again.")
    return series, page


def _check_end(tif: Any, path: Path) -> None:
    """Refuse a stack whose last page names a next one: tifffile reads what is there and goes on."""
    form, file = tif.tiff, tif.filehandle
    start = tif.pages[-1].offset
    file.seek(start)
    (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(start + form.tagnosize + tags * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    if following:
        raise ScanError(
            f"{path}: this TIFF is truncated behind page {len(tif.pages)} or runs in a circle. Copy "
            "it again from its source."
        )


def _through_pillow(path: Path, pages: int) -> Decoded:
    from normscan.io.raster import read_raster

    if pages > 1:
        raise ScanError(
            f"{path}: a stack in a compression that tifffile can't unpack alone. Save it "
            "uncompressed or with deflate, or install imagecodecs."
        )
    return read_raster(path, "TIFF")


def _invert(values: np.ndarray, bits: int, path: Path) -> np.ndarray:
    """Make bright mean a high value, as every viewer shows a white-is-zero image."""
    if values.dtype.kind == "b":
        return ~values
    if values.dtype.kind != "u":
        raise ScanError(f"{path}: white-is-zero with {values.dtype} values. Save it as grey.")
    return np.asarray((2**bits - 1) - values, dtype=values.dtype)


def _channels_first(values: np.ndarray, axes: str, path: Path) -> np.ndarray:
    """Return (C, H, W) or (1, D, H, W); alpha is dropped."""
    if "S" in axes:
        values = np.moveaxis(values, axes.index("S"), 0)
        axes = "S" + axes.replace("S", "")
        # Grey + alpha and RGB + alpha: the last sample is the alpha channel.
        values = values[:-1] if len(values) in (2, 4) else values
    else:
        values, axes = values[None], "S" + axes
    keep = [n for n, axis in enumerate(axes) if axis in "SYX" or values.shape[n] > 1]
    values = values.reshape([values.shape[n] for n in keep])
    if values.ndim not in (3, 4) or (values.ndim == 4 and len(values) > 1):
        raise ScanError(
            f"{path}: a TIFF with axes {axes[1:]} and shape {values.shape} is neither a picture "
            "nor a grey stack. Save one file per stack and channel."
        )
    return values


def _orientation(page: Any) -> int:
    tag = page.tags.get(274)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _spacing(tif: Any, page: Any) -> tuple[float, float, float] | None:
    """Return millimetres between pages, rows and columns, or None where unknown."""
    described = dict(tif.imagej_metadata or {})
    for entry in tif.shaped_metadata or ():
        described |= entry
    unit = _UNIT_NAME.get(str(described.get("unit", "")).replace("\\u00B5", "µ"))
    tag = page.tags.get(296)
    unit_xy = _UNIT_TAG.get(int(tag.value)) if tag is not None else None
    unit_xy = unit_xy or (unit if tif.is_imagej else None)
    if unit_xy is None:
        return None
    columns, rows = (_step(page, code) * unit_xy for code in (282, 283))
    between = described.get("spacing", 0)
    pages = float(between) * (unit or 0) if isinstance(between, int | float) else 0.0
    if not (math.isfinite(rows) and math.isfinite(columns) and rows > 0 and columns > 0):
        return None
    return (pages if math.isfinite(pages) and pages > 0 else 0.0, rows, columns)


def _step(page: Any, code: int) -> float:
    tag = page.tags.get(code)
    over, under = tag.value if tag is not None else (0, 1)
    return under / over if over else math.nan


def _geometry(
    dims: int, known: tuple[float, float, float] | None, orientation: int
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
