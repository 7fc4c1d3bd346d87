"""NumPy files: .npy for a bare array, .npz for an array with its geometry."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sized
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from normscan.errors import ScanError, nearest
from normscan.io.address import COLLECTIONS, whole_number
from normscan.io.cache import unpacked
from normscan.io.files import (
    Decoded,
    Header,
    as_float32,
    check_size,
    decoding,
    identity,
    raster_channels,
)
from normscan.parallel import undisturbed
from normscan.scan import Scan, is_colour

LONGEST_HEADER = 2**16  # bytes; an array of plain numbers needs 128
LARGEST_COLLECTION = 2**38  # bytes of an array of many images


def read_array(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode a .npy or .npz file; pickled objects are refused.

    A .npy holds (H, W), (H, W, 3 or 4) colours of 8 or 16 bits, or (D, H, W); with ``#stack=1`` three
    axes are a volume even where the last has a length of 3 or 4. A .npz holds ``image`` of that
    shape and optionally ``spacing`` (mm per axis) or ``affine`` (4 x 4), and ``channels`` (names),
    with which ``image`` has a channel axis in front; or it holds many images, of which the address
    names one (``#train_images=12``): those of MedMNIST are mapped from the cache.

    Raises:
        ScanError: damaged file, missing key, wrong number of axes, text or objects.
    """
    stack = "stack" in chosen
    if path.suffix.lower() == ".npy":
        with decoding(path, "NumPy file"), path.open("rb") as file:
            _declared(file, path)
            array = undisturbed(lambda: _from_start(file))
        return _decoded(path, array, {}, stack)
    if named := _one_of_many(path, chosen):
        images = _collection(path, identity(path), named)
        return _decoded(path, np.array(images[_place(path, chosen, named, images)]), {}, stack)
    with decoding(path, "NumPy archive"):
        _members(path)
        parts = _arrays(path, "image", "spacing", "affine", "channels")
    return _decoded(path, parts.pop("image"), parts, stack)


def probe_array(path: Path, chosen: dict[str, str]) -> Header:
    """Read shape and type from the header; of a .npz also its small geometry arrays."""
    stack = "stack" in chosen
    if path.suffix.lower() == ".npy":
        with decoding(path, "NumPy file"), path.open("rb") as file:
            shape, dtype = _declared(file, path)
        return _header(path, shape, dtype, stack)
    with decoding(path, "NumPy archive"):
        named = _one_of_many(path, chosen)
        shape, dtype = _members(path, named or "image")
        if named:
            _place(path, chosen, named, range(shape[0]))
            return _header(path, shape[1:], dtype, stack)
        parts = _arrays(path, "spacing", "affine", "channels")
    channels = shape[0] if "channels" in parts else 1
    shape = shape[1:] if "channels" in parts else shape
    _check_axes(path, shape, 0)
    if not (stack or "channels" in parts) and _as_picture(shape, dtype, parts):
        shape, channels = shape[:2], 3
    tiny = np.zeros((1,) * len(shape), dtype=np.float32)
    parts.pop("channels", None)
    scan = _scan(path, tiny, parts)
    return Header(shape, channels, str(dtype), scan.spacing if parts else None)


def count_images(path: Path, name: str) -> int:
    """Return how many images an array of an archive holds.

    Raises:
        ScanError: damaged archive, no such array.
    """
    with decoding(path, "NumPy archive"):
        return _members(path, name)[0][0]


def read_numbers(path: Path, name: str) -> np.ndarray:
    """Read an array of an archive that is no image, such as labels.

    Raises:
        ScanError: damaged archive, no such array, objects.
    """
    with decoding(path, "NumPy archive"):
        _members(path, name)
        return _arrays(path, name)[name]


def _from_start(file: IO[bytes]) -> np.ndarray:
    file.seek(0)
    array: np.ndarray = np.load(file, allow_pickle=False)
    return array


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read those of the arrays that an archive has."""

    def read() -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in names if name in archive}

    return undisturbed(read)


def _header(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], stack: bool) -> Header:
    _check_axes(path, shape, 0)
    if not stack and is_colour(shape, dtype):
        return Header(shape[:2], 3, str(dtype), None)
    return Header(shape, 1, str(dtype), None)


def _one_of_many(path: Path, chosen: dict[str, str]) -> str:
    """Return the array of images that the address names, or an empty string."""
    named = [key for key in COLLECTIONS if key in chosen]
    if len(named) > 1:
        raise ScanError(f"{path}: #{named[0]}= and #{named[1]}= name two images. Keep one.")
    return named[0] if named else ""


def _place(path: Path, chosen: dict[str, str], named: str, images: Sized) -> int:
    index = whole_number(path, chosen, named)
    if index >= len(images):
        raise ScanError(f"{path}: {named} has no image {index}; it has 0 to {len(images) - 1}.")
    return index


@lru_cache(maxsize=4)
def _collection(path: Path, known: str, name: str) -> np.ndarray:
    """Map an array of many images; a packed one is unpacked into the cache first."""
    with decoding(path, "NumPy archive"):
        _members(path, name)
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(f"{name}.npy").file_size
            plain = unpacked(
                path, f"{known}:{name}", ".npy", size, lambda: archive.open(f"{name}.npy")
            )
        images: np.ndarray = undisturbed(lambda: np.load(plain, mmap_mode="r", allow_pickle=False))
    return images


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


def _declared(
    file: IO[bytes], path: Path, many: bool = False
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Parse the header of an array, or of many images, without reading its values."""
    version = np.lib.format.read_magic(file)
    reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in reader:
        raise ScanError(f"{path}: NumPy format {version} is not known here. Save plain numbers.")
    start = file.tell()
    if version[0] == 2 and int.from_bytes(file.read(4), "little") > LONGEST_HEADER:
        raise ScanError(f"{path}: its NumPy header is damaged. Copy it again from its source.")

    def parsed() -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        file.seek(start)
        header: tuple[tuple[int, ...], bool, np.dtype[Any]] = reader[version[0]](file)
        return header

    shape, _, dtype = undisturbed(parsed)
    if dtype.hasobject:
        raise ScanError(
            f"{path}: holds Python objects (pickle), which are never loaded. Save numbers."
        )
    if many and len(shape) > 1:
        size = math.prod(shape) * dtype.itemsize
        if size > min(LARGEST_COLLECTION, 1100 * path.stat().st_size + 2**16):
            raise ScanError(
                f"{path}: declares {size} bytes of images, more than it can hold or than the limit "
                f"of {LARGEST_COLLECTION}. If that is true, cut it into parts."
            )
        check_size(path, shape[1:])
    else:
        check_size(path, shape, dtype)
    return shape, dtype


def _members(path: Path, wanted: str = "image") -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Check what an archive declares; returns shape and type of the wanted array."""
    with zipfile.ZipFile(path) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist()]
        if wanted not in names:
            many = [n for n in COLLECTIONS if n in names]
            mend = "Save the pixels as `image`." + nearest("image", names)
            if many:
                mend = f"Choose one of its images, for example by #{many[0]}=0."
            raise ScanError(
                f"{path}: has no array `{wanted}`, only "
                f"{', '.join(sorted(names)[:8]) or 'nothing'}. {mend}"
            )
        for name in {"spacing", "affine", "channels"} & set(names):
            with archive.open(f"{name}.npy") as file:
                shape, dtype = _declared(file, path)
            if int(np.prod(shape)) * dtype.itemsize > 2**20:
                raise ScanError(f"{path}: `{name}` has the shape {shape}; that is no geometry.")
        with archive.open(f"{wanted}.npy") as file:
            return _declared(file, path, wanted != "image")
