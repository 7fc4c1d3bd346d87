"""Lengths are millimetres whatever unit a header names; a colour picture is no volume."""

from __future__ import annotations

import gc
import gzip
import os
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from normscan import Scan
from normscan.errors import ScanError
from normscan.io import content_hash, probe, read_scan, write_map
from normscan.io.arrays import probe_array, read_array

STEPS = np.array([0.8, 0.7, 1.2])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("unit", "scale"), [("micron", 1e3), ("mm", 1.0), ("meter", 1e-3), ("unknown", 1.0)]
)
def test_units_of_a_nifti(tmp_path, rng, name, kind, dims, unit, scale):
    values = rng.integers(0, 900, (6, 7, 5)[:dims]).astype(np.int16)
    image = kind(values, np.diag([*STEPS * scale, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / name)
    scan = read_scan(tmp_path / name)
    np.testing.assert_allclose(scan.spacing, STEPS[:dims], rtol=1e-5)
    np.testing.assert_allclose(probe(tmp_path / name).spacing, STEPS[:dims], rtol=1e-5)
    if dims == 3:
        cut = read_scan(f"{tmp_path / name}#slice=2&axis=0")
        np.testing.assert_allclose(cut.spacing, STEPS[1:], rtol=1e-5)
    # A map has the unit of its scan.
    out = nib.load(write_map(tmp_path / "map.nii.gz", scan.data[0], scan))
    assert out.header.get_xyzt_units()[0] == unit
    np.testing.assert_allclose(out.affine, image.affine, rtol=1e-5)


@pytest.mark.parametrize(
    ("unit", "steps"), [("micron", 0.8), ("meter", 0.8), ("mm", 800), ("mm", 8e-4)]
)
def test_implausible_sizes_are_refused_with_the_mend(tmp_path, rng, unit, steps):
    values = rng.integers(0, 900, (6, 7, 5)).astype(np.int16)
    image = nib.Nifti1Image(values, np.diag([steps] * 3 + [1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    for attempt in (read_scan, probe):
        with pytest.raises(ScanError, match=r"a\.nii\.gz.*implausible.*Mend the unit"):
            attempt(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("colours", [3, 4])
def test_an_array_with_colours_last_is_a_picture(tmp_path, rng, kind, colours):
    values = rng.integers(0, 255, (20, 30, colours)).astype(kind)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", image=values)
    np.savez(tmp_path / "c.npz", image=values, spacing=(0.5, 0.25))
    expected = np.moveaxis(values[..., :3], -1, 0)
    for name in ("a.npy", "b.npz", "c.npz"):
        scan, header = read_scan(tmp_path / name), probe(tmp_path / name)
        assert (header.shape, header.channels) == (scan.shape, 3) == ((20, 30), 3)
        assert scan.channels == ("red", "green", "blue")
        np.testing.assert_array_equal(scan.data, expected)
    assert read_scan(tmp_path / "c.npz").spacing == probe(tmp_path / "c.npz").spacing == (0.5, 0.25)
    np.testing.assert_array_equal(Scan.from_array(values).data, expected)


def test_a_stack_is_an_explicit_choice(tmp_path, rng):
    values = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", image=values, spacing=(1.0, 2.0, 3.0))
    for scan in (
        read_scan(f"{tmp_path / 'a.npy'}#stack=1"),
        read_scan(tmp_path / "b.npz"),
        Scan.from_array(values, stack=True),
        Scan.from_array(values, spacing=(1.0, 2.0, 3.0)),
    ):
        assert scan.shape == (20, 30, 3)
        np.testing.assert_array_equal(scan.data[0], values)
    assert probe(f"{tmp_path / 'a.npy'}#stack=1").shape == (20, 30, 3)
    assert probe(tmp_path / "b.npz").shape == (20, 30, 3)
    cut = read_scan(f"{tmp_path / 'a.npy'}#stack=1&slice=2&axis=0")
    np.testing.assert_array_equal(cut.data[0], values[2])
    # Other volumes stay what they were.
    np.save(tmp_path / "v.npy", rng.random((20, 30, 3)))
    assert read_scan(tmp_path / "v.npy").shape == (20, 30, 3)
    np.save(tmp_path / "w.npy", rng.integers(0, 255, (3, 20, 30)).astype(np.uint8))
    assert read_scan(tmp_path / "w.npy").shape == (3, 20, 30)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_replaced_file_of_the_same_size_and_time_is_read_anew(
    tmp_path, monkeypatch, name, in_place
):
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "cache"))
    contents = []
    for seed in (1, 2):
        values = np.random.default_rng(seed).integers(0, 99, (16, 16, 8)).astype(np.int16)
        content = nib.Nifti1Image(values, np.eye(4)).to_bytes()
        if name.endswith("gz"):
            content = gzip.compress(content, compresslevel=0, mtime=0)
        contents.append(content)
    assert len(contents[0]) == len(contents[1])
    path, seen, hashes = tmp_path / name, [], []
    for content in contents:
        if in_place or not path.exists():
            path.write_bytes(content)
        else:
            (tmp_path / "new").write_bytes(content)
            (tmp_path / "new").replace(path)
        os.utime(path, (315532800, 315532800))
        whole, cut = read_scan(path), read_scan(f"{path}#slice=3")
        np.testing.assert_array_equal(cut.data[0], whole.data[0, ..., 3])
        seen.append(cut.data.copy())
        hashes.append(content_hash(path))
    assert hashes[0] != hashes[1] and not np.array_equal(*seen)


def test_threads_that_parse_headers_at_once_read_every_file(tmp_path: Path):
    """The interpreter's parser of literals ends in SystemErrors there, which belong to no file."""
    path, failed = tmp_path / "a.npy", []
    np.save(path, np.zeros((4, 5), np.float32))

    def read(depth: int) -> None:
        if depth:
            return read(depth - 1)
        for _ in range(300):
            try:
                assert probe_array(path, {}).shape == (4, 5)
                assert read_array(path, {}).data.shape == (1, 4, 5)
            except ScanError as error:
                failed.append(error)

    def switch(phase: str, about: dict[str, int]) -> None:
        time.sleep(0)  # another thread's turn, in the middle of a parse

    kept = gc.get_threshold()
    gc.callbacks.append(switch)
    gc.set_threshold(3, 2, 100_000)
    try:
        threads = [threading.Thread(target=read, args=(4 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.callbacks.remove(switch)
        gc.set_threshold(*kept)
    assert not failed
