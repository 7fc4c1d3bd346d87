"""Single slices of volumes through a memory map: ``volume.nii.gz#slice=80``.

A compressed volume is unpacked once, as it is, into the cache; a slice then costs a page or two of
disk instead of the whole volume, and the operating system, not this process, holds what was read.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.cache import cache_folder, unpacked
from normscan.io.files import Decoded, as_float32, decoding, extension, identity

# Open maps a process keeps: slices of one volume tend to follow each other.
OPEN_VOLUMES = 8


@dataclass(frozen=True, eq=False)
class MappedVolume:
    """A volume on disk.

    Attributes:
        path: the file that the user named.
        array: (X, Y, Z) in the type of the file, memory-mapped.
        scaling: slope and intercept.
        affine: (4, 4) index to RAS+ mm.
        channels: name of its channel.
        extra: as ``read_nifti`` gives it.
        selected: the selectors of its address.
    """

    path: Path
    array: np.ndarray
    scaling: tuple[float, float]
    affine: np.ndarray
    channels: tuple[str, ...]
    extra: dict[str, Any]
    selected: tuple[tuple[str, str], ...] = ()

    def slice(self, index: int, axis: int = 2) -> Decoded:
        """Return a slice (1, *the two other axes) float32 with its place in the patient.

        Raises:
            ScanError: no such slice or axis; NaN or infinite values in it.
        """
        plane, affine = take(self.array, self.affine, index, axis, self.path)
        slope, inter = self.scaling
        values = np.asarray(plane, np.float32)
        if (slope, inter) != (1.0, 0.0):
            values = np.asarray(plane * np.float64(slope) + inter, np.float32)
        data = as_float32(values, self.path, nan=True)[None]
        notes: tuple[str, ...] = ()
        if np.isnan(data).any():  # whether they lie around the anatomy, only the volume tells
            value, notes = _background(self.path, identity(self.path), self.selected)
            data = np.nan_to_num(data, nan=value)
        kind = self.array.dtype.newbyteorder("=").name
        return Decoded(data, self.channels, kind, affine, self.extra | {"notes": notes})


def take(
    array: np.ndarray, affine: np.ndarray, index: int, axis: int, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a slice out of (X, Y, Z) and say where it lies: its affine has the cut axis last.

    Raises:
        ScanError: no volume, no such axis, no such slice.
    """
    if array.ndim != 3:
        raise ScanError(
            f"{path}: has {array.ndim} axes, so it has no slices. Leave out the #slice=."
        )
    if not 0 <= axis <= 2:
        raise ScanError(f"{path}: axis {axis} is none of 0, 1, 2.")
    if not 0 <= index < array.shape[axis]:
        raise ScanError(
            f"{path}: there is no slice {index} along axis {axis}; it has 0 to "
            f"{array.shape[axis] - 1}."
        )
    first = np.eye(4)
    first[axis, 3] = index
    order = [a for a in range(3) if a != axis] + [axis, 3]
    # Basic indexing touches the pages of the slice alone; np.take would copy the volume.
    plane = array[(slice(None),) * axis + (index,)]
    return plane, (affine @ first)[:, order]


@lru_cache(maxsize=256)
def _background(
    path: Path, known: str, selected: tuple[tuple[str, str], ...]
) -> tuple[float, tuple[str, ...]]:
    """Return the value of NaN in a volume and the note on it; refuses holes in the anatomy."""
    from normscan.io.background import fill_background
    from normscan.io.nifti import read_nifti

    data = read_nifti(path, dict(selected)).data
    filled, notes = fill_background(data, path)
    return float(filled[np.isnan(data)][0]), notes


def open_volume(path: Path, chosen: dict[str, str]) -> MappedVolume | None:
    """Map a NIfTI volume; one that is compressed is unpacked into the cache first.

    Returns:
        The volume, or None for kinds that can't be mapped (colour, other formats): read those whole.

    Raises:
        ScanError: missing, damaged or truncated file, a series, no usable affine.
    """
    if extension(path) not in (".nii", ".nii.gz"):
        return None
    try:
        known = identity(path)
    except OSError as error:
        raise ScanError(f"{path}: can't be read ({error.strerror}).") from error
    selected = tuple(item for item in chosen.items() if item[0] == "volume")
    return _open(path, known, selected)


@lru_cache(maxsize=OPEN_VOLUMES)
def _open(path: Path, known: str, selected: tuple[tuple[str, str], ...]) -> MappedVolume | None:
    from normscan.io import nifti

    plain = path
    with decoding(path, "NIfTI"):
        with nifti._open(path) as file:
            header = nifti._header(file, path)
            where = nifti._planned(header, path, dict(selected))
            stored = where.stored
        dtype = header.get_data_dtype()
        if dtype.names or dtype.kind not in "iuf" or len(nifti._spatial(stored)) != 3:
            return None
        needed = where.end
        if extension(path) == ".nii.gz":
            plain = unpacked(path, known, ".nii", needed, partial(nifti._open, path))
        if plain.stat().st_size < needed:
            raise ScanError(
                f"{path}: truncated, its header declares {needed} bytes. Copy it again."
            )
        shape = nifti._spatial(stored)
        array = np.memmap(plain, dtype, "r", where.offset, shape, order="F")
        slope, inter = header.get_slope_inter()
    affine = nifti._affine(header, path)
    extra = {
        "shape": stored,
        "nifti": {name: np.array(header[name]) for name in nifti.GEOMETRY_FIELDS},
        "affine": affine.copy(),
    }
    scaling = (1.0 if slope is None else float(slope), 0.0 if inter is None else float(inter))
    names = (nifti.bids_suffix(path) or "image",)
    return MappedVolume(path, array, scaling, affine, names, extra, selected)


def forget_volumes() -> None:
    """Close the maps and empty the cache of unpacked volumes."""
    _open.cache_clear()
    shutil.rmtree(cache_folder("volumes"), ignore_errors=True)
