"""What is known of a file before it is decoded: its name, its kind, whether it can be an image."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from normscan.errors import ScanError, nearest
from normscan.io.address import KEYS
from normscan.io.memory import check_memory

MAX_VOXELS = 2**31
"""Most values a file may declare: above it no memory is asked for (8 GiB as float32)."""

RASTER_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".j2k")
NIFTI_EXTENSIONS = (".nii", ".nii.gz")
VOLUME_EXTENSIONS = (".nrrd", ".nhdr", ".mha", ".mhd", ".mgh", ".mgz", ".mnc", ".hdr")
ARRAY_EXTENSIONS = (".npy", ".npz")
EXTENSIONS = NIFTI_EXTENSIONS + RASTER_EXTENSIONS + VOLUME_EXTENSIONS + ARRAY_EXTENSIONS
_DATA_EXTENSION = ".img"  # of a pair whose header is listed; it may stand for the pair

_UNSUPPORTED = re.compile("unsupported|not supported|not implemented|requires the", re.IGNORECASE)

SMALLEST_MM, LARGEST_MM = 1e-3, 50.0  # of a voxel
_ENDS = 4096  # bytes at either end of a file that tell it from another

# What an address (``normscan.io.address``) holds behind the name of its file.
_FRAGMENT = re.compile(rf"#({'|'.join(KEYS)})=[^#/]*$")

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (128, b"DICM", "DICOM file"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (344, b"n+1\0", "NIfTI"),
    (4, b"n+2\0", "NIfTI"),
    (344, b"ni1\0", "NIfTI header"),
    (4, b"ni2\0", "NIfTI header"),
    (0, b"NRRD000", "NRRD"),
    (0, b"CDF\1", "MINC 1 file"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"\x89HDF", "HDF5 file"),
    (0, b"%PDF", "PDF"),
    (0, b"version https://git-lfs", "Git LFS pointer (the data itself was never downloaded)"),
)
_META_IMAGE = re.compile(rb"\s*(ObjectType|NDims|Comment)\s*[=:]")
_READABLE_AS = {
    "PNG": RASTER_EXTENSIONS,
    "JPEG": RASTER_EXTENSIONS,
    "BMP": RASTER_EXTENSIONS,
    "TIFF": RASTER_EXTENSIONS,
    "WebP": RASTER_EXTENSIONS,
    "JPEG 2000": RASTER_EXTENSIONS,
    "NRRD": (".nrrd", ".nhdr"),
    "MetaImage": (".mha", ".mhd"),
    "MGH": (".mgh",),
    "gzipped MGH": (".mgz",),
    "MINC 1 file": (".mnc",),
    "HDF5 file": (".mnc",),
    "NIfTI header": (".hdr",),
    "Analyze header": (".hdr",),
    "NIfTI": (".nii",),
    "gzipped NIfTI": (".nii.gz",),
    "NumPy array": (".npy",),
    "zip archive": (".npz",),
}


@dataclass(frozen=True)
class Decoded:
    """What a decoder returns; ``read_scan`` checks it and makes the scan.

    Attributes:
        data: (C, *spatial) float32, in the units of the file.
        channels: one name per channel.
        dtype: data type in the file.
        affine: (4, 4) index to RAS+ mm, or None where the file has no geometry.
        extra: what a writer needs; goes to ``Scan.extra``.
    """

    data: np.ndarray
    channels: tuple[str, ...]
    dtype: str
    affine: np.ndarray | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What a file says of itself, without its pixels.

    Attributes:
        shape: spatial shape, as the scan will have it.
        channels: number of channels stored; a grey picture stored as RGB counts 3 here and is
            read as one.
        dtype: data type in the file.
        spacing: millimetres per step along each spatial axis, or None where the file doesn't say.
    """

    shape: tuple[int, ...]
    channels: int
    dtype: str
    spacing: tuple[float, ...] | None


def is_address(path: str | os.PathLike[str]) -> bool:
    """Tell whether selectors stand behind a path."""
    return _FRAGMENT.search(Path(path).name) is not None


def extension(path: str | os.PathLike[str]) -> str:
    """Return the extension in lower case, ``.nii.gz`` in one piece, without an address's ``#...``."""
    name = _FRAGMENT.sub("", Path(path).name).lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem(path: str | os.PathLike[str]) -> str:
    """Return the file name without its extension (``.nii.gz`` in one piece).

    Of an address the selectors stay: ``scan_slice80`` for ``scan.nii.gz#slice=80``.
    """
    name = Path(path).name
    fragment = _FRAGMENT.search(name)
    chosen = re.sub(r"[^A-Za-z0-9.-]", "", fragment.group()) if fragment else ""
    name = _FRAGMENT.sub("", name)
    cut = len(extension(name))
    return (name[:-cut] if cut else name) + (f"_{chosen}" if chosen else "")


def walk_files(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, relative to it, with slashes; links are followed once.

    Hidden files and folders and the leftovers of a Mac's archives are passed over, and so are
    folders in it that can't be read.

    Raises:
        ScanError: the folder itself can't be read.
    """

    def refuse(error: OSError) -> None:
        if Path(error.filename or "") == folder:
            raise ScanError(
                f"{folder}: can't be read ({error.strerror}). Check the rights of the folder."
            ) from error

    seen: set[str] = set()
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        relative = Path(here).relative_to(folder)
        for name in sorted(names):
            if not name.startswith("."):
                yield (relative / name).as_posix()


def header_of(path: Path) -> Path:
    """Return the header of a pair that its data (.img) stand for; any other file is itself.

    Raises:
        ScanError: data without their header.
    """
    if path.suffix.lower() != _DATA_EXTENSION or sniff(path) == "DICOM file":
        return path
    for suffix in (".hdr", ".HDR"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise ScanError(f"{path}: has no header {path.stem}.hdr beside it. Copy it there.")


def data_of(path: Path) -> Path:
    """Return the data (.img) of a pair from its header.

    Raises:
        ScanError: a header without its data.
    """
    for suffix in (_DATA_EXTENSION, _DATA_EXTENSION.upper()):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise ScanError(f"{path}: has no data {path.stem}.img beside it. Copy it there.")


def check_file(path: Path) -> str:
    """Check that a file can be tried as an image, and return the kind its content says.

    Args:
        path: the file.

    Returns:
        A key of ``normscan.io.decoders.READERS``, or ``DICOM file`` (whatever its extension).

    Raises:
        ScanError: no such file, a folder, an empty file, an unknown extension, or content of
            another kind than the extension says. Raster formats may stand in for one another
            (a JPEG called .png is common and harmless).
    """
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        _refuse_missing(path)
    known = ", ".join(EXTENSIONS)
    path = header_of(path)
    kind = sniff(path)
    suffix = extension(path)
    if kind == "empty":
        raise ScanError(f"{path}: the file is empty (0 bytes). Copy it again from its source.")
    if kind == "DICOM file":
        return kind
    if suffix not in EXTENSIONS:
        what = f"'{suffix}'" if suffix else "no extension"
        raise ScanError(
            f"{path}: {what} is none of the formats known here: {known}, and its content is no "
            "DICOM."
        )
    if suffix in _READABLE_AS.get(kind, ()):
        return kind
    mend = "Rename it to what it is" if kind in _READABLE_AS else "Convert it to one of " + known
    if kind.startswith("damaged"):
        mend = "Copy it again from its source"
    if kind.startswith("Git LFS"):
        mend = "Fetch the data with 'git lfs pull'"
    article = "an" if kind.startswith(("HDF5", "NRRD", "MGH", "Analyze")) else "a"
    raise ScanError(f"{path}: is called {suffix}, but its content is {article} {kind}. {mend}.")


def _refuse_missing(path: Path) -> NoReturn:
    if os.path.isdir(path):
        raise ScanError(f"{path}: is a folder. Give the image file itself, or read a Cohort.")
    if os.path.islink(path) and not os.path.exists(path):
        raise ScanError(f"{path}: is a link to nothing. Give the image file itself.")
    if os.path.exists(path):
        raise ScanError(f"{path}: is not a regular file. Give an image file.")
    hint = f" There is no folder {path.parent}."
    if os.path.isdir(path.parent):
        try:
            with os.scandir(path.parent) as entries:
                names = [entry.name for _, entry in zip(range(5000), entries, strict=False)]
        except OSError as error:
            raise ScanError(
                f"{path}: its folder can't be read ({error.strerror}). Check its rights."
            ) from error
        hint = nearest(path.name, sorted(names))
    raise ScanError(f"{path}: no such file.{hint}")


def sniff(path: Path) -> str:
    """Return in words what the first bytes of a file say it is."""
    try:
        state = path.stat()
        changed = state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
        return _sniffed(path, changed)
    except OSError as error:
        raise ScanError(
            f"{path}: can't be opened ({error.strerror}). Check the rights of the file."
        ) from error


@lru_cache(maxsize=64)
def _sniffed(path: Path, changed: tuple[int, ...]) -> str:
    """Look into a file once for all who ask on its way through the readers."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if head[:2] == b"\x1f\x8b":
        return _sniff_gzip(path)
    return _kind_of(head)


def _sniff_gzip(path: Path) -> str:
    try:
        with gzip.open(path) as file:
            inner = _kind_of(file.read(512))
    except (OSError, EOFError, zlib.error):
        return "damaged gzip file"
    return f"gzipped {inner}"


def _kind_of(head: bytes) -> str:
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if is_bare_dicom(head):
        return "DICOM file"
    if _META_IMAGE.match(head):
        return "MetaImage"
    if len(head) >= 28:
        version, *sizes, kind = struct.unpack(">6i", head[:24])
        if version == 1 and all(0 < n < 2**20 for n in sizes) and 0 <= kind <= 10:
            return "MGH"
    if len(head) >= 348 and b"\x5c\1\0\0" in (head[:4], head[3::-1]):
        return "Analyze header"
    if head.lstrip()[:1] == b"<":
        return "web page or XML text"
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)
    return "text file" if head and printable > 0.95 * len(head) else "file of unknown kind"


def is_bare_dicom(head: bytes) -> bool:
    """Tell whether bytes start as a DICOM data set that has no preamble: low tags that grow."""
    for order in ("<", ">"):
        if len(head) < 16 or struct.unpack(order + "H", head[:2])[0] not in (2, 8):
            continue
        first = struct.unpack(order + "HH", head[:4])
        if head[4:6].isalpha() and head[4:6].isupper():  # explicit: the kind of value is spelt out
            return first[1] <= 0x70
        length = struct.unpack(order + "I", head[4:8])[0]
        following = head[8 + length : 12 + length]
        if len(following) == 4 and first < struct.unpack(order + "HH", following) < (0x20, 0):
            return True
    return False


def identity(path: Path) -> str:
    """Return what changes when a file is changed or replaced, even by one of its size and time.

    Size, times (that of the last change of the inode can't be set back), inode, and a hash of the
    first and last bytes, which for a gzip file hold the checksum of its content.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        head = file.read(_ENDS)
        file.seek(max(0, state.st_size - _ENDS))
        ends = hashlib.sha256(head + file.read(_ENDS)).hexdigest()
    return f"{state.st_size}:{state.st_mtime_ns}:{state.st_ctime_ns}:{state.st_ino}:{ends}"


def check_size(
    path: Path,
    shape: Sequence[int],
    dtype: np.dtype[Any] | None = None,
    data: Path | None = None,
) -> None:
    """Refuse a declared size that no honest file has, before memory is asked for it.

    Args:
        path: the file, to name it.
        shape: the declared shape, channels included.
        dtype: the declared type; with it, the size is also compared with that of the file, since
            deflate packs at most 1032 to 1.
        data: the file that holds the values, where that is another one.

    Raises:
        ScanError: an empty axis, more than ``MAX_VOXELS``, or more bytes than the file can hold.
    """
    sizes = [int(n) for n in shape]
    if not sizes or min(sizes) <= 0:
        raise ScanError(
            f"{path}: the header declares the shape {tuple(sizes)}, without any pixel: it is "
            "damaged. Copy it again from its source."
        )
    voxels = math.prod(sizes)
    if voxels > MAX_VOXELS:
        raise ScanError(
            f"{path}: the header declares {voxels} values, the limit is {MAX_VOXELS}. If that is "
            "true, cut the image into tiles; if not, the header is damaged."
        )
    if dtype is not None and voxels * dtype.itemsize > 1100 * (data or path).stat().st_size + 2**16:
        raise ScanError(
            f"{path}: the header declares {tuple(sizes)} values of {dtype}, more than the "
            "file can hold: it is truncated or damaged. Copy it again from its source."
        )


def check_spacing(path: Path, spacing: Sequence[float] | None, shape: Sequence[int]) -> None:
    """Refuse voxels of a size that no scanner and no microscope makes.

    Args:
        path: the file, to name it.
        spacing: mm per step along each spatial axis, or None where unknown.
        shape: spatial shape; an axis of one place has no steps.

    Raises:
        ScanError: below a micrometre (of a picture ten nanometres, as of a microscope), over 50 mm.
    """
    if spacing is None:
        return
    least = SMALLEST_MM if len(shape) == 3 else SMALLEST_MM / 100
    steps = [float(s) for s, n in zip(spacing, shape, strict=False) if n > 1]
    if all(least <= s <= LARGEST_MM for s in steps):
        return
    sizes = " x ".join(f"{s:.4g}" for s in spacing)
    raise ScanError(
        f"{path}: its header makes a voxel {sizes} mm large, which is implausible (less than "
        f"{least:g} mm or more than {LARGEST_MM:g} mm): its unit of length seems wrong. Mend the unit "
        "(NIfTI: xyzt_units, 1 metre, 2 mm, 3 micron) or the spacing in its header."
    )


def as_float32(array: np.ndarray, path: Path, nan: bool = False) -> np.ndarray:
    """Return the array as float32.

    Args:
        array: numbers.
        path: to name it.
        nan: leave NaN in place, for ``normscan.io.background`` to judge.

    Raises:
        ScanError: no values; complex, text or structured values; NaN or infinite values; values
            beyond the range of float32; more than fit the memory.
    """
    if array.size == 0:
        raise ScanError(f"{path}: holds no pixels, so it is damaged. Copy it again.")
    if array.dtype.kind not in "biuf":
        mend = "Save the magnitude" if array.dtype.kind == "c" else "Save plain numbers"
        raise ScanError(f"{path}: values of type {array.dtype} are no image intensities. {mend}.")
    check_memory(path, array.size * (4 * (array.dtype != np.float32) + (array.dtype.kind == "f")))
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all() and (not nan or np.isinf(array).any()):
            bad = int(array.size - np.count_nonzero(finite))
            raise ScanError(
                f"{path}: {bad} of {array.size} values are NaN or infinite. Replace them in the "
                "file, for example by the background value (numpy.nan_to_num)."
            )
    with np.errstate(over="ignore"):
        data = np.asarray(array, dtype=np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4 and np.isinf(data).any():
        raise ScanError(f"{path}: values beyond 3.4e38, the range of float32. Rescale the file.")
    return data


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a ScanError."""
    try:
        yield
    except ScanError:
        raise
    except MemoryError as error:
        raise ScanError(f"{path}: not enough memory to read this {kind}.") from error
    except Exception as error:  # decoders raise anything at all on a hostile file
        reason = str(error).strip().split("\n")[0].replace(str(path), path.name) or repr(error)
        if _UNSUPPORTED.search(reason):
            raise ScanError(
                f"{path}: this variant of {kind} isn't supported here ({reason[:200]}). Save it in a "
                "usual one."
            ) from error
        raise ScanError(
            f"{path}: this {kind} is damaged, truncated or of an unknown variant ({reason[:200]}). "
            "Copy or export it again from its source."
        ) from error


def raster_channels(data: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Name the channels of a picture (C, *spatial); RGB with three equal channels becomes grey."""
    if len(data) == 3:
        if np.array_equal(data[0], data[1]) and np.array_equal(data[0], data[2]):
            return data[:1], ("grey",)
        return data, ("red", "green", "blue")
    if len(data) == 1:
        return data, ("grey",)
    return data, tuple(f"channel{i}" for i in range(len(data)))


def orient(data: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF or TIFF orientation (1 to 8) to (..., H, W), as a viewer would show it."""
    if orientation in (5, 6, 7, 8):
        data = data.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        data = data[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        data = data[..., ::-1]
    return np.ascontiguousarray(data)
