"""DICOM as anonymisers, archives and exporters leave it: joined truly, told, or refused with a reason."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom import uid as U
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

from normscan import Cohort
from normscan.errors import ScanError
from normscan.io import content_hash, probe, read_scan
from normscan.io.dicom import find_series, read_dicom

PLANES = G.make_planes()
SHAPE = (17, 14, 9)
RAMP = np.round(PLANES.points[..., 2] * 3 + PLANES.points[..., 0])
PLAIN = G.Encoding(1.0, -1024.0, 16, True)


def series(folder, modality="CT", values=RAMP, **more):
    return D.write_series(folder, PLANES, values, modality, encoding=PLAIN, **more)


def own(path, *names):
    """Give a file UIDs of its own."""
    D.edit(path, **{name: U.generate_uid(entropy_srcs=[str(path), name]) for name in names})


# Identifiers


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    ("blank", "scattered"),
    [
        (["SeriesInstanceUID"], []),
        (["SeriesInstanceUID", "SeriesNumber"], []),
        (["SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"], []),
        ([], ["SeriesInstanceUID"]),
        ([], ["SeriesInstanceUID", "StudyInstanceUID"]),
        ([], ["SeriesInstanceUID", "FrameOfReferenceUID"]),
        (["SeriesInstanceUID"], ["FrameOfReferenceUID"]),
        (["PatientID", "SeriesInstanceUID"], ["StudyInstanceUID"]),
    ],
)
def test_series_without_a_usable_uid(tmp_path, modality, blank, scattered):
    for patient in range(3):
        folder = tmp_path / "normal" / f"p{patient}"
        header = {"PatientID": f"p{patient}", **dict.fromkeys(blank, "")}
        for path in series(folder, modality, RAMP + patient, shuffle=1, header=header):
            own(path, "SOPInstanceUID", *scattered)
        scan = read_dicom(folder)
        assert scan.shape == SHAPE == probe(folder).shape
        notes = " ".join(scan.series.notes)
        assert "Series Instance UID" in notes and "9" in notes and f"p{patient}" not in notes
    cohort = Cohort.read(tmp_path)
    assert len(cohort) == 3
    assert {row.load().shape for row in cohort} == {SHAPE}


def test_two_series_without_a_uid_stay_apart(tmp_path):
    half = G.make_planes(spacing=(3.0, 3.0))
    header = {"SeriesInstanceUID": ""}
    for name, planes, number in (("a", PLANES, 3), ("bb", half, 3), ("ccc", PLANES, 4)):
        for path in D.write_series(
            tmp_path, planes, RAMP, series=name, encoding=PLAIN, first=100 * number + len(name) * 20,
            header={**header, "SeriesNumber": number},
        ):  # fmt: skip
            own(path, "SOPInstanceUID")
    assert [s.images for s in find_series(tmp_path)] == [9, 9, 9]
    for one in find_series(tmp_path):
        assert read_dicom(tmp_path, series=one.address).shape == SHAPE


def test_single_images_of_their_own_series_stay_apart(tmp_path):
    for n, turn in enumerate(((0, 0, 0), (90, 0, 0), (0, 90, 0))):
        one = G.make_planes(G.oblique(turn), count=1, shape=PLANES.shape)
        D.write_series(tmp_path, one, RAMP[:1], series=str(n), first=n)
    assert [s.images for s in find_series(tmp_path)] == [1, 1, 1]


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_frame_of_reference_for_each_file(tmp_path, modality):
    for path in series(tmp_path, modality):
        own(path, "FrameOfReferenceUID")
    scan = read_dicom(tmp_path)
    assert scan.shape == SHAPE
    assert any("Frame of Reference UID of its own" in note for note in scan.series.notes)


def test_two_frames_of_reference_are_no_volume(tmp_path):
    for n, path in enumerate(series(tmp_path)):
        D.edit(path, FrameOfReferenceUID=f"1.2.{n % 2}")
    with pytest.raises(ScanError, match="holds 2 DICOM series"):
        read_dicom(tmp_path)


def test_a_stray_image_of_another_frame_says_so(tmp_path):
    D.edit(series(tmp_path)[0], FrameOfReferenceUID="1.2.3")
    reason = find_series(tmp_path)[1].reason
    assert reason == "a single image of another frame of reference beside a volume"


# Images at one place


@pytest.mark.parametrize("syntax", [U.ExplicitVRLittleEndian, U.JPEGLSLossless, U.RLELossless])
@pytest.mark.parametrize("doubled", [1, 4, 9])
def test_doubled_planes_are_dropped_with_a_note(tmp_path, syntax, doubled):
    values = RAMP.astype(np.int64)
    series(tmp_path, "MR", values, syntax=syntax)
    copies = series(tmp_path, "MR", values, first=100, syntax=syntax)
    for path in copies[doubled:]:
        path.unlink()
    for path in copies[:doubled]:
        own(path, "SOPInstanceUID")
    scan = read_dicom(tmp_path)
    assert scan.shape == SHAPE
    [note] = [n for n in scan.series.notes if "stand twice" in n]
    assert note.startswith(f"{doubled} of {9 + doubled} images") and "IM0" in note


def test_another_image_at_the_place_of_one_is_named(tmp_path):
    series(tmp_path, "MR")
    other = series(tmp_path, "MR", RAMP + 1, first=100)
    for path in other[1:]:
        path.unlink()
    own(other[0], "SOPInstanceUID")
    with pytest.raises(ScanError, match=r"1 of 10, for example IM0\d+ at the place of IM0\d+"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("how", ["instance", "temporal", "acquisition"])
@pytest.mark.parametrize("count", [2, 3])
def test_repetitions_are_addressed(tmp_path, how, count):
    for n in range(count):
        header = {"temporal": {"TemporalPositionIdentifier": n + 1}, "instance": {}}.get(
            how, {"AcquisitionNumber": n + 1}
        )
        for path in series(tmp_path, "MR", RAMP + 7 * n, first=100 * n, header=header):
            number = int(pydicom.dcmread(path).InstanceNumber)
            own(path, "SOPInstanceUID")
            if how == "instance":
                D.edit(path, InstanceNumber=number * count + n)
    with pytest.raises(ScanError, match=rf"#repetition=1 to {count}"):
        read_dicom(tmp_path)
    first = read_scan(f"{tmp_path}#repetition=1")
    for n in range(count):
        scan = read_scan(f"{tmp_path}#repetition={n + 1}")
        np.testing.assert_array_equal(scan.data - first.data, 7 * n)
        same = read_scan(f"{tmp_path}#series=4&repetition={n + 1}")
        np.testing.assert_array_equal(same.data, scan.data)
        assert probe(f"{tmp_path}#repetition={n + 1}").shape == SHAPE
    hashes = {content_hash(f"{tmp_path}#repetition={n + 1}") for n in range(count)}
    assert len(hashes) == count
    with pytest.raises(ScanError, match=rf"no #repetition={count + 1}; it has only 1 to {count}"):
        read_scan(f"{tmp_path}#repetition={count + 1}")


# Scales of value


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("lost", [1, 5])
def test_planes_without_their_rescale_are_not_joined(tmp_path, modality, lost):
    for path in series(tmp_path, modality)[:lost]:
        D.edit(path, RescaleSlope=None, RescaleIntercept=None)
    for attempt in (read_dicom, probe):
        with pytest.raises(ScanError, match=rf"{lost} of 9 images .*have no Rescale Slope"):
            attempt(tmp_path)


def test_a_rescale_that_changes_nothing_may_be_missing(tmp_path):
    paths = D.write_series(tmp_path, PLANES, RAMP - RAMP.min(), "MR", encoding=G.Encoding(1.0, 0.0))
    D.edit(paths[3], RescaleSlope=None, RescaleIntercept=None)
    assert read_dicom(tmp_path).shape == SHAPE


def test_mixed_units_are_not_joined(tmp_path):
    D.edit(series(tmp_path)[4], RescaleType="US")
    with pytest.raises(ScanError, match=r"different units .*HU \(8\), US \(1\)"):
        read_dicom(tmp_path)
    for path in series(tmp_path):
        D.edit(path, RescaleType="HU")
    D.edit(series(tmp_path)[4], RescaleType="")
    notes = read_dicom(tmp_path).series.notes
    assert any("1 of 9 images don't say in which unit" in note for note in notes)


def test_padding_of_a_lossy_ct(tmp_path, rng):
    """What compression leaves of a padding of -2000 is neither tissue nor the lowest value."""
    true = np.zeros(RAMP.shape)
    true[:] = 40 + 20 * np.sin(np.arange(RAMP.shape[2]))
    outside = np.zeros(RAMP.shape, bool)
    outside[:, :4] = True
    blurred = np.where(outside, -2000 + rng.integers(-40, 41, RAMP.shape), true)
    blurred[:, 4] = -1300  # the ringing beside it
    encoding = G.Encoding(1.0, 0.0, 16, True)
    for path in D.write_series(tmp_path, PLANES, np.round(blurred), "CT", encoding=encoding):
        data = pydicom.dcmread(path)
        data.add_new("PixelPaddingValue", "SS", -2000)
        data.LossyImageCompression = "01"
        data.save_as(path)
    scan = read_dicom(tmp_path)
    assert scan.data.min() == -1024
    assert np.abs(scan.data[0].transpose(2, 1, 0)[:, 5:] - np.round(true)[:, 5:]).max() == 0
    assert (scan.data[0].transpose(2, 1, 0)[:, :5] == -1024).all()


# What isn't supported or needed isn't damaged


def test_jpeg_of_12_bits(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    y, x = np.mgrid[:64, :48]
    values = np.round(2000 + 900 * np.sin(y / 9) + 900 * np.cos(x / 7)).astype(np.uint16)
    path = D.write_image(tmp_path / "a.dcm", values, "CR", bits=12)
    data = pydicom.dcmread(path)
    frame = imagecodecs.jpeg8_encode(values, level=98, bitspersample=12)
    data.PixelData = pydicom.encaps.encapsulate([frame + b"\0" * (len(frame) % 2)])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = U.JPEGExtended12Bit
    data.save_as(path)
    scan = read_scan(path)
    assert scan.dtype == "uint16" and np.abs(scan.data[0] - values).max() <= 4


def test_an_implicit_pixel_header_in_an_explicit_file(tmp_path, rng):
    values = rng.integers(0, 4000, (13, 21)).astype(np.uint16)
    path = D.write_image(tmp_path / "a.dcm", values, "CR", bits=12)
    raw = path.read_bytes()
    at = raw.index(b"\xe0\x7f\x10\x00OW\0\0")
    path.write_bytes(raw[:at] + b"\xe0\x7f\x10\x00" + raw[at + 8 :])
    np.testing.assert_array_equal(read_scan(path).data[0], values)


@pytest.mark.parametrize(
    "element",
    [
        b"\x09\x00\x10\x10SQ\0\0\x0e\0\0\0\x01\x02\x03\x04garbage!!!",
        b"\x18\x00\x20\x10DS\x0e\0not a number  ",
        b"\x08\x00\x40\x11SQ\0\0\x0c\0\0\0\x08\x00\x50\x11UI\x04\x00ABCD",
    ],
)
def test_an_element_that_is_not_needed(tmp_path, rng, element):
    values = rng.integers(0, 4000, (13, 21)).astype(np.uint16)
    path = D.write_image(tmp_path / "a.dcm", values, "CR", bits=12)
    raw = path.read_bytes()
    at = raw.index(b"\x28\x00\x02\x00US")
    path.write_bytes(raw[:at] + element + raw[at:])
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.data[0], values)
    assert len(scan.series.headers) == 1
