"""Result objects of series whose headers lack or contradict something."""

from __future__ import annotations

import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from tests.support import dicom_files as D
from tests.support import dicom_planes as G
from tests.support import dicom_results as R
from tests.unit.test_dicom_mosaic import write_mosaic

from normscan.io.dicom import find_series, read_dicom

pytest.importorskip("highdicom", reason="needs normscan[dicom]")
PLANES = G.make_planes(G.oblique())
VALUES = PLANES.points[..., 0]
UMLAUT = {"PatientName": "Müller^Jürgen", "SpecificCharacterSet": "ISO_IR 192"}
HIDDEN = {"PatientIdentityRemoved": "YES", "PatientSex": "UNKNOWN", "PatientAge": "042Y"}


def own_uids(folder):
    for path in D.write_series(folder, PLANES, VALUES):
        names = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
        D.edit(path, **{name: generate_uid() for name in names})


def blank_uids(folder):
    for path in D.write_series(folder, PLANES, VALUES):
        D.edit(path, SeriesInstanceUID="")


def turned(folder):
    for k, path in enumerate(D.write_series(folder, PLANES, VALUES)):
        both = [float(v) for v in pydicom.dcmread(path).ImageOrientationPatient]
        D.edit(path, ImageOrientationPatient=[D.decimal(v + 1e-6 * k) for v in both])


def one_plane(folder):
    one = PLANES.take(slice(0, 1))
    D.write_series(folder, one, VALUES[:1], header={"SliceThickness": None})


def without(*names):
    return lambda folder: D.write_series(folder, PLANES, VALUES, header=dict.fromkeys(names))


def saying(header):
    return lambda folder: D.write_series(folder, PLANES, VALUES, header=header)


def mosaic(folder):
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 900, VALUES.shape)
    write_mosaic(folder / "mosaic.dcm", PLANES, values, len(values))
    shutil.rmtree(folder / "one")


def two_enhanced(folder):
    for number, part in enumerate((slice(0, 4), slice(4, 9))):
        path = folder / f"{number}.dcm"
        D.write_enhanced(path, PLANES.take(part), VALUES[part])
        D.edit(path, SOPInstanceUID=generate_uid(), InstanceNumber=number + 1)


ODD = {
    "planes in two enhanced files": two_enhanced,
    "UIDs of their own": own_uids,
    "blank UIDs": blank_uids,
    "orientations that differ in the 6th digit": turned,
    "one plane without thickness": one_plane,
    "no frame of reference": without("FrameOfReferenceUID"),
    "no study": without("StudyInstanceUID"),
    "name in UTF-8": saying(UMLAUT),
    "identity removed by an unknown method": saying(HIDDEN),
    "mosaic": mosaic,
}


def checked(scan, out):
    """Save a finding; look at the places of its segments and what the validator says."""
    finding = R.finding_on(scan, R.blocks(scan), 1.0)
    files = {p.stem.removeprefix("one_"): p for p in finding.save(out, "one", formats=["dicom"])}
    where, labels = R.places(scan), finding.component_labels()
    seg = pydicom.dcmread(files["seg"])
    for number, mm in R.segments(seg).items():
        assert R.same_places(mm, where[labels == number]) < 1e-3
    if shutil.which("dciodvfy"):
        found = {k: R.errors(p) for k, p in files.items() if p.suffix == ".dcm"}
        assert not any(found.values()), found
    return seg


@pytest.mark.parametrize("name", ODD)
def test_objects_of_odd_series_are_legal_and_in_their_place(name, tmp_path):
    ODD[name](tmp_path / "x")
    scan = read_dicom(tmp_path / "x")
    seg = checked(scan, tmp_path / "out")
    if name == "name in UTF-8":
        assert seg.PatientName == UMLAUT["PatientName"]
    if name == "identity removed by an unknown method":
        assert seg.DeidentificationMethod == "not stated in the source"
        assert not seg.PatientSex
    again = checked(scan, tmp_path / "again")
    names = ("StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    assert all(seg[name].value == again[name].value for name in names)


def test_each_echo_of_an_enhanced_file_refers_to_its_own_frames(tmp_path):
    twice = PLANES.take([*range(9), *range(9)])
    [path] = D.write_enhanced(tmp_path / "two.dcm", twice, np.concatenate([VALUES, VALUES]))
    data = pydicom.dcmread(path)
    for frame, groups in enumerate(data.PerFrameFunctionalGroupsSequence):
        groups.MREchoSequence = D.item(EffectiveEchoTime=30.0 if frame < 9 else 80.0)
    data.save_as(path)
    parts = [series for series in find_series(path) if series.usable]
    assert len(parts) == 2
    uids = set()
    for number, part in enumerate(parts):
        scan = read_dicom(path, series=part.label)
        seg = checked(scan, tmp_path / f"out{number}")
        uids.add(seg.SOPInstanceUID)
        for mm, own in R.frames(seg):
            source = own.DerivationImageSequence[0].SourceImageSequence[0]
            frame = int(source.ReferencedFrameNumber) - 1
            assert frame // 9 == number
            np.testing.assert_allclose(mm[0, 0], twice.positions[frame], atol=1e-3)
    assert len(uids) == 2


def test_results_beside_their_source_are_never_scans(tmp_path):
    D.write_series(tmp_path / "x", PLANES, VALUES)
    rng = np.random.default_rng(0)
    D.write_image(tmp_path / "x" / "cr", rng.integers(0, 255, (24, 31)).astype(np.uint8), "CR")
    before = [series for series in find_series(tmp_path / "x") if series.usable]
    for number, series in enumerate(before):
        scan = read_dicom(tmp_path / "x", series=series.label)
        finding = R.finding_on(scan, R.blocks(scan), 1.0)
        assert len(finding.save(tmp_path / "x" / f"out{number}", formats=["dicom"])) == 4
    after = [series for series in find_series(tmp_path / "x") if series.usable]
    assert len(before) == 2
    assert [series.uid for series in after] == [series.uid for series in before]
