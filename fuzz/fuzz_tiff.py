"""Fuzz TIFF: plain, tiled, packed, of pages; see README.md."""

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

with atheris.instrument_imports(include=["normscan.io", "tifffile", "imagecodecs"]):
    import tifffile  # noqa: F401

    from normscan.io import probe, read_mask, read_scan


from tests.support import changes as C
from tests.support import mutations as M

from harness import fuzz, structured


def plain(place: Path, data: bytes) -> None:
    """Read a picture or volume, and read it as its own mask."""
    path = place.with_suffix(".tif")
    path.write_bytes(data)
    probe(path)
    read_mask(path, read_scan(path))


def page(place: Path, data: bytes) -> None:
    """Read one page of a volume."""
    path = place.with_suffix(".tif")
    path.write_bytes(data)
    read_scan(f"{path}#slice=1&axis=0")


def seeds() -> Iterator[tuple[int, bytes]]:
    """Make good files of all forms."""
    with tempfile.TemporaryDirectory() as home:
        for name, content in M.pictures(Path(home)):
            if name.endswith(".tif"):
                yield 0, content
                yield 1, content


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fuzz("tiff", (plain, page), seeds(), structured(C.of_bytes))
