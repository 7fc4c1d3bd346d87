"""NumPy files: .npy for a bare array, .npz for an array with its geometry."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from normscan.errors import ScanError, nearest
from normscan.io.files import (
    Decoded,
    Header,
    as_float32,
    check_size,
    decoding,
    raster_channels,
)
from normscan.scan import Scan, is_colour

LONGEST_HEADER = 2**16  # bytes; an array of plain numbers needs 128


def read_array(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode a .npy or .npz file; pickled objects are refused.

    A .npy holds (H, W), (H, W, 3 or 4) colours of 8 or 16 bits, or (D, H, W); with ``#stack=1`` three
    axes are a volume even where the last has a length of 3 or 4. A .npz holds ``image`` of that
    shape and optionally ``spacing`` (mm per axis) or ``affine`` (4 x 4), and ``channels`` (names),
    with which ``image`` has a channel axis in front.

    Raises:
        ScanError: damaged file, missing key, wrong number of axes, text or objects.
    """
    stack = "stack" in chosen
    if path.suffix.lower() == ".npy":
        with decoding(path, "NumPy file"), path.open("rb") as file:
            _declared(file, path)
            file.seek(0)
            array = np.load(file, allow_pickle=False)
        return _decoded(path, array, {}, stack)
    with decoding(path, "NumPy archive"):
        _members(path)
        with np.load(path, allow_pickle=False) as archive:
            keys = ("image", "spacing", "affine", "channels")
            parts = {key: archive[key] for key in keys if key in archive}
    return _decoded(path, parts.pop("image"), parts, stack)


def probe_array(path: Path, chosen: dict[str, str]) -> Header:
    """Read shape and type from the header; of a .npz also its small geometry arrays."""
    stack = "stack" in chosen
    if path.suffix.lower() == ".npy":
        with decoding(path, "NumPy file"), path.open("rb") as file:
            shape, dtype = _declared(file, path)
        _check_axes(path, shape, 0)
        if not stack and is_colour(shape, dtype):
            return Header(shape[:2], 3, str(dtype), None)
        return Header(shape, 1, str(dtype), None)
    with decoding(path, "NumPy archive"):
        shape, dtype = _members(path)
        with np.load(path, allow_pickle=False) as archive:
            parts = {k: archive[k] for k in ("spacing", "affine", "channels") if k in archive}
    channels = shape[0] if "channels" in parts else 1
    shape = shape[1:] if "channels" in parts else shape
    _check_axes(path, shape, 0)
    if not (stack or "channels" in parts) and _as_picture(shape, dtype, parts):
        shape, channels = shape[:2], 3
    tiny = np.zeros((1,) * len(shape), dtype=np.float32)
    parts.pop("channels", None)
    scan = _scan(path, tiny, parts)
    return Header(shape, channels, str(dtype), scan.spacing if parts else None)


def _decoded(path: Path, array: np.ndarray, parts: dict[str, np.ndarray], stack: bool) -> Decoded:
    _check_axes(path, array.shape, 1 if "channels" in parts else 0)
    data = as_float32(array, path, nan=True)
    known = "spacing" in parts or "affine" in parts
    if not (stack or "channels" in parts) and _as_picture(array.shape, array.dtype, parts):
        data, names = raster_channels(np.moveaxis(data[..., :3], -1, 0))
        parts = {**parts, "channels": np.array(names)}
    scan = _scan(path, data, parts)
    extra = {"spacing_known": True} if known else {}
    return Decoded(scan.data, scan.channels, str(array.dtype), scan.affine, extra)


def _as_picture(shape: tuple[int, ...], dtype: np.dtype[Any], parts: dict[str, np.ndarray]) -> bool:
    """Tell a colour picture from a volume, whose geometry has three axes."""
    volume = "affine" in parts or np.size(parts.get("spacing", 0)) == 3
    return is_colour(shape, dtype) and not volume


def _scan(path: Path, array: np.ndarray, parts: dict[str, np.ndarray]) -> Scan:
    with decoding(path, "NumPy archive"):
        spacing = parts.get("spacing")
        names = parts.get("channels")
        return Scan.from_array(
            array,
            spacing=None if spacing is None else tuple(float(s) for s in np.atleast_1d(spacing)),
            affine=parts.get("affine"),
            channels=None if names is None else tuple(str(n) for n in np.atleast_1d(names)),
            source=path,
            stack=True,
        )


def _check_axes(path: Path, shape: tuple[int, ...], channel_axes: int) -> None:
    if len(shape) - channel_axes not in (2, 3):
        raise ScanError(
            f"{path}: shape {shape} is no image. Save (H, W) or (D, H, W); for several channels "
            "a .npz with `image` (C, ...) and `channels` (names)."
        )


def _declared(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Parse the header of an array without reading its values."""
    version = np.lib.format.read_magic(file)
    reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in reader:
        raise ScanError(f"{path}: NumPy format {version} is not known here. Save plain numbers.")
    start = file.tell()
    if version[0] == 2 and int.from_bytes(file.read(4), "little") > LONGEST_HEADER:
        raise ScanError(f"{path}: its NumPy header is damaged. Copy it again from its source.")
    file.seek(start)
    shape, _, dtype = reader[version[0]](file)
    if dtype.hasobject:
        raise ScanError(
            f"{path}: holds Python objects (pickle), which are never loaded. Save numbers."
        )
    check_size(path, shape, dtype)
    return shape, dtype


def _members(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Check what an archive declares; returns shape and type of ``image``."""
    with zipfile.ZipFile(path) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist()]
        if "image" not in names:
            raise ScanError(
                f"{path}: has no array `image`, only {', '.join(sorted(names)[:8]) or 'nothing'}. "
                "Save the pixels as `image`." + nearest("image", names)
            )
        for name in {"spacing", "affine", "channels"} & set(names):
            with archive.open(f"{name}.npy") as file:
                shape, dtype = _declared(file, path)
            if int(np.prod(shape)) * dtype.itemsize > 2**20:
                raise ScanError(f"{path}: `{name}` has the shape {shape}; that is no geometry.")
        with archive.open("image.npy") as file:
            return _declared(file, path)
