"""Which module reads what, whole or a part of it: the one table of formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from normscan.errors import ScanError
from normscan.io import arrays, brain_formats, jpeg2000, metaimage, nifti, nrrd, raster, tiff
from normscan.io.address import COLLECTIONS, whole_number
from normscan.io.background import fill_background
from normscan.io.files import Decoded, Header, check_file, data_of, header_of


@dataclass(frozen=True)
class _Reader:
    """How a format is read.

    Attributes:
        read: takes the path and the selectors of the address, gives a ``Decoded``.
        probe: the same, gives a ``Header``.
        selectors: of addresses that it knows, beside ``slice`` and ``axis``.
        data: gives the file that holds the values, where that may be another.
    """

    read: Callable[[Path, dict[str, str]], Decoded]
    probe: Callable[[Path, dict[str, str]], Header]
    selectors: tuple[str, ...] = ()
    data: Callable[[Path], Path] | None = None


_RASTER = _Reader(raster.read_raster, raster.probe_raster)
_NIFTI = _Reader(nifti.read_nifti, nifti.probe_nifti, ("volume",))
_ARRAY = _Reader(arrays.read_array, arrays.probe_array, ("stack",))
_NIBABEL = _Reader(brain_formats.read_with_nibabel, brain_formats.probe_with_nibabel, ("volume",))
_NRRD = _Reader(nrrd.read_nrrd, nrrd.probe_nrrd, ("volume",), nrrd.nrrd_data)
_META = _Reader(
    metaimage.read_metaimage, metaimage.probe_metaimage, ("volume",), metaimage.metaimage_data
)

READERS = {
    "PNG": _RASTER,
    "JPEG": _RASTER,
    "BMP": _RASTER,
    "WebP": _RASTER,
    "JPEG 2000": _Reader(jpeg2000.read_jpeg2000, jpeg2000.probe_jpeg2000),
    "TIFF": _Reader(tiff.read_tiff, tiff.probe_tiff),
    "NIfTI": _NIFTI,
    "gzipped NIfTI": _NIFTI,
    "NIfTI header": _NIFTI,
    "Analyze header": _NIBABEL,
    "MGH": _NIBABEL,
    "gzipped MGH": _NIBABEL,
    "MINC 1 file": _NIBABEL,
    "HDF5 file": _NIBABEL,
    "NRRD": _NRRD,
    "MetaImage": _META,
    "NumPy array": _ARRAY,
    "zip archive": replace(_ARRAY, selectors=("stack", *COLLECTIONS)),
}


def decode(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode a file that is no DICOM, or the part of it that its address chose.

    Raises:
        ScanError: as ``read_scan``; selectors that mean nothing for its format.
    """
    kind = check_file(path)
    reader = _reader(path, kind, chosen)
    path = header_of(path)
    if "slice" not in chosen:
        return _filled(reader.read(path, chosen), path)
    from normscan.io.volumes import open_volume, take

    index, axis = whole_number(path, chosen, "slice"), whole_number(path, chosen, "axis", 2)
    volume = open_volume(path, chosen)
    if volume is not None:
        return volume.slice(index, axis)
    whole = _filled(reader.read(path, chosen), path)
    affine = np.eye(4) if whole.affine is None else whole.affine
    planes = [take(channel, affine, index, axis, path) for channel in whole.data]
    data = np.stack([plane for plane, _ in planes])
    return replace(whole, data=data, affine=None if whole.affine is None else planes[0][1])


def probe_file(path: Path, chosen: dict[str, str]) -> Header:
    """Return what ``decode`` would give for the whole, from the header alone."""
    reader = _reader(path, check_file(path), chosen)
    return reader.probe(header_of(path), chosen)


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that a path stands for: a header and its data, else the file alone.

    A file that can't be read as an image is taken alone.
    """
    if path.suffix.lower() not in (".nhdr", ".nrrd", ".mhd", ".mha", ".hdr", ".img"):
        return (path,)
    try:
        kind, head = check_file(path), header_of(path)
        if kind in ("NIfTI header", "Analyze header"):
            matrix = head.with_suffix(".mat")
            return (head, data_of(head), *([matrix] if matrix.is_file() else []))
        reader = READERS.get(kind)
        data = reader.data(head) if reader is not None and reader.data else head
    except ScanError:
        return (path,)
    return (head,) if data == head else (head, data)


def is_lossy(path: Path, kind: str) -> bool:
    """Tell whether the packing of a picture changed its values."""
    if kind == "WebP":
        return raster.is_lossy_webp(path)
    if kind == "JPEG 2000":
        return jpeg2000.is_lossy(path)
    return kind == "JPEG"


def _reader(path: Path, kind: str, chosen: dict[str, str]) -> _Reader:
    if kind == "DICOM file":
        raise ScanError(f"{path}: a mask as DICOM isn't read. Save it as NIfTI or PNG.")
    reader = READERS[kind]
    for key in sorted(set(chosen) - {"slice", "axis"} - set(reader.selectors)):
        where = ", ".join(name for name, one in READERS.items() if key in one.selectors)
        if not where:
            raise ScanError(f"{path}: is no DICOM, so #{key}= selects nothing in it. Leave it out.")
        raise ScanError(
            f"{path}: is a {kind}, in which #{key}= selects nothing; it is for {where}. Leave it out."
        )
    return reader


def _filled(decoded: Decoded, path: Path) -> Decoded:
    data, notes = fill_background(decoded.data, path)
    if not notes:
        return decoded
    said = (*decoded.extra.get("notes", ()), *notes)
    return replace(decoded, data=data, extra=decoded.extra | {"notes": said})
