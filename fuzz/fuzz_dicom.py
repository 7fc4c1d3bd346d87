"""Fuzz the DICOM entry points: a file, a folder of three, an archive; see README.md."""

# ruff: noqa: E402
from __future__ import annotations

import io
import random
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

with atheris.instrument_imports(include=["normscan.io", "pydicom"]):
    # Imported here too, since what is imported later isn't instrumented.
    import pydicom.encaps
    import pydicom.filereader
    import pydicom.pixels.decoders
    import pydicom.pixels.processing
    import pydicom.pixels.utils  # noqa: F401

    from normscan.io import probe
    from normscan.io.dicom import find_series, read_dicom

import numpy as np
from pydicom import uid
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

from harness import SECRET, fuzz

MARK = b"\xfa\xce\xfa\xce"
"""Parts the three files of a folder."""

NAMES = {"PatientName": f"{SECRET}^NAME", "PatientID": f"{SECRET}-17"}


def single(place: Path, data: bytes) -> None:
    """Read one file."""
    place.write_bytes(data)
    probe(place)
    _ = read_dicom(place).series.headers


def folder(place: Path, data: bytes) -> None:
    """Find the series of a folder and read each."""
    place.mkdir()
    for n, part in enumerate(data.split(MARK)[:3]):
        (place / str(n)).write_bytes(part)
    for series in find_series(place):
        if SECRET in f"{series} {series.notes}".upper():
            raise AssertionError(f"a series names the patient: {series}")
        if series.usable:
            read_dicom(place, series.address, frame=0 if series.kind == "clip" else None)


def archive(place: Path, data: bytes) -> None:
    """Read a zip archive."""
    place.write_bytes(data)
    read_dicom(place)


def seeds() -> Iterator[tuple[int, bytes]]:
    """Make good files of all kinds."""
    rng = np.random.default_rng(0)
    D.PATIENT.update(NAMES)
    planes = G.make_planes(count=3, shape=(4, 5))
    values = rng.integers(0, 900, (3, 4, 5)).astype(float)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for syntax in D.NATIVE:
            paths = D.write_series(home / syntax, planes, values, "CT", syntax=syntax)
            yield 0, paths[0].read_bytes()
        yield 1, MARK.join(p.read_bytes() for p in paths)
        tilted = G.make_planes(count=3, shape=(4, 5), tilt=10)
        paths = D.write_series(home / "mr", tilted, values, "MR", preamble=False)
        yield 0, paths[0].read_bytes()
        yield 1, MARK.join(p.read_bytes() for p in paths)
        packed = io.BytesIO()
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(packed, "w", method) as file:
                for path in paths:
                    file.write(path, path.name)
            yield 2, packed.getvalue()
        for n, per_frame in enumerate((False, True)):
            made = D.write_enhanced(home / f"e{n}", planes, values, "MR", per_frame=per_frame)
            yield 0, made[0].read_bytes()
        grey = (np.arange(32)[:, None] * 3 + np.arange(32)).astype("u1")
        for syntax in (*D.LOSSLESS, uid.JPEGBaseline8Bit):
            yield 0, D.write_image(home / "x.dcm", grey, "DX", syntax=syntax).read_bytes()
        for kind in ("MONOCHROME1", "PALETTE COLOR"):
            yield 0, D.write_image(home / "x.dcm", grey, "DX", kind).read_bytes()
        colour = rng.integers(0, 255, (6, 8, 3)).astype("u1")
        for kind in ("RGB", "YBR_FULL"):
            yield 0, D.write_image(home / "x.dcm", colour, "US", kind).read_bytes()
        clip = rng.integers(0, 255, (3, 6, 8)).astype("u1")
        yield 1, D.write_image(home / "x.dcm", clip, "US").read_bytes()
        yield 0, D.write_report(home / "sr.dcm").read_bytes()


VALUES: dict[bytes, tuple[bytes, ...]] = {
    b"US": (b"\0\0", b"\1\0", b"\7\0", b"\x10\0", b"\xff\xff", b"", b"\1", b"\0\0\1\0"),
    b"DS": (b"0 ", b"-1", b"nan ", b"1e999 ", b"1e300 ", b"0\\0 ", b"1\\0\\0\\0\\1\\0 ", b"", b"text"),
    b"IS": (b"0 ", b"-1", b"2 ", b"99999999999 ", b"2147483647", b"1.5 ", b"", b"text", b"1\\2 "),
    b"CS": (b"RGB ", b"YBR_FULL", b"YBR_FULL_422", b"PALETTE COLOR ", b"MONOCHROME1 ", b"", b"MOSAIC"),
    b"UI": (b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0",
            b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.70", b""),
    b"SS": (b"\0\x80", b"\xff\x7f", b""), b"LO": (b"", b"a\\b "), b"TM": (b"", b"0304"),
    b"UL": (b"\xff\xff\xff\xff", b"\0\0\0\0"), b"FD": (b"\0" * 6 + b"\xf8\x7f", b"\0" * 8),
}  # fmt: skip
"""Values at the edge, by the kind of value."""

ELEMENT = re.compile(rb"[\x02-\x60]\0..(" + b"|".join(VALUES) + rb")(..)", re.DOTALL)


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    """Give an element of an explicit, little-endian data set another value, or let libFuzzer work."""
    rng = random.Random(seed)
    found = list(ELEMENT.finditer(data)) if rng.random() < 0.5 else []
    if not found:
        return atheris.Mutate(data, largest)
    for hit in rng.sample(found, min(len(found), rng.randint(1, 3))):
        start, length = hit.end(), int.from_bytes(hit[2], "little")
        value = rng.choice(VALUES[hit[1]])
        size = len(value).to_bytes(2, "little")
        if len(value) == length or len(found) == 1:
            data = data[: start - 2] + size + value + data[start + length :]
        else:  # lengths change, so that places found further on are wrong: one is enough
            return (data[: start - 2] + size + value + data[start + length :])[:largest]
    return data[:largest]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fuzz("dicom", (single, folder, archive), seeds(), mutate)
