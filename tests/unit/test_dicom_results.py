"""Findings as DICOM objects: every voxel where it belongs, for other readers and a validator."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from tests.support import dicom_files as D
from tests.support import dicom_results as R
from tests.support.dicom_proof import KINDS

from normscan.errors import ArgumentError, OutputError
from normscan.io.dicom import read_dicom
from normscan.scan import Scan

hd = pytest.importorskip("highdicom", reason="needs normscan[dicom]")
pytestmark = pytest.mark.filterwarnings("ignore:.*Not a regular series")

VOLUMES = [
    "CT axial", "CT feet first", "MR oblique", "shuffled", "decimal strings over 16 characters",
    "enhanced shuffled", "enhanced geometry by frame", "tilted uneven", "enhanced tilted uneven",
]  # fmt: skip
MORE = [
    "reversed", "enhanced CT", "tilted oblique", "uneven", "empty attributes",
    "no birth date, sex, thickness",
]  # fmt: skip
FLAT = ["CR", "DX", "MG", "US"]
TIMES = {"ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"}
TIMES |= {"ContributionDateTime"}
validator = pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools isn't installed")
quantitative = pytest.mark.skipif(not R.dcmqi("paramap2itkimage"), reason="dcmqi isn't installed")


def series(name, folder):
    KINDS[name].make(folder, 0)
    return read_dicom(folder / "x")


def picture(modality, folder, **header):
    rng = np.random.default_rng(3)
    colour = modality == "US"
    stored = rng.integers(0, 255 if colour else 4095, (24, 31, 3) if colour else (24, 31))
    return D.write_image(
        folder / f"{modality}.dcm",
        stored.astype(np.uint8 if colour else np.uint16),
        modality,
        "RGB" if colour else "MONOCHROME2",
        bits=8 if colour else 12,
        **header,
    )


def saved(finding, folder, *formats):
    """Save and return what lies there by its ending."""
    files = finding.save(folder, "one", overlay=False, formats=formats or ("dicom",))
    return {path.stem.removeprefix("one_"): path for path in files}


@pytest.mark.parametrize("name", VOLUMES)
def test_every_value_and_component_lies_in_its_place(name, tmp_path):
    """The map is the coordinate itself, so a voxel elsewhere shows as so many millimetres."""
    kind, scan = KINDS[name], series(name, tmp_path)
    where = R.places(scan)
    for axis in range(3):
        ramp = where[..., axis].astype(np.float32)
        path = saved(R.finding_on(scan, ramp, None), tmp_path / f"out{axis}")["map"]
        data = pydicom.dcmread(path)
        values = R.map_values(data)
        assert values.shape == (scan.shape[2], scan.shape[1], scan.shape[0])
        for plane, (mm, _) in zip(values, R.frames(data), strict=True):
            assert np.abs(mm[..., axis] - plane).max() < 1e-3
        if kind.regular:  # on the planes as they were made, in the order of the normal
            made = np.stack([mm for mm, _ in R.frames(data)])
            np.testing.assert_allclose(made, kind.planes.points, atol=1e-4)
        read = hd.imread(path).get_volume(apply_real_world_transform=True)
        index = np.indices(read.spatial_shape).reshape(3, -1).T
        mm = read.map_indices_to_reference(index)[:, axis]
        assert np.abs(mm - read.array.reshape(-1)).max() < 1e-3
    files = saved(R.finding_on(scan, R.blocks(scan), 1.0), tmp_path / "out")
    data = pydicom.dcmread(files["seg"])
    labels = R.finding_on(scan, R.blocks(scan), 1.0).component_labels()
    found = R.segments(data)
    assert sorted(found) == [1, 2]
    assert {n: len(mm) for n, mm in found.items()} == {1: 27, 2: 12}
    for number, mm in found.items():
        assert R.same_places(mm, where[labels == number]) < 1e-3
    if kind.regular:
        sources = {(u, f) for u, f in zip(scan.series.uids, scan.series.frames, strict=True)}
        for _, own in R.frames(data):
            source = own.DerivationImageSequence[0].SourceImageSequence[0]
            frame = int(source.get("ReferencedFrameNumber") or 0)
            assert (source.ReferencedSOPInstanceUID, frame) in sources


@pytest.mark.parametrize(
    "name", ["MR oblique", "CT feet first", "enhanced shuffled", "tilted uneven"]
)
def test_a_segment_names_the_plane_it_lies_on(name, tmp_path):
    """The source image of each frame is the one with the frame's position."""
    scan = series(name, tmp_path)
    data = pydicom.dcmread(saved(R.finding_on(scan, R.blocks(scan), 1.0), tmp_path / "o")["seg"])
    keys = list(zip(scan.series.uids, scan.series.frames, strict=True))
    for mm, own in R.frames(data):
        if not scan.series.regular:
            assert "DerivationImageSequence" not in own or not own.DerivationImageSequence
            continue
        source = own.DerivationImageSequence[0].SourceImageSequence[0]
        key = (source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber") or 0))
        place = scan.series.positions[keys.index(key)]
        np.testing.assert_allclose(mm[0, 0], place, atol=1e-3)


@quantitative
@pytest.mark.parametrize(
    "name", ["MR oblique", "CT feet first", "enhanced shuffled", "tilted uneven"]
)
def test_dcmqi_finds_every_voxel_in_its_place(name, tmp_path):
    """dcmqi, with which 3D Slicer reads, took highdicom's order of frames upside down."""
    scan = series(name, tmp_path)
    where = R.places(scan)
    finding = R.finding_on(scan, R.blocks(scan), 1.0)
    for axis in range(3):
        ramp = R.finding_on(scan, where[..., axis].astype(np.float32), None)
        path = saved(ramp, tmp_path / f"out{axis}")["map"]
        made = R.by_dcmqi("paramap2itkimage", path, tmp_path / f"map{axis}")
        ((values, mm),) = made.values()
        assert np.abs(values - mm[..., axis]).max() < 0.01
    path = saved(finding, tmp_path / "out")["seg"]
    made = R.by_dcmqi("segimage2itkimage", path, tmp_path / "seg")
    sizes = {}
    for array, mm in made.values():
        for number in np.unique(array[array > 0]):
            sizes[int(number)] = int((array == number).sum())
            true = where[finding.component_labels() == number]
            assert R.same_places(mm[array == number], true) < 0.01
    assert sizes == {1: 27, 2: 12}


@quantitative
def test_dcmqi_reads_the_report(tmp_path):
    """Its reader of TID 1500 finds the groups of the scan and of each component."""
    scan = series("CT axial", tmp_path)
    files = saved(R.finding_on(scan, R.blocks(scan), 1.0), tmp_path / "out")
    out = tmp_path / "report.json"
    command = [R.dcmqi("tid1500reader"), "--inputDICOM", files["sr"], "--outputMetadata", out]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    groups = {g["TrackingIdentifier"]: g for g in json.loads(out.read_text())["Measurements"]}
    assert set(groups) == {"Scan", "Finding 1", "Finding 2"}
    values = {
        item["quantity"]["CodeValue"]: float(item["value"])
        for item in groups["Scan"]["measurementItems"]
    }
    assert values["anomaly-score"] == 3.25 and values["rate-expected"] == 0.0476
    assert groups["Finding 2"]["ReferencedSegment"] == 2
    assert (
        groups["Finding 2"]["segmentationSOPInstanceUID"]
        == pydicom.dcmread(files["seg"]).SOPInstanceUID
    )


@validator
@pytest.mark.parametrize("name", [*VOLUMES, *MORE, *FLAT])
def test_the_validator_finds_no_error(name, tmp_path):
    placed = name not in FLAT
    scan = series(name, tmp_path) if placed else read_dicom(picture(name, tmp_path))
    files = saved(R.finding_on(scan, R.blocks(scan), 1.0), tmp_path / "out")
    assert set(files) == {"seg", "sr", "finding", "map" if placed else "sc"}
    if name == "MR oblique":
        more = R.finding_on(scan, R.blocks(scan) / 1000, 0.001)
        files |= {"small": saved(more, tmp_path / "small")["map"]}
        files |= {"16": saved(more, tmp_path / "16", "dicom-uint16")["map"]}
        nothing = R.finding_on(scan, R.blocks(scan), 9.0, anomalous=None, p_value=None)
        files |= {"nothing": saved(nothing, tmp_path / "nothing")["sr"]}
    found = {kind: R.errors(f) for kind, f in files.items() if f.suffix == ".dcm"}
    assert not any(found.values()), found


def read_report(path):
    """Numbers and coded answers of the scan, and the groups of components."""
    content = hd.sr.srread(path).content
    (scan,) = [g for g in content.get_image_measurement_groups() if g.tracking_identifier == "Scan"]
    numbers = {m.name.value: m.value for m in scan.get_measurements()}
    answers = {e.name.value: e.value.meaning for e in scan.get_qualitative_evaluations()}
    return content, numbers, answers


def test_the_report_has_the_numbers_of_the_finding(tmp_path):
    scan = series("MR oblique", tmp_path)
    finding = R.finding_on(scan, R.blocks(scan), 1.0)
    files = saved(finding, tmp_path / "out")
    content, numbers, answers = read_report(files["sr"])
    assert numbers == {
        "anomaly-score": 3.25, "p-value": 0.02, "score-threshold": 2.5, "rate-wanted": 0.05,
        "rate-expected": 0.0476, "pixel-threshold": 1.0, "components": 2.0,
    }  # fmt: skip
    assert answers["decision"] == "Abnormal"
    assert answers["quality"].startswith("Not checked")
    assert answers["localised"] == "Findings above the threshold of the map"
    groups = content.get_volumetric_roi_measurement_groups()
    seg = pydicom.dcmread(files["seg"])
    for number, (group, part) in enumerate(zip(groups, finding.components(), strict=True), 1):
        values = [m.value for m in group.get_measurements()]
        assert values == pytest.approx([part["peak"], part["volume_mm3"]], rel=1e-8)
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert group.tracking_uid == seg.SegmentSequence[number - 1].TrackingUID
    text = pydicom.dcmread(files["sr"]).to_json()
    assert all(f'"{word}"' in text for word in ("dae", "0.0.1", f"detector {'a' * 64}"))
    assert seg.StudyInstanceUID == scan.series.headers[0].StudyInstanceUID


def test_one_component_alone(tmp_path):
    """highdicom then writes the segment's number once, for all frames."""
    scan = series("CT axial", tmp_path)
    files = saved(R.finding_on(scan, R.blocks(scan), 3.5), tmp_path / "out")
    assert {n: len(mm) for n, mm in R.segments(pydicom.dcmread(files["seg"])).items()} == {1: 27}
    (group,) = read_report(files["sr"])[0].get_volumetric_roi_measurement_groups()
    assert group.referenced_segment.referenced_segment_numbers == [1]


def test_nothing_found_makes_no_segmentation_and_the_report_says_so(tmp_path):
    scan = series("CT axial", tmp_path)
    healthy = R.finding_on(scan, R.blocks(scan), 9.0, anomalous=False, p_value=0.5)
    files = saved(healthy, tmp_path / "healthy")
    assert set(files) == {"map", "sr", "finding"}
    _, numbers, answers = read_report(files["sr"])
    assert numbers["components"] == 0
    assert answers["decision"] == "Normal"
    assert answers["localised"] == "No finding above the threshold of the map"
    bare = R.finding_on(scan, None, None, anomalous=None, p_value=None, false_alarms=None)
    files = saved(bare, tmp_path / "bare")
    assert set(files) == {"sr", "finding"}
    _, numbers, answers = read_report(files["sr"])
    assert "p-value" not in numbers and "components" not in numbers
    assert answers["decision"].startswith("Not decided")
    assert answers["localised"].startswith("Not localised")


@pytest.mark.parametrize("name", [*FLAT, "clip"])
def test_a_picture_gets_outlines_and_a_secondary_capture(name, tmp_path):
    """A pixel is within the polygon of the report where the component holds its centre."""
    from matplotlib.path import Path as Polygon

    if name == "clip":
        stored = np.random.default_rng(0).integers(0, 255, (4, 24, 31, 3)).astype(np.uint8)
        scan = read_dicom(D.write_image(tmp_path / "c.dcm", stored, "US", "RGB"), frame=2)
    else:
        scan = read_dicom(picture(name, tmp_path))
    finding = R.finding_on(scan, R.blocks(scan), 1.0)
    files = saved(finding, tmp_path / "out")
    assert set(files) == {"sc", "sr", "finding"} | ({"seg"} if name != "clip" else set())
    content, _, _ = read_report(files["sr"])
    groups = content.get_planar_roi_measurement_groups()
    row, column = np.indices(scan.shape)
    centres = np.stack([column + 0.5, row + 0.5], axis=-1).reshape(-1, 2)
    for number, (group, part) in enumerate(zip(groups, finding.components(), strict=True), 1):
        inside = Polygon(group.roi.value).contains_points(centres).reshape(scan.shape)
        np.testing.assert_array_equal(inside, finding.component_labels() == number)
        values = [m.value for m in group.get_measurements()]
        assert values == pytest.approx([part["peak"], part["area_mm2"]], rel=1e-8)
        source = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
        assert source.ReferencedSOPInstanceUID == scan.series.uids[0]
        assert source.get("ReferencedFrameNumber") == (3 if name == "clip" else None)
    if name != "clip":
        stack = pydicom.dcmread(files["seg"]).pixel_array
        np.testing.assert_array_equal(stack > 0, [finding.component_labels() == n for n in (1, 2)])
    shown = pydicom.dcmread(files["sc"])
    assert shown.pixel_array.shape[2] == 3 and np.ptp(shown.pixel_array) > 100


def test_sixteen_bits_keep_values_to_half_a_step(tmp_path):
    scan = series("MR oblique", tmp_path)
    map = R.blocks(scan)
    data = pydicom.dcmread(
        saved(R.finding_on(scan, map, None), tmp_path / "o", "dicom-uint16")["map"]
    )
    assert data.PixelData and data.BitsStored == 16
    step = (map.max() - map.min()) / 65535
    assert np.abs(R.map_values(data) - map.transpose(2, 1, 0)).max() <= 0.5001 * step


@pytest.mark.parametrize(
    ("part", "side", "expected"),
    [
        ("BRAIN", None, ("12738006", "U")), ("CHEST", "", ("816094009", "U")),
        ("KNEE", "L", ("72696002", "L")), ("QUUX", None, ("38266002", "U")),
        (None, None, ("38266002", "U")),
    ],
)  # fmt: skip
def test_the_part_of_the_body_is_that_of_the_source(part, side, expected, tmp_path):
    planes = KINDS["CT axial"].planes
    header = {"BodyPartExamined": part, "Laterality": side}
    D.write_series(tmp_path / "x", planes, planes.points[..., 0], header=header)
    scan = read_dicom(tmp_path / "x")
    data = pydicom.dcmread(saved(R.finding_on(scan, R.blocks(scan), None), tmp_path / "o")["map"])
    anatomy = data.SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0]
    region = anatomy.AnatomicRegionSequence[0]
    assert (region.CodeValue, anatomy.FrameLaterality) == expected


@pytest.mark.parametrize("form", ["dicom", "dicom-uint16"])
def test_a_flat_map_and_a_threshold_below_everything(form, tmp_path):
    """Such a threshold makes all of it one component; it has no decimal string."""
    scan = series("CT axial", tmp_path)
    flat = np.full(scan.shape, 2, np.float32)
    files = saved(R.finding_on(scan, flat, -np.inf), tmp_path / "out", form)
    assert (R.map_values(pydicom.dcmread(files["map"])) == 2).all()
    assert len(R.segments(pydicom.dcmread(files["seg"]))[1]) == flat.size
    assert "pixel-threshold" not in read_report(files["sr"])[1]
    if shutil.which("dciodvfy"):
        assert not [e for path in files.values() if path.suffix == ".dcm" for e in R.errors(path)]


def test_the_same_finding_gives_the_same_objects(tmp_path):
    """All but the time of writing; another detector gives other UIDs in the same study."""
    scan = series("enhanced CT", tmp_path)
    finding = R.finding_on(scan, R.blocks(scan), 1.0)
    once, again = (saved(finding, tmp_path / folder) for folder in "ab")
    finding.provenance = {**R.MADE_BY, "detector_sha256": "b" * 64}
    other = saved(finding, tmp_path / "c")
    for kind in ("map", "seg", "sr"):
        one, two, three = (pydicom.dcmread(files[kind]) for files in (once, again, other))
        for data in (one, two):
            for word in (
                "ContentDate",
                "ContentTime",
                "InstanceCreationDate",
                "InstanceCreationTime",
            ):
                data.pop(word, None)
            data.walk(lambda d, e: d.pop(e.tag) if e.keyword in TIMES else None)
        assert one.to_json() == two.to_json()
        assert one.SOPInstanceUID != three.SOPInstanceUID
        assert one.SeriesInstanceUID != three.SeriesInstanceUID
        assert one.StudyInstanceUID == three.StudyInstanceUID
        assert pydicom.uid.UID(one.SOPInstanceUID).is_valid
    assert len({pydicom.dcmread(once[k]).SeriesInstanceUID for k in ("map", "seg", "sr")}) == 3


def test_low_components_beyond_a_number_share_a_segment(tmp_path, monkeypatch):
    monkeypatch.setattr("normscan.dicom.results.MOST_SEGMENTS", 10)
    planes = replace(KINDS["CT axial"].planes, shape=(40, 40))
    D.write_series(tmp_path / "x", planes, planes.points[..., 0])
    scan = read_dicom(tmp_path / "x")
    map = np.zeros(scan.shape, np.float32)
    map[::3, ::3, 3] = np.linspace(2, 3, 14 * 14).reshape(14, 14)
    finding = R.finding_on(scan, map, 1.0)
    assert len(finding.components()) == 196
    files = saved(finding, tmp_path / "out")
    data = pydicom.dcmread(files["seg"])
    assert data.SegmentSequence[9].SegmentLabel == "187 further findings"
    sizes = {n: len(mm) for n, mm in R.segments(data).items()}
    assert sizes == {**dict.fromkeys(range(1, 10), 1), 10: 187}
    content, numbers, _ = read_report(files["sr"])
    assert numbers["components"] == 196
    rest = content.get_volumetric_roi_measurement_groups()[-1]
    volume = rest.get_measurements()[-1].value
    assert volume == pytest.approx(187 * scan.voxel_volume, rel=1e-8)


def test_the_patient_is_in_the_objects_and_nowhere_else(tmp_path, caplog, capsys):
    header = {"PatientName": "Geheim^Planted^^^", "PatientID": "ID-81516", "PatientSex": "X"}
    planes = KINDS["CT axial"].planes
    D.write_series(tmp_path / "x", planes, planes.points[..., 0], header=header)
    scan = read_dicom(tmp_path / "x")
    finding = R.finding_on(scan, R.blocks(scan), 1.0)
    with caplog.at_level(logging.DEBUG):
        files = saved(finding, tmp_path / "out")
    data = pydicom.dcmread(files["sr"])
    assert data.PatientID == "ID-81516" and data.PatientSex in ("", None)
    said = caplog.text + "".join(capsys.readouterr()) + files["finding"].read_text()
    said += " ".join(path.name for path in files.values())
    assert "Geheim" not in said and "81516" not in said


def test_what_can_not_be_written_is_said(tmp_path, monkeypatch):
    plain = Scan.from_array(np.zeros((9, 9, 9), np.float32), stack=True)
    finding = R.finding_on(plain, plain.data[0], None)
    with pytest.raises(OutputError, match="one: DICOM results stand beside a DICOM series"):
        saved(finding, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for formats, text in (
        (("dicon",), "Did you mean 'dicom'"),
        ((), "name a format"),
        (("dicom", "dicom-uint16"), "choose"),
    ):
        with pytest.raises(ArgumentError, match=text):
            finding.save(tmp_path / "out", formats=formats)
    monkeypatch.setattr("normscan.dicom.packages.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install normscan\[dicom\]"):
        saved(finding, tmp_path / "out")


def test_a_header_that_nothing_can_be_derived_from_is_named_without_its_values(tmp_path):
    folder = tmp_path / "Geheim"
    KINDS["CT axial"].make(folder, 0)
    scan = read_dicom(folder / "x")
    headers = scan.series.headers
    for header in headers:
        header.SOPClassUID = "1.2.3.4"  # no class that highdicom knows
    broken = replace(scan.series, read_headers=lambda: headers)
    finding = R.finding_on(replace(scan, series=broken), R.blocks(scan), 1.0)
    with pytest.raises(OutputError, match="one: no DICOM results can be made") as caught:
        saved(finding, tmp_path / "out")
    assert "Ramp" not in str(caught.value)


def test_both_formats_lie_side_by_side(tmp_path):
    scan = series("CT axial", tmp_path)
    finding = R.finding_on(scan, R.blocks(scan), 1.0)
    files = finding.save(tmp_path / "out", "one", formats=["nifti", "dicom"])
    assert {path.name for path in files} == {
        "one_map.dcm", "one_seg.dcm", "one_sr.dcm", "one_map.nii.gz", "one_mask.nii.gz",
        "one_overlay.png", "one_finding.json",
    }  # fmt: skip
