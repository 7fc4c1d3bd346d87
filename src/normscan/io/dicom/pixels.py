"""Pixels of a DICOM file as numbers: decompressed, rescaled, brighter is higher."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.dicom.colours import ybr_to_rgb
from normscan.io.dicom.guarded import JPEG_EXTENDED, decode
from normscan.io.dicom.instance import Instance
from normscan.io.dicom.source import MAX_RATIO, parsing
from normscan.io.dicom.values import Groups, fetch, number, numbers, text
from normscan.io.files import as_float32, check_size
from normscan.io.memory import check_memory

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

# GDCM ends the whole process where an assertion of its fails. So it is asked last, only for what
# nothing else decodes (JPEG lossless and JPEG of 12 bits), and in a process of its own.
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_PLUGINS = ("pillow", "pyjpegls", "pylibjpeg", "pydicom", "gdcm")
_NEEDS_GDCM = (
    JPEG_EXTENDED, "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",
)  # fmt: skip
_PACKAGES = {
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}

LOWEST_HU = -1024.0  # of a CT of 12 bits

# Their values are measurements: MONOCHROME1 only asks a viewer to show high ones dark.
MEASURED = ("CT", "MR", "PT", "NM")


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded frame.

    Attributes:
        values: (rows, columns) or (rows, columns, 3) float32, rescaled.
        padding: (rows, columns) True where the file says that there is no data, or None.
        inverted: it was MONOCHROME1 and is turned over.
    """

    values: np.ndarray
    padding: np.ndarray | None = None
    inverted: bool = False


class Pixels:
    """The frames of one file.

    Args:
        data: the data set with its pixels.
        file: what its header says.
    """

    def __init__(self, data: Dataset, file: Instance) -> None:
        self.data, self.file = data, file
        self.groups = Groups(data)
        self.frames: list[bytes] | None = None
        self.mosaic: tuple[np.ndarray, str] | None = None
        name = Path(str(file.source))
        if not any(k in data for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise ScanError(f"{name}: is truncated within its pixels. Copy it again.")
        frames, *plane = file.stored
        size = (*plane, frames * file.samples)
        check_size(name, size)
        check_memory(name, 8 * math.prod(file.stored[1:]) * file.samples)
        if np.prod(size, dtype=float) > MAX_RATIO * file.source.size + 2**24:
            raise ScanError(
                f"{name}: declares {size[0]} x {size[1]} x {size[2]} values, more than the file can "
                "hold: it is truncated, damaged or hostile. Copy it again."
            )

    def frame(self, index: int) -> Picture:
        """Decode a frame, counted from 0.

        Raises:
            ScanError: damaged or contradictory, an unknown compression, a missing plugin.
        """
        name = Path(str(self.file.source))
        with parsing(self.file.source):
            stored, photometric = self._tile(index) if self.file.grid > 1 else self._stored(index)
            if stored.shape[:2] != (self.file.rows, self.file.columns):
                raise ScanError(
                    f"{name}: its pixels don't fill {self.file.rows} x {self.file.columns}. "
                    "Export it again."
                )
            if stored.ndim == 3:
                if photometric not in ("RGB", "YBR_RCT", "YBR_ICT"):
                    raise ScanError(
                        f"{name}: colours as {photometric} aren't known here. Export it as RGB."
                    )
                return Picture(as_float32(stored, name))
            if photometric == "PALETTE COLOR":
                return Picture(as_float32(self._through_palette(stored), name))
            padding = self._padding(stored)
            invert = photometric == "MONOCHROME1" and self.file.modality not in MEASURED
            values = self._rescaled(stored, index, invert)
            if self.file.lossy and self.file.modality == "CT":
                values, padding = self._traces(values, padding, stored, index)
            return Picture(as_float32(values, name), padding, invert)

    def _tile(self, index: int) -> tuple[np.ndarray, str]:
        """Cut a tile out of a mosaic, which is decoded once."""
        if self.mosaic is None:
            self.mosaic = self._stored(0)
        whole, photometric = self.mosaic
        rows, columns, grid = self.file.rows, self.file.columns, self.file.grid
        if whole.shape[:2] != self.file.stored[1:]:
            return whole, photometric  # refused by its size
        row, column = divmod(index, grid)
        cut = whole[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
        return cut, photometric

    def _stored(self, index: int) -> tuple[np.ndarray, str]:
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        meta, name = self.data.file_meta, self.file.source
        if "TransferSyntaxUID" not in meta:
            implicit, little = self.data.original_encoding
            native = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            meta.TransferSyntaxUID = native if little else ExplicitVRBigEndian
        syntax = meta.TransferSyntaxUID
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError:
            known = syntax.is_transfer_syntax and not syntax.is_private
            # What stands there may be any text, a patient's name too.
            label = syntax.name if known else re.sub(r"[^0-9.]", "", syntax)[:64]
            raise ScanError(
                f"{name}: the transfer syntax {label} can't be decoded here (a video, or a private "
                "format). Export the images uncompressed."
            ) from None
        if not decoder.is_available:
            package = _PACKAGES.get(syntax, "python-gdcm")
            raise ScanError(
                f"{name}: is compressed as {syntax.name}, which needs another package: "
                f"pip install {package}. Or export the images uncompressed."
            )
        options: dict[str, Any] = {"raw": False}
        source: Any = self.data
        if syntax.is_encapsulated:
            source, options = self._alone(index), options | self._options()
            index = 0
        plain = self._is_plain_ybr(syntax)
        options["raw"] = plain
        high, bits = (int(number(fetch(self.data, k)) or 0) for k in ("HighBit", "BitsStored"))
        shift = not syntax.is_encapsulated and "HighBit" in self.data and high != bits - 1
        if shift:
            options["correct_unused_bits"] = False
        plugins = [p for p in _PLUGINS if p in decoder.available_plugins] or [""]
        if syntax not in _NEEDS_GDCM and len(plugins) > 1:
            plugins = [p for p in plugins if p != "gdcm"]
        for plugin in plugins:
            try:
                if plugin == "gdcm" and isinstance(source, bytes):
                    array, photometric = decode(source, syntax, options)
                else:
                    array, told = decoder.as_array(
                        source, index=index, decoding_plugin=plugin, **options
                    )
                    photometric = str(told["photometric_interpretation"])
                break
            except (RuntimeError, ValueError, OSError):
                if plugin == plugins[-1]:
                    if syntax == JPEG_EXTENDED and self.deep():
                        raise ScanError(
                            f"{name}: a {syntax.name} image of this depth can't be decoded here: it "
                            "is damaged or isn't supported. Export the images uncompressed."
                        ) from None
                    raise
        if shift:
            array = self._shifted(array, high, bits)
        if plain and array.dtype == np.uint8 and photometric.startswith("YBR_FULL"):
            return ybr_to_rgb(array), "RGB"
        return array, photometric

    def _is_plain_ybr(self, syntax: UID) -> bool:
        """Tell whether a pixel comes out of the decoder as luminance and two colour differences."""
        name = text(self.data, "PhotometricInterpretation")
        if int(number(fetch(self.data, "BitsAllocated")) or 0) != 8 or self.file.samples != 3:
            return False
        if syntax == JPEG_BASELINE:
            return name in ("YBR_FULL", "YBR_FULL_422")
        return name == "YBR_FULL" and not syntax.is_encapsulated

    def deep(self) -> bool:
        """Tell whether its pixels have more than 8 bits."""
        return int(number(fetch(self.data, "BitsStored")) or 8) > 8

    def _options(self) -> dict[str, Any]:
        from pydicom.pixels.utils import as_pixel_options

        options = as_pixel_options(self.data, number_of_frames=1)
        options.pop("extended_offsets", None)
        return options

    def _alone(self, index: int) -> bytes:
        """Return a compressed frame in a capsule of its own, once its size is seen to be true."""
        from pydicom.encaps import encapsulate, generate_frames

        if self.frames is None:
            offsets = None
            if "ExtendedOffsetTable" in self.data and "ExtendedOffsetTableLengths" in self.data:
                offsets = self.data.ExtendedOffsetTable, self.data.ExtendedOffsetTableLengths
            made = generate_frames(
                self.data.PixelData, number_of_frames=self.file.stored[0], extended_offsets=offsets
            )
            self.frames = [f for _, f in zip(range(self.file.stored[0]), made, strict=False)]
        if index >= len(self.frames):
            raise ScanError(
                f"{self.file.source}: declares {self.file.stored[0]} frames and holds "
                f"{len(self.frames)}. It is truncated; copy it again."
            )
        frame = self.frames[index]
        true = codestream_size(frame)
        rows, columns = self.file.stored[1:]
        if true is not None and true != (rows, columns):
            raise ScanError(
                f"{self.file.source}: contradicts itself: its header says {rows} x {columns} "
                f"pixels, its compressed image {true[0]} x {true[1]}. Export it again."
            )
        return encapsulate([frame], has_bot=False)

    def _shifted(self, array: np.ndarray, high: int, bits: int) -> np.ndarray:
        """Take the bits below the high bit; others may hold an overlay."""
        width = array.dtype.itemsize * 8
        if not 0 < bits <= high + 1 <= width:
            raise ScanError(
                f"{self.file.source}: the high bit {high} contradicts {bits} bits stored. "
                "Export it again."
            )
        return (array << (width - 1 - high)) >> (width - bits)

    def _rescaled(self, stored: np.ndarray, index: int, invert: bool) -> np.ndarray:
        """Turn MONOCHROME1 over in the stored range, then apply the table or the line of the file."""
        table = fetch(self.data, "ModalityLUTSequence")
        if table and stored.dtype.kind in "iu":
            from pydicom.pixels.processing import apply_modality_lut

            values = np.asarray(apply_modality_lut(stored, self.data))
            bits = numbers(fetch(table[0], "LUTDescriptor"), 3)
            return 2 ** int(16 if bits is None else bits[2]) - 1 - values if invert else values
        if invert:
            if stored.dtype.kind not in "iu":
                raise ScanError(f"{self.file.source}: MONOCHROME1 with broken numbers isn't known.")
            bits_stored = int(number(fetch(self.data, "BitsStored")) or stored.dtype.itemsize * 8)
            total = -1 if stored.dtype.kind == "i" else 2**bits_stored - 1
            stored = total - stored.astype(np.int64)
        slope = self._line(index, "RescaleSlope", 1.0)
        intercept = self._line(index, "RescaleIntercept", 0.0)
        if (slope, intercept) == (1.0, 0.0):
            return stored
        return stored * slope + intercept

    def _line(self, index: int, keyword: str, otherwise: float) -> float:
        """Return slope or intercept of a frame; what is there must be a number."""
        group = "PixelValueTransformationSequence"
        value = number(self.groups.get(index, group, keyword))
        if value is None:
            raw = [i.get_item(keyword) for i in self.groups.items(index, group) if keyword in i]
            value = None if any(r.value not in (None, b"", "") for r in raw) else otherwise
        if value is None or (value == 0 and keyword == "RescaleSlope"):
            raise ScanError(
                f"{self.file.source}: its {keyword} is no number that can scale values. Export it "
                "again, or mend its header."
            )
        return value

    def _traces(
        self, values: np.ndarray, padding: np.ndarray | None, stored: np.ndarray, index: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Take what lossy compression made of a padding far below air for padding.

        It is no longer one value, and rings into the image: what lies nearer to the padding than to
        the lowest Hounsfield unit is padding, what is still below that unit is raised to it.
        """
        limits = self._limits(stored)
        if limits is None:
            return values, padding
        slope = self._line(index, "RescaleSlope", 1.0)
        far = max(limits) * slope + self._line(index, "RescaleIntercept", 0.0)
        if far > LOWEST_HU - 100:
            return values, padding
        blurred = values < (far + LOWEST_HU) / 2
        kept = np.where(blurred, values, np.maximum(values, LOWEST_HU))
        return kept, blurred if blurred.any() else padding

    def _padding(self, stored: np.ndarray) -> np.ndarray | None:
        """Return where the file says that there is no data."""
        limits = self._limits(stored)
        if limits is None:
            return None
        mask = (stored >= min(limits)) & (stored <= max(limits))
        return mask if mask.any() else None

    def _limits(self, stored: np.ndarray) -> list[int] | None:
        """Return the stored numbers between which there is no data."""
        values = [
            number(fetch(self.data, k)) for k in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        ]
        if values[0] is None or stored.dtype.kind not in "iu":
            return None
        # The tag's own type is often taken for the wrong sign.
        limits = [int(v) for v in values if v is not None]
        bits = stored.dtype.itemsize * 8
        half = 2 ** (bits - 1)
        if stored.dtype.kind == "i":
            limits = [v - 2**bits if v >= half else v for v in limits]
        else:
            limits = [v + 2**bits if v < 0 else v for v in limits]
        return limits

    def _through_palette(self, stored: np.ndarray) -> np.ndarray:
        """Return (rows, columns, 3) of the colours in the file's own bits."""
        from pydicom.pixels.processing import apply_color_lut

        shape = numbers(fetch(self.data, "RedPaletteColorLookupTableDescriptor"), 3)
        if shape is None:
            raise ScanError(
                f"{self.file.source}: has no palette for its colours. Export it as RGB."
            )
        tables = [
            fetch(self.data, f"{c}PaletteColorLookupTableData") for c in ("Red", "Green", "Blue")
        ]
        if not all(isinstance(t, bytes) and t for t in tables):
            return np.asarray(apply_color_lut(stored, self.data))[..., :3]
        count = int(shape[0]) or 2**16
        width = 8 * len(tables[0]) // count
        if width not in (8, 16) or len({len(t) for t in tables}) > 1:
            raise ScanError(
                f"{self.file.source}: its palette contradicts its description. Export it as RGB."
            )
        order = ">" if not self.data.original_encoding[1] else "<"
        colours = [np.frombuffer(t, f"{order}u{width // 8}")[:count] for t in tables]
        index = np.clip(stored.astype(np.int64) - int(shape[1]), 0, count - 1)
        return np.stack([c[index] for c in colours], axis=-1)


def codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns as a JPEG, JPEG-LS or JPEG 2000 stream declares them, else None."""
    if frame[:2] == b"\xff\xd8":
        at = 2
        while at + 9 <= len(frame) and frame[at] == 0xFF:
            marker = frame[at + 1]
            if marker == 0xFF:
                at += 1
                continue
            if marker in (*range(0xC0, 0xD0), 0xF7) and marker not in (0xC4, 0xC8, 0xCC):
                size = (int.from_bytes(frame[at + n : at + n + 2], "big") for n in (5, 7))
                rows, columns = size
                return rows, columns
            at += 2 + max(2, int.from_bytes(frame[at + 2 : at + 4], "big"))
        return None
    start = frame[:512].find(b"\xff\x4f\xff\x51")
    if start < 0 or len(frame) < start + 24:
        return None
    x1, y1, x0, y0 = (
        int.from_bytes(frame[start + n : start + n + 4], "big") for n in (8, 12, 16, 20)
    )
    return y1 - y0, x1 - x0


def window(data: Dataset, groups: Groups, frame: int) -> dict[str, Any]:
    """Return how the file wants to be shown; nothing of it is applied.

    Returns:
        ``window`` as pairs of centre and width, ``function`` (LINEAR, SIGMOID, ...), ``table`` True
        where there is a VOI LUT, ``shape`` (the presentation LUT shape).
    """
    found: dict[str, Any] = {}
    sides = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = groups.get(frame, "FrameVOILUTSequence", keyword)
        many = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
        sides.append([n for n in map(number, many) if n is not None])
    pairs = list(zip(*sides, strict=False))
    if pairs:
        found["window"] = pairs
    if text(data, "VOILUTFunction"):
        found["function"] = text(data, "VOILUTFunction")
    if fetch(data, "VOILUTSequence"):
        found["table"] = True
    if text(data, "PresentationLUTShape"):
        found["shape"] = text(data, "PresentationLUTShape")
    return found
