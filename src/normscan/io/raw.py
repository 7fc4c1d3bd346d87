"""Values that lie behind a text header (NRRD, MetaImage), in its file or in one beside it.

SimpleITK gives the same values, but reads MetaImage data with a wrong checksum without a word, so
the unpacking is Python's own. No header is trusted: sizes are checked before memory is asked for,
and a data file lies in the folder of its header.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.address import one_volume
from normscan.io.files import Decoded, Header, as_float32, check_size, decoding, raster_channels
from normscan.io.nifti import bids_suffix

LONGEST_HEADER = 2**20  # bytes
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
_BLOCK = 2**20


@dataclass(frozen=True)
class RawImage:
    """What a header says.

    Attributes:
        path: of the header.
        data: the file of the values.
        start: the byte they begin at, in the unpacked stream where ``skip_inside``; None for values
            that end with their file.
        packing: ``raw``, ``gzip``, ``zlib``, ``bzip2``, ``text`` or ``hex``.
        dtype: of a value, with its byte order.
        sizes: length of each axis, the fastest first.
        spatial: which of the axes lie in space, in order; the others count volumes or colours.
        colours: the other axis holds red, green, blue (and alpha).
        affine: (4, 4) index to RAS+ mm, None where the header gives no size of a voxel.
        lines: to skip in front of the values.
        skip_inside: ``start`` counts in the unpacked stream, behind the skipped lines.
        notes: what is to be said.
    """

    path: Path
    data: Path
    start: int | None
    packing: str
    dtype: np.dtype
    sizes: tuple[int, ...]
    spatial: tuple[int, ...]
    colours: bool
    affine: np.ndarray | None
    lines: int = 0
    skip_inside: int = 0
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape; trailing axes of one place are dropped, down to two."""
        shape = tuple(self.sizes[a] for a in self.spatial)
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        return shape

    @property
    def others(self) -> int:
        """How many values a voxel has."""
        return int(
            np.prod([n for a, n in enumerate(self.sizes) if a not in self.spatial], initial=1)
        )


def read_raw(image: RawImage, chosen: dict[str, str], kind: str) -> Decoded:
    """Read the values of a header; errors as ``read_scan``."""
    check(image)
    volume = None if image.colours else one_volume(image.path, chosen, image.others, image.shape)
    with decoding(image.path, kind):
        values = _values(image).reshape(image.sizes, order="F")
    rest = [a for a in range(len(image.sizes)) if a not in image.spatial]
    values = values.transpose([*rest[::-1], *image.spatial]).reshape(image.others, *image.shape)
    values = values[:3] if volume is None else values[volume : volume + 1]
    data = as_float32(values, image.path, nan=True)
    names: tuple[str, ...] = (bids_suffix(image.path) or "image",)
    if volume is None:
        data, names = raster_channels(data)
    extra: dict[str, Any] = {"notes": image.notes}
    if image.affine is not None:
        extra |= {"placed": True, "spacing_known": True}
    return Decoded(data, names, image.dtype.newbyteorder("=").name, image.affine, extra)


def probe_raw(image: RawImage, chosen: dict[str, str]) -> Header:
    """Return what ``read_raw`` would give, from the header alone."""
    check(image)
    if not image.colours:
        one_volume(image.path, chosen, image.others, image.shape)
    spacing = None
    if image.affine is not None:
        steps = np.linalg.norm(image.affine[:3, : len(image.shape)], axis=0)
        spacing = tuple(float(s) for s in steps)
    channels = 3 if image.colours else 1
    return Header(image.shape, channels, image.dtype.newbyteorder("=").name, spacing)


def beside(header: Path, name: str) -> Path:
    """Return the data file that a header names, if it lies in the header's folder or below.

    Raises:
        ScanError: a name that leaves the folder, also through a link; no such file.
    """
    given = name.replace("\\", "/")
    folder = header.parent
    data = folder / given
    outside = ScanError(
        f"{header}: names a data file outside of its folder. Put that file beside the header and "
        "write its bare name into it."
    )
    if "\0" in given or given.startswith("/") or ".." in given.split("/") or ":" in given[:2]:
        raise outside
    if not data.is_file():
        raise ScanError(
            f"{header}: its data file {data.name[:80]} isn't there. Copy it beside the header."
        )
    if not data.resolve().is_relative_to(folder.resolve()):
        raise outside
    return data


def header_text(path: Path) -> tuple[bytes, int]:
    """Return the first bytes of a file and its size."""
    with decoding(path, "file"), path.open("rb") as file:
        return file.read(LONGEST_HEADER), path.stat().st_size


def check(image: RawImage) -> None:
    """Refuse sizes that the data can't have, and axes that are no image."""
    least = image.dtype if image.packing not in ("text", "hex") else np.dtype(np.uint8)
    check_size(image.path, image.sizes, least, image.data)
    if image.packing == "raw":
        needed = int(np.prod(image.sizes, dtype=np.int64)) * image.dtype.itemsize
        if needed + (image.start or 0) > image.data.stat().st_size:
            raise ScanError(
                f"{image.path}: truncated: its header declares {needed} bytes of values, "
                f"{image.data.name} holds fewer. Copy it again from its source."
            )
    if not 2 <= len(image.spatial) <= 3:
        raise ScanError(
            f"{image.path}: {len(image.spatial)} axes in space are no image, which needs 2 or 3."
        )
    if image.affine is not None:
        sound = np.isfinite(image.affine).all() and np.abs(image.affine).max() < 1e6
        if not sound or abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
            raise ScanError(
                f"{image.path}: the directions and spacings in its header are singular, not finite "
                "or beyond 1e+06 mm, so the voxels have no size. Repair them."
            )


def _values(image: RawImage) -> np.ndarray:
    count = int(np.prod(image.sizes, dtype=np.int64))
    needed = count * image.dtype.itemsize
    with image.data.open("rb") as file:
        if image.start is None:
            file.seek(-needed, 2)
        else:
            file.seek(image.start)
        for _ in range(image.lines):
            file.readline(LONGEST_HEADER)
        if image.packing in ("text", "hex"):
            text = file.read()
            if image.packing == "hex":
                block = bytes.fromhex(text.decode("ascii"))
            else:
                parts = text.replace(b",", b" ").split(None, count)[:count]
                if len(parts) < count:
                    raise ScanError(f"{image.path}: truncated, it declares {count} values.")
                number = float if image.dtype.kind == "f" else int
                return np.array([number(part) for part in parts], image.dtype)
        else:
            block = _unpacked(file, image.packing, image.skip_inside + needed)
    block = block[image.skip_inside : image.skip_inside + needed]
    if len(block) < needed:
        raise ScanError(f"{image.path}: truncated, its header declares {needed} bytes of values.")
    return np.frombuffer(block, image.dtype)


def _unpacked(file: IO[bytes], packing: str, needed: int) -> bytes:
    """Unpack so many bytes; what follows is read only for its checksum, and bounded."""
    if packing == "raw":
        return file.read(needed)
    if packing in ("gzip", "bzip2"):
        with gzip.GzipFile(fileobj=file) if packing == "gzip" else bz2.BZ2File(file) as packed:
            block = packed.read(needed)
            for _ in range(64):
                if not packed.read(2**12):
                    break
        return block
    machine = zlib.decompressobj(47)  # zlib or gzip
    parts, left, fed = [], needed, b""
    while not machine.eof:
        fed = machine.unconsumed_tail or file.read(_BLOCK)
        if not fed:
            raise EOFError("the packed values end early")
        parts.append(machine.decompress(fed, max(left, 1)))
        left -= len(parts[-1])
        if left < -64:
            break
    return b"".join(parts)
