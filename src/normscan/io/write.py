"""Write a map or mask so that it lies on its scan in every viewer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from normscan.errors import OutputError
from normscan.io.atomic import atomic_path
from normscan.io.files import extension
from normscan.scan import Scan

RASTER_MAP = ".tif"
MAP_EXTENSIONS = (".nii", ".nii.gz", ".tif", ".tiff", ".png", ".npy")


def map_suffix(like: Scan) -> str:
    """The ending of a map beside a scan: NIfTI, or a 32-bit TIFF beside a picture."""
    nifti = like.source is not None and extension(like.source).startswith(".nii")
    return ".nii.gz" if like.dims == 3 or nifti else RASTER_MAP


def write_map(
    path: str | os.PathLike[str], array: np.ndarray, like: Scan, vmax: float | None = None
) -> Path:
    """Write an anomaly map or a mask on the grid of its scan.

    .nii and .nii.gz keep the affine, form codes, units and stored shape of the scan's own file.
    .tif and .tiff hold float32 with the spacing in centimetre tags where it is known. .npy holds
    the bare array. .png holds 16 bits: 0 stands for values up to 0 and 65535 for ``vmax`` and
    above. Boolean and uint8 arrays are masks and stay uint8 (a boolean is 0 and 255 in a PNG, so
    that it can be seen). Arrays are written in their own axis order, never turned.

    Args:
        path: the file to write; an existing one is replaced at once, never half-written.
        array: values of the shape ``like.shape``.
        like: the scan.
        vmax: value that becomes white, needed for a map as PNG.

    Returns:
        The path written.

    Raises:
        OutputError: another shape than the scan, an unknown extension, a volume as PNG, a map as
            PNG without ``vmax`` or with NaN, a folder that can't be written.
    """
    target = Path(path)
    suffix = extension(target)
    array = np.asarray(array)
    if array.shape != like.shape:
        raise OutputError(f"{target}: a map of shape {array.shape} on a scan of {like.shape}.")
    if array.dtype.kind not in "biuf":
        raise OutputError(f"{target}: a map of type {array.dtype} can't be written; use numbers.")
    if suffix not in MAP_EXTENSIONS:
        raise OutputError(
            f"{target}: '{suffix}' is no format for maps. Known: {', '.join(MAP_EXTENSIONS)}."
        )
    mask = array.dtype in (np.bool_, np.uint8)
    values = array.astype(np.uint8 if mask else np.float32)
    if suffix == ".png":
        values = _png_values(target, array, vmax, mask)
    with atomic_path(target) as temporary:
        if suffix in (".nii", ".nii.gz"):
            from normscan.io.nifti import write_nifti

            write_nifti(temporary, values, like)
        elif suffix in (".tif", ".tiff"):
            from normscan.io.tiff import write_tiff

            write_tiff(temporary, values, like)
        elif suffix == ".png":
            from PIL import Image

            Image.fromarray(values).save(temporary)
        else:
            with temporary.open("wb") as file:
                np.save(file, values, allow_pickle=False)
    return target


def _png_values(target: Path, array: np.ndarray, vmax: float | None, mask: bool) -> np.ndarray:
    """Return (H, W) uint8 for a mask, uint16 for a map."""
    if array.ndim != 2:
        raise OutputError(f"{target}: a volume doesn't fit a PNG. Write .nii.gz.")
    if mask:
        return array.astype(np.uint8) * (255 if array.dtype == np.bool_ else 1)
    if vmax is None or not np.isfinite(vmax) or vmax <= 0:
        raise OutputError(
            f"{target}: a PNG holds 0..65535, so say which value becomes white: vmax > 0, the same "
            f"for all maps that are compared (now {vmax})."
        )
    if not np.isfinite(array).all():
        raise OutputError(f"{target}: the map has NaN or infinite values, which no PNG holds.")
    scaled = np.clip(array.astype(np.float64) / vmax, 0, 1) * 65535
    return np.round(scaled).astype(np.uint16)
