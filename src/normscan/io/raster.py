"""PNG, JPEG, BMP and WebP through Pillow, with all their bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.files import (
    Decoded,
    Header,
    as_float32,
    check_size,
    decoding,
    orient,
    raster_channels,
    sniff,
)
from normscan.io.memory import check_memory

if TYPE_CHECKING:
    from PIL import Image

# Only these decoders may run: Pillow would otherwise start Ghostscript for a PostScript file.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = {"LA": "L", "La": "L", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB"}
COLOUR_MODES = ("P", "CMYK", "YCbCr")
ORIENTATION = 0x0112


def read_raster(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode a PNG, JPEG, BMP or WebP.

    Returns:
        Data (C, H, W) in the values of the file: 0..255, 0..65535, or 0..1 for one-bit images.
        The EXIF orientation is applied, alpha dropped, a palette resolved. Resolution tags are
        ignored: they say how to print, not how large the anatomy is.

    Raises:
        ScanError: damaged, truncated or too large a file, an unknown pixel mode, a moving picture.
    """
    from PIL import Image

    with decoding(path, sniff(path)):
        try:
            with Image.open(path, formats=FORMATS) as image:
                _check(image, path)
                values, dtype = _pixels(image, path)
                orientation = _orientation(image)
        except Image.DecompressionBombError as error:
            raise ScanError(
                f"{path}: declares more pixels than the limit of "
                f"{2 * (Image.MAX_IMAGE_PIXELS or 0)}. Cut it into tiles, or save it as TIFF."
            ) from error
    data = orient(values if values.ndim == 3 else values[None], orientation)
    data, names = raster_channels(data)
    return Decoded(as_float32(data, path), names, dtype)


def probe_raster(path: Path, chosen: dict[str, str]) -> Header:
    """Read size and mode without decoding the pixels."""
    from PIL import Image

    with decoding(path, sniff(path)), Image.open(path, formats=FORMATS) as image:
        _check(image, path)
        width, height = image.size
        # A PNG is decoded to look for EXIF behind the pixels; only EXIF in front is looked at here.
        early = image.format != "PNG" or "exif" in image.info
        if early and _orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        mode = ALPHA_MODES.get(image.mode, image.mode)
        channels = 1 if mode in GREY_MODES else 3
        deep = _png_depth(image) == 16
        if deep and image.mode == "RGBA" and _rawmode(image).startswith("LA"):
            channels = 1
        dtype = "uint16" if deep else _dtype(mode)
    return Header((height, width), channels, dtype, None)


def read_palette(path: Path, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the (H, W) indices and (n, 3) colours of a palette picture, None of any other."""
    from PIL import Image

    with decoding(path, kind), Image.open(path, formats=FORMATS) as image:
        check_size(path, (*image.size, len(image.getbands())))
        if image.mode not in ("P", "PA"):
            return None
        colours = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        indices = np.asarray(image)
        turned = _orientation(image)
    return orient(indices if indices.ndim == 2 else indices[..., 0], turned), colours


def is_lossy_webp(path: Path) -> bool:
    """Tell whether a WebP holds a lossy picture: its chunk is called ``VP8 ``."""
    with decoding(path, "WebP"), path.open("rb") as file:
        file.seek(12)
        while len(chunk := file.read(8)) == 8:
            if chunk[:4] in (b"VP8 ", b"VP8L"):
                return chunk[:4] == b"VP8 "
            size = int.from_bytes(chunk[4:], "little")
            file.seek(size + size % 2, 1)
    return True


def _check(image: Any, path: Path) -> None:
    shape = (*image.size, len(image.getbands()))
    check_size(path, shape)
    check_memory(path, 5 * math.prod(shape))  # as it is stored, and as float32
    frames = getattr(image, "n_frames", 1)
    if image.format == "WEBP" and frames > 1:
        raise ScanError(f"{path}: a moving picture of {frames} frames. Save the wanted one.")


def _dtype(mode: str) -> str:
    names = {"1": "bool", "I": "int32", "F": "float32"}
    return names.get(mode, "uint16" if mode.startswith("I;16") else "uint8")


def _pixels(image: Image.Image, path: Path) -> tuple[np.ndarray, str]:
    """Return (H, W) or (3, H, W) and the type in the file."""
    if _png_depth(image) == 16 and image.mode in ("RGB", "RGBA"):
        return _deep_png(image), "uint16"
    image.load()
    mode = image.mode
    if mode in ALPHA_MODES:
        image = image.convert(ALPHA_MODES[mode])
    elif mode in COLOUR_MODES:
        image = image.convert("RGB")
    elif mode not in (*GREY_MODES, "RGB"):
        raise ScanError(f"{path}: pixel mode {mode} is not known here. Save it as grey or RGB.")
    values = np.asarray(image)
    return (np.moveaxis(values, -1, 0) if values.ndim == 3 else values), _dtype(image.mode)


def _rawmode(image: Any) -> str:
    """Return how the pixels lie in the file, in Pillow's words (``RGB;16B``)."""
    args = image.tile[0][3] if image.tile else ""
    return str(args if isinstance(args, str) else args[0])


def _png_depth(image: Image.Image) -> int:
    return 16 if image.format == "PNG" and ";16" in _rawmode(image) else 8


def _deep_png(image: Any) -> np.ndarray:
    """Decode 16-bit RGB, RGBA or grey + alpha, of which Pillow itself keeps the upper byte only.

    Pillow's little-endian unpacker takes the *second* byte of each big-endian value. So the same
    data are unpacked twice, for the upper and the lower bytes, and every filter, interlacing and
    checksum is still Pillow's work.
    """
    raw = _rawmode(image)
    if raw.startswith("LA"):
        # Four bytes a pixel: unpacked as RGBA they are grey high, grey low, alpha high, alpha low.
        bytes_ = np.asarray(_unpack(image, "RGBA"), dtype=np.uint16)
        return (bytes_[..., 0] << 8) | bytes_[..., 1]
    path = image.filename
    high = np.asarray(_unpack(image, raw), dtype=np.uint16)
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as again:
        low = np.asarray(_unpack(again, raw.replace("16B", "16L")), dtype=np.uint16)
    return np.moveaxis(((high << 8) | low)[..., :3], -1, 0)


def _unpack(image: Any, rawmode: str) -> Any:
    tile = image.tile[0]
    image.tile = [tile._replace(args=rawmode if isinstance(tile[3], str) else (rawmode,))]
    image.load()
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken EXIF block doesn't harm the pixels
        return 1
    return int(value) if value in range(1, 9) else 1
