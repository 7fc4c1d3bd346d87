"""From a BIDS data set to BIDS derivatives: table, training, participant and group level."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tests.toy import toy_scan

import normscan as ns
from normscan.cli.bids import main as app
from normscan.cli.main import main

AFFINE = np.array([[-2.0, 0, 0, 20], [0, 2, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1]])
SUBJECTS = 9
VALIDATOR = shutil.which(
    "bids-validator-deno", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)


def run_app(*arguments) -> int:
    return app([str(a) for a in arguments])


def validate(root: Path) -> dict[str, set[str]]:
    """Return the codes of the official validator by severity."""
    if VALIDATOR is None:
        pytest.skip("bids-validator-deno is not installed (pip install bids-validator-deno)")
    done = subprocess.run(
        [VALIDATOR, str(root), "--format", "json"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    issues = json.loads(done.stdout)["issues"]["issues"]
    return {
        level: {f"{i['code']} {i.get('location', '')}" for i in issues if i["severity"] == level}
        for level in ("error", "warning")
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Nine subjects, T1w and FLAIR; 08 and 09 have lesions, 09 comes twice and 08 has no FLAIR."""
    root = tmp_path_factory.mktemp("bids") / "raw"
    rng = np.random.default_rng(2)
    rows = ["participant_id\tgroup\tage"]
    for number in range(1, SUBJECTS + 1):
        sub = f"sub-{number:02d}"
        lesion = number >= SUBJECTS - 1
        rows.append(f"{sub}\t{'patient' if lesion else 'control'}\t{30 + number}")
        for ses in ("1", "2") if number == SUBJECTS else ("1",):
            image, _ = toy_scan(rng, 3, 2, lesion)
            folder = root / sub / f"ses-{ses}/anat"
            folder.mkdir(parents=True)
            for suffix, channel in zip(("T1w", "FLAIR"), image, strict=True):
                if suffix == "FLAIR" and number == SUBJECTS - 1:
                    continue
                stored = nib.Nifti1Image((channel * 1000).astype(np.int16), AFFINE)
                stored.header.set_xyzt_units("mm", "sec")
                nib.save(stored, folder / f"{sub}_ses-{ses}_{suffix}.nii.gz")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    about = {"Name": "toy", "BIDSVersion": "1.10.0", "DatasetType": "raw", "Authors": ["A", "B"]}
    (root / "dataset_description.json").write_text(json.dumps(about))
    (root / "README.md").write_text("A toy data set of ellipsoids, made by the tests. " * 4)
    return root


def fit(root: Path, run: Path, suffix: str) -> Path:
    table = run.parent / f"{run.name}.csv"
    options = ["--label", "group:control=0,patient=1", "--fractions", "[0.6,0.2,0.2]"]
    assert main(["bids", str(root), "--suffix", suffix, "--out", str(table), *options]) == 0
    tiny = ["--preset", "tiny", "--device", "cpu", "--dims", "3", "--size", "16"]
    command = ["fit", "mean_image", "--cohort", str(table), "--out", str(run), *tiny]
    assert main(command) == 0
    return run


@pytest.fixture(scope="module")
def detector(raw: Path, tmp_path_factory) -> Path:
    return fit(raw, tmp_path_factory.mktemp("runs") / "both", "T1w,FLAIR")


@pytest.fixture(scope="module")
def derived(raw: Path, detector: Path) -> Path:
    """Results of the participant level on the whole data set."""
    out = raw / "derivatives/normscan"
    assert run_app(raw, out, "participant", "--detector", detector, "--device", "cpu") == 0
    return out


def findings(folder: Path) -> dict[str, Path]:
    return {p.name.partition("_desc")[0]: p for p in sorted(folder.rglob("*_finding.json"))}


def test_the_participant_level_predicts_as_the_detector_does(raw: Path, detector: Path, derived):
    found = findings(derived)
    # 08 has no FLAIR: it was left out, the others went on.
    expected = {f"sub-{n:02d}_ses-1" for n in range(1, 10) if n != 8} | {"sub-09_ses-2"}
    assert {name.removesuffix("_T1w") for name in found} == expected
    loaded = ns.load(detector, "cpu")
    assert [c.lower() for c in loaded.channels] == ["t1w", "flair"]
    base = raw / "sub-09/ses-2/anat/sub-09_ses-2_"
    files = [f"{base}T1w.nii.gz", f"{base}FLAIR.nii.gz"]
    direct = loaded.predict(files)
    said = json.loads(found["sub-09_ses-2"].read_text())
    assert said["score"] == pytest.approx(direct.score, rel=1e-6)
    assert said["provenance"]["detector_sha256"] == loaded.fingerprint
    stored = nib.load(derived / "sub-09/ses-2/anat/sub-09_ses-2_desc-anomaly_T1w.nii.gz")
    np.testing.assert_allclose(stored.affine, AFFINE)
    np.testing.assert_array_equal(stored.get_fdata(dtype=np.float32), direct.map)


def test_a_second_run_passes_over_what_is_done(raw, detector, derived, capsys):
    before = {p: p.stat().st_mtime_ns for p in findings(derived).values()}
    # Of one it is all there, so nothing fails; of all, 08 fails again.
    options = ("participant", "--detector", detector, "--device", "cpu")
    assert run_app(raw, derived, *options, "--participant-label", "09", "sub-01") == 0
    assert "0 scans scored, 3 there before, 0 left out" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in findings(derived).values()} == before
    some = ("--participant-label", "09", "--session-label", "2", "--overwrite")
    assert run_app(raw, derived, *options, *some) == 0
    assert "1 scans scored, 0 there before" in capsys.readouterr().out
    changed = [p.name for p in before if p.stat().st_mtime_ns != before[p]]
    assert changed == ["sub-09_ses-2_desc-anomaly_finding.json"]
    # A damaged finding is made again.
    found = findings(derived)["sub-01_ses-1"]
    text = found.read_text()
    found.write_text(text[: len(text) // 2])
    assert run_app(raw, derived, *options, "--participant-label", "01") == 0
    assert json.loads(found.read_text())["score"] == json.loads(text)["score"]


def test_the_group_level_makes_a_table(raw, derived, capsys):
    assert run_app(raw, derived, "group") == 0
    lines = [x.split("\t") for x in (derived / "group_anomaly.tsv").read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert len(rows) == 9
    for row in rows:
        said = json.loads((derived / row["finding"]).read_text())
        assert float(row["score"]) == pytest.approx(said["score"], rel=1e-5)
        assert row["anomalous"] == str(said["anomalous"]).lower()
        assert 0 < float(row["p_value"]) <= 1
    page = (derived / "group_anomaly.md").read_text()
    pictures = [
        p for p in derived.rglob("figures/*.png") if p.relative_to(derived).as_posix() in page
    ]
    assert len(pictures) == 9
    capsys.readouterr()
    assert run_app(raw, derived.parent / "none", "group") == 2
    assert "Run the participant level first" in capsys.readouterr().err


def test_the_official_validator_accepts_what_goes_in_and_comes_out(raw, derived):
    run_app(raw, derived, "group")
    assert validate(raw)["error"] == set()
    assert validate(derived)["error"] == set()
    # It can tell: a name that BIDS doesn't know is an error.
    stray = derived / "sub-01/ses-1/anat/sub-01_ses-1_nonsense.nii.gz"
    shutil.copy(derived / "sub-01/ses-1/anat/sub-01_ses-1_desc-anomaly_T1w.nii.gz", stray)
    assert any(str(stray.name) in issue for issue in validate(derived)["error"])
    stray.unlink()


def test_bad_scans_are_left_out_and_only_they(raw, tmp_path, capsys):
    root = tmp_path / "raw"
    shutil.copytree(raw, root, ignore=shutil.ignore_patterns("derivatives"))
    torn = root / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz"
    run = fit(raw, tmp_path / "run", "T1w")
    torn.write_bytes(torn.read_bytes()[:300])
    capsys.readouterr()
    command = (root, tmp_path / "out", "participant", "--detector", run, "--device", "cpu")
    assert run_app(*command) == 0
    output = capsys.readouterr()
    assert "9 scans scored, 0 there before, 1 left out" in output.out
    assert f"sub-02_ses-1_T1w: left out: {torn}" in output.err
    assert "sub-02_ses-1" not in findings(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*tmp*"))
    # Where no scan works, the exit code says so.
    assert run_app(*command, "--participant-label", "02") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--participant-label", "77"), "has no sub-77"),
        (("--session-label", "5"), "has no ses-5"),
        (("--suffix", "T2w"), "holds no T2w"),
        (("--filter", "acq"), "write key=value"),
        (("--filter", "aqc=1"), "'aqc' is no entity"),
        (("--participant-label", "01", "--session-label", "2"), "none of these subjects"),
        (("--derivatives", "prep"), "no such folder"),
    ],
)
def test_wrong_requests_are_explained(raw, detector, tmp_path, capsys, arguments, reason):
    out = tmp_path / "out"
    assert run_app(raw, out, "participant", "--detector", detector, *arguments) == 2
    assert reason in capsys.readouterr().err
    assert not out.exists()


def test_the_data_set_is_checked_unless_told_otherwise(raw, detector, tmp_path, capsys):
    root = tmp_path / "raw"
    shutil.copytree(raw / "sub-01", root / "sub-01")
    command = [root, tmp_path / "out", "participant", "--detector", detector, "--device", "cpu"]
    for text, reason in ((None, "can't be read"), ("{", "is no JSON"), ("{}", "lacks Name and")):
        if text is not None:
            (root / "dataset_description.json").write_text(text)
        assert run_app(*command) == 2
        error = capsys.readouterr().err
        assert reason in error and str(root / "dataset_description.json") in error
    assert run_app(*command, "--skip-bids-validation") == 0
    assert run_app(raw, raw, "participant", "--detector", detector) == 2
    assert "Choose another folder" in capsys.readouterr().err
    assert run_app(raw, tmp_path / "x", "participant") == 2
    assert "--detector" in capsys.readouterr().err


def test_version_and_help(capsys):
    for option, text in (("--version", ns.__version__), ("--help", "participant")):
        with pytest.raises(SystemExit) as stop:
            run_app(option)
        assert stop.value.code == 0 and text in capsys.readouterr().out
