"""Slices of volumes by address: values, places, masks, cohorts and the cache behind them."""

from __future__ import annotations

import gzip
import os

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from normscan import Cohort
from normscan.errors import ArgumentError, CohortError, ScanError
from normscan.io import content_hash, probe, read_mask, read_scan, stem, volumes
from normscan.io.cache import cache_folder, trim

OBLIQUE = np.array([[1.9, 0.3, 0, -20], [-0.3, 2.1, 0.2, 4], [0, -0.2, 3.0, 7], [0, 0, 0, 1.0]])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    volumes._open.cache_clear()


def write(path, shape=(7, 6, 5), dtype=np.int16, slope=None, seed=0):
    values = np.random.default_rng(seed).integers(-300, 3000, shape).astype(dtype)
    image = nib.Nifti1Image(values, OBLIQUE)
    if slope is not None:
        image.header.set_slope_inter(*slope)
        image = nib.Nifti1Image(values * slope[0] + slope[1], OBLIQUE, image.header)
        image.set_data_dtype(dtype)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("slope", [None, (0.25, -100.0)])
def test_a_slice_is_that_of_the_whole_volume_and_lies_where_it_was(tmp_path, name, axis, slope):
    path = write(tmp_path / name, slope=slope)
    whole = read_scan(path)
    k = 3
    cut = read_scan(f"{path}#slice={k}&axis={axis}")
    np.testing.assert_array_equal(cut.data[0], np.take(whole.data[0], k, axis))
    i, j = 2, 1
    index = np.insert(np.array([i, j, 1.0]), axis, k)
    np.testing.assert_allclose(cut.affine @ [i, j, 0, 1], whole.affine @ index, atol=1e-9)
    assert cut.dims == 2 and cut.dtype == whole.dtype
    assert probe(f"{path}#slice={k}&axis={axis}").shape == cut.shape
    assert cut.spacing == pytest.approx([s for a, s in enumerate(whole.spacing) if a != axis])


def test_a_stack_that_is_no_nifti_is_cut_too(tmp_path):
    values = np.random.default_rng(1).random((4, 5, 6)).astype(np.float32)
    np.save(tmp_path / "v.npy", values)
    cut = read_scan(f"{tmp_path / 'v.npy'}#slice=2&axis=0")
    np.testing.assert_array_equal(cut.data[0], values[2])


def test_the_map_of_a_slice_lies_on_its_volume(tmp_path):
    from normscan.io import write_map

    path = write(tmp_path / "a.nii.gz")
    cut = read_scan(f"{path}#slice=4")
    out = write_map(tmp_path / f"{stem(cut.source)}_map.nii.gz", cut.data[0], cut)
    assert out.name == "a_slice4_map.nii.gz"
    back = nib.load(out)
    there = back.affine @ [2, 3, 0, 1]
    np.testing.assert_allclose(there, OBLIQUE @ [2, 3, 4, 1], atol=1e-4)


def test_the_volume_is_unpacked_once_and_anew_when_it_changes(tmp_path, cache):
    path = write(tmp_path / "a.nii.gz")
    first = read_scan(f"{path}#slice=0").data
    assert len(list((cache / "volumes").iterdir())) == 1
    for k in range(1, 5):
        read_scan(f"{path}#slice={k}")
    assert len(list((cache / "volumes").iterdir())) == 1
    write(path, seed=5)
    os.utime(path, ns=(1, 1))
    assert not np.array_equal(read_scan(f"{path}#slice=0").data, first)


@pytest.mark.parametrize(
    ("fragment", "words"),
    [
        ("slice=5", "no slice 5"),
        ("slice=-1", "no number"),
        ("slice=1&axis=3", "axis 3"),
        ("slice=x", "no number"),
        ("slize=1", "Did you mean 'slice'"),
        ("slice=", "selects nothing"),
    ],
)
def test_a_wrong_address_says_so(tmp_path, fragment, words):
    path = write(tmp_path / "a.nii.gz")
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(f"{path}#{fragment}")
    assert "a.nii.gz" in str(caught.value)


def test_a_slice_of_a_picture_is_refused(tmp_path):
    write(tmp_path / "flat.nii.gz", shape=(6, 5))
    with pytest.raises(ScanError, match="no slices"):
        read_scan(f"{tmp_path / 'flat.nii.gz'}#slice=0")


def test_truncated_volumes_are_refused_and_leave_nothing(tmp_path, cache):
    path = write(tmp_path / "a.nii.gz")
    packed = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(packed[:-40]))
    with pytest.raises(ScanError, match="a.nii.gz: truncated"):
        read_scan(f"{path}#slice=0")
    assert not list((cache / "volumes").iterdir())
    plain = tmp_path / "b.nii"
    plain.write_bytes(packed[:-40])
    with pytest.raises(ScanError, match="b.nii: truncated"):
        read_scan(f"{plain}#slice=0")


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path, cache, monkeypatch):
    folder = cache_folder("volumes")
    folder.mkdir(parents=True)
    for n in range(4):
        (folder / f"{n}.nii").write_bytes(bytes(1000))
        os.utime(folder / f"{n}.nii", ns=(n, n))
    monkeypatch.setenv("NORMSCAN_CACHE_GIB", str(2500 / 2**30))
    trim(folder, keep=folder / "0.nii")
    assert sorted(p.name for p in folder.iterdir()) == ["0.nii", "3.nii"]


def cohort(folder):
    lesion = np.zeros((7, 6, 5), np.uint8)
    lesion[2:4, 2:4, 3] = 1
    nib.Nifti1Image(lesion, OBLIQUE).to_filename(folder / "mask.nii.gz")
    rows = []
    for n in range(6):
        write(folder / f"v{n}.nii.gz", seed=n)
        rows.append({"path": f"v{n}.nii.gz", "label": 0, "subject": f"s{n}", "mask": "", "age": n})
    write(folder / "ill.nii.gz", seed=9)
    write(folder / "unknown.nii.gz", seed=10)
    ill = {"path": "ill.nii.gz", "label": 1, "subject": "ill", "mask": "mask.nii.gz", "age": 60}
    rows += [ill, {**ill, "path": "unknown.nii.gz", "subject": "unknown", "mask": ""}]
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return Cohort.read(folder / "cohort.csv")


def test_a_cohort_of_slices_labels_each_by_its_mask(tmp_path):
    whole = cohort(tmp_path)
    cut = whole.slices(first=2, last=5)
    assert len(cut) == 8 * 3
    rows = {row.scan: row for row in cut}
    ill = [rows[f"ill_slice{k:03d}"] for k in (2, 3, 4)]
    assert [row.label for row in ill] == [0, 1, 0]
    assert all(row.split == "test" and row.subject == "ill" for row in ill)
    assert rows["unknown_slice003"].label is None
    assert {r.columns["slice"] for r in cut} == {2, 3, 4}
    scan = ill[1].load()
    mask = ill[1].load_mask(scan)
    assert mask.sum() == 4 and scan.shape == mask.shape == (7, 6)
    # Splits are those of the volumes, so subjects stay together.
    before = {r.subject: r.split for r in whole if r.subject != "unknown"}
    assert {r.subject: r.split for r in cut if r.subject != "unknown"} == before
    # The table can be written and read again.
    again = Cohort.read(cut.write(tmp_path / "sub" / "slices.csv"))
    assert [r.label for r in again] == [r.label for r in cut]
    np.testing.assert_array_equal(again[0].load().data, cut[0].load().data)
    assert again.summary().unreadable == []


def test_masks_of_slices_lie_on_their_slice(tmp_path):
    cohort(tmp_path)
    scan = read_scan(f"{tmp_path / 'ill.nii.gz'}#slice=3")
    with pytest.raises(ScanError, match=r"voxels away"):
        read_mask(f"{tmp_path / 'mask.nii.gz'}#slice=2", scan)


def test_a_probability_map_is_halved_at_the_maximum_of_the_volume(tmp_path):
    path = write(tmp_path / "a.nii.gz")
    soft = np.zeros((7, 6, 5), np.float32)
    soft[1, 1, 0], soft[2, 2, 1] = 0.9, 0.3
    nib.Nifti1Image(soft, OBLIQUE).to_filename(tmp_path / "soft.nii.gz")
    sums = [
        int(
            read_mask(f"{tmp_path / 'soft.nii.gz'}#slice={k}", read_scan(f"{path}#slice={k}")).sum()
        )
        for k in (0, 1, 2)
    ]
    assert sums == [1, 0, 0]


def test_slices_of_one_file_have_hashes_of_their_own(tmp_path):
    path = write(tmp_path / "a.nii.gz")
    assert content_hash(f"{path}#slice=1") != content_hash(f"{path}#slice=2")
    assert content_hash(f"{path}#slice=1") == content_hash(f"{path}#slice=1")


def test_a_range_without_slices_is_refused(tmp_path):
    whole = cohort(tmp_path)
    with pytest.raises(CohortError, match="no slice 50"):
        whole.slices(first=50)
    with pytest.raises(ArgumentError, match="count from 0"):
        whole.slices(first=3, last=3)


def test_the_command_writes_a_cohort_of_slices(tmp_path, capsys):
    from normscan.cli.main import main

    cohort(tmp_path)
    out = tmp_path / "slices.csv"
    assert main(["cohort", str(tmp_path), "--slices", "1:5:2", "--out", str(out)]) == 0
    assert "16 scans of 8 subjects" in capsys.readouterr().out
    assert {row.columns["slice"] for row in Cohort.read(out)} == {1, 3}
    assert main(["cohort", str(tmp_path), "--slices", "3"]) == 2
    assert "no range" in capsys.readouterr().err
