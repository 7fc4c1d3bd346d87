"""Scans written for the eye: NIfTI in 16 bits, which viewers of any kind read at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from normscan.io.atomic import atomic_path
from normscan.scan import Scan


def write_shown(path: Path, data: np.ndarray, like: Scan) -> Path:
    """Write values on the grid of a scan as .nii.gz, see `as_nifti`.

    Args:
        path: the file to write; an existing one is replaced at once.
        data: (C, *like.shape), of the scan or made from it.
        like: the scan.

    Raises:
        OutputError: a folder that can't be written.
    """
    import gzip

    channels = like.channels if len(data) == len(like.data) else ("shown",) * len(data)
    shown = replace(like, data=np.asarray(data, np.float32), channels=channels)
    with atomic_path(path) as temporary:
        # Level 1 takes a fifth of the time of level 9, and the file is a tenth larger.
        temporary.write_bytes(gzip.compress(as_nifti(shown), 1, mtime=0))
    return path


def as_nifti(scan: Scan) -> bytes:
    """Return a scan as an uncompressed NIfTI-1 file that lies where the scan lies.

    Values become 16 bits with a slope, so that they are off by 1 in 131,000 of their range at most.
    Three colours become 24 bits. Of several channels there is the first. What isn't finite becomes
    the lowest value. A picture becomes a volume of one slice.
    """
    import nibabel

    shape = (*scan.shape, *[1] * (3 - scan.dims))
    values = _colours(scan.data) if scan.is_rgb else _finite(scan.data[0])
    image = nibabel.Nifti1Image(values.reshape(shape), scan.affine)
    if not scan.is_rgb:
        image.set_data_dtype(np.uint16)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def _colours(data: np.ndarray) -> np.ndarray:
    """Return (3, *spatial) as NIfTI's 24-bit structs; the full range is 1, 255 or the highest."""
    top = float(np.nanmax(data, initial=0))
    top = 1.0 if top <= 1 else 255.0 if top <= 255 else top
    levels = np.round(255 * np.clip(np.nan_to_num(data) / top, 0, 1)).astype(np.uint8)
    structs = np.ascontiguousarray(np.moveaxis(levels, 0, -1))
    return structs.view(np.dtype([(name, np.uint8) for name in "RGB"]))[..., 0]


def _finite(values: np.ndarray) -> np.ndarray:
    """Return an array with its lowest finite value where there is none."""
    known = np.isfinite(values)
    if known.all():
        return values
    low = float(values[known].min()) if known.any() else 0.0
    return np.where(known, values, low).astype(np.float32)
