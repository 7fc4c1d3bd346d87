"""`normscan predict --format`: from a DICOM series to the objects beside it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pydicom
import pytest
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector

pytest.importorskip("highdicom", reason="needs normscan[dicom]")
PLANES = G.make_planes(G.oblique(), 2.0, count=6, shape=(12, 14), spacing=(2, 2))


def head(seed, lesion=0.0):
    row, column = np.indices((12, 14))
    disc = np.hypot((row - 5.5) / 5.5, (column - 6.5) / 6.5) < 1
    values = disc * (400 + np.random.default_rng(seed).normal(0, 8, (6, 12, 14)))
    values[2:4, 4:7, 5:9] += lesion
    return values


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom")
    for k in range(6):
        patient = {"PatientID": f"P{k}", "PatientName": f"Geheim^{k}"}
        D.write_series(folder / f"h{k}", PLANES, head(k), "MR", f"h{k}", header=patient)
    lines = [f"h{k},h{k},0,{'train' if k < 2 else 'val'}" for k in range(6)]
    (folder / "cohort.csv").write_text("\n".join(["path,subject,label,split", *lines]))
    settings = {"size": 14, "crop": "none", "scaling": "none"}
    detector = Detector(
        "mean_image", dims=3, preprocess=settings, gate=False, fpr=0.3, calibration="split"
    )
    detector.fit(Cohort.read(folder / "cohort.csv"), folder / "run")
    patient = {"PatientID": "P-4711", "PatientName": "Geheim^Planted"}
    D.write_series(folder / "new", PLANES, head(99, 400), "MR", "new", header=patient)
    return folder / "run"


def test_the_objects_lie_beside_the_other_files(run, tmp_path, capsys):
    new, out = run.parent / "new", tmp_path / "out"
    assert main(["predict", str(run), str(new), "--out", str(out), "--format", "nifti,dicom"]) == 0
    assert {path.name for path in out.iterdir()} == {
        "new_map.dcm", "new_seg.dcm", "new_sr.dcm", "new_map.nii.gz", "new_mask.nii.gz",
        "new_overlay.png", "new_finding.json", "scores.csv", "index.html",
    }  # fmt: skip
    found = pydicom.dcmread(out / "new_map.dcm")
    source = pydicom.dcmread(next(new.iterdir()))
    assert found.PatientID == "P-4711" and found.StudyInstanceUID == source.StudyInstanceUID
    assert found.NumberOfFrames == 6 and found.ManufacturerModelName == "mean_image"
    said = "".join(capsys.readouterr()) + (out / "scores.csv").read_text()
    assert "Geheim" not in said and "4711" not in said


def test_a_scan_without_a_series_is_left_out_with_its_reason(run, tmp_path, capsys):
    np.save(tmp_path / "plain.npy", head(3).astype(np.float32))
    scans = [str(tmp_path / "plain.npy"), str(run.parent / "new")]
    out = tmp_path / "out"
    assert main(["predict", str(run), *scans, "--out", str(out), "--format", "dicom"]) == 1
    assert "stand beside a DICOM series" in capsys.readouterr().err
    table = pd.read_csv(out / "scores.csv")
    assert table["left_out"].notna().tolist() == [True, False]
    assert not (out / "plain_finding.json").exists() and not (out / "new_map.nii.gz").exists()


def test_an_unknown_format_is_refused_before_any_work(run, tmp_path, capsys):
    new, out = run.parent / "new", tmp_path / "out"
    assert main(["predict", str(run), str(new), "--out", str(out), "--format", "nifti,dicon"]) == 2
    assert "Did you mean 'dicom'" in capsys.readouterr().err
    assert not out.exists()
