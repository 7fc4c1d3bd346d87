"""JPEG 2000 pictures (.jp2, .j2k) through imagecodecs, with all their bits."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normscan.errors import ScanError
from normscan.io.files import Decoded, Header, as_float32, check_size, decoding, raster_channels

_START = b"\xff\x4f\xff\x51"  # of a code stream, with the marker of its sizes
_CMYK, _SYCC = 12, 18
_DEEPEST = 24  # bits; OpenJPEG loses the upper ones of deeper samples


@dataclass(frozen=True)
class _Plan:
    """What the headers of a file say.

    Attributes:
        shape: rows and columns.
        samples: components of a pixel.
        bits: of a sample.
        signed: samples may be negative.
        lossy: the wavelet isn't reversible.
    """

    shape: tuple[int, int]
    samples: int
    bits: int
    signed: bool
    lossy: bool

    @property
    def dtype(self) -> str:
        """Smallest type that holds a sample."""
        size = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return f"{'' if self.signed else 'u'}int{size}"

    @property
    def channels(self) -> int:
        """Number of channels without alpha, which comes last."""
        return 3 if self.samples > 2 else 1


def read_jpeg2000(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode a JPEG 2000 picture.

    Returns:
        Data (C, H, W) in the values of the file, alpha dropped.

    Raises:
        ScanError: damaged or truncated file; palettes, CMYK, samples of different depths.
    """
    import imagecodecs

    plan = _planned(path)
    with decoding(path, "JPEG 2000 picture"):
        values = imagecodecs.jpeg2k_decode(path.read_bytes())
    values = values[..., None] if values.ndim == 2 else values
    if values.shape != (*plan.shape, plan.samples):
        raise ScanError(f"{path}: this JPEG 2000 picture contradicts itself. Copy it again.")
    data = np.moveaxis(values[..., : plan.channels], -1, 0)
    data, names = raster_channels(data)
    return Decoded(as_float32(data, path), names, plan.dtype)


def probe_jpeg2000(path: Path, chosen: dict[str, str]) -> Header:
    """Read size and depth from the headers alone."""
    plan = _planned(path)
    return Header(plan.shape, plan.channels, plan.dtype, None)


def is_lossy(path: Path) -> bool:
    """Tell whether values were lost by the kind of wavelet; a reversible one may be cut as well."""
    return _planned(path).lossy


def _planned(path: Path) -> _Plan:
    with decoding(path, "JPEG 2000 picture"), path.open("rb") as file:
        head = file.read(2**20)
        start = head.index(_START)
        width, height, left, top = struct.unpack(">4I", head[start + 8 : start + 24])
        (samples,) = struct.unpack(">H", head[start + 40 : start + 42])
        sizes = {head[start + 42 + 3 * n : start + 45 + 3 * n] for n in range(min(samples, 5))}
        coding = head.index(b"\xff\x52", start)
        lossy = head[coding + 13] == 0
        depth, *steps = min(sizes)
    boxes = head[:start]
    space = 0
    if (colour := boxes.find(b"colr\x01")) >= 0:
        (space,) = struct.unpack(">I", boxes[colour + 7 : colour + 11])
    shape = (height - top, width - left)
    plan = _Plan(shape, samples, (depth & 127) + 1, depth > 127, lossy)
    check_size(path, (*shape, samples))
    # Where the colours of sYCC are coarser, the decoder spreads and turns them into RGB.
    uneven = len(sizes) > 1 or steps != [1, 1]
    if not 1 <= samples <= 4 or (uneven and space != _SYCC) or plan.bits > _DEEPEST:
        what = (
            f"{samples} samples of different sizes" if uneven else f"{samples} x {plan.bits} bits"
        )
    elif space == _CMYK or b"pclr" in boxes:
        what = "CMYK" if space == _CMYK else "a palette"
    else:
        return plan
    raise ScanError(
        f"{path}: a JPEG 2000 picture with {what} isn't supported here. Save it as grey or RGB."
    )
