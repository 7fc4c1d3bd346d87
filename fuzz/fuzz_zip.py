"""Fuzz archives: of a DICOM series, of arrays; see README.md."""

# ruff: noqa: E402
from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

with atheris.instrument_imports(include=["normscan.io", "zipfile"]):
    import zipfile  # noqa: F401

    from normscan.io import probe, read_scan
    from normscan.io.dicom import find_series, read_dicom


from tests.support import changes as C
from tests.support import mutations as M

from harness import fuzz, structured


def series(place: Path, data: bytes) -> None:
    """Find the series of an archive and read it."""
    path = place.with_suffix(".zip")
    path.write_bytes(data)
    for found in find_series(path):
        if found.usable:
            read_dicom(path, found.address, frame=0 if found.kind == "clip" else None)


def whole(place: Path, data: bytes) -> None:
    """Read an archive as a scan."""
    path = place.with_suffix(".zip")
    path.write_bytes(data)
    probe(path)
    read_scan(path)


def arrays(place: Path, data: bytes) -> None:
    """Read an archive of NumPy's."""
    path = place.with_suffix(".npz")
    path.write_bytes(data)
    probe(path)
    read_scan(path)


def seeds() -> Iterator[tuple[int, bytes]]:
    """Make good archives."""
    with tempfile.TemporaryDirectory() as home:
        for _, content in M.zips(Path(home)):
            yield 0, content
            yield 1, content
        for name, content in M.volumes(Path(home)):
            if name.endswith(".npz"):
                yield 2, content


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fuzz("zip", (series, whole, arrays), seeds(), structured(C.of_zip))
