"""MetaImage: one file (.mha), or a header (.mhd) beside its data."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from normscan.errors import ScanError
from normscan.io.files import Decoded, Header, decoding
from normscan.io.raw import LPS_TO_RAS, RawImage, beside, header_text, probe_raw, read_raw

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_MM = {"": 1.0, "?": 1.0, "mm": 1.0, "um": 1e-3, "cm": 10.0}


def read_metaimage(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode a MetaImage.

    Returns:
        Data (C, *spatial), the fastest axis first. Three or four channels of 8 or 16 bits without a
        sign are colours; of other channels and of a fourth axis the address chooses one.

    Raises:
        ScanError: damaged or truncated file, data outside of the folder, a series.
    """
    return read_raw(_parsed(path), chosen, "MetaImage")


def probe_metaimage(path: Path, chosen: dict[str, str]) -> Header:
    """Read shape, type and spacing from the header alone."""
    return probe_raw(_parsed(path), chosen)


def metaimage_data(path: Path) -> Path:
    """Return the file that holds the values."""
    return _parsed(path).data


def _parsed(path: Path) -> RawImage:
    text, _ = header_text(path)
    with decoding(path, "MetaImage header"):
        fields, end = _fields(path, text)
        return _image(path, fields, end)


def _fields(path: Path, text: bytes) -> tuple[dict[str, str], int]:
    """Return the fields, and where the values start; the name of the data file comes last."""
    fields: dict[str, str] = {}
    place = 0
    while "ElementDataFile" not in fields:
        stop = text.find(b"\n", place)
        stop = len(text) if stop < 0 else stop
        if place >= len(text):
            raise ScanError(
                f"{path}: its header has no ElementDataFile, so it is truncated. Copy it again."
            )
        line = text[place:stop].decode("utf-8", "replace")
        name, _, value = line.partition("=") if "=" in line else line.partition(":")
        place = stop + 1
        if name.strip():
            fields[name.strip()] = value.strip()
    return fields, place


def _image(path: Path, fields: dict[str, str], end: int) -> RawImage:
    if fields.get("ObjectType", "Image").lower() != "image":
        raise ScanError(f"{path}: is a MetaIO {fields['ObjectType'][:40]}, no image.")
    count = int(fields["NDims"])
    sizes = tuple(int(n) for n in fields["DimSize"].split())
    kind = fields["ElementType"].upper().removesuffix("_ARRAY")
    if len(sizes) != count or not 2 <= count <= 4:
        raise ScanError(f"{path}: {len(sizes)} sizes for {count} axes are no image of 2 to 4 axes.")
    slope = float(fields.get("ElementToIntensityFunctionSlope", 1))
    offset = float(fields.get("ElementToIntensityFunctionOffset", 0))
    if kind not in _TYPES or (slope, offset) != (1, 0):
        what = "scaled values (ElementToIntensityFunction)" if kind in _TYPES else kind[:40]
        raise ScanError(f"{path}: {what} aren't supported. Save plain numbers.")
    big = any(_true(fields, n) for n in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    channels = int(fields.get("ElementNumberOfChannels", 1))
    dtype = np.dtype((">" if big else "<") + _TYPES[kind])
    data, start = _place(path, fields, end)
    packing = "zlib" if _true(fields, "CompressedData") else "raw"
    packing = packing if _true(fields, "BinaryData", True) else "text"
    lead = int(channels > 1)
    return RawImage(
        path, data, start, packing, dtype, (channels, *sizes) if lead else sizes,
        tuple(range(lead, lead + min(count, 3))),
        channels in (3, 4) and dtype.kind == "u" and dtype.itemsize <= 2 and count < 4,
        _affine(path, fields, count),
    )  # fmt: skip


def _place(path: Path, fields: dict[str, str], end: int) -> tuple[Path, int | None]:
    named = fields["ElementDataFile"]
    skip = int(fields.get("HeaderSize", 0))
    if skip < -1:
        raise ScanError(f"{path}: its header skips {skip} bytes: it is damaged. Copy it again.")
    if named.upper() == "LOCAL":
        return path, end
    if named.upper().startswith("LIST") or re.search(r"%\d*d", named):
        raise ScanError(f"{path}: data in several files isn't supported. Save it as one .mha.")
    return beside(path, named), None if skip == -1 else skip


def _true(fields: dict[str, str], name: str, otherwise: bool = False) -> bool:
    return fields.get(name, str(otherwise)).lower() in ("true", "1")


def _affine(path: Path, fields: dict[str, str], count: int) -> np.ndarray | None:
    """Return index to RAS+ mm; of four axes the first three, None where no size is given."""

    def numbers(names: tuple[str, ...], length: int) -> np.ndarray | None:
        found = next((fields[n] for n in names if n in fields), None)
        if found is None:
            return None
        values = np.array([float(v) for v in found.split()])
        if len(values) != length:
            raise ScanError(
                f"{path}: {names[0]} has {len(values)} numbers, not {length}. Repair it."
            )
        return values

    steps = numbers(("ElementSpacing", "ElementSize"), count)
    if steps is None:
        return None
    turned = numbers(("TransformMatrix", "Rotation", "Orientation"), count * count)
    origin = numbers(("Offset", "Position", "Origin"), count)
    unit = fields.get("DistanceUnits", "").lower()
    if unit not in _MM:
        raise ScanError(
            f"{path}: the unit of length '{unit[:20]}' isn't known. Write um, mm or cm."
        )
    # The matrix lists the direction of one axis after the other.
    axes = np.eye(count) if turned is None else turned.reshape(count, count).T
    kept = min(count, 3)
    affine = np.eye(4)
    affine[:kept, :kept] = (axes * steps)[:kept, :kept]
    affine[:kept, 3] = 0 if origin is None else origin[:kept]
    affine[:3] *= _MM[unit]
    if kept == 2:
        affine[2, 2] = 1
    return LPS_TO_RAS @ affine
