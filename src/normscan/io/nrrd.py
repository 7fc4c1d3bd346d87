"""NRRD: one file (.nrrd), or a header (.nhdr) beside its data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from normscan.errors import ScanError
from normscan.io.files import Decoded, Header, decoding
from normscan.io.raw import LPS_TO_RAS, RawImage, beside, header_text, probe_raw, read_raw

_TYPES = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1",
    "uint8": "u1", "uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2",
    "signed short int": "i2", "int16": "i2", "int16_t": "i2", "ushort": "u2",
    "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2", "uint16_t": "u2",
    "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4", "uint": "u4",
    "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4", "longlong": "i8", "long long": "i8",
    "long long int": "i8", "signed long long": "i8", "signed long long int": "i8", "int64": "i8",
    "int64_t": "i8", "ulonglong": "u8", "unsigned long long": "u8", "unsigned long long int": "u8",
    "uint64": "u8", "uint64_t": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
_PACKINGS = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2",
    "txt": "text", "text": "text", "ascii": "text", "hex": "hex",
}  # fmt: skip
_SPACES = {
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip
MM = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "um": 1e-3, "micron": 1e-3,
      "micrometer": 1e-3, "µm": 1e-3, "cm": 10.0, "m": 1000.0, "meter": 1000.0, "nm": 1e-6}  # fmt: skip
_COLOURS = {"rgb-color": 3, "3-color": 3, "rgba-color": 4, "4-color": 4}
_IN_SPACE = {"domain", "space"}


def read_nrrd(path: Path, chosen: dict[str, str]) -> Decoded:
    """Decode an NRRD.

    Returns:
        Data (C, *spatial) in the order of the file's axes in space, the fastest first; colours as
        channels, of other axes the volume that the address chose.

    Raises:
        ScanError: damaged or truncated file, data outside of the folder, a series, complex values.
    """
    return read_raw(_parsed(path), chosen, "NRRD")


def probe_nrrd(path: Path, chosen: dict[str, str]) -> Header:
    """Read shape, type and spacing from the header alone."""
    return probe_raw(_parsed(path), chosen)


def nrrd_data(path: Path) -> Path:
    """Return the file that holds the values."""
    return _parsed(path).data


def _parsed(path: Path) -> RawImage:
    text, size = header_text(path)
    with decoding(path, "NRRD header"):
        fields, end = _fields(path, text, size)
        return _image(path, fields, end)


def _fields(path: Path, text: bytes, size: int) -> tuple[dict[str, str], int]:
    """Return the fields by their names in lower case without spaces, and where the header ends."""
    fields: dict[str, str] = {}
    place = text.index(b"\n") + 1
    while True:
        stop = text.find(b"\n", place)
        if stop < 0 and (len(text) < size or "datafile" not in fields):
            raise ScanError(f"{path}: truncated within its NRRD header. Copy it again.")
        line = text[place : stop if stop >= 0 else len(text)].decode("utf-8", "replace").strip()
        place = stop + 1
        if not line:
            return fields, place
        name, colon, value = line.partition(":")
        if line.startswith("#") or not colon or value.startswith("="):  # a comment, a free pair
            if stop < 0:
                return fields, len(text)
            continue
        name = name.lower().replace(" ", "")
        if name in fields:
            raise ScanError(f"{path}: its header gives '{name[:40]}' twice. Repair it.")
        fields[name] = value.strip()
        if stop < 0:
            return fields, len(text)


def _image(path: Path, fields: dict[str, str], end: int) -> RawImage:
    kind = fields["type"].lower()
    if kind not in _TYPES:
        raise ScanError(
            f"{path}: values of type '{kind[:40]}' aren't supported. Save plain numbers."
        )
    packing = _PACKINGS.get(fields["encoding"].lower())
    if packing is None:
        raise ScanError(
            f"{path}: the encoding '{fields['encoding'][:40]}' isn't supported. Save it raw or as gzip."
        )
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    sizes = tuple(int(n) for n in fields["sizes"].split())
    if len(sizes) != int(fields["dimension"]) or len(sizes) > 16:
        raise ScanError(
            f"{path}: has {len(sizes)} sizes for {fields['dimension'][:8]} axes. Repair it."
        )
    kinds = _kinds(path, fields, len(sizes))
    spatial, affine, notes = _geometry(path, fields, sizes, kinds)
    others = [a for a in range(len(sizes)) if a not in spatial]
    colours = [_COLOURS[kinds[a]] == sizes[a] for a in others if kinds[a] in _COLOURS]
    data, start = path, end
    named = fields.get("datafile", "")
    if named:
        if named.upper().startswith("LIST") or "%" in named:
            raise ScanError(f"{path}: data in several files isn't supported. Save it as one .nrrd.")
        data, start = beside(path, named), 0
    skip = int(fields.get("byteskip", 0))
    if skip < -1 or (skip == -1 and packing != "raw"):
        raise ScanError(f"{path}: its header skips {skip} bytes: it is damaged. Copy it again.")
    inside = skip if packing != "raw" and skip > 0 else 0
    at = None if skip == -1 else start + (skip if packing == "raw" else 0)
    return RawImage(
        path, data, at, packing, np.dtype(order + _TYPES[kind]), sizes, spatial,
        len(others) == 1 and colours == [True], affine, int(fields.get("lineskip", 0)), inside, notes,
    )  # fmt: skip


def _kinds(path: Path, fields: dict[str, str], count: int) -> list[str]:
    kinds = fields.get("kinds", "").lower().split() or ["???"] * count
    if len(kinds) != count:
        raise ScanError(f"{path}: has {len(kinds)} kinds for {count} axes. Repair its header.")
    if "complex" in kinds:
        raise ScanError(f"{path}: complex values are no image intensities. Save the magnitude.")
    return kinds


def _geometry(
    path: Path, fields: dict[str, str], sizes: tuple[int, ...], kinds: list[str]
) -> tuple[tuple[int, ...], np.ndarray | None, tuple[str, ...]]:
    """Return the axes in space, the affine and what is to be said of it."""
    if "spacedirections" in fields:
        return _directed(path, fields, sizes)
    spatial = tuple(a for a in range(len(sizes)) if kinds[a] in _IN_SPACE)
    steps = [float(s) for s in fields.get("spacings", "nan " * len(sizes)).split()]
    if len(steps) != len(sizes):
        raise ScanError(f"{path}: has {len(steps)} spacings for {len(sizes)} axes. Repair it.")
    if not spatial:  # no kinds: what has a spacing lies in space, else the first three axes
        known = tuple(a for a in range(len(sizes)) if np.isfinite(steps[a]))
        spatial = known or tuple(a for a in range(len(sizes)) if kinds[a] == "???")[:3]
    chosen = np.array([steps[a] for a in spatial])
    if not np.isfinite(chosen).all():
        return spatial, None, ()
    units = re.findall(r'"([^"]*)"', fields.get("units", "")) or ["mm"] * len(sizes)
    scales = [MM.get(units[a].strip().lower(), 1.0) if a < len(units) else 1.0 for a in spatial]
    affine = np.eye(4)
    places = range(len(spatial))
    affine[places, places] = chosen * scales
    return spatial, LPS_TO_RAS @ affine, (UNPLACED,)


UNPLACED = "The header names no anatomical space; its axes are taken as left, posterior, superior."


def _directed(
    path: Path, fields: dict[str, str], sizes: tuple[int, ...]
) -> tuple[tuple[int, ...], np.ndarray, tuple[str, ...]]:
    found = re.findall(r"none|\([^)]*\)", fields["spacedirections"].lower())
    if len(found) != len(sizes):
        raise ScanError(f"{path}: has {len(found)} directions for {len(sizes)} axes. Repair it.")
    spatial = tuple(a for a, text in enumerate(found) if text != "none")
    directions = [_vector(found[a]) for a in spatial]
    space = fields.get("space", "").lower()
    if any(len(d) != len(spatial) for d in directions) or space.endswith("time"):
        raise ScanError(
            f"{path}: {len(spatial)} axes in a space of {len(directions[0]) if directions else 0} "
            "dimensions aren't supported. Save it as a volume in left-posterior-superior."
        )
    affine = np.eye(4)
    count = len(spatial)
    affine[:count, :count] = np.array(directions).T if directions else np.eye(count)
    affine[:count, 3] = _vector(fields.get("spaceorigin", "(" + "0," * (count - 1) + "0)"))
    units: Any = re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))
    scales = [MM.get(unit.strip().lower(), 1.0) for unit in units] or [1.0] * count
    affine[:count] *= np.array(scales)[:, None]
    signs = _SPACES.get(space)
    flip = np.diag([*(signs or (-1, -1, 1)), 1.0])
    return spatial, flip @ affine, () if signs else (UNPLACED,)


def _vector(text: str) -> list[float]:
    return [float(part) for part in text.strip("() ").split(",")]
