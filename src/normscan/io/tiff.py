"""TIFF through tifffile and imagecodecs: any depth and packing, one page or a stack."""

from __future__ import annotations

import logging
import re
import struct
from dataclasses import dataclass
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
from normscan.io.tiff_spacing import geometry, spacing_of

if TYPE_CHECKING:
    from normscan.scan import Scan

MINISWHITE, MINISBLACK, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {RGB: 3, PALETTE: 3, CMYK: 3, YCBCR: 3}
_JPEG = (6, 7, 33007, 34892)  # whose decoder turns YCbCr into RGB itself
_JPEG_2000 = (33003, 33004, 33005, 34712)
_DEEPEST_JPEG_2000 = 24  # bits; OpenJPEG loses the upper ones of deeper samples
# The most that a packing makes of a byte: none, PackBits and deflate 1032, LZW 2730. Others have no
# such bound.
_BOUND = {1: 1100, 8: 1100, 32946: 1100, 32773: 1100, 5: 2800}
# tifffile tells of each odd tag on standard error; what matters is checked and raised here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class _Plan:
    """What the tags of a file say that reading it gives; both reading and probing follow it.

    Attributes:
        series, page: of tifffile.
        shape: spatial shape as stored, before the orientation.
        channels: how many there are; a palette counts three.
        dtype: as the scan will name it.
        bits: of a sample.
        photometric: of the tag.
        orientation: of the tag, 1 to 8.
        spacing: mm between pages, rows, columns, or None.
        palette: (n, 3) colours of 0..255, or None.
    """

    series: Any
    page: Any
    shape: tuple[int, ...]
    channels: int
    dtype: str
    bits: int
    photometric: int
    orientation: int
    spacing: tuple[float, float, float] | None
    palette: np.ndarray | None = None


def read_tiff(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode a TIFF.

    Returns:
        Data (C, H, W) for one page. Several grey pages of the same size and type are a volume
        (1, pages, H, W), pages running towards +z. Grey of 2 and 4 bits is spread over 0..255 as in
        a PNG, other depths keep their values; white-is-zero is turned over. Spacing is taken where
        the file gives metric units (OME, ImageJ, resolution in centimetres).

    Raises:
        ScanError: damaged file, pages of different sizes, colour stacks, a packing that isn't
            supported.
    """
    plan, values = _unpacked(path)
    if plan.photometric == MINISWHITE:
        values = _invert(values, plan.bits, path)
    elif plan.photometric == PALETTE:
        values = _through_palette(values, plan, path)
    data = _channels_first(values, plan)
    if plan.bits in (2, 4) and plan.photometric in (MINISWHITE, MINISBLACK):
        data = data * np.uint8(255 // (2**plan.bits - 1))
    if plan.photometric == CMYK:
        data = _from_cmyk(data, plan.bits, path)
    data, names = _named(orient(data, plan.orientation), plan)
    affine, extra = geometry(data.ndim - 1, plan.spacing, plan.orientation)
    return Decoded(as_float32(data, path, nan=True), names, plan.dtype, affine, extra)


def read_indices(path: Path) -> tuple[np.ndarray, np.ndarray | None, int] | None:
    """Return the numbers that a mask stores, where a scan would be shown through something else.

    Returns:
        (H, W) or (pages, H, W) numbers; the (n, 3) colours of a palette, None of white-is-zero; the
        largest number that can be. None of all other files.
    """
    import tifffile

    with decoding(path, "TIFF"), tifffile.TiffFile(path) as tif:
        if int(_planned(tif, path).photometric) not in (PALETTE, MINISWHITE):
            return None
    plan, values = _unpacked(path)
    numbers = orient(_channels_first(values, plan), plan.orientation)[0]
    return numbers, plan.palette, 2 ** (plan.bits - (values.dtype.kind == "i")) - 1


def probe_tiff(path: Path, chosen: dict[str, str]) -> Header:
    """Read shape, type and spacing from the tags alone."""
    import tifffile

    with decoding(path, "TIFF"), tifffile.TiffFile(path) as tif:
        plan = _planned(tif, path)
    swapped = plan.orientation in (5, 6, 7, 8)
    shape = plan.shape if not swapped else (*plan.shape[:-2], plan.shape[-1], plan.shape[-2])
    affine, extra = geometry(len(shape), plan.spacing, plan.orientation)
    spacing = None
    if affine is not None and extra.get("spacing_known"):
        spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, : len(shape)], axis=0))
    return Header(shape, plan.channels, plan.dtype, spacing)


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


def _unpacked(path: Path) -> tuple[_Plan, np.ndarray]:
    """Return the plan and the numbers as they are stored, axes as tifffile has them."""
    import tifffile

    with decoding(path, "TIFF"), tifffile.TiffFile(path) as tif:
        plan = _planned(tif, path)
        if plan.photometric == YCBCR and int(plan.page.compression) not in _JPEG:
            values = _through_pillow(path, plan)
        else:
            try:
                values = np.asarray(plan.series.asarray(maxworkers=1))
            except (ValueError, NotImplementedError) as error:
                if re.search("not supported|requires the|not implemented", str(error)):
                    raise _unsupported(path, plan.page) from error
                raise
    if values.shape != tuple(plan.series.shape):  # tifffile logs what is missing and goes on
        raise ScanError(f"{path}: this TIFF is damaged or truncated. Copy it again.")
    packed = values.nbytes * plan.bits // (8 * values.itemsize)
    if int(plan.page.compression) == 1 and packed > path.stat().st_size:
        raise ScanError(f"{path}: this TIFF is truncated. Copy it again from its source.")
    return plan, values


def _planned(tif: Any, path: Path) -> _Plan:
    series, page = _series(tif, path)
    if page.dtype is None or not isinstance(page.bitspersample, int):
        raise _unsupported(path, page)
    photometric, bits = int(page.photometric), int(page.bitspersample)
    if int(page.compression) in _JPEG_2000 and bits > _DEEPEST_JPEG_2000:
        raise _unsupported(path, page)
    axes = dict(zip(series.axes, (int(n) for n in series.shape), strict=True))
    samples = axes.pop("S", 1)
    if photometric in _COLOURS:
        channels = _COLOURS[photometric]
        need = {PALETTE: 1, CMYK: 4}.get(photometric, 3)
    elif photometric in (MINISWHITE, MINISBLACK):
        need = channels = samples - _alphas(page, samples)
    else:
        raise _unsupported(path, page)
    if samples < need or channels < 1:
        raise _unsupported(path, page)
    if axes.get("C", 1) > 1:
        channels *= axes["C"]
    spatial = tuple(n for name, n in axes.items() if name in "YX" or (name != "C" and n > 1))
    colours = channels > 1 and axes.get("C", 1) == 1
    if len(spatial) not in (2, 3) or (len(spatial) == 3 and colours) or channels > 64:
        raise ScanError(
            f"{path}: a TIFF with axes {series.axes} and shape {tuple(series.shape)} is neither a "
            "picture nor a grey stack. Save one file per stack and channel."
        )
    dtype = "bool" if bits == 1 else str(np.dtype(page.dtype).newbyteorder("="))
    tag = page.tags.get(274)
    turned = int(tag.value) if tag is not None and tag.value in range(1, 9) else 1
    palette = _colours(page, path) if photometric == PALETTE else None
    spacing = spacing_of(tif, page)
    return _Plan(
        series, page, spatial, channels, dtype, bits, photometric, turned, spacing, palette
    )


def _alphas(page: Any, samples: int) -> int:
    """Return how many samples of a grey picture say how opaque it is; they come last."""
    kinds = [int(kind) for kind in page.extrasamples]
    marked = sum(kind in (1, 2) for kind in kinds)
    return marked if kinds else int(samples in (2, 4))


def _unsupported(path: Path, page: Any) -> ScanError:
    """Say what a sound file is made of that isn't read here."""

    def name(value: Any) -> str:
        return str(getattr(value, "name", value)).lower().replace("_", " ")

    kind = {1: "unsigned", 2: "signed", 3: "floating"}.get(page.sampleformat, "other")
    return ScanError(
        f"{path}: a TIFF of {page.samplesperpixel} {kind} samples of {page.bitspersample} bits as "
        f"{name(page.photometric)}, packed as {name(page.compression)}, isn't supported here. Save "
        "it as grey or RGB of 8 or 16 bits, uncompressed or with deflate or LZW."
    )


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
    check_size(path, series.shape)
    most = _BOUND.get(int(page.compression))
    if most is not None and isinstance(page.bitspersample, int):
        size = int(np.prod(series.shape, dtype=np.int64)) * page.bitspersample // 8
        if size > most * path.stat().st_size + 2**16:
            raise ScanError(
                f"{path}: its tags declare {tuple(series.shape)} values of {page.bitspersample} "
                "bits, more than the file can hold: it is truncated or damaged. Copy it again."
            )
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


def _through_pillow(path: Path, plan: _Plan) -> np.ndarray:
    """Decode YCbCr that isn't JPEG: libtiff knows its subsampling and coefficients."""
    from PIL import Image

    if plan.bits != 8 or len(plan.shape) != 2 or plan.orientation != 1:
        raise _unsupported(path, plan.page)
    with Image.open(path, formats=("TIFF",)) as image:
        values = np.asarray(image.convert("RGB"))
    return np.moveaxis(values, -1, plan.series.axes.index("S"))


def _invert(values: np.ndarray, bits: int, path: Path) -> np.ndarray:
    """Make bright mean a high value, as every viewer shows a white-is-zero image."""
    if values.dtype.kind == "b":
        return ~values
    if values.dtype.kind == "i":  # -1 - v within the signed range, as for DICOM
        return ~values
    if values.dtype.kind != "u":
        raise ScanError(
            f"{path}: white-is-zero with {values.dtype} values, of which nobody knows the white. "
            "Save it as black-is-zero."
        )
    if bits > 24 and int(values.max()) - int(values.min()) < 2 ** (bits - 16):
        raise ScanError(
            f"{path}: white-is-zero of {bits} bits with values far below its white, which float32 "
            "can't tell apart once turned over. Save it as black-is-zero, or with 16 bits."
        )
    return np.asarray(values.dtype.type(2**bits - 1) - values)


def _colours(page: Any, path: Path) -> np.ndarray:
    """Return the palette as (n, 3) of 0..255."""
    table = getattr(page, "colormap", None)
    if table is None:
        raise ScanError(
            f"{path}: a palette TIFF without its colours: it is damaged. Copy it again."
        )
    table = np.asarray(table).T
    return np.asarray(table if table.max() < 256 else table >> 8, dtype=np.uint8)


def _through_palette(values: np.ndarray, plan: _Plan, path: Path) -> np.ndarray:
    colours = plan.palette
    assert colours is not None
    if int(values.max()) >= len(colours):
        raise ScanError(f"{path}: has colours that its palette lacks: it is damaged.")
    return np.moveaxis(colours[values], -1, 0)


def _from_cmyk(data: np.ndarray, bits: int, path: Path) -> np.ndarray:
    if bits not in (8, 16) or data.dtype.kind != "u":
        raise ScanError(f"{path}: CMYK of {bits} bits isn't supported here. Save it as RGB.")
    top = 2**bits - 1
    ink = top - data.astype(np.uint32)
    return np.asarray((ink[:3] * ink[3] + top // 2) // top, dtype=data.dtype)


def _channels_first(values: np.ndarray, plan: _Plan) -> np.ndarray:
    """Return (C, H, W) or (C, D, H, W); alpha and what lies behind the colours is dropped."""
    axes = plan.series.axes
    if plan.photometric == PALETTE and values.ndim > len(axes):  # the colours stand in front
        return values.reshape(3, *plan.shape)
    for name in "CS":
        if name in axes:
            values = np.moveaxis(values, axes.index(name), 0)
            axes = name + axes.replace(name, "")
    if "C" in axes and "S" in axes:
        values = values.reshape(-1, *values.shape[2:])
    elif not {"C", "S"} & set(axes):
        values = values[None]
    kept = 4 if plan.photometric == CMYK else plan.channels
    if plan.photometric == PALETTE:
        kept = 1
    return values[:kept].reshape(kept, *plan.shape)


def _named(data: np.ndarray, plan: _Plan) -> tuple[np.ndarray, tuple[str, ...]]:
    if plan.photometric in _COLOURS or len(data) == 1:
        return raster_channels(data)
    if len(data) == 3 and "C" not in plan.series.axes:
        return raster_channels(data)
    return data, tuple(f"channel{i}" for i in range(len(data)))
