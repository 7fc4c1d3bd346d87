"""Volumes chosen from a series, and NaN around the anatomy."""

from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tifffile

from normscan.cohort import Cohort
from normscan.errors import ScanError
from normscan.io import content_hash, probe, read_mask, read_scan, stem, write_map
from normscan.io.background import SAID
from normscan.io.read import check_array


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("shape", [(6, 7, 5, 4), (6, 7, 5, 1, 4), (6, 7, 1, 4), (6, 7, 5, 2, 2)])
def test_a_volume_of_a_nifti(tmp_path, rng, name, shape):
    values = rng.integers(-500, 900, shape).astype(np.int16)
    image = nib.Nifti1Image(values, np.diag([2.0, 3, 4, 1]))
    image.header.set_slope_inter(0.37, 11)
    nib.save(image, tmp_path / name)
    by_nibabel = nib.load(tmp_path / name).get_fdata(dtype=np.float32)
    spatial = shape[:2] if shape[2] == 1 else shape[:3]
    for attempt in (read_scan, probe):
        with pytest.raises(ScanError, match="series of 4 volumes.*#volume=0 to #volume=3"):
            attempt(tmp_path / name)
    volumes = by_nibabel.reshape(*spatial, 4, order="F")
    for k in range(4):
        address = f"{tmp_path / name}#volume={k}"
        scan = read_scan(address)
        np.testing.assert_array_equal(scan.data[0], volumes[..., k])
        assert probe(address).shape == scan.shape == spatial
        assert scan.spacing == (2, 3, 4)[: len(spatial)]
        if len(spatial) == 3:
            cut = read_scan(f"{address}&slice=2")
            np.testing.assert_allclose(cut.data[0], volumes[..., 2, k], rtol=1e-6)
    assert content_hash(f"{tmp_path / name}#volume=0") != content_hash(
        f"{tmp_path / name}#volume=1"
    )
    with pytest.raises(ScanError, match="no volume 4; it has 4"):
        read_scan(f"{tmp_path / name}#volume=4")
    # The map of a volume is one volume on its grid.
    written = nib.load(write_map(tmp_path / "map.nii.gz", scan.data[0], scan))
    assert written.shape[:2] == shape[:2] and np.squeeze(written.get_fdata()).shape == spatial
    np.testing.assert_allclose(written.affine, image.affine)
    assert stem(f"{name}#volume=3") == "a_volume3"


def test_a_table_is_no_image(tmp_path, rng):
    table = rng.random((1, 1, 1, 1, 5, 6)).astype(np.float32)
    nib.save(nib.Nifti2Image(table, np.eye(4)), tmp_path / "a.dconn.nii")
    with pytest.raises(ScanError, match="CIFTI"):
        read_scan(tmp_path / "a.dconn.nii")


def test_masks_in_a_series(tmp_path, rng):
    masks = rng.random((6, 7, 5, 3)) > 0.6
    nib.save(nib.Nifti1Image(masks.astype(np.uint8), np.eye(4)), tmp_path / "m.nii.gz")
    nib.save(nib.Nifti1Image(rng.random((6, 7, 5)), np.eye(4)), tmp_path / "a.nii.gz")
    scan, cut = read_scan(tmp_path / "a.nii.gz"), read_scan(f"{tmp_path / 'a.nii.gz'}#slice=1")
    for k in range(3):
        address = f"{tmp_path / 'm.nii.gz'}#volume={k}"
        np.testing.assert_array_equal(read_mask(address, scan), masks[..., k])
        np.testing.assert_array_equal(read_mask(f"{address}&slice=1", cut), masks[..., 1, k])


def test_slices_of_a_volume_of_a_series(tmp_path, rng):
    values = rng.random((6, 7, 5, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    masks = (values > 0.9).astype(np.uint8)
    masks[:, :, 0] = 0
    nib.save(nib.Nifti1Image(masks, np.eye(4)), tmp_path / "m.nii.gz")
    rows = [{"path": "a.nii.gz#volume=1", "mask": "m.nii.gz#volume=1", "label": 1, "split": "test"}]
    cohort = Cohort.from_table(pd.DataFrame(rows), tmp_path).slices()
    assert len(cohort) == 5
    for k, row in enumerate(cohort):
        scan = row.load()
        np.testing.assert_array_equal(scan.data[0], values[:, :, k, 1])
        np.testing.assert_array_equal(row.load_mask(scan), masks[:, :, k, 1] > 0)


def test_selectors_of_another_format_are_refused(tmp_path, rng):
    np.save(tmp_path / "a.npy", rng.random((4, 5)))
    with pytest.raises(ScanError, match="NumPy array, in which #volume= selects nothing"):
        read_scan(f"{tmp_path / 'a.npy'}#volume=0")
    with pytest.raises(ScanError, match="there is no volume 1; it has 1"):
        nib.save(nib.Nifti1Image(rng.random((6, 7, 5)), np.eye(4)), tmp_path / "a.nii")
        read_scan(f"{tmp_path / 'a.nii'}#volume=1")


def brain(rng, low: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    """A ball of values, and where it is."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in (16, 18, 14)], indexing="ij"))
    inside = np.linalg.norm(grid, axis=0) < 6
    return rng.random(inside.shape).astype(np.float32) * 900 + low, inside


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mgz", "a.npy", "a.nhdr"])
def test_nan_around_the_brain_is_background(tmp_path, rng, name):
    import SimpleITK as sitk

    values, inside = brain(rng)
    holes = np.where(inside, values, np.float32(np.nan))
    if name.endswith("npy"):
        np.save(tmp_path / name, holes)
    elif name.endswith("nhdr"):
        sitk.WriteImage(sitk.GetImageFromArray(holes.T), str(tmp_path / name))
    else:
        kind = nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image
        nib.save(kind(holes, np.eye(4)), tmp_path / name)
    with pytest.warns(UserWarning, match=SAID):
        scan = read_scan(tmp_path / name)
    np.testing.assert_array_equal(scan.data[0], np.where(inside, values, 0))
    outside = np.count_nonzero(~inside)
    assert f"{outside} of {inside.size} values are NaN around" in scan.extra["notes"][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cut = read_scan(f"{tmp_path / name}#slice=5")
    np.testing.assert_array_equal(cut.data[0], scan.data[0, :, :, 5])


def test_values_below_zero_make_the_lowest_the_background(tmp_path, rng):
    values, inside = brain(rng, low=-300)
    nib.save(nib.Nifti1Image(np.where(inside, values, np.nan), np.eye(4)), tmp_path / "z.nii")
    with pytest.warns(UserWarning, match=SAID):
        scan = read_scan(tmp_path / "z.nii")
    assert scan.data.min() == scan.data[0, 0, 0, 0] == values[inside].min() < 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cut = read_scan(f"{tmp_path / 'z.nii'}#slice=6")
    np.testing.assert_array_equal(cut.data[0], scan.data[0, :, :, 6])


@pytest.mark.parametrize("place", [(8, 9, 7), (slice(7, 9), 9, slice(3, 5))])
def test_nan_inside_of_the_brain_is_refused(tmp_path, rng, place):
    values, inside = brain(rng)
    holes = np.where(inside, values, np.float32(np.nan))
    holes[place] = np.nan
    nib.save(nib.Nifti1Image(holes, np.eye(4)), tmp_path / "a.nii.gz")
    for address in ("a.nii.gz", "a.nii.gz#slice=7", "a.nii.gz#slice=1"):
        with pytest.raises(ScanError, match=r"[14] of 4032 values are NaN inside"):
            read_scan(tmp_path / address)


def test_a_hole_in_the_first_slice_is_a_hole(tmp_path, rng):
    values = rng.random((16, 18, 4)).astype(np.float32)
    values[6:9, 7:9, :] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ScanError, match="24 of 1152 values are NaN inside"):
        read_scan(tmp_path / "a.nii")
    values[...] = np.nan
    tifffile.imwrite(tmp_path / "b.tif", values[..., 0])
    with pytest.raises(ScanError, match="288 of 288 values are NaN"):
        read_scan(tmp_path / "b.tif")
    values = rng.random((16, 18)).astype(np.float32)
    values[:3, :4] = np.inf
    tifffile.imwrite(tmp_path / "c.tif", values)
    with pytest.raises(ScanError, match="12 of 288 values are NaN or infinite"):
        read_scan(tmp_path / "c.tif")


def test_arrays_have_the_same_rule(rng):
    values, inside = brain(rng)
    with pytest.warns(UserWarning, match=SAID):
        scan = check_array(np.where(inside, values, np.nan))
    np.testing.assert_array_equal(scan.data[0], np.where(inside, values, 0))
    values[8, 9, 7] = np.nan
    with pytest.raises(ScanError, match="array: 1 of 4032 values are NaN inside"):
        check_array(values)
    assert check_array(rng.integers(0, 9, (5, 6))).extra == {}
