"""MGH (FreeSurfer), Analyze 7.5 (with SPM's matrices) and MINC 1 and 2, through nibabel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

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
    sniff,
)
from normscan.io.nifti import bids_suffix

NO_SIDES = "Analyze doesn't say which side is left: the first axis is taken to run to the left, as SPM does."


def read_with_nibabel(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode an MGH, Analyze or MINC file.

    Returns:
        Data (C, *spatial) in the file's order, scaled as the file says; of several volumes the one
        that the address chose. RGB of MGH isn't read.

    Raises:
        ScanError: damaged or truncated file, a series, no usable affine.
    """
    with _opened(path) as image:
        shape, index = _chosen(image, path, chosen)
        values = np.asarray(image.dataobj[index])
        affine = _affine(image, path)
        dtype = np.dtype(image.get_data_dtype()).newbyteorder("=").name
    data = as_float32(values, path, nan=True).reshape(1, *shape)
    notes = (NO_SIDES,) if _sideless(image) else ()
    extra = {"placed": True, "spacing_known": True, "notes": notes}
    return Decoded(data, (bids_suffix(path) or "image",), dtype, affine, extra)


def probe_with_nibabel(path: Path, chosen: dict[str, str]) -> Header:
    """Read shape, type and spacing from the header alone."""
    with _opened(path) as image:
        shape, _ = _chosen(image, path, chosen)
        steps = np.linalg.norm(_affine(image, path)[:3, : len(shape)], axis=0)
        dtype = np.dtype(image.get_data_dtype()).newbyteorder("=").name
    return Header(shape, 1, dtype, tuple(float(s) for s in steps))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file by its content; nibabel reads the values when they are asked for."""
    import nibabel as nib

    nibabel: Any = nib
    suffix = extension(path)
    kind = {".mgh": "MGH", ".mgz": "MGH", ".mnc": "MINC", ".hdr": "Analyze"}[suffix]
    log = nibabel.imageglobals.logger  # tells on standard error what a header has wrong
    was, log.disabled = log.disabled, True
    try:
        with decoding(path, f"{kind} file"), ExitStack() as stack:
            if kind == "MGH":
                yield nibabel.MGHImage.from_filename(path)
            elif kind == "Analyze":
                data_of(path)
                # SPM's origin and matrix are read where they are, else the centre is the origin.
                yield nibabel.Spm2AnalyzeImage.from_filename(path)
            elif sniff(path) == "HDF5 file":
                stack.enter_context(_hdf5(path))
                yield nibabel.Minc2Image.from_filename(path)
            else:
                # From memory: there a declared length asks for no more than there is.
                holder = nibabel.FileHolder(fileobj=BytesIO(path.read_bytes()))
                yield nibabel.minc1.Minc1Image.from_file_map({"image": holder}, mmap=False)
    finally:
        log.disabled = was


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    """Check that a MINC 2 file holds its own values, plain ones."""
    try:
        import h5py
    except ImportError as error:
        raise ScanError(
            f"{path}: reading MINC 2 needs h5py: pip install 'normscan[minc]'."
        ) from error
    with h5py.File(path, "r") as file:
        if "minc-2.0" not in file:
            raise ScanError(
                f"{path}: is an HDF5 file, but no MINC. Convert it, for example to NIfTI."
            )
        group = file["minc-2.0/image/0"]
        image = group["image"]
        own = not image.external and not image.is_virtual and image.file.id == file.id
        if not own or any(isinstance(group.get(n, getlink=True), h5py.ExternalLink) for n in group):
            raise ScanError(f"{path}: takes its values from other files. Save them in one file.")
        yield file


def _sideless(image: Any) -> bool:
    return type(image).__name__ == "Spm2AnalyzeImage" and not _matrix(image)


def _matrix(image: Any) -> bool:
    """Tell whether SPM's .mat beside the data said where they lie."""
    mat = image.file_map.get("mat")
    return mat is not None and mat.filename is not None and Path(mat.filename).is_file()


def _chosen(image: Any, path: Path, chosen: dict[str, str]) -> tuple[tuple[int, ...], Any]:
    """Return the spatial shape and the index of the wanted volume."""
    whole = tuple(int(n) for n in image.shape)
    dtype = np.dtype(image.get_data_dtype())
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: values of type {dtype} aren't supported. Save plain numbers.")
    check_size(path, whole, dtype, data_of(path) if extension(path) == ".hdr" else None)
    first = extension(path) == ".mnc" and len(whole) > 3  # MINC has time in front
    spatial, others = (whole[-3:], whole[:-3]) if first else (whole[:3], whole[3:])
    shape = spatial
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 2:
        raise ScanError(f"{path}: shape {whole} is no image, which needs 2 or 3 axes.")
    number = one_volume(path, chosen, math.prod(others), shape)
    index: tuple[Any, ...] = (
        tuple(int(i) for i in np.unravel_index(number, others)) if others else ()
    )
    return shape, ((*index, ...) if first else (..., *index))


def _affine(image: Any, path: Path) -> np.ndarray:
    affine = np.array(image.affine, dtype=np.float64)
    sound = affine.shape == (4, 4) and bool((np.abs(affine) < 1e6).all())
    if not sound or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ScanError(f"{path}: its header gives the voxels no size or place. Repair it.")
    return affine
