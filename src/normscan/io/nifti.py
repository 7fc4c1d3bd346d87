"""NIfTI-1 and NIfTI-2: geometry kept exactly, no header trusted.

nibabel parses the header and scales the values. The header extensions are never read: they hold
free text (possibly a patient's name) and declare their own sizes.
"""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.address import one_volume
from normscan.io.files import (
    Decoded,
    Header,
    as_float32,
    check_size,
    data_of,
    decoding,
    extension,
    stem,
)

if TYPE_CHECKING:
    from normscan.scan import Scan

# The fields that say where the voxels lie. Free text (descrip, db_name, ...) is left behind: it may
# name a patient.
GEOMETRY_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code",
    "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z",
)  # fmt: skip


_MM_PER_UNIT = {1: 1000.0, 3: 1e-3}  # metre and micron; all others are taken for mm
LARGEST_MM = 1e6  # nothing that is imaged lies further away


def read_nifti(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode a NIfTI file, or a pair of .hdr and .img.

    Returns:
        Data (C, x, y[, z]) with slope and intercept applied and no reorientation. Trailing axes of
        length 1 are dropped; ``extra`` keeps the stored shape and the geometry fields.

    Raises:
        ScanError: damaged or truncated file, a series (4D) of which no volume is chosen, complex
            values, no usable affine.
    """
    import nibabel.arrayproxy

    array_proxy: Any = nibabel.arrayproxy.ArrayProxy
    with decoding(path, "NIfTI"), _open(path) as file:
        header = _header(file, path)
        plan = _planned(header, path, chosen)
        dtype = header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        scaling = (1.0 if slope is None else slope, 0.0 if inter is None else inter)
        spec = (plan.stored, dtype, plan.offset, *scaling)
        with _data_file(path, file) as values_file:
            proxy = array_proxy(values_file, spec, mmap=False)
            if dtype.names:
                values = _rgb(np.asarray(proxy.get_unscaled()))
            elif dtype.kind == "c":
                raise ScanError(
                    f"{path}: complex values are no image intensities. Save the magnitude."
                )
            else:
                values = np.asarray(proxy, dtype=np.float32)[None]
            _check_rest(values_file, plan.last)
    stored = plan.stored
    data = as_float32(values, path, nan=True).reshape(len(values), *_spatial(stored))
    affine = _affine(header, path)
    extra: dict[str, Any] = {
        "shape": stored,
        "nifti": {name: np.array(header[name]) for name in GEOMETRY_FIELDS},
        "version": 2 if header.sizeof_hdr == 540 else 1,
        "affine": affine.copy(),
    }
    names = (bids_suffix(path) or "image",) if len(data) == 1 else ("red", "green", "blue")
    kind = "uint8" if dtype.names else dtype.newbyteorder("=").name
    return Decoded(data, names, kind, affine, extra)


def probe_nifti(path: Path, chosen: dict[str, str]) -> Header:
    """Read shape, type and spacing from the header alone."""
    with decoding(path, "NIfTI"), _open(path) as file:
        header = _header(file, path)
        shape = _spatial(_planned(header, path, chosen).stored)
        dtype = header.get_data_dtype()
    steps = np.linalg.norm(_affine(header, path)[:3, : len(shape)], axis=0)
    name = "uint8" if dtype.names else dtype.newbyteorder("=").name
    return Header(shape, 3 if dtype.names else 1, name, tuple(float(s) for s in steps))


def write_nifti(path: Path, array: np.ndarray, like: Scan) -> None:
    """Write an array on the grid of ``like``, with its header codes, units and stored shape."""
    import nibabel as nib

    keep = _same_geometry(like)
    stored = like.extra["shape"] if keep else (*like.shape, *([1] if like.dims == 2 else []))
    big = max(stored) > 32767 or like.extra.get("version") == 2
    kind: Any = nib.Nifti2Header if big else nib.Nifti1Header
    header: Any = kind()
    image: Any = nib.Nifti2Image if big else nib.Nifti1Image
    header.set_data_dtype(array.dtype)
    values = array.reshape(stored)
    if keep:
        header.set_data_shape(stored)
        for name, value in like.extra["nifti"].items():
            header[name] = value
        written = image(values, None, header)
    else:
        header.set_xyzt_units("mm")
        written = image(values, like.affine, header)
    if extension(path) != ".nii.gz":
        return nib.save(written, path)
    # What zlib takes is most of the time of writing a map; this is seven times as fast.
    from isal import igzip

    with path.open("wb") as file, igzip.IGzipFile("", "wb", 1, file, mtime=0) as packed:
        written.to_stream(packed)


def bids_suffix(path: Path) -> str:
    """Return ``FLAIR`` for ``sub-01_ses-1_FLAIR.nii.gz``, or an empty string."""
    parts = stem(path).split("_")
    named = len(parts) > 1 and parts[0].startswith("sub-")
    return parts[-1] if named and re.fullmatch(r"[A-Za-z0-9]+", parts[-1]) else ""


def _same_geometry(like: Scan) -> bool:
    """Tell whether the kept header still describes the scan: it may have been resampled since."""
    extra = like.extra
    if "nifti" not in extra or _spatial(tuple(extra["shape"])) != like.shape:
        return False
    return bool(np.array_equal(extra["affine"], like.affine))


def _open(path: Path) -> IO[bytes]:
    if extension(path) != ".nii.gz":
        return path.open("rb")
    from isal import igzip

    return igzip.open(path)  # type: ignore[no-any-return]


def _header(file: IO[bytes], path: Path) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = file.read(540)
    if len(block) < 348:
        raise ScanError(f"{path}: truncated within its NIfTI header. Copy it again.")
    kind: Any = Nifti2Header if block[4:7] in (b"n+2", b"ni2") else Nifti1Header
    header = kind(block[: kind.sizeof_hdr], check=False)
    offset = float(header["vox_offset"])
    if not 0 <= offset <= 2**28:
        raise ScanError(
            f"{path}: the header puts the data at byte {offset:g}; it is damaged. Copy it again."
        )
    return header


@dataclass(frozen=True)
class _Plan:
    """Where a volume lies in its file.

    Attributes:
        stored: shape of one volume, as the header has it.
        offset: byte of its first value.
        end: byte behind the last volume.
        last: it is the last one.
    """

    stored: tuple[int, ...]
    offset: int
    end: int
    last: bool


def _planned(header: Any, path: Path, chosen: dict[str, str]) -> _Plan:
    whole = tuple(int(n) for n in header.get_data_shape())
    dtype = header.get_data_dtype()
    if dtype.kind == "V" and not dtype.names:
        raise ScanError(
            f"{path}: the header names the data type {int(header['datatype'])}, which can't be read "
            "here. Save the image as whole numbers or float32."
        )
    pair = extension(path) == ".hdr"
    check_size(path, whole, dtype, data_of(path) if pair else None)
    stored, count = (whole, 1) if len(_spatial(whole)) <= 3 else (whole[:3], math.prod(whole[3:]))
    if len(_spatial(stored)) < 2:
        raise ScanError(f"{path}: shape {stored} is no image, which needs 2 or 3 axes.")
    if count > 1 and math.prod(stored) == 1:
        raise ScanError(f"{path}: holds a table without voxels in space (CIFTI), no image.")
    volume = one_volume(path, chosen, count, _spatial(stored))
    start = max(int(header.get_data_offset()), 0 if pair else header.sizeof_hdr)
    size = math.prod(stored) * dtype.itemsize
    return _Plan(stored, start + volume * size, start + count * size, volume == count - 1)


def _spatial(stored: tuple[int, ...]) -> tuple[int, ...]:
    """Drop trailing axes of length 1 down to two axes."""
    shape = tuple(int(n) for n in stored)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _affine(header: Any, path: Path) -> np.ndarray:
    with decoding(path, "NIfTI header"):
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    sound = bool((np.abs(affine) < LARGEST_MM).all())  # False for NaN too
    if not sound or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ScanError(
            f"{path}: the affine in the header is singular, not finite or beyond {LARGEST_MM:g} mm, "
            "so the voxels have no size. Repair its sform, qform and pixdim (for example with nibabel)."
        )
    return affine


def _rgb(values: np.ndarray) -> np.ndarray:
    """Turn the RGB or RGBA structs of NIfTI into three channels; alpha is dropped."""
    data = np.stack([values[name] for name in ("R", "G", "B")])
    equal = np.array_equal(data[0], data[1]) and np.array_equal(data[0], data[2])
    return data[:1] if equal else data


def _data_file(path: Path, header: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """Open the data of a pair; a single file holds its own."""
    return data_of(path).open("rb") if extension(path) == ".hdr" else nullcontext(header)


def _check_rest(file: IO[bytes], last: bool) -> None:
    """Read what follows the data, so that gzip compares its checksum; bounded against bombs.

    Behind the volume of a series there are others.
    """
    for _ in range(64 if last else 2**16):
        if not file.read(2**18):
            return
