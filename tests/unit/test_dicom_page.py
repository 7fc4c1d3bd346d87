"""The page about a finding, and segments as a label map."""

from __future__ import annotations

import re
import shutil
import zlib

import numpy as np
import pydicom
import pytest
from tests.support import dicom_results as R
from tests.support.dicom_proof import KINDS

from normscan.io.dicom import read_dicom
from normscan.scan import Scan

hd = pytest.importorskip("highdicom", reason="needs normscan[dicom]")


@pytest.fixture
def finding(tmp_path):
    KINDS["MR oblique"].make(tmp_path / "Geheim", 0)
    scan = read_dicom(tmp_path / "Geheim" / "x")
    return R.finding_on(scan, R.blocks(scan), 1.0)


def saved(finding, folder, *formats):
    files = finding.save(folder, "one", overlay=False, formats=formats)
    return {path.stem.removeprefix("one_"): path for path in files}


def words(page: bytes) -> str:
    """The texts of a PDF of matplotlib's, whose fonts are subsets with letters as they are."""
    found = b""
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", page, re.DOTALL):
        try:
            found += zlib.decompress(stream)
        except zlib.error:
            pass
    pieces = re.findall(rb"\[([^\]]*)\]\s*TJ|\(([^)]*)\)\s*Tj", found)
    return " ".join(
        re.sub(rb"\)\s*-?[\d.]+\s*\(|[()]", b"", a or b).decode("latin-1") for a, b in pieces
    )


def test_the_page_says_what_the_finding_says(finding, tmp_path):
    path = next(
        p for p in finding.save(tmp_path / "out", "one", formats=["pdf"]) if p.suffix == ".pdf"
    )
    page = path.read_bytes()
    assert page[:5] == b"%PDF-" and len(re.findall(rb"/Type /Page\b", page)) == 1
    said = words(page)
    for word in ("3.25", "0.02", "2.5", "Not for diagnosis", "dae"):
        assert word in said, said
    assert "Geheim" not in said and page == finding.page()


def test_of_many_components_the_page_names_the_first(tmp_path):
    map = np.zeros((40, 40), np.float32)
    map[::4, ::4] = np.arange(1, 101).reshape(10, 10)
    said = words(R.finding_on(Scan.from_array(map), map, 0.5).page())
    assert "and 88 more" in said and "voxels" in said


def test_the_page_lies_beside_the_series(finding, tmp_path):
    files = saved(finding, tmp_path / "out", "dicom-pdf")
    assert {"map", "seg", "sr", "pdf"} < set(files)
    data, source = pydicom.dcmread(files["pdf"]), finding.scan.series.headers[0]
    assert (data.StudyInstanceUID, data.PatientID) == (source.StudyInstanceUID, source.PatientID)
    page = data.EncapsulatedDocument[: data.EncapsulatedDocumentLength]
    assert page == finding.page()
    again = pydicom.dcmread(saved(finding, tmp_path / "again", "dicom", "dicom-pdf")["pdf"])
    assert again.SOPInstanceUID == data.SOPInstanceUID


def test_a_label_map_holds_the_same_components(finding, tmp_path):
    one = hd.seg.segread(saved(finding, tmp_path / "a", "dicom")["seg"])
    other = hd.seg.segread(saved(finding, tmp_path / "b", "dicom", "dicom-labelmap")["seg"])
    assert other.SegmentationType == "LABELMAP"
    options = {"combine_segments": True}
    volumes = [seg.get_volume(**options) for seg in (one, other)]
    found = [{tuple(np.round(v.map_indices_to_reference(np.argwhere(v.array == n))[0], 6))
              for n in (1, 2)} for v in volumes]  # fmt: skip
    assert found[0] == found[1]
    assert [np.bincount(v.array.ravel())[1:].tolist() for v in volumes] == [[27, 12]] * 2


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy isn't installed")
def test_the_validator_finds_no_error_in_the_page(finding, tmp_path):
    assert R.errors(saved(finding, tmp_path / "out", "dicom-pdf")["pdf"]) == []
