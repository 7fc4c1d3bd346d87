"""Every voxel of a DICOM series where the standard puts it, in millimetres, against other readers."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.support import dicom_files as D
from tests.support import dicom_planes as G
from tests.support.dicom_proof import (
    KINDS,
    TO_RAS,
    Kind,
    enhanced,
    measure,
    peer_error,
    read_dcm2niix,
    read_sitk,
    real_series,
)

from normscan.io import read_scan
from normscan.io.dicom import read_dicom

LIMIT = 0.01  # mm beyond what the stored integers cost
pytestmark = pytest.mark.filterwarnings("ignore:.*Not a regular series")


@pytest.mark.parametrize("name", KINDS)
def test_every_voxel_is_where_it_belongs(name, tmp_path):
    kind = KINDS[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = measure(kind, tmp_path, read_dicom)
    assert any("Not a regular" in str(w.message) for w in said) != kind.regular
    series = found["scan"].series
    assert found["voxels"] < kind.quantum + LIMIT
    assert found["ramp"] < kind.quantum + LIMIT
    assert found["planes"] < LIMIT
    assert found["points"] < 1e-4
    assert series.regular == kind.regular
    assert series.tilted == ("tilted" in name)
    assert series.lossy == (name == "JPEG baseline")
    assert any("resampled" in note for note in series.notes) != kind.regular
    np.testing.assert_allclose(series.positions, kind.planes.positions, atol=1e-6)
    np.testing.assert_allclose(series.spacings, [kind.planes.spacing] * len(series.spacings))
    both = np.concatenate([kind.planes.rows_along, kind.planes.columns_along])
    np.testing.assert_allclose(series.orientations, [both] * len(series.orientations), atol=1e-9)
    along = np.diff(kind.planes.positions @ kind.planes.normal)
    np.testing.assert_allclose(series.steps, along, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, k in KINDS.items() if k.peers])
def test_peers_see_the_same_volume(name, tmp_path):
    kind = KINDS[name]
    paths = kind.make(tmp_path, 0)
    scan = read_dicom(tmp_path / "x")
    value = 1e-3 if not kind.slack else kind.slack
    if "SimpleITK" in kind.peers:
        array, affine = read_sitk(paths)
        assert array.shape == scan.shape
        np.testing.assert_allclose(scan.affine, affine, atol=0.005 if "um" in name else 1e-5)
        np.testing.assert_allclose(scan.data[0], array, atol=value)
    if "dcm2niix" in kind.peers:
        if not shutil.which("dcm2niix"):
            pytest.skip("dcm2niix is not installed")
        away, differs = peer_error(scan, *read_dcm2niix(tmp_path / "x"))
        assert away < LIMIT
        assert differs < value


@pytest.mark.parametrize("name", ["shuffled", "tilted uneven", "enhanced tilted uneven"])
def test_uids_frames_and_headers_belong_to_their_plane(name, tmp_path):
    kind = KINDS[name]
    paths = kind.make(tmp_path, 0)
    series = read_dicom(tmp_path / "x").series
    stored = [pydicom.dcmread(p) for p in paths]
    count = len(kind.planes.positions)
    if name.startswith("enhanced"):
        order = D.frame_order(count, 6).tolist()
        assert list(series.frames) == [order.index(k) + 1 for k in range(count)]
        assert list(series.uids) == [stored[0].SOPInstanceUID] * count
    else:
        assert list(series.uids) == [s.SOPInstanceUID for s in stored]
        assert [h.InstanceNumber for h in series.headers] == [s.InstanceNumber for s in stored]
    assert series.frame_of_reference == stored[0].FrameOfReferenceUID
    assert len(series.headers) == count
    assert not any("PixelData" in h for h in series.headers)


def test_order_and_packing_change_nothing(tmp_path):
    kind = KINDS["tilted uneven"]
    paths = kind.make(tmp_path, 2)
    zipped = tmp_path / "series.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    want = read_dicom(tmp_path / "z")
    for given_as in (paths, paths[::-1], list(map(str, paths[3:] + paths[:3])), zipped):
        got = read_dicom(given_as)
        np.testing.assert_array_equal(got.data, want.data)
        np.testing.assert_array_equal(got.affine, want.affine)
        assert list(got.series.uids) == list(want.series.uids)
    np.testing.assert_array_equal(read_scan(tmp_path / "z").data, want.data)


def test_one_series_of_a_mixed_folder(tmp_path):
    planes = G.make_planes(G.oblique())
    D.write_mixed(tmp_path, planes, planes.points[..., 1])
    wanted = pydicom.dcmread(tmp_path / "IM0000", stop_before_pixels=True)
    scan = read_dicom(tmp_path, series=wanted.SeriesInstanceUID)
    np.testing.assert_allclose(scan.series.positions, planes.positions, atol=1e-6)
    points = np.stack([scan.series.points(k, 2, 3) for k in range(9)])
    np.testing.assert_allclose(points * TO_RAS, planes.points[:, 2, 3], atol=1e-6)
    np.testing.assert_allclose(scan.data[0, 3, 2], planes.points[:, 2, 3, 1], atol=1e-3)


def test_maps_go_there_and_back(tmp_path, rng):
    """A map on regular planes comes back bit for bit, whatever order the files have."""
    for name in ("shuffled", "reversed", "enhanced shuffled"):
        kind = KINDS[name]
        kind.make(tmp_path / name, 0)
        series = read_dicom(tmp_path / name / "x").series
        planes = rng.normal(size=kind.planes.points.shape[:3]).astype(np.float32)
        grid = np.transpose(planes, (2, 1, 0))
        np.testing.assert_array_equal(series.to_planes(grid), planes)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 3)] * 2),
    step=st.floats(0.5, 8),
    parts=st.lists(st.sampled_from([1.0, 1.0, 0.3, 1.7, 2.0]), min_size=2, max_size=6),
    even=st.booleans(),
    jitter=st.sampled_from([0.0, 0.0, 0.004, 0.009, 0.02]),
    tilt=st.one_of(st.just(0.0), st.floats(-30, 30)),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    shuffle=st.one_of(st.none(), st.integers(0, 99)),
    many=st.booleans(),
)
def test_any_geometry(angles, spacing, step, parts, even, jitter, tilt, origin, shuffle, many):
    steps = [step * ((1 if even else part) + jitter * (-1) ** k) for k, part in enumerate(parts)]
    assume(max(steps) < 2.9 * np.median(steps))  # else images are missing, and that is said
    planes = G.make_planes(G.oblique(angles), steps, tilt, len(steps) + 1, (9, 11), spacing, origin)
    writer = enhanced if many else D.write_series
    kind = Kind(planes, lambda *a, **k: writer(*a, shuffle=shuffle, **k))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(kind, Path(folder), read_dicom)
    series = found["scan"].series
    # A series whose planes stray from even places by a hundredth of the step is left as it is.
    limit = max(LIMIT, 0.0101 * np.mean(series.steps)) if series.regular else LIMIT
    assert found["voxels"] < kind.quantum + limit
    assert found["planes"] < limit
    assert found["points"] < 1e-6
    if even and jitter == 0 and tilt == 0:
        assert series.regular and not series.tilted


def test_a_single_plane_keeps_its_place(tmp_path):
    planes = G.make_planes(G.oblique(), count=1)
    [path] = D.write_series(tmp_path, planes, planes.points[..., 2])
    scan = read_dicom(path)
    assert scan.shape == planes.shape
    places = np.einsum("ab,bij->ija", scan.affine[:3, :2], np.indices(planes.shape))
    places = (places + scan.affine[:3, 3]) * TO_RAS
    np.testing.assert_allclose(places, planes.points[0], atol=1e-6)
    np.testing.assert_allclose(scan.data[0], planes.points[0, ..., 2], atol=1e-3)
    np.testing.assert_array_equal(scan.series.to_planes(scan.data[0]), scan.data)


@pytest.mark.parametrize("modality", ["CR", "DX", "MG"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_projections_are_flat(modality, photometric, tmp_path, rng):
    stored = rng.integers(0, 4096, (13, 21)).astype("u2")
    path = D.write_image(
        tmp_path / "image.dcm", stored, modality, photometric, spacing=(0.25, 0.5), bits=12
    )
    scan = read_dicom(path)
    assert scan.shape == stored.shape
    want = 4095 - stored.astype(int) if photometric == "MONOCHROME1" else stored
    np.testing.assert_array_equal(scan.data[0], want)
    np.testing.assert_allclose(scan.spacing, (0.25, 0.5))


def test_hounsfield_units_stay_what_they_are(tmp_path):
    planes = G.make_planes(G.oblique(), steps=2.0)
    plain = read_dicom(D.write_series(tmp_path / "2", planes, planes.points[..., 0]))
    dark = {"PhotometricInterpretation": "MONOCHROME1"}
    shown_dark = read_dicom(
        D.write_series(tmp_path / "1", planes, planes.points[..., 0], header=dark)
    )
    np.testing.assert_array_equal(shown_dark.data, plain.data)
    assert not shown_dark.series.inverted


def test_ultrasound_colours_and_frames(tmp_path, rng):
    path = tmp_path / "us.dcm"
    clip = rng.integers(0, 256, (3, 11, 13, 3)).astype("u1")
    scan = read_dicom(D.write_image(path, clip[0], "US", "RGB", spacing=(0.3, 0.4)))
    np.testing.assert_array_equal(np.moveaxis(scan.data, 0, -1), clip[0])
    np.testing.assert_allclose(scan.spacing, (0.3, 0.4))
    for frame in range(3):
        got = read_dicom(D.write_image(path, clip, "US", "RGB"), frame=frame)
        np.testing.assert_array_equal(np.moveaxis(got.data, 0, -1), clip[frame])
    index = clip[1, ..., 0]
    got = read_dicom(D.write_image(path, index, "US", "PALETTE COLOR"))
    eight = got.data / 257 if got.data.max() > 255 else got.data
    np.testing.assert_array_equal(np.moveaxis(eight, 0, -1), D.palette()[index])
    grey = read_dicom(D.write_image(path, clip[..., 0], "US"), frame=2)
    np.testing.assert_array_equal(grey.data[0], clip[2, ..., 0])


def test_ultrasound_ybr_becomes_rgb(tmp_path, rng):
    y, blue, red = np.moveaxis(rng.integers(60, 190, (11, 13, 3)).astype("u1"), -1, 0)
    stored = np.stack([y, blue, red], axis=-1)
    scan = read_dicom(D.write_image(tmp_path / "us.dcm", stored, "US", "YBR_FULL"))
    # ITU-R BT.601, whose forward form PS3.3 C.7.6.3.1.2 gives.
    b, r = blue.astype(float) - 128, red.astype(float) - 128
    want = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b])
    np.testing.assert_allclose(scan.data, np.clip(want, 0, 255), atol=1.01)


def test_real_oblique_mr(shared, tmp_path):
    found = real_series(shared / "data" / "dicom_series" / "t1w_mprage", tmp_path, read_dicom)
    assert found["regular"] and not found["tilted"]
    assert found["points_mm"] < 1e-6
    assert found["SimpleITK_affine"] < 1e-4
    assert found["SimpleITK_value"] == 0
    if not shutil.which("dcm2niix"):
        pytest.skip("dcm2niix is not installed")
    assert found["dcm2niix_mm"] < 0.001
    assert found["dcm2niix_value"] == 0


def test_real_tilted_ct(shared, tmp_path):
    found = real_series(shared / "data" / "dicom_series" / "head_ct_ge", tmp_path, read_dicom)
    assert found["tilted"] and not found["regular"] and found["notes"]
    # The header's directions have seven decimals and are of unit length to 5e-8 only.
    assert found["points_mm"] < 1e-4
    assert found["planes_mm"] < 1e-4
    assert found["value"] < 0.5, "not the linear interpolation of the stored values (HU)"
    # What a single affine without shear costs: the reason why each plane keeps its own position.
    assert found["SimpleITK_corner_mm"] == pytest.approx(23.8, abs=0.1)
