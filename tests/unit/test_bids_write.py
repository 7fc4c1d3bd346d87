"""Findings as BIDS derivatives: what is written, collected, refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tests.support.bids_trees import raw_tree, volume

from normscan.bids import write_derivatives, write_group
from normscan.bids.write import is_done
from normscan.cohort import CohortRow, read_bids
from normscan.detector.finding import Finding
from normscan.errors import CohortError, OutputError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return raw_tree(tmp_path / "raw")


def finding_of(row: CohortRow, detector: str = "abc") -> Finding:
    scan = row.load()
    values = np.zeros(scan.shape, np.float32)
    values[1:3, 1:3, 1:3] = 2
    made = {"method": "toy", "detector_sha256": detector}
    return Finding(scan, values, 2.0, 0.25, True, 1.5, 1.0, provenance=made)


def test_derivatives_are_written_and_collected(raw: Path, tmp_path: Path):
    out = tmp_path / "out"
    cohort = read_bids(raw, ("T1w", "FLAIR"), {"sub": ["01", "02"]})
    written = write_derivatives(out, raw, [(row, finding_of(row)) for row in cohort])
    base = out / "sub-01/ses-2/anat/sub-01_ses-2_desc-anomaly"
    assert written[1] == Path(f"{base}_finding.json")
    stored = nib.load(f"{base}_T1w.nii.gz")
    np.testing.assert_array_equal(stored.affine, np.diag([2.0, 2, 3, 1]))
    mask = nib.load(f"{base}_mask.nii.gz").get_fdata()
    np.testing.assert_array_equal(mask, stored.get_fdata() > 1)
    assert mask.sum() == 8
    for suffix in ("T1w", "mask"):
        sidecar = json.loads(Path(f"{base}_{suffix}.json").read_text())
        assert sidecar["Sources"] == [
            "bids:raw:sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
            "bids:raw:sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz",
        ]
        assert sidecar["Threshold"] == 1.0 and sidecar["Detector"]["detector_sha256"] == "abc"
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    link = out / description["DatasetLinks"]["raw"]
    assert link.samefile(raw) and not Path(description["DatasetLinks"]["raw"]).is_absolute()
    assert (out / "sub-01/figures/sub-01_ses-2_desc-anomaly_T1w.png").stat().st_size > 1000

    table, bad = write_group(out)
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert bad == [] and [r["participant_id"] for r in rows] == ["sub-01", "sub-01", "sub-02"]
    assert rows[1]["session_id"] == "ses-2" and rows[1]["anomalous"] == "true"
    assert float(rows[1]["volume"]) == 8 * 12 and rows[1]["components"] == "1"
    assert set(json.loads(table.with_suffix(".json").read_text())) == set(lines[0])
    assert str(tmp_path) not in "".join(p.read_text() for p in out.rglob("*.json"))
    # Results are no scans of the next cohort, and no lesion masks.
    with pytest.raises(CohortError, match="holds no image"):
        read_bids(out)

    Path(written[0]).write_text("{}")
    _, bad = write_group(out)
    assert len(bad) == 1 and str(written[0]) in bad[0]
    write_derivatives(out, raw, [(cohort[2], finding_of(cohort[2], "another"))])
    with pytest.raises(OutputError, match="findings of 2 detectors"):
        write_group(out)
    assert write_group(out, ["sub-02"])[1] == []


def test_a_finding_counts_for_its_detector_and_its_files_only(raw: Path, tmp_path: Path):
    row = read_bids(raw, "T1w")[0]
    assert not is_done(tmp_path / "out", row, "abc")
    write_derivatives(tmp_path / "out", raw, [(row, finding_of(row))])
    assert is_done(tmp_path / "out", row, "abc")
    assert not is_done(tmp_path / "out", row, "another")
    volume(row.paths[0], 999)
    assert not is_done(tmp_path / "out", row, "abc")


def test_maps_never_go_into_a_folder_of_others(raw: Path, tmp_path: Path):
    row = read_bids(raw, "T1w")[0]
    with pytest.raises(OutputError, match="Choose another folder"):
        write_derivatives(raw, raw, [(row, finding_of(row))])
    with pytest.raises(OutputError, match="Run the participant level first"):
        write_group(tmp_path)
    stranger = CohortRow("x", "x", (volume(tmp_path / "x.nii.gz"),))
    with pytest.raises(OutputError, match="isn't named as in BIDS"):
        write_derivatives(tmp_path / "out", tmp_path, [(stranger, finding_of(row))])


def test_absurd_descriptions_and_findings_are_no_crash(raw: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / "sub-01").mkdir(parents=True)
    (out / "sub-01/sub-01_desc-anomaly_finding.json").write_text("[" * 100_000)
    (out / "dataset_description.json").write_text("[" * 100_000)
    with pytest.raises(OutputError, match="Run the participant level first"):
        write_group(out)
    with pytest.raises(OutputError, match="Choose another folder"):
        write_derivatives(out, raw, [])
