"""The regimes from the command line: fit, predict, evaluate."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.pairs import write_pairs
from tests.support.regimes import registered

from normscan.cli.main import main

SETTINGS = ["--preprocess", '{"scaling": "none", "crop": "none"}', "--gate=false"]


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


def test_paired_modality(tmp_path: Path, capsys):
    table, out = write_pairs(tmp_path / "pairs"), tmp_path / "run"
    fit = ["fit", "toy_translation", "--cohort", str(table), "--out", str(out), "--steps", "5"]
    assert main([*fit, *SETTINGS]) == 0
    assert main([*fit, "--targets", "2"]) == 2  # the cohort says how many there are
    scan, other = str(table.parent / "test00.npy"), str(table.parent / "test00_t2.npy")
    predict = ["predict", str(out), scan, "--out", str(tmp_path / "found")]
    assert main([*predict, "--target", f"[{other}]"]) == 0
    assert (tmp_path / "found" / "test00_finding.json").is_file()
    assert main([*predict, "--target", f"[{other},{other}]"]) == 2
    assert "--target names 2 files for 1 scans" in capsys.readouterr().err
    assert main([*predict, "--overwrite"]) == 2
    assert "compares a scan with its target, and none was given" in capsys.readouterr().err
    assert main(["evaluate", str(out), "--cohort", str(table), "--baselines=false"]) == 0
    assert (out / "evaluation" / "report.html").is_file()


def test_few_shot(toy, tmp_path: Path, capsys):
    out = tmp_path / "run"
    fit = ["fit", "toy_nearest", "--cohort", str(toy(2)), "--out", str(out), "--shots", "4"]
    assert main([*fit, *SETTINGS]) == 0
    assert "from 50 healthy validation" in capsys.readouterr().out
    assert main([*fit, *SETTINGS, "--resume"]) == 0
    assert "was trained before" in capsys.readouterr().out
    other = [*fit[:-1], "5", *SETTINGS, "--resume"]
    assert main(other) == 2
    assert "begun with other settings (arguments, cohort)" in capsys.readouterr().err


def test_zero_shot(toy, tmp_path: Path, capsys):
    out, table = tmp_path / "run", str(toy(2))
    assert main(["fit", "toy_guess", "--out", str(out), "--state", "bright"]) == 0
    said = capsys.readouterr().out
    assert "the decision is left open" in said and f"normscan predict {out}" in said
    scan = str(toy(2).parent / "test000_c0.npy")
    assert main(["predict", str(out), scan, "--out", str(tmp_path / "found")]) == 0
    assert "decision open, not calibrated on healthy scans" in capsys.readouterr().out
    assert main(["evaluate", str(out), "--cohort", table, "--baselines=false"]) == 0
    assert "the decision is open" in capsys.readouterr().out
    assert main(["subgroups", str(out), "--column", "kind", "--lesions"]) == 0
    assert main(["compare", str(out), str(out)]) == 2
    assert "its decision is open" in capsys.readouterr().err
    assert main(["fit", "toy_nearest", "--out", str(tmp_path / "other")]) == 2
    assert "learns from scans: give it a cohort" in capsys.readouterr().err
