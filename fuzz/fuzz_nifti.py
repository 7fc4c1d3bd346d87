"""Fuzz the NIfTI entry points: .nii, .nii.gz, single slices; see README.md."""

# ruff: noqa: E402
from __future__ import annotations

import gzip
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

with atheris.instrument_imports(include=["normscan.io", "normscan.scan", "nibabel"]):
    import nibabel as nib
    import nibabel.arrayproxy
    import nibabel.nifti2

    from normscan.io import nifti, probe, read_mask, read_scan, volumes  # noqa: F401

import numpy as np

from harness import SECRET, fuzz


def plain(place: Path, data: bytes) -> None:
    """Read a volume, and read it as its own mask."""
    path = place.with_suffix(".nii")
    path.write_bytes(data)
    probe(path)
    scan = read_scan(path)
    read_mask(path, scan)


def packed(place: Path, data: bytes) -> None:
    """The mutated bytes, packed: behind a checksum no mutation would get far."""
    path = place.with_suffix(".nii.gz")
    path.write_bytes(gzip.compress(data, 1))
    probe(path)
    read_scan(path)


def damaged(place: Path, data: bytes) -> None:
    """Read the bytes as a gzip file themselves."""
    path = place.with_suffix(".nii.gz")
    path.write_bytes(data)
    probe(path)
    read_scan(path)


def sliced(place: Path, data: bytes) -> None:
    """Read a slice through the cache of unpacked volumes."""
    path = place.with_suffix(".nii.gz")
    path.write_bytes(gzip.compress(data, 1))
    try:
        read_scan(f"{path}#slice=1&axis={len(data) % 3}")
    finally:
        volumes.forget_volumes()


def seeds() -> Iterator[tuple[int, bytes]]:
    """Make good files of all kinds."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 200, (3, 4, 5))
    for kind in ("u1", "i2", "u4", "f4", "f8", "i8"):
        image = nib.Nifti1Image(values.astype(kind), np.diag([1, 2, 3, 1.0]), dtype=kind)
        image.header["descrip"] = SECRET.encode()
        for which in (0, 1):
            yield which, image.to_bytes()
    yield 3, image.to_bytes()
    yield 2, gzip.compress(image.to_bytes())
    image.header["scl_slope"], image.header["scl_inter"] = 2, 5
    note = nib.nifti1.Nifti1Extension("comment", SECRET.encode() * 3)
    image.header.extensions.append(note)
    image.set_qform(np.diag([1, 2, 3, 1.0]), 1)
    image.set_sform(None, 0)
    yield 0, image.to_bytes()
    yield 0, nib.Nifti2Image(values.astype("i2"), np.eye(4)).to_bytes()
    big = nib.Nifti1Header(endianness=">")
    yield 0, nib.Nifti1Image(values.astype(">i2"), np.eye(4), big).to_bytes()
    colour = np.zeros((3, 4, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for n, channel in enumerate("RGB"):
        colour[channel] = values[..., n : n + 1]
    yield 0, nib.Nifti1Image(colour, np.eye(4)).to_bytes()
    yield 0, nib.Nifti1Image(values[:, :, 0].astype("u1"), np.eye(4)).to_bytes()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fuzz("nifti", (plain, packed, damaged, sliced), seeds())
