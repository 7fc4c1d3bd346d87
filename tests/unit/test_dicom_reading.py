"""Which DICOM images make a scan, what their values are, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom import uid as U
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

from normscan import Cohort
from normscan.cli.main import main
from normscan.cli.predict import rows_of
from normscan.errors import CohortError, ScanError
from normscan.io import content_hash, probe, read_scan
from normscan.io.dicom import find_series, read_dicom

PLANES = G.make_planes()
RAMP = PLANES.points[..., 2] * 3 + PLANES.points[..., 0]
PLAIN = G.Encoding(1.0, 0.0)
SCOUT = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}


# Which images belong together


def test_one_usable_series_among_others_is_taken(tmp_path):
    D.write_series(tmp_path, PLANES, RAMP, series="main", shuffle=1)
    scout = G.make_planes(G.CORONAL, count=1, shape=PLANES.shape)
    D.write_series(tmp_path, scout, RAMP[:1], series="scout", header=SCOUT, first=100)
    D.write_report(tmp_path / "report")
    assert read_dicom(tmp_path).shape == (17, 14, 9)
    found = find_series(tmp_path)
    assert [(s.modality, s.usable) for s in found] == [("CT", True), ("CT", False), ("SR", False)]
    assert found[1].reason == "a localiser" and "report" in found[2].reason


def test_several_series_are_listed_and_chosen(tmp_path):
    D.write_mixed(tmp_path, PLANES, RAMP)
    with pytest.raises(ScanError, match=r"holds 2 DICOM series.*#series=4.*9 images of 14 x 17"):
        read_dicom(tmp_path)
    first = next(s for s in find_series(tmp_path) if s.images == 9)
    for chosen in (first.label, int(first.number), first.uid, first.address):
        assert read_dicom(tmp_path, series=chosen).shape == (17, 14, 9)
    assert read_scan(f"{tmp_path}#series={first.label}").shape == (17, 14, 9)
    # The number 6 stands twice; one of the two is a report.
    assert read_dicom(tmp_path, series=6).shape == (17, 14, 5)
    with pytest.raises(ScanError, match="has no series 77"):
        read_dicom(tmp_path, series=77)
    with pytest.raises(ScanError, match="series 5 is left out: a localiser"):
        read_dicom(tmp_path, series=5)


@pytest.mark.parametrize(
    ("tag", "values", "says"),
    [
        ("EchoTime", ["10", "30"], "echo time 30"),
        ("AcquisitionNumber", ["1", "2"], "acquisition 2"),
        ("DiffusionBValue", [0.0, 1000.0], "b-value 1000"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]], "type"),
    ],
)
def test_images_at_one_place_are_split_by_what_differs(tmp_path, tag, values, says):
    for n, value in enumerate(values):
        for path in D.write_series(
            tmp_path, PLANES, RAMP + n, modality="MR", first=100 * n, header={tag: value}
        ):
            D.edit(path, SOPInstanceUID=U.generate_uid(entropy_srcs=[path.name]))
    found = find_series(tmp_path)
    assert [s.label for s in found] == ["4.1", "4.2"] and all(s.images == 9 for s in found)
    assert says in found[1].split
    with pytest.raises(ScanError, match=r"4\.1: MR.*4\.2: MR"):
        read_dicom(tmp_path, series=4)
    one, two = (read_dicom(tmp_path, series=s.label) for s in found)
    np.testing.assert_allclose(two.data - one.data, 1, atol=2e-3)
    assert content_hash(f"{tmp_path}#series=4.1") != content_hash(f"{tmp_path}#series=4.2")


def test_images_at_one_place_that_nothing_tells_apart_are_refused(tmp_path):
    for n in range(2):
        for path in D.write_series(tmp_path, PLANES, RAMP + n, first=100 * n):
            D.edit(path, SOPInstanceUID=U.generate_uid(entropy_srcs=[path.name]))
    with pytest.raises(ScanError, match="several images lie at one place"):
        read_dicom(tmp_path)


def test_copies_are_dropped_with_a_note(tmp_path):
    D.write_series(tmp_path / "a", PLANES, RAMP)
    D.write_series(tmp_path / "b", PLANES, RAMP)
    scan = read_dicom(tmp_path)
    assert scan.shape == (17, 14, 9)
    assert any("9 files are copies" in note for note in scan.series.notes)


def test_mixed_orientations_and_stray_images(tmp_path):
    series = {"header": {"SeriesInstanceUID": "1.2.3"}}
    stray = G.make_planes(G.SAGITTAL, count=1, shape=PLANES.shape)
    D.write_series(tmp_path / "stray", PLANES, RAMP, **series)
    D.write_series(tmp_path / "stray", stray, RAMP[:1], series="x", first=50, **series)
    scan = read_dicom(tmp_path / "stray")
    assert scan.shape == (17, 14, 9)
    reasons = [s.reason for s in find_series(tmp_path / "stray")]
    assert reasons[0] == "" and "a single image of another orientation" in reasons[1]
    for n, turn in enumerate(((0, 0, 0), (90, 0, 0), (0, 90, 0))):
        one = G.make_planes(G.oblique(turn), count=1, shape=PLANES.shape)
        D.write_series(tmp_path / "star", one, RAMP[:1], series=str(n), first=n, **series)
    with pytest.raises(ScanError, match="mixed: 3 images of different orientation"):
        read_dicom(tmp_path / "star")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"ImagePositionPatient": None}, "no position"),
        ({"PixelSpacing": None}, "Pixel Spacing is missing"),
        ({"PixelSpacing": ["0", "0"]}, "isn't positive"),
        ({"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}, "right angle"),
        ({"ImagePositionPatient": ["nan", "0", "0"]}, "three numbers"),
        ({"ImagePositionPatient": ["1e300", "0", "0"]}, "three numbers"),
        ({"SOPClassUID": U.SegmentationStorage}, "segmentation"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"SOPClassUID": U.SecondaryCaptureImageStorage, "ImagePositionPatient": None}, "screenshot"),
        ({"Rows": 500}, "contradicts itself"),
        ({"BitsAllocated": 12}, "no image"),
    ],
)  # fmt: skip
def test_why_images_are_left_out(tmp_path, changed, says):
    for path in D.write_series(tmp_path, PLANES, RAMP):
        D.edit(path, **changed)
    with pytest.raises(ScanError, match=says) as error:
        read_dicom(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_bad_file_of_a_series_is_told(tmp_path):
    paths = D.write_series(tmp_path, PLANES, RAMP)
    D.edit(paths[-1], PixelSpacing=None)
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    notes = " ".join(read_dicom(tmp_path).series.notes)
    assert "1 files of the series were left out: Pixel Spacing is missing" in notes


def test_a_named_file_needs_no_volume(tmp_path):
    planes = G.make_planes(G.oblique(), count=1, shape=PLANES.shape)
    [path] = D.write_series(tmp_path, planes, RAMP[:1], header=SCOUT)
    scan = read_dicom(path)
    assert scan.dims == 2 and scan.shape == PLANES.shape and scan.series.placed
    for row, column in ((0, 0), (3, 5)):
        by_affine = scan.affine @ [row, column, 0, 1]
        np.testing.assert_allclose(by_affine[:3], scan.series.points(0, row, column), atol=1e-9)
        np.testing.assert_allclose(
            by_affine[:3] * [-1, -1, 1], planes.points[0, row, column], atol=1e-6
        )
    np.testing.assert_array_equal(scan.series.to_planes(scan.data[0])[0], scan.data[0])


# Planes that are no regular grid


def test_gaps_are_resampled_with_a_warning_or_refused(tmp_path):
    D.write_series(tmp_path / "one", G.make_planes(steps=[2, 2, 4, 2, 2], count=6), RAMP[:6])
    with pytest.warns(UserWarning, match="Not a regular series.*2 to 4 mm"):
        scan = read_dicom(tmp_path / "one")
    assert scan.shape == (17, 14, 7) and not scan.series.regular
    assert scan.spacing[2] == pytest.approx(2)
    assert probe(tmp_path / "one").shape == scan.shape
    D.write_series(tmp_path / "many", G.make_planes(steps=[2, 2, 8, 2, 2], count=6), RAMP[:6])
    with pytest.raises(ScanError, match=r"8 mm, elsewhere 2 mm"):
        read_dicom(tmp_path / "many")
    sideways = G.make_planes(tilt=75, count=6)
    D.write_series(tmp_path / "side", sideways, RAMP[:6])
    with pytest.raises(ScanError, match="drift sideways"):
        read_dicom(tmp_path / "side")


def test_masks_go_to_the_planes_of_a_tilted_series(tmp_path):
    planes = G.make_planes(steps=[2, 2, 3, 2, 2], count=6, tilt=15)
    D.write_series(tmp_path, planes, RAMP[:6])
    with pytest.warns(UserWarning, match=r"tilted by 15\.0 degrees"):
        series = read_dicom(tmp_path).series
    assert series.tilted and series.tilt == pytest.approx(15)
    stored = np.zeros((6, 14, 17), np.uint8)
    stored[2:5, 4:10, 5:12] = 1
    back = series.to_planes(series.from_planes(stored, order=0), order=0)
    assert back.dtype == np.uint8 and set(np.unique(back)) == {0, 1}
    assert 2 * (back & stored).sum() / (back.sum() + stored.sum()) > 0.85
    with pytest.raises(ScanError, match="a map of shape"):
        series.to_planes(stored)
    with pytest.raises(ScanError, match="planes of shape"):
        series.from_planes(stored[1:])


def test_real_tilted_ct_there_and_back(shared):
    with pytest.warns(UserWarning, match=r"14 planes tilted by 18\.5 degrees"):
        scan = read_dicom(shared / "data" / "dicom_series" / "head_ct_ge")
    series = scan.series
    step = np.linalg.norm(scan.affine[:3, :3], axis=0)
    directions = scan.affine[:3, :3] / step
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    assert scan.data.min() == -1023  # the lowest real value; the padding was -1500
    stored = np.stack([np.full(series.size, float(k)) for k in range(14)])
    # The place along the normal, linear between planes, comes back exactly.
    along = series.points(np.arange(14), 0, 0) @ np.cross(directions[:, 0], directions[:, 1])
    ramp = series.to_planes(series.from_planes(stored * 0 + along[:, None, None], fill=np.nan))
    inner = ramp[:, 30:-30, 30:-30]
    assert np.abs(inner - along[:, None, None]).max() < 1e-3


# Headers


def test_headers_are_mended_and_nothing_is_made_up(tmp_path):
    paths = D.write_series(
        tmp_path, G.make_planes(G.oblique()), RAMP, long=True,
        header={"PatientBirthDate": None, "PatientSex": None, "KVP": "120.0000000000000000001"},
    )  # fmt: skip
    D.edit(paths[0], StudyInstanceUID=None, FrameOfReferenceUID=None, StudyDate="not a date")
    data = pydicom.dcmread(paths[1])
    data.private_block(0x0019, "SOMEONE", create=True).add_new(1, "LO", "Ramp^Invented")
    data.save_as(paths[1])
    scan = read_dicom(tmp_path)
    headers = scan.series.headers
    other = pydicom.dcmread(paths[2])
    assert headers[0].StudyInstanceUID == other.StudyInstanceUID
    assert headers[0].FrameOfReferenceUID == other.FrameOfReferenceUID
    assert headers[0].StudyDate == other.StudyDate
    for header in headers:
        assert header["PatientBirthDate"].value is None and header["PatientSex"].value is None
        assert header.PatientID == D.PATIENT["PatientID"]
        assert not any(tag.is_private for tag in list(header.keys()))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for element in header.iterall():
                if element.VR == "DS":
                    many = element.value if element.VM > 1 else [element.value]
                    assert all(len(str(v)) <= 16 for v in many)
            header.save_as(tmp_path / "written", enforce_file_format=False)
    again = pydicom.dcmread(tmp_path / "written", force=True)
    assert [float(v) for v in again.PixelSpacing] == [0.9, 1.3]


# Cohorts and the command line


def test_cohort_of_a_folder_of_dicom(tmp_path, rng):
    D.write_mixed(tmp_path / "mixed", PLANES, RAMP)
    D.write_series(tmp_path / "own", PLANES, RAMP, series="own one", header={"PatientID": "7"})
    D.write_image(tmp_path / "clip", rng.integers(0, 255, (3, 13, 21)).astype("u1"), "US")
    cohort = Cohort.read(tmp_path)
    assert len(cohort) == 6 and cohort.table["label"].isna().all()
    assert cohort.table["scan"].str.fullmatch(r"series-[0-9a-f]{8}(_frame\d{4})?").all()
    assert cohort.table["modality"].value_counts().to_dict() == {"CT": 3, "US": 3}
    assert cohort.table["subject"].nunique() == 2
    assert "own" in set(cohort.table["path"])
    shapes = sorted(row.load().shape for row in cohort)
    assert shapes == [(13, 21)] * 3 + [(17, 14, 5)] + [(17, 14, 9)] * 2
    notes = " ".join(cohort.notes)
    assert "a localiser" in notes and "a report" in notes
    assert not cohort.summary().unreadable
    text = cohort.table.to_csv() + str(cohort.summary())
    assert not any(word in text for word in (*D.PATIENT.values(), "Ramp", "Invented"))
    cohort.write(tmp_path / "table.csv")
    assert [r.load().shape for r in Cohort.read(tmp_path / "table.csv")] == [
        r.load().shape for r in cohort
    ]


def test_cohort_by_folder_names(tmp_path, rng):
    for label in ("normal", "abnormal"):
        for n in range(3):
            name = f"{label}{n}"
            D.write_series(
                tmp_path / label / name, PLANES, RAMP, series=name, header={"PatientID": name}
            )
        stored = rng.integers(0, 200, (13, 21)).astype("u1")
        D.write_image(tmp_path / label / f"x{label}", stored, "DX", PatientID=f"x{label}")
    table = Cohort.read(tmp_path).table
    assert len(table) == 8
    assert all((label == 0) == path.startswith("normal") for label, path in
               zip(table["label"], table["path"], strict=True))  # fmt: skip


def test_cohort_table_of_single_files(tmp_path, rng):
    for n in range(3):
        stored = rng.integers(0, 200, (14, 22)).astype("u1")
        D.write_image(tmp_path / "images" / f"{n}.dcm", stored, "CR", syntax=U.JPEGBaseline8Bit)
    pd.DataFrame({"path": [f"images/{n}.dcm" for n in range(3)], "label": [0, 0, 1]}).to_csv(
        tmp_path / "table.csv", index=False
    )
    cohort = Cohort.read(tmp_path / "table.csv")
    assert [row.load().shape for row in cohort] == [(14, 22)] * 3
    assert all(row.load().series.lossy for row in cohort)
    with pytest.raises(CohortError, match="holds DICOM, but no series"):
        D.write_report(tmp_path / "only" / "report")
        Cohort.read(tmp_path / "only")


def test_a_folder_of_several_series_is_named_series_by_series(tmp_path):
    for name, patient in (("a", "7"), ("b", "7"), ("c", "8")):
        place = tmp_path / "incoming" / ("c" if name == "c" else "both")
        D.write_series(place / name, PLANES, RAMP, series=name, header={"PatientID": patient})
    rows = list(rows_of([str(tmp_path / "incoming")]))
    assert [row.scan for row in rows] == ["a", "b", "c"]
    assert rows[0].subject == rows[1].subject != rows[2].subject
    assert [row.load().shape for row in rows] == [(17, 14, 9)] * 3
    one = list(rows_of([str(tmp_path / "incoming" / "c")]))
    assert [row.scan for row in one] == ["c"] and one[0].load().shape == (17, 14, 9)
    mixed = [*(tmp_path / "incoming" / "both" / "a").iterdir()]
    for file in mixed:
        file.rename(tmp_path / "incoming" / "both" / "b" / f"a-{file.name}")
    together = list(rows_of([str(tmp_path / "incoming" / "both")]))
    assert [row.load().shape for row in together] == [(17, 14, 9)] * 2


def test_predict_a_folder_from_the_command_line(tmp_path, capsys, rng):
    rows = []
    z = np.arange(9)[:, None, None]
    planes = G.make_planes(steps=2.5, tilt=12, shape=(24, 20))
    for n in range(5):
        values = 100 + 20 * rng.random((9, 24, 20)) + z
        D.write_series(tmp_path / f"s{n}", planes, values, "MR", f"healthy {n}", encoding=PLAIN)
        split = "train" if n < 3 else "val"
        rows.append({"path": f"s{n}", "label": 0, "split": split, "subject": n})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    run = ["fit", "mean_image", "--preset", "tiny", "--dims", "3", "--cohort", str(tmp_path)]
    assert main([*run, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    address = f"{tmp_path / 's4'}#series=9"
    out = tmp_path / "out"
    command = ["predict", str(tmp_path / "run"), str(tmp_path / "s3"), address, "--out", str(out)]
    assert main(command) == 0, capsys.readouterr().err
    names = {p.name for p in out.iterdir()}
    assert {"s3_map.nii.gz", "s3_mask.nii.gz", "s3_finding.json", "s3_overlay.png"} <= names
    import nibabel as nib

    scan = read_scan(tmp_path / "s3")
    image = nib.load(out / "s3_map.nii.gz")
    assert image.shape == scan.shape
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
    assert scan.series.to_planes(image.get_fdata()).shape == (9, 24, 20)
    text = "".join(p.read_text() for p in out.glob("*.json")) + capsys.readouterr().err
    assert not any(word in text for word in (*D.PATIENT.values(), "Ramp", "Invented"))
